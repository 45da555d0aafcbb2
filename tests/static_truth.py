"""The truth for a static INT8 form: a float64 forward pass over its files, by the formulas of its description alone.

    logits = static_truth.forward("model.safetensors", ids)        # (T, V) float64

It shares no line of code with the engine. The files are read by the `safetensors` package and `json`. Activations are
rounded to their codes where the form says so, to 8 bits, and queries to 16; all else is float64, where the engine has fixed
points of 15 bits (softmax) to 30. So a code that lies near the middle between two may be the other one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from truth import attention, norm, rope


def forward(path: Path, ids: Sequence[int]) -> np.ndarray:
    """The logits after each of the tokens `ids`: (T, V) float64."""
    t = {name: values.astype(np.float64) for name, values in load_file(path).items()}
    c = json.loads(path.with_suffix(".json").read_text())["model"]
    G, D = c["kv_heads"], c["head_size"]

    def coded(x: np.ndarray, name: str) -> np.ndarray:
        scale = t[f"{name}.scale"]
        return np.clip(np.rint(x / scale), -127, 127) * scale

    def matrix(name: str, activation: str) -> np.ndarray:
        return t[f"{name}.weight"] * t[f"{name}.weight_scale"][:, None] / t[f"{activation}.scale"]

    frequency = c["rope_base"] ** (-np.arange(0, c["rope_dims"], 2) / c["rope_dims"])
    angle = np.arange(len(ids))[:, None] * (frequency / t.get("rope_freqs.weight", 1.0))
    table = t["token_embd.weight"] * t["token_embd.weight_scale"][:, None]
    x = table[np.asarray(ids)]
    for i in range(c["layers"]):
        b = f"blk.{i}."
        h = coded(norm(x, t[f"{b}attn_norm.weight"], c["rms_eps"]), f"{b}attn_in")
        q, k, v = (h @ matrix(f"{b}attn_{n}", f"{b}attn_in").T + t.get(f"{b}attn_{n}.bias", 0.0) for n in "qkv")
        q, k = (rope(y.reshape(len(x), -1, D), angle, c["rope_style"] == "interleaved") for y in (q, k))
        k_scale = np.repeat(t[f"{b}k.scale"].reshape(G, D), c["heads"] // G, 0)
        step = t[f"{b}scores.scale"][:, None] / k_scale
        q = np.rint(q / step) * step
        k, v = (coded(y.reshape(len(x), -1), f"{b}{n}").reshape(-1, G, D) for y, n in ((k, "k"), (v, "v")))
        x = x + coded(attention(q, k, v), f"{b}attn_out") @ matrix(f"{b}attn_output", f"{b}attn_out").T
        h = coded(norm(x, t[f"{b}ffn_norm.weight"], c["rms_eps"]), f"{b}ffn_in")
        gate, up = (h @ matrix(f"{b}ffn_{n}", f"{b}ffn_in").T for n in ("gate", "up"))
        product = coded(gate / (1 + np.exp(-gate)) * up, f"{b}product")
        x = x + product @ matrix(f"{b}ffn_down", f"{b}product").T
    if c["tied_embeddings"]:  # coded again, with the scales of its inputs in its columns
        columns = table * t["output_in.scale"]
        rows = (np.abs(columns).max(1, keepdims=True) / 127).astype(np.float32).astype(np.float64)
        head = np.rint(columns / rows) * rows / t["output_in.scale"]
    else:
        head = matrix("output", "output_in")
    return coded(norm(x, t["output_norm.weight"], c["rms_eps"]), "output_in") @ head.T
