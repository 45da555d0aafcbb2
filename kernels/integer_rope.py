"""Rotary embedding in integers, and storing keys and values in an INT8 cache.

    a' = (a cos - b sin) / 2^38        b' = (a sin + b cos) / 2^38        one rounding, then within the limit

Sums of the products become fixed-point numbers of 8 more bits than the codes that they end as, the same scale for both
elements of a pair; cosines and sines are integers in units of 2^-30. So a key is rounded to 2^-9 of a step before it turns,
and once to a step after it has turned.

    k, v   INT8 codes in -127 .. 127, one static scale for each pair of k, and for each element of v
    q      codes of 16 bits, in place of the sums: k's scales are folded into them, so that q . k has one scale a head

Cache of one layer: keys and values each (slots, G, blocks of 8 positions, D, 8) int8, as in `kernels/rope.py`.

Bound: fixed-point numbers are kept within 2^30, so the products' sum is below 2^62.
"""

from typing import Any

import numpy as np

from kernels.integer_rescale import by_ratio, element, rescaled, rescaled_exact, within
from kernels.quantize import share
from kernels.registry import kernel, subroutine
from kernels.rope import rope_pairs
from kernels.run import FIRST, POSITION, ROWS, SLOT, WIDTH
from kernels.types import I8, I32, I64, Int

EXTRA_BITS = 8
TABLE_BITS = 30
ANGLE_SHIFT = EXTRA_BITS + TABLE_BITS
FIXED_LIMIT = 1 << 30
LARGEST = 127
Q_LIMIT = 32767


@subroutine
def turned(
    x: I32,
    at: Int,
    multipliers: I32,
    shifts: I32,
    channel: Int,
    cos: I32,
    sin: I32,
    table: Int,
    head_size: Int,
    pairs: Int,
    spacing: Int,
    distance: Int,
    limit: Int,
) -> None:
    """Turn the head of sums at x[at] in place; what is left there are codes."""
    for d in range(head_size):
        x[at + d] = within(by_ratio(element(x, at + d), multipliers, shifts, channel + d), FIXED_LIMIT)
    half = 1 << (ANGLE_SHIFT - 1)
    for i in range(pairs):
        first = at + i * spacing
        a, b = element(x, first), element(x, first + distance)
        c, s = element(cos, table + i), element(sin, table + i)
        x[first] = within((a * c - b * s + half) >> ANGLE_SHIFT, limit)
        x[first + distance] = within((a * s + b * c + half) >> ANGLE_SHIFT, limit)
    for d in range(2 * pairs, head_size):
        x[at + d] = within(rescaled(element(x, at + d), 1, EXTRA_BITS), limit)


@kernel
def integer_rope_store(
    rank: Int,
    size: Int,
    run: I64,
    q: I32,
    k: I32,
    v: I32,
    multipliers: I32,
    shifts: I32,
    keys: I8,
    values: I8,
    cos: I32,
    sin: I32,
    slots: I64,
    slot_blocks: Int,
    heads: Int,
    kv_heads: Int,
    head_size: Int,
    pairs: Int,
    spacing: Int,
    distance: Int,
    q_stride: Int,
    kv_stride: Int,
    q_limit: Int,
) -> None:
    """Turn the sums q (T, H, D) and k (T, G, D) into codes, in place, and store k and v in the cache.

    multipliers, shifts: of the channels of q, then k, then v. Strides and slots are those of `kernels/rope.py`.
    """
    rows = run[ROWS]
    start, end = share((heads + 2 * kv_heads) * rows, rank, size)
    for i in range(start, end):
        head = i // rows
        t = i - head * rows
        position = run[FIRST + WIDTH * t + POSITION]
        table, channel = position * pairs, head * head_size
        if head < heads:
            at = t * q_stride + channel
            turned(q, at, multipliers, shifts, channel, cos, sin, table, head_size, pairs, spacing, distance, q_limit)
        else:
            g = (head - heads) % kv_heads
            at = t * kv_stride + g * head_size
            first = slots[run[FIRST + WIDTH * t + SLOT]] * kv_heads + g * slot_blocks
            place = (first + position // 8) * head_size * 8 + position % 8
            if head < heads + kv_heads:
                turned(
                    k, at, multipliers, shifts, channel, cos, sin, table, head_size, pairs, spacing, distance, LARGEST
                )
                for d in range(head_size):
                    keys[place + 8 * d] = k[at + d]
            else:
                for d in range(head_size):
                    code = by_ratio(element(v, at + d), multipliers, shifts, channel + d)
                    values[place + 8 * d] = within(code, LARGEST)


def integer_rope_exact(
    x: np.ndarray, multipliers: np.ndarray, shifts: np.ndarray, cos: np.ndarray, sin: np.ndarray, style: str, limit: int
) -> np.ndarray:
    """The same integers in NumPy.

    Args:
        x: (T, H, D) int32 sums; multipliers, shifts: (H, D) int32.
        cos, sin: (T, pairs) int32, of each row's position.

    Returns:
        (T, H, D) int64 codes.
    """
    fixed = rescaled_exact(x, multipliers, shifts, FIXED_LIMIT)
    pairs, spacing, distance = rope_pairs(style, 2 * cos.shape[1])
    first = spacing * np.arange(pairs)
    a, b = fixed[..., first], fixed[..., first + distance]
    c: Any = cos[:, None].astype(np.int64)
    s: Any = sin[:, None].astype(np.int64)
    out = (fixed + (1 << (EXTRA_BITS - 1))) >> EXTRA_BITS
    half = 1 << (ANGLE_SHIFT - 1)
    out[..., first] = (a * c - b * s + half) >> ANGLE_SHIFT
    out[..., first + distance] = (a * s + b * c + half) >> ANGLE_SHIFT
    return np.clip(out, -limit, limit)


def integer_tables(cos: np.ndarray, sin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The tables of `kernels/rope_table.py` in units of 2^-30, int32; exact, since float32 has 24 bits."""
    c, s = (np.rint(x.astype(np.float64) * 2.0**TABLE_BITS).astype(np.int32) for x in (cos, sin))
    return c, s


def q_limit(head_size: int) -> int:
    """How large a code of q may be: 16 bits, or less where q . k would not stay below 2^30."""
    return min(Q_LIMIT, (2**30 - 1) // (LARGEST * head_size))
