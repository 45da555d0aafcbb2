"""The engine's forward pass on an INT4 file, to the bit, in PyTorch: every sum in its order, every rounding where it rounds.

    norm         squares summed by fma in 8 lanes (lane = index modulo 8, ascending), the lanes in a tree;
                 x * (1 / root) * weight
    product      inside a block of 32 the codes are summed as integers; blocks in ascending order, by fma:
                 sum <- fma(integer sum, weight scale * activation scale, sum)
    rotation     a cos - b sin, a sin + b cos, every product rounded by itself
    attention    q . k by fma over ascending elements, times 1 / sqrt(D); exp(score - largest); weights and weighted values
                 summed in 8 lanes (lane = position modulo 8, ascending), the lanes in a tree; divided at the end
    exp          a polynomial in the rest of x / ln 2, by fma
    gate         gate / (1 + exp(-gate)) * up

Float32 operations on single elements are the same everywhere (IEEE 754), so all that has to be kept is their order.
PyTorch's own norm, softmax and products have other orders: a sum that differs in its last bit moves, now and then, an INT8
code by one, and the next product spreads that over all its outputs (1e-4 to 4e-4 nats in the end). So all is written once
more here. It shares no code with the engine; `tests/test_engine_arithmetic.py` compares their logits. There is no gradient.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from models.training.quantization import quantize_activation, quantize_q4_0, quantize_q8_0

if TYPE_CHECKING:
    from models.training.model import Layer, Llama

LANES = 8
ROWS = 32
"""Rows of a product or of queries computed at once: what they need stays in the processor's cache."""

BELOW_FLOAT32, HALF_WAY = (1 << 29) - 1, 1 << 28
"""The bits of a float64 that a float32 has no room for, and their value half-way between two float32."""

LOWEST, HIGHEST = -87.25, 89.0
INVERSE_LN2 = float.fromhex("0x1.715476p+0")
LN2, LN2_REST = float.fromhex("0x1.62e430p-1"), float.fromhex("-0x1.05c610p-29")
EXP = tuple(map(float.fromhex, ("0x1.6a4b36p-10", "0x1.12398ep-7", "0x1.5558b2p-5", "0x1.555492p-3", "0x1.fffffcp-2")))


def fma(a: torch.Tensor, b: torch.Tensor | float, c: torch.Tensor | float) -> torch.Tensor:
    """a * b + c with one rounding, of float32 values; the shapes fit together.

    In float64 the product is exact and the sum nearly. Rounding it once more, to float32, can go wrong only where it lies
    half-way between two float32: there, what the sum has lost decides. (Results below 2^-126 may be off by their last bit.)
    """
    a, b, c = (torch.as_tensor(x, dtype=torch.float64) for x in (a, b, c))
    total = torch.addcmul(c, a, b)
    bits = total.view(torch.int64)
    doubtful = (bits & BELOW_FLOAT32) == HALF_WAY
    if doubtful.any():
        product = a * b
        back = total - product
        lost = (product - (total - back)) + (c - back)  # Knuth's two-sum: total + lost is exact
        away_from_zero = torch.sign(lost).to(torch.int64) * torch.sign(total).to(torch.int64)
        bits += away_from_zero * doubtful
    return total.float()


def tree(lanes: torch.Tensor) -> torch.Tensor:
    """The sum over the last axis, of 8 lanes: those 4 apart, then 2, then 1. (..., 8) -> (...)."""
    for half in (4, 2, 1):
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def exp(x: torch.Tensor) -> torch.Tensor:
    """exp(x) of float32: 2^n exp(r), r = x - n ln 2; 0 below 2^-125.5. The polynomial is doubled, the power halved."""
    x = x.clamp(LOWEST, HIGHEST)
    n = torch.round(x * INVERSE_LN2)
    r = fma(n, -LN2_REST, fma(n, -LN2, x))
    p = torch.full_like(r, 2 * EXP[0])
    for coefficient in (*EXP[1:], 1.0, 1.0):
        p = fma(p, r, 2 * coefficient)
    return p * ((n.int() + 126) << 23).view(torch.float32)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """x (T, K) float32 divided by its root mean square, times weight (K,)."""
    squares = x.new_zeros(len(x), LANES)
    for part in x.split(LANES, dim=-1):
        squares = fma(part, part, squares)
    mean = tree(squares) / x.shape[-1] + epsilon
    root = mean.double().sqrt().float()  # PyTorch's float32 root may be off by its last bit
    return x * (1 / root)[:, None] * weight


def product(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """x (T, K) float32, quantised to INT8, times weights: (T, N).

    codes: (N, K/32, 32), zero point taken off; scales: (N, K/32); both float32. The sum of a block is a whole number below
    2^24, exact in any order.
    """
    parts = []
    for rows in x.split(ROWS):
        x_codes, x_scales = quantize_activation(rows)
        total = x.new_zeros(len(rows), len(codes))
        for b in range(codes.shape[1]):
            total = fma(x_codes[:, b] @ codes[:, b].T, x_scales[:, b] * scales[:, b], total)
        parts.append(total)
    return torch.cat(parts)


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x (T, K) times a matrix (N, K), as Q4_0: of values that are rounded already, quantising finds their codes again."""
    codes, scales = quantize_q4_0(weight)
    return product(x, codes.float() - 8, scales[..., 0].float())


def rotate(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Neighbouring pairs of x (T, H, D) turned by the angles of turns (T, D/2) complex64."""
    a, b = x[..., 0::2], x[..., 1::2]
    cos, sin = turns.real[:, None], turns.imag[:, None]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention (H, T, D) of q, k, v (H, T, D) float32."""
    H, T, D = q.shape
    k, v = (torch.nn.functional.pad(x, (0, 0, 0, -T % LANES)).mT.double() for x in (k, v))
    parts = []
    for start in range(0, T, ROWS):
        rows = q[:, start : start + ROWS]
        R = rows.shape[1]
        P = -(-(start + R) // LANES) * LANES
        scores = q.new_zeros(H, R, P)
        for d in range(D):
            scores = fma(rows[:, :, d, None], k[:, d, None, :P], scores)
        future = torch.arange(P) > torch.arange(start, start + R)[:, None]
        scores = (scores * (1 / math.sqrt(D))).masked_fill_(future, float("-inf"))
        weights = exp(scores - scores.amax(-1, keepdim=True))
        totals, mixed = q.new_zeros(H, R, LANES), q.new_zeros(H, R, D, LANES)
        for p in range(0, P, LANES):
            w = weights[..., p : p + LANES]
            totals = totals + w
            mixed = fma(w[:, :, None], v[:, None, :, p : p + LANES], mixed)
        parts.append(tree(mixed) / tree(totals)[..., None])
    return torch.cat(parts, dim=1)


def layer(x: torch.Tensor, w: Layer, turns: torch.Tensor) -> torch.Tensor:
    """One layer on x (T, hidden)."""
    shape = w.shape

    def heads(h: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return linear(h, weight).unflatten(-1, (-1, shape.head_size))

    h = rms_norm(x, w.attn_norm, shape.norm_epsilon)
    q, k = rotate(heads(h, w.attn_q), turns), rotate(heads(h, w.attn_k), turns)
    k, v = (t.half().float().repeat_interleave(shape.heads // shape.kv_heads, dim=1) for t in (k, heads(h, w.attn_v)))
    mixed = attention(*(t.transpose(0, 1) for t in (q, k, v))).transpose(0, 1).flatten(1)
    x = x + linear(mixed, w.attn_output)
    h = rms_norm(x, w.ffn_norm, shape.norm_epsilon)
    gate, up = linear(h, w.ffn_gate), linear(h, w.ffn_up)
    return x + linear(gate / (1 + exp(-gate)) * up, w.ffn_down)


@torch.no_grad()
def logits(model: Llama, ids: torch.Tensor) -> torch.Tensor:
    """The engine's logits (T, V) float32 after each of ids (T,) int64, for the INT4 file that `model` becomes."""
    codes, scales = quantize_q8_0(model.token_embd)
    x = (codes[ids].float() * scales[ids].float()).flatten(1)
    for w in model.blk:
        x = layer(x, w, model.turns[: len(ids)])
    x = rms_norm(x, model.output_norm, model.shape.norm_epsilon)
    return product(x, codes.float(), scales[..., 0].float())
