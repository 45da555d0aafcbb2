"""Static INT8: a model of 8-bit codes whose every scale is known before it runs, so that it can run in integers alone.

    x[c] = scale[c] * code[c]                         an activation: one scale for each channel, from a calibration text
    W[n, k] * scale[k] = weight_scale[n] * code[n, k]   a matrix: its input's scales lie in its columns, its own in its rows
    (W x)[n] = weight_scale[n] * sum over k of code[n, k] * code[k]                                  sum in int32

All are symmetric: codes are -127 .. 127. The step that writes an activation's codes has a ratio for each channel anyway, so
a scale for each channel costs nothing there. It is the channel's unit, times what all channels have in common:

    scale[c] = unit[c] * limit / 127        limit: what an observer says of |x[c] / unit[c]| over all channels
    unit     of inputs of products          SmoothQuant: sqrt(max |x[c]| / max |W[:, c]|) with power 1/2; 1 with power 0
             of keys, values                max |x[c]|; of keys the same for both elements of a rotary pair, which turn

SmoothQuant's scales, which otherwise are folded into the norms and matrices before, are in the ratios of the steps before.

    tensor                                       dtype, shape
    NAME.weight, NAME.weight_scale               int8 (N, K), float32 (N,)   matrices; the embedding, its columns of scale 1:
                                                                             a tied output is made from it
    NAME.weight, NAME.bias, rope_freqs.weight    float32                     norms, biases, divisors
    output_in.scale, blk.I.ACTIVATION.scale      float32 (channels,)         `layer_shapes`
    x.scale, logits.scale                        float32 (1,)                one step of the residual stream, of a logit

Sources: Xiao et al., "SmoothQuant", 2022, section 4; Jacob et al., "Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference", 2018, section 2.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from kernels.affine import SMALLEST_SPAN
from kernels.integer_gate import UP_BITS
from kernels.integer_logits import LOGIT_BITS
from kernels.integer_residual import CALIBRATED_BITS
from kernels.integer_rope import q_limit
from kernels.rope import rope_pairs
from models.config import ModelConfig, expected_tensors

LARGEST = 127
MOST_LOGIT_BITS = 24
SMOOTH = 0.5
SCORE_HEADROOM = 4.0  # times the largest query that calibration saw; 16 bits can spare it
SMALLEST = 1e-5  # of the largest range: what counts as the range of a channel that was never seen to move
ROWS_AT_ONCE = 4096
INPUTS = {  # matrix -> the activation that it reads
    "attn_q": "attn_in", "attn_k": "attn_in", "attn_v": "attn_in", "attn_output": "attn_out",
    "ffn_gate": "ffn_in", "ffn_up": "ffn_in", "ffn_down": "product", "output": "output_in",
}  # fmt: skip
Tensors = Callable[[str], np.ndarray]
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Static:
    """A model in static INT8.

    Attributes:
        outer: The tensors that belong to no layer, by name.
        layer: Those of layer i, by their names without `blk.i.`; read, or made, when it is called.
    """

    config: ModelConfig
    outer: Arrays
    layer: Callable[[int], Arrays]


# ---- what belongs to the form ----


Shapes = dict[str, tuple[str, tuple[int, ...]]]  # name -> dtype and shape


def outer_shapes(config: ModelConfig) -> Shapes:
    """The tensors that belong to no layer."""
    scales = {"x": 1, "output_in": config.hidden_size, "logits": 1}
    return _shapes({name: s for name, s in expected_tensors(config).items() if not name.startswith("blk.")}, scales)


def layer_shapes(config: ModelConfig) -> Shapes:
    """Those of any layer, by their names without `blk.I.`.

    scores.scale: what one step of q . k is worth, for each head. up.scale: one step of what the gate multiplies.
    """
    c = config
    scales = {"attn_in": c.hidden_size, "scores": c.heads, "k": c.kv_size, "v": c.kv_size, "attn_out": c.query_size}
    scales |= {"ffn_in": c.hidden_size, "up": c.feed_forward_size, "product": c.feed_forward_size}
    first = {name: shape for name, shape in expected_tensors(replace(c, layers=1)).items() if name.startswith("blk.0.")}
    return _shapes({name.removeprefix("blk.0."): shape for name, shape in first.items()}, scales)


def _shapes(tensors: Mapping[str, tuple[int, ...]], scales: Mapping[str, int]) -> Shapes:
    found: Shapes = {f"{name}.scale": ("float32", (channels,)) for name, channels in scales.items()}
    for name, shape in tensors.items():
        found[name] = ("int8" if len(shape) == 2 else "float32", shape)
        if len(shape) == 2:
            found[f"{name}_scale"] = ("float32", shape[:1])
    return found


def stored_shapes(config: ModelConfig) -> Shapes:
    """All tensors of the form."""
    layer = layer_shapes(config)
    layers = {f"blk.{i}.{name}": kind for i in range(config.layers) for name, kind in layer.items()}
    return outer_shapes(config) | layers


# ---- from a float model ----


def channel_units(
    config: ModelConfig, ranges: Arrays, tensor: Tensors, smooth: float = SMOOTH
) -> dict[str, np.ndarray]:
    """The unit of each channel of each activation that becomes INT8, (channels,) float64.

    Args:
        ranges: The largest |x| of each channel, as `models/calibration.py` names activations.
        tensor: Gives a tensor in float32 by its GGUF name.
        smooth: SmoothQuant's power, 0 for one unit for all channels.
    """
    units = {}
    readers: dict[str, list[str]] = {}
    for short, activation in INPUTS.items():
        readers.setdefault(activation, []).append(short)
    for i in range(config.layers):
        block = f"blk.{i}."
        for activation, names in readers.items():
            if activation != "output_in":
                matrices = [f"{block}{short}.weight" for short in names]
                units[block + activation] = balanced(ranges[block + activation], matrices, tensor, smooth)
        units[f"{block}k"] = largest_of_pairs(config, seen(ranges[f"{block}k"]))
        units[f"{block}v"] = seen(ranges[f"{block}v"])
    head = "token_embd.weight" if config.tied_embeddings else "output.weight"
    units["output_in"] = balanced(ranges["output_in"], [head], tensor, smooth)
    return units


def balanced(largest: np.ndarray, matrices: list[str], tensor: Tensors, smooth: float) -> np.ndarray:
    """SmoothQuant's unit of each channel (K,) that the matrices (N, K) read: max |x|^smooth / max |w|^(1 - smooth)."""
    range_ = seen(largest)
    if smooth == 0:
        return np.ones(len(range_))
    columns = np.zeros(len(range_), np.float32)
    for name in matrices:
        columns = np.maximum(columns, np.abs(tensor(name)).max(0))
    if smooth == 0.5:
        return np.sqrt(range_ / seen(columns))  # the same bits everywhere, which powers don't promise
    return range_**smooth / seen(columns) ** (1 - smooth)


def seen(largest: np.ndarray) -> np.ndarray:
    """Ranges in float64, none of them 0."""
    wide = largest.astype(np.float64)
    return np.maximum(wide, max(SMALLEST * wide.max(initial=0.0), 1e-30))


def largest_of_pairs(config: ModelConfig, largest: np.ndarray) -> np.ndarray:
    """(G * D,), where both elements of a rotary pair have the larger of the two."""
    pairs, spacing, distance = rope_pairs(config.rope_style, config.rope_dims)
    heads = largest.reshape(config.kv_heads, config.head_size).copy()
    first = spacing * np.arange(pairs)
    both = np.maximum(heads[:, first], heads[:, first + distance])
    heads[:, first], heads[:, first + distance] = both, both
    return heads.reshape(-1)


def activation_scales(
    config: ModelConfig, ranges: Arrays, units: Arrays, limits: Mapping[str, float] | None = None
) -> dict[str, np.ndarray]:
    """The scales of all activations, float32, by the names of `stored_shapes` without `.scale`.

    limits: of |x / unit|, which code 127 stands for (None: the largest that the ranges tell).
    """
    found = {}
    for name, unit in units.items():
        limit = float((seen(ranges[name]) / unit).max()) if limits is None else max(limits[name], 1e-30)
        found[name] = unit * (limit / LARGEST)
    for i in range(config.layers):
        block = f"blk.{i}."
        of_query = for_queries(config, found[f"{block}k"])
        q_range = seen(ranges[f"{block}q"]).reshape(config.heads, config.head_size) * of_query
        found[f"{block}scores"] = q_range.max(1) * (SCORE_HEADROOM / q_limit(config.head_size))
        found[f"{block}up"] = seen(ranges[f"{block}up"]) * 2.0**-UP_BITS
    found["x"] = np.array([2.0 ** (bits_above(ranges["x"]) - CALIBRATED_BITS)])
    found["logits"] = np.array([2.0 ** max(-MOST_LOGIT_BITS, bits_above(ranges["logits"]) - LOGIT_BITS)])
    return {name: scale.astype(np.float32) for name, scale in found.items()}


def for_queries(config: ModelConfig, of_kv: np.ndarray) -> np.ndarray:
    """From the channels of the key/value heads, (G * D,), to those of the query heads that read them, (H, D)."""
    return np.repeat(of_kv.reshape(config.kv_heads, config.head_size), config.heads // config.kv_heads, 0)


def bits_above(largest: np.ndarray) -> int:
    """The least n for which all values are below 2^n."""
    return math.frexp(float(seen(largest).max()))[1]


def row_codes(weight: np.ndarray, column_scales: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric INT8 for each row of W[n, k] * column_scales[k].

    Args:
        weight: (N, K) float32.
        column_scales: (K,), what one step of an input is worth; None: 1.

    Returns:
        (N, K) int8 in -127 .. 127 and (N,) float32, the scale of each row; 1 for a row of zeros.
    """
    codes, scales = np.empty(weight.shape, np.int8), np.empty(len(weight), np.float32)
    columns = np.float64(1) if column_scales is None else column_scales.astype(np.float64)
    for start in range(0, len(weight), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        folded = weight[rows] * columns
        scale = (np.abs(folded).max(1) / LARGEST).astype(np.float32)
        scale[scale < SMALLEST_SPAN] = 1
        codes[rows] = np.clip(np.rint(folded / scale[:, None]), -LARGEST, LARGEST)
        scales[rows] = scale
    return codes, scales


def from_floats(config: ModelConfig, tensor: Tensors, scales: Arrays) -> Static:
    """A float model in static INT8, by the scales of its activations; layers are made as they are asked for."""

    def part(shapes: Shapes, prefix: str) -> dict[str, np.ndarray]:
        made: dict[str, np.ndarray] = {}
        for name, (dtype, _) in shapes.items():
            stem, kind = name.rsplit(".", 1)
            if kind == "scale":
                made[name] = scales[prefix + stem]
            elif dtype == "int8":
                columns = scales[prefix + INPUTS[stem]] if stem in INPUTS else None
                made[name], made[f"{name}_scale"] = row_codes(tensor(prefix + name), columns)
            elif kind != "weight_scale":
                made[name] = tensor(prefix + name)
        return made

    layer = layer_shapes(config)
    return Static(config, part(outer_shapes(config), ""), lambda i: part(layer, f"blk.{i}."))
