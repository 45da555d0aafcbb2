"""Causal attention in integers over the INT8 cache: scores in int32, weights of a softmax in 15 bits, sums in int64.

    s[p] = q . k[p]      w[p] = round(2^15 exp(scale (s[p] - max s)))      out = round(ratio * (sum of w v / sum of w))

q's codes have k's scales folded in, so one scale serves a head: a multiplier and a shift, which hold log2(e) too. The
largest weight is 2^15. Sums of w v run in int32 for 32 blocks of 8 positions at a time, then in int64; their quotient is in
units of 2^-16 of v's step, and each channel's ratio turns it into the INT8 code that the next matrix reads.

Work is split over (head, row); a worker's scratch is one row of scores. Positions beyond the row's own get weight 0.

Bound: |q| <= (2^30 - 1) / (127 D), so |s| < 2^30; 8 * 32 * 2^15 * 127 < 2^30 in int32; 2^15 * 127 * 2^16 for each of 2^24
positions stays below 2^62.

I-BERT: Kim et al., 2021, section 3.4, algorithm 3.
"""

from typing import Any

import numpy as np

from kernels.integer_exp import RESULT_BITS, exp2_negative, exp2_negative_exact
from kernels.integer_rescale import by_ratio, element, rescaled, rescaled_exact, within
from kernels.quantize import share
from kernels.registry import kernel, subroutine
from kernels.run import FIRST, POSITION, ROWS, SLOT, WIDTH
from kernels.simd import add_i32, load_i8x8, load_i32x8, mul_i32, splat_i32, store_i32x8, sum_i32
from kernels.types import I8, I32, I64, Int

TILE = 32
WEIGHT_BITS = 15
QUOTIENT_BITS = 16
LARGEST = 127
LOWEST = -(1 << 31)


@subroutine
def store_scores(scores: I32, to: Int, q: I32, at: Int, keys: I8, first: Int, blocks: Int, head_size: Int) -> None:
    """scores[to + p] = q . k[p] for all positions of the blocks of keys from keys[first] on."""
    for b in range(blocks):
        place = first + b * head_size * 8
        even, odd = splat_i32(np.int32(0)), splat_i32(np.int32(0))
        for d in range(0, head_size - 1, 2):
            even = add_i32(even, mul_i32(splat_i32(q[at + d]), load_i8x8(keys, place + 8 * d)))
            odd = add_i32(odd, mul_i32(splat_i32(q[at + d + 1]), load_i8x8(keys, place + 8 * d + 8)))
        if head_size % 2 == 1:
            d = head_size - 1
            even = add_i32(even, mul_i32(splat_i32(q[at + d]), load_i8x8(keys, place + 8 * d)))
        store_i32x8(scores, to + 8 * b, add_i32(even, odd))


@subroutine
def integer_softmax(scores: I32, at: Int, length: Int, multiplier: Int, shift: Int) -> Int:
    """Turn `length` scores into weights, in place, and those behind them up to a multiple of 8 into 0; their sum."""
    largest = LOWEST
    for p in range(at, at + length):
        s = element(scores, p)
        largest = s if s > largest else largest
    total = 0
    half = 1 << (RESULT_BITS - WEIGHT_BITS - 1)
    for p in range(at, at + length):
        t = rescaled(largest - element(scores, p), multiplier, shift)
        w = (exp2_negative(t) + half) >> (RESULT_BITS - WEIGHT_BITS)
        scores[p] = w
        total += w
    for p in range(at + length, at + (length + 7) // 8 * 8):
        scores[p] = 0
    return total


@subroutine
def weighted_sum(scores: I32, at: Int, values: I8, first: Int, blocks: Int, head_size: Int) -> Int:
    """The sum of w[p] v[p], one element of v, which begins at values[first]."""
    total = 0
    for tile in range(0, blocks, TILE):
        end = tile + TILE if tile + TILE < blocks else blocks
        even, odd = splat_i32(np.int32(0)), splat_i32(np.int32(0))
        for b in range(tile, end - 1, 2):
            place = first + b * head_size * 8
            even = add_i32(even, mul_i32(load_i32x8(scores, at + 8 * b), load_i8x8(values, place)))
            w = load_i32x8(scores, at + 8 * b + 8)
            odd = add_i32(odd, mul_i32(w, load_i8x8(values, place + head_size * 8)))
        if (end - tile) % 2 == 1:
            w = load_i32x8(scores, at + 8 * end - 8)
            even = add_i32(even, mul_i32(w, load_i8x8(values, first + (end - 1) * head_size * 8)))
        summed: Any = np.int64(sum_i32(add_i32(even, odd)))
        total += summed
    return total


@kernel
def integer_attention(
    rank: Int,
    size: Int,
    run: I64,
    out: I8,
    q: I32,
    keys: I8,
    values: I8,
    scores: I32,
    head_multipliers: I32,
    head_shifts: I32,
    multipliers: I32,
    shifts: I32,
    slots: I64,
    slot_blocks: Int,
    heads: Int,
    kv_heads: Int,
    head_size: Int,
    q_stride: Int,
    stride: Int,
    score_stride: Int,
) -> None:
    """out = the codes of attention for all rows; q are codes from `integer_rope_store`.

    head_multipliers, head_shifts: (H,), of a score; multipliers, shifts: (H * D,), of a channel of out.
    """
    rows = run[ROWS]
    start, end = share(heads * rows, rank, size)
    own = rank * score_stride
    for i in range(start, end):
        head = i // rows
        t = i - head * rows
        g = head // (heads // kv_heads)
        position = run[FIRST + WIDTH * t + POSITION]
        blocks = position // 8 + 1
        first = (slots[run[FIRST + WIDTH * t + SLOT]] * kv_heads + g * slot_blocks) * head_size * 8
        store_scores(scores, own, q, t * q_stride + head * head_size, keys, first, blocks, head_size)
        multiplier, shift = element(head_multipliers, head), element(head_shifts, head)
        total = integer_softmax(scores, own, position + 1, multiplier, shift)
        for d in range(head_size):
            summed = weighted_sum(scores, own, values, first + 8 * d, blocks, head_size)
            mean = ((summed << QUOTIENT_BITS) + (total >> 1)) // total
            channel = head * head_size + d
            out[t * stride + channel] = within(by_ratio(mean, multipliers, shifts, channel), LARGEST)


def integer_attention_exact(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    head_fixed: tuple[np.ndarray, np.ndarray],
    fixed: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """The same integers in NumPy, for a sequence from its first position on.

    Args:
        q: (T, H, D) codes; k, v: (T, G, D) int8.
        head_fixed: multipliers and shifts (H,); fixed: (H, D).

    Returns:
        (T, H, D) int8.
    """
    (T, H, D), G = q.shape, k.shape[1]
    out = np.zeros((T, H, D), np.int64)
    for t in range(T):
        for h in range(H):
            keys, values = (x[: t + 1, h // (H // G)].astype(np.int64) for x in (k, v))
            s = keys @ q[t, h].astype(np.int64)
            t_ = rescaled_exact((s.max() - s)[:, None], head_fixed[0][h : h + 1], head_fixed[1][h : h + 1], 2**62)[:, 0]
            w = (exp2_negative_exact(t_) + (1 << (RESULT_BITS - WEIGHT_BITS - 1))) >> (RESULT_BITS - WEIGHT_BITS)
            mean = (((w @ values) << QUOTIENT_BITS) + (w.sum() >> 1)) // w.sum()
            out[t, h] = rescaled_exact(mean[None], fixed[0][h], fixed[1][h], LARGEST)[0]
    return out.astype(np.int8)


def integer_attention_truth(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, head_ratios: np.ndarray, ratios: np.ndarray
) -> np.ndarray:
    """The same in float64, not rounded.

    Args:
        head_ratios: (H,), what a score is worth in octaves (powers of 2); ratios: (H, D), out's codes for one step of v.
    """
    (T, H, D), G = q.shape, k.shape[1]
    out = np.zeros((T, H, D))
    for t in range(T):
        for h in range(H):
            keys, values = (x[: t + 1, h // (H // G)].astype(np.float64) for x in (k, v))
            s = keys @ q[t, h].astype(np.float64) * head_ratios[h]
            w = 2.0 ** (s - s.max())
            out[t, h] = np.clip(w @ values / w.sum() * ratios[h], -LARGEST, LARGEST)
    return out
