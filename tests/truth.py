"""The truth for a whole model: a float64 forward pass that shares no line of code with the engine.

The file is read and dequantised by the `gguf` package, and everything after that is float64 NumPy: no rounding of
activations, no cache, no tiles. A step table could wire the right kernels wrongly and agree with itself; not with this.

    logits = truth.forward("model.gguf", ids)           # (T, V) float64
    truth.kl(logits, llm.logits(ids))                   # mean over the tokens, in nats

Llama ("llama": rope pairs 2i and 2i+1) and Qwen2 ("qwen2": pairs i and i + D/2, biases on q, k, v).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize


def forward(path: str | os.PathLike[str], ids: Sequence[int]) -> np.ndarray:
    """The logits after each of the tokens `ids`: (T, V) float64."""
    reader = GGUFReader(os.fspath(path))
    # dequantize gives float32, exactly: a scale has 11 bits, a code 8
    tensors = {t.name: dequantize(t.data, t.tensor_type).reshape(t.shape[::-1]) for t in reader.tensors}
    arch = reader.get_field("general.architecture").contents()

    def key(name: str, default: Any = None) -> Any:
        field = reader.get_field(f"{arch}.{name}")
        return default if field is None else field.contents()

    def weight(name: str) -> np.ndarray:
        return tensors[name].astype(np.float64)

    H, hidden = key("attention.head_count"), key("embedding_length")
    G, D = key("attention.head_count_kv", H), key("attention.key_length", hidden // H)
    eps = key("attention.layer_norm_rms_epsilon")
    dims = key("rope.dimension_count", D)
    frequency = key("rope.freq_base", 10000.0) ** (-np.arange(0, dims, 2) / dims)
    if "rope_freqs.weight" in tensors:
        frequency = frequency / weight("rope_freqs.weight")
    angle = np.arange(len(ids))[:, None] * frequency
    x = weight("token_embd.weight")[np.asarray(ids)]
    for i in range(key("block_count")):
        a = norm(x, weight(f"blk.{i}.attn_norm.weight"), eps)
        q, k, v = (a @ weight(f"blk.{i}.attn_{n}.weight").T + tensors.get(f"blk.{i}.attn_{n}.bias", 0.0) for n in "qkv")
        q, k = (rope(y.reshape(len(x), -1, D), angle, arch == "llama") for y in (q, k))
        x = x + attention(q, k, v.reshape(len(x), G, D)) @ weight(f"blk.{i}.attn_output.weight").T
        a = norm(x, weight(f"blk.{i}.ffn_norm.weight"), eps)
        gate, up = a @ weight(f"blk.{i}.ffn_gate.weight").T, a @ weight(f"blk.{i}.ffn_up.weight").T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ weight(f"blk.{i}.ffn_down.weight").T
    output = "output.weight" if "output.weight" in tensors else "token_embd.weight"
    return norm(x, weight("output_norm.weight"), eps) @ weight(output).T


def norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """Root mean square norm of (T, K)."""
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps) * weight


def rope(x: np.ndarray, angle: np.ndarray, interleaved: bool) -> np.ndarray:
    """Turn the pairs of x (T, H, D) by angle (T, dims / 2); dimensions beyond `dims` stay."""
    dims = 2 * angle.shape[1]
    even, odd = (slice(0, dims, 2), slice(1, dims, 2)) if interleaved else (slice(dims // 2), slice(dims // 2, dims))
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    turned = x.copy()
    turned[..., even] = x[..., even] * cos - x[..., odd] * sin
    turned[..., odd] = x[..., even] * sin + x[..., odd] * cos
    return turned


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Causal grouped-query attention: q (T, H, D), k and v (T, G, D) -> (T, H * D)."""
    (T, H, D), G = q.shape, k.shape[1]
    k, v = (np.repeat(y, H // G, axis=1) for y in (k, v))
    scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(D)
    scores[:, ~np.tri(T, dtype=bool)] = -np.inf
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hts,shd->thd", p / p.sum(-1, keepdims=True), v).reshape(T, H * D)


def kl(p: np.ndarray, q: np.ndarray) -> float:
    """The mean over the tokens of KL(softmax p || softmax q), in nats; p and q: logits (T, V)."""
    log_p, log_q = log_softmax(p), log_softmax(q)
    return float(np.mean(np.sum(np.exp(log_p) * (log_p - log_q), -1)))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log probabilities in float64, whatever the logits come in."""
    shifted = logits.astype(np.float64) - np.max(logits, -1, keepdims=True).astype(np.float64)
    return shifted - np.log(np.sum(np.exp(shifted), -1, keepdims=True))
