"""Static INT8: INT8 weights with a scale for each output, INT8 inputs with one scale that calibration has fixed.

    out[t, n] = x_scale * w_scale[n] * sum over k of x_code[t, k] * w_code[n, k]            sum in int32

`quantize_static` makes it from a float model; `forward` computes it as it will be in integers, except that norms, rotary
embedding, softmax, SiLU and the residual stay in float32. Inputs are symmetric (no zero point), as weights are.

    name                      dtype, shape
    NAME.weight               int8 (N, K)         matrices; the embedding too, whose scale belongs to a row
    NAME.weight_scale         float32 (N,)
    NAME.input_scale          float32 (1,)        of a product's input; the same for all matrices that read it
    NAME.weight, NAME.bias    float32             norms, biases
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from kernels.affine import INT8, fit, fit_channels
from kernels.rope_table import rope_tables
from models.config import ModelConfig, expected_tensors
from models.quantizers.calibrate import ROWS_AT_ONCE, Model
from models.quantizers.folding import fold, magnitudes, smooth_scale
from models.quantizers.observers import Observer
from models.quantizers.transformer import GROUPS, rms_norm, run_layer

Emit = Callable[[str, np.ndarray], None]


def quantize_static(model: Model, texts: list[np.ndarray], observer: str, smooth: float, emit: Emit) -> Iterator[str]:
    """Quantises a float model, layer by layer; yields the name of each tensor when it has been emitted.

    Args:
        texts: Token ids of the calibration.
        observer: One of OBSERVERS.
        smooth: SmoothQuant's power, 0 for none.
    """
    config = model.config
    angles = model.angles(max(map(len, texts)))
    xs = model.embedded(texts)
    for i in range(config.layers):
        layer = model.layer(i)
        if smooth > 0:
            largest = {group: magnitudes(inputs())[1] for group, inputs in run_layer(config, layer, xs, angles)}
            for later in GROUPS[::-1]:  # later groups change rows of earlier ones, whose own columns come after
                fold(config, layer, later, smooth_scale(config, layer, later, largest[later], smooth))
        steps = run_layer(config, layer, xs, angles)
        for group, inputs in steps:
            watched = Observer(observer)
            for x in inputs():
                watched.watch(x)
            for short in group:
                name = f"blk.{i}.{short}"
                emit(name + ".input_scale", _scale(watched))
        for short, values in layer.items():
            name = f"blk.{i}.{short}"
            if values.ndim == 2:
                _emit_matrix(name, values, emit)
            else:
                emit(name if short.endswith(".bias") else name + ".weight", values.astype(np.float32))
            yield name if short.endswith(".bias") else name + ".weight"
        xs = steps.result
    norm = model.read("output_norm.weight")
    watched = Observer(observer)
    for x in xs:
        watched.watch(rms_norm(x, norm, config.rms_eps))
    output = "token_embd" if config.tied_embeddings else "output"
    emit(output + ".input_scale", _scale(watched))
    emit("output_norm.weight", norm)
    yield "output_norm.weight"
    if config.rope_divisors:
        emit("rope_freqs.weight", model.read("rope_freqs.weight"))
        yield "rope_freqs.weight"
    for name in dict.fromkeys(("token_embd", output)):
        rows, columns = expected_tensors(config)[name + ".weight"]
        for start in range(0, rows, max(1, ROWS_AT_ONCE // columns)):
            index = np.arange(start, min(start + max(1, ROWS_AT_ONCE // columns), rows))
            _emit_matrix(name, model.rows(name + ".weight", index), emit)
        yield name + ".weight"


def stored_shapes(config: ModelConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """All tensors of the form: name -> dtype and shape."""
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, shape in expected_tensors(config).items():
        if len(shape) == 1:
            found[name] = ("float32", shape)
            continue
        stem = name.removesuffix(".weight")
        found[name] = ("int8", shape)
        found[stem + ".weight_scale"] = ("float32", shape[:1])
        if name != "token_embd.weight" or config.tied_embeddings:
            found[stem + ".input_scale"] = ("float32", (1,))
    return found


def _emit_matrix(name: str, values: np.ndarray, emit: Emit) -> None:
    made = fit_channels(values, 0, INT8, symmetric=True)
    scale = made.scale.astype(np.float32)
    codes = np.clip(np.rint(values / scale), -INT8.high, INT8.high).astype(np.int8)
    emit(name + ".weight", codes)
    emit(name + ".weight_scale", scale.reshape(-1))


def _scale(watched: Observer) -> np.ndarray:
    limit = watched.limit()
    return fit(-limit, limit, INT8, symmetric=True).scale.astype(np.float32).reshape(1)


@dataclass(frozen=True, slots=True)
class Static:
    """A model in static INT8: its configuration, and the tensors of `stored_shapes`."""

    config: ModelConfig
    tensors: Mapping[str, np.ndarray]

    def forward(self, ids: np.ndarray) -> np.ndarray:
        """The logits after each token, (T, V) float32. Products are of integers, and exact in float32 up to K = 1040."""
        c, t = self.config, self.tensors
        angles = rope_tables(len(ids), c.rope_dims, c.rope_base, t.get("rope_freqs.weight"))
        x = [t["token_embd.weight"][ids].astype(np.float32) * t["token_embd.weight_scale"][ids][:, None]]
        for i in range(c.layers):
            prefix = f"blk.{i}."

            def rounded(short: str, x: np.ndarray, prefix: str = prefix) -> np.ndarray:
                return self._codes(prefix + short, x)

            x = run_layer(c, self._layer(prefix), x, angles, rounded).finish()
        name = "token_embd" if c.tied_embeddings else "output"
        h = self._codes(name, rms_norm(x[0], t["output_norm.weight"], c.rms_eps))
        factors = t[name + ".weight_scale"] * t[name + ".input_scale"]
        logits: np.ndarray = h @ t[name + ".weight"].astype(np.float32).T * factors
        return logits

    def _codes(self, name: str, x: np.ndarray) -> np.ndarray:
        """The codes of a product's input, as float32: its scale is multiplied to the weights."""
        return np.clip(np.rint(x / self.tensors[name + ".input_scale"]), -INT8.high, INT8.high)

    def _layer(self, prefix: str) -> dict[str, np.ndarray]:
        found = {}
        for name, values in self.tensors.items():
            if name.startswith(prefix) and not name.endswith("_scale"):
                short = name.removeprefix(prefix)
                stem = prefix + short.removesuffix(".weight")
                if values.ndim == 2:
                    scale = self.tensors[stem + ".weight_scale"] * self.tensors[stem + ".input_scale"]
                    values = values.astype(np.float32) * scale[:, None]
                found[short.removesuffix(".weight")] = values
        return found
