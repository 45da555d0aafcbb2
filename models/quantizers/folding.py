"""Scaling columns of a matrix up or down, made good by what comes before it: the float model stays the same function.

    y = (W diag(s)) (diag(1/s) x)         diag(1/s) goes into the weights that make x

    q, k, v        <- attn_norm             gate, up    <- ffn_norm
    attn_output    <- rows of v             ffn_down    <- rows of up      (shared by all heads that share a value head)

AWQ scales up the columns that meet large inputs, so that rounding harms them less: s = (mean |x|)^a, a chosen for each
group by the error of its rounded products. (SmoothQuant, which scales the same columns, needs no folding in static INT8:
there each channel has a ratio of its own anyway, see `static.py`.)

Source: Lin et al., "AWQ", 2023, section 3.2.
"""

from collections.abc import Iterable

import numpy as np

from kernels.block_types import QUANTIZERS
from models.config import ModelConfig
from models.quantizers.transformer import Layer

POWERS = np.linspace(0, 1, 11)
LARGEST_RATIO = 1e4  # between the scales of a group
Group = tuple[str, ...]


def mean_magnitude(inputs: Iterable[np.ndarray]) -> np.ndarray:
    """The mean |x| of each column of inputs (T, K)."""
    total, count = np.zeros(()), 0
    for x in inputs:
        total, count = total + np.abs(x).sum(0, dtype=np.float64), count + len(x)
    return total / max(count, 1)


def shared(config: ModelConfig, group: Group, x: np.ndarray) -> np.ndarray:
    """One number for each column of a group, made the same where the columns come from the same row of v."""
    if group != ("attn_output",):
        return x
    heads = x.reshape(config.kv_heads, -1, config.head_size).max(1, keepdims=True)
    return np.broadcast_to(heads, (config.kv_heads, config.heads // config.kv_heads, config.head_size)).reshape(-1)


def fold(config: ModelConfig, layer: Layer, group: Group, scale: np.ndarray) -> None:
    """Multiplies a group's columns by `scale` (K,) and divides what makes them; new arrays take the places of the old."""
    scale = scale.astype(np.float32)
    for name in group:
        layer[name] = layer[name] * scale
    if group == ("attn_output",):
        rows = scale.reshape(config.kv_heads, -1, config.head_size)[:, 0].reshape(-1)
        _divide_rows(layer, "attn_v", rows)
    elif group == ("ffn_down",):
        _divide_rows(layer, "ffn_up", scale)
    else:
        norm = "attn_norm" if group[0] == "attn_q" else "ffn_norm"
        layer[norm] = layer[norm] / scale


def _divide_rows(layer: Layer, name: str, scale: np.ndarray) -> None:
    layer[name] = layer[name] / scale[:, None]
    if name + ".bias" in layer:
        layer[name + ".bias"] = layer[name + ".bias"] / scale


def awq_scale(
    config: ModelConfig, layer: Layer, group: Group, types: dict[str, str], mean: np.ndarray, moments: np.ndarray
) -> np.ndarray:
    """AWQ's s (K,): of the powers tried, that with the least squared error of the group's rounded products.

    types: of the group's matrices, by short name.  mean: (K,) mean |x|.  moments: H = X X^T, (K, K).
    """
    base = shared(config, group, np.maximum(mean, 1e-8))
    best, least = np.ones(len(base)), np.inf
    for power in POWERS:
        scale = _limited(base**power)
        error = 0.0
        for name in group:
            if types[name] in QUANTIZERS:
                w = layer[name]
                back = rounded_with(w * scale.astype(np.float32), types[name], np.diag(moments) / scale**2)[1]
                difference = back / scale - w
                error += float(np.einsum("nk,nk->", difference @ moments, difference))
        if error < least:
            best, least = scale, error
    return best


def rounded_with(weight: np.ndarray, type_: str, importance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A matrix rounded with each column's error counting as the mean square of its inputs: bytes and values."""
    mean = max(float(importance.mean()), 1e-30)
    counts = np.maximum(importance / mean, 1e-6).astype(np.float32)
    return QUANTIZERS[type_].rounded(np.ascontiguousarray(weight, np.float32), counts)


def _limited(scale: np.ndarray) -> np.ndarray:
    """Geometric middle 1, and no ratio beyond what float16 scales bear."""
    scale = scale / np.exp(np.mean(np.log(scale)))
    half = np.sqrt(LARGEST_RATIO)
    return np.clip(scale, 1 / half, half)
