"""Quantising a model's tensors with the help of a calibration text, layer by layer, and by rounding alone.

    read(name)            a float tensor, float32         rows(name, ids)    some rows of one
    emit(name, bytes)     takes a quantised tensor, or a part of one

With GPTQ two streams of activations run through each layer: those of the float model, and those of the layers as they have
been quantised so far, which are what the next matrix will meet.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from kernels.block_types import QUANTIZERS
from kernels.rope_table import rope_tables
from models.config import ModelConfig, expected_tensors
from models.quantizers.folding import awq_scale, fold, mean_magnitude, rounded_with
from models.quantizers.gptq import Plan, against_drift, gathered, gptq, moments, plan
from models.quantizers.transformer import GROUPS, MATRICES, Angles, Keep, Layer, Texts, run_layer

ROWS_AT_ONCE = 1 << 20  # elements of a matrix that are rounded together
FLOAT_DTYPES = {"F32": "<f4", "F16": "<f2"}
Emit = Callable[[str, np.ndarray], None]


@dataclass(frozen=True, slots=True)
class Model:
    """A float model that can be read tensor by tensor.

    Attributes:
        read: Name -> the tensor in float32, in its shape.
        rows: Name and indices -> some rows of a matrix, float32.
        keep: Where activations are kept that are needed again; see `run_layer`.
    """

    config: ModelConfig
    read: Callable[[str], np.ndarray]
    rows: Callable[[str, np.ndarray], np.ndarray]
    keep: Keep = list

    def layer(self, i: int) -> Layer:
        """All tensors of a layer by their short names."""
        prefix = f"blk.{i}."
        names = [name for name in expected_tensors(self.config) if name.startswith(prefix)]
        return {name.removeprefix(prefix).removesuffix(".weight"): self.read(name) for name in names}

    def angles(self, length: int) -> Angles:
        """Cosines and sines of the first `length` positions."""
        divisors = self.read("rope_freqs.weight") if self.config.rope_divisors else None
        return rope_tables(length, self.config.rope_dims, self.config.rope_base, divisors)

    def embedded(self, texts: list[np.ndarray]) -> Texts:
        """The embedding rows of each text, (T, hidden)."""
        return self.keep(self.rows("token_embd.weight", ids) for ids in texts)


def encode(x: np.ndarray, type_: str) -> tuple[np.ndarray, np.ndarray]:
    """A matrix's rows as bytes of a type, by rounding, and the values that they stand for."""
    if type_ in QUANTIZERS:
        return QUANTIZERS[type_].rounded(np.ascontiguousarray(x, np.float32))
    if type_ == "BF16":
        bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
        upper = (bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16  # to the nearest, of two equally near the even one
        return upper.astype("<u2").reshape(-1).view(np.uint8), (upper << 16).view(np.float32)
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(x.astype(FLOAT_DTYPES[type_]))
    if not np.isfinite(stored).all():
        raise ValueError("holds weights that are too large for F16; choose BF16 or F32")
    return stored.reshape(-1).view(np.uint8), stored.astype(np.float32)


def round_tensor(model: Model, name: str, type_: str, emit: Emit) -> None:
    """Rounds a tensor, some rows at a time."""
    shape = expected_tensors(model.config)[name]
    if len(shape) == 1:
        emit(name, encode(model.read(name), type_)[0])
        return
    step = max(1, ROWS_AT_ONCE // shape[1])
    for start in range(0, shape[0], step):
        part = np.arange(start, min(start + step, shape[0]))
        emit(name, encode(model.rows(name, part), type_)[0])


def gptq_layers(model: Model, types: Mapping[str, str], texts: list[np.ndarray], emit: Emit) -> Iterator[str]:
    """Quantises the matrices of all layers with GPTQ, emitting each; yields its name when it is done.

    Memory: first the float model runs a layer, and the inputs of all its products are kept (`Model.keep`); its matrices are
    let go, and read again group by group. In float32 there is at most: either the whole layer; or, for a group, its matrices
    twice and half of H of their inputs. Besides there are Python, the vocabulary, and a few times the widest activations of
    one text. (In Qwen2.5-0.5B's shape: 60 MB; 82 MB for ffn_down, 72 MB for ffn_gate and ffn_up; 75 MB; 10 MB each.)

    Args:
        types: The type of each tensor by its GGUF name.
        texts: Token ids of the calibration, each text at most as long as the context.
    """
    config, keep = model.config, model.keep
    angles = model.angles(max(map(len, texts)))
    originals = model.embedded(texts)
    streams = keep(encode(x, types["token_embd.weight"])[1].reshape(x.shape) for x in originals)
    for i in range(config.layers):
        layer = model.layer(i)
        steps = run_layer(config, layer, originals, angles, keep=keep)
        reference = [inputs for _, inputs in steps]
        originals = steps.result
        for short in MATRICES:
            del layer[short]
        steps = run_layer(config, layer, streams, angles, keep=keep)
        for (group, inputs), original_inputs in zip(steps, reference):
            for short in MATRICES[: MATRICES.index(group[0])]:
                layer.pop(short, None)
            weights = {short: model.read(f"blk.{i}.{short}.weight") for short in group}
            sequence, h, moved = gathered(inputs, original_inputs, weights)
            given = plan(sequence, h)
            for short in group:
                name = f"blk.{i}.{short}.weight"
                layer[short] = against_drift(weights.pop(short), moved.pop(short), given)
                for data in _fed_back(layer, short, types[name], given):
                    emit(name, data)
                yield name
            del h, given
        streams = steps.result


def _fed_back(layer: Layer, short: str, type_: str, given: Plan) -> Iterator[np.ndarray]:
    """The bytes of a matrix of the layer, part by part; its place is taken by what they stand for."""
    if type_ in QUANTIZERS:
        yield from gptq(layer[short], given, QUANTIZERS[type_])
    else:
        data, layer[short] = encode(layer[short], type_)
        yield data


def awq_layers(model: Model, types: Mapping[str, str], texts: list[np.ndarray], emit: Emit) -> Iterator[str]:
    """Quantises all tensors of all layers with AWQ's scales folded in; arguments and results as `gptq_layers`."""
    config = model.config
    angles = model.angles(max(map(len, texts)))
    xs = model.embedded(texts)
    for i in range(config.layers):
        layer = model.layer(i)
        kinds = {short: types.get(f"blk.{i}.{short}.weight", "F32") for short in layer}
        steps = run_layer(config, dict(layer), xs, angles, keep=model.keep)
        seen = {}
        for group, inputs in steps:
            seen[group] = mean_magnitude(inputs()), moments(inputs())
        importance: dict[str, np.ndarray] = {}
        for group in GROUPS[::-1]:  # a later group changes rows of an earlier one, whose own columns come after
            mean, h = seen[group]
            scale = awq_scale(config, layer, group, kinds, mean, h)
            fold(config, layer, group, scale)
            importance |= dict.fromkeys(group, np.diag(h) / scale**2)
        for short, values in layer.items():
            name = f"blk.{i}.{short}" if short.endswith(".bias") else f"blk.{i}.{short}.weight"
            if types[name] in QUANTIZERS:
                emit(name, rounded_with(values, types[name], importance[short])[0])
            else:
                emit(name, encode(values, types[name])[0])
            yield name
        xs = steps.result
