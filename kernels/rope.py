"""Rotary position embedding of the queries and keys of each row, and storing keys and values in the cache.

    a' = a cos - b sin        b' = a sin + b cos        for each pair (a, b) of the first 2 * pairs elements of a head

    interleaved   pair i is (2 i, 2 i + 1)         spacing 2, distance 1
    halves        pair i is (i, i + pairs)         spacing 1, distance pairs

The other elements stay as they are. Products and their difference or sum are rounded each by itself (no fma).

Cache of one layer: keys and values each (blocks of 8 positions, G, D, 8), the lane being the position modulo 8; a
sequence begins at block slots[slot]:

    | block 0: head 0: element 0 of positions 0..7 | element 1 of positions 0..7 | ... | head 1: ... | block 1: ...

The tables of cosines and sines, (context, pairs): `kernels/rope_table.py`. Work is split over (head, row), heads of queries,
keys and values alike.

Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021, section 3.4.2.
"""

import numpy as np

from kernels.quantize import share
from kernels.registry import kernel, subroutine
from kernels.run import FIRST, POSITION, ROWS, SLOT, WIDTH
from kernels.simd import store_f16
from kernels.types import F16, F32, I64, Int


@subroutine
def turn(x: F32, at: Int, cos: F32, sin: F32, table: Int, pairs: Int, spacing: Int, distance: Int) -> None:
    """Turn the head at x[at] by the angles at cos[table] and sin[table], in place."""
    for i in range(pairs):
        a = x[at + i * spacing]
        b = x[at + i * spacing + distance]
        c = cos[table + i]
        s = sin[table + i]
        x[at + i * spacing] = np.float32(a * c) - np.float32(b * s)
        x[at + i * spacing + distance] = np.float32(a * s) + np.float32(b * c)


@subroutine
def cache_place(slots: I64, slot: Int, position: Int, kv_heads: Int, head: Int, head_size: Int) -> Int:
    """Where element 0 of a key or value lies in the cache; the others follow 8 apart."""
    return ((slots[slot] + position // 8) * kv_heads + head) * head_size * 8 + position % 8


@kernel
def rope_store_f16(
    rank: Int,
    size: Int,
    run: I64,
    q: F32,
    k: F32,
    v: F32,
    keys: F16,
    values: F16,
    cos: F32,
    sin: F32,
    slots: I64,
    heads: Int,
    kv_heads: Int,
    head_size: Int,
    pairs: Int,
    spacing: Int,
    distance: Int,
    q_stride: Int,
    kv_stride: Int,
) -> None:
    """Turn q (T, H, D) and k (T, G, D) in place, and store k and v in the cache as half floats.

    Rows are q_stride floats apart in q, kv_stride floats in k and in v.
    """
    rows = run[ROWS]
    start, end = share((heads + 2 * kv_heads) * rows, rank, size)
    for i in range(start, end):
        head = i // rows
        t = i - head * rows
        position = run[FIRST + WIDTH * t + POSITION]
        slot = run[FIRST + WIDTH * t + SLOT]
        if head < heads:
            turn(q, t * q_stride + head * head_size, cos, sin, position * pairs, pairs, spacing, distance)
        elif head < heads + kv_heads:
            head -= heads
            at = t * kv_stride + head * head_size
            turn(k, at, cos, sin, position * pairs, pairs, spacing, distance)
            place = cache_place(slots, slot, position, kv_heads, head, head_size)
            for d in range(head_size):
                store_f16(keys, place + 8 * d, k[at + d])
        else:
            head -= heads + kv_heads
            at = t * kv_stride + head * head_size
            place = cache_place(slots, slot, position, kv_heads, head, head_size)
            for d in range(head_size):
                store_f16(values, place + 8 * d, v[at + d])


@kernel
def rope_store_f32(
    rank: Int,
    size: Int,
    run: I64,
    q: F32,
    k: F32,
    v: F32,
    keys: F32,
    values: F32,
    cos: F32,
    sin: F32,
    slots: I64,
    heads: Int,
    kv_heads: Int,
    head_size: Int,
    pairs: Int,
    spacing: Int,
    distance: Int,
    q_stride: Int,
    kv_stride: Int,
) -> None:
    """The same with a float32 cache."""
    rows = run[ROWS]
    start, end = share((heads + 2 * kv_heads) * rows, rank, size)
    for i in range(start, end):
        head = i // rows
        t = i - head * rows
        position = run[FIRST + WIDTH * t + POSITION]
        slot = run[FIRST + WIDTH * t + SLOT]
        if head < heads:
            turn(q, t * q_stride + head * head_size, cos, sin, position * pairs, pairs, spacing, distance)
        elif head < heads + kv_heads:
            head -= heads
            at = t * kv_stride + head * head_size
            turn(k, at, cos, sin, position * pairs, pairs, spacing, distance)
            place = cache_place(slots, slot, position, kv_heads, head, head_size)
            for d in range(head_size):
                keys[place + 8 * d] = k[at + d]
        else:
            head -= heads + kv_heads
            at = t * kv_stride + head * head_size
            place = cache_place(slots, slot, position, kv_heads, head, head_size)
            for d in range(head_size):
                values[place + 8 * d] = v[at + d]


def rope_pairs(style: str, rope_dims: int) -> tuple[int, int, int]:
    """(pairs, spacing, distance) of a rope style, 'interleaved' or 'halves'."""
    return {"interleaved": (rope_dims // 2, 2, 1), "halves": (rope_dims // 2, 1, rope_dims // 2)}[style]


def rope_exact(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, style: str) -> np.ndarray:
    """The turned heads, bit for bit.

    Args:
        x: (T, H, D) float32.
        cos, sin: (T, pairs) float32, of each row's position.
        style: 'interleaved' or 'halves'.

    Returns:
        (T, H, D) float32.
    """
    pairs, spacing, distance = rope_pairs(style, 2 * cos.shape[1])
    first = spacing * np.arange(pairs)
    a, b = x[..., first], x[..., first + distance]
    c, s = cos[:, None], sin[:, None]
    out = x.copy()
    out[..., first], out[..., first + distance] = a * c - b * s, a * s + b * c
    return out


def rope_truth(x: np.ndarray, positions: np.ndarray, base: float, rope_dims: int, style: str) -> np.ndarray:
    """The turned heads in float64, by complex numbers: (T, H, D)."""
    pairs, spacing, distance = rope_pairs(style, rope_dims)
    first = spacing * np.arange(pairs)
    angles = positions[:, None] * np.float64(base) ** (-2.0 * np.arange(pairs) / rope_dims)
    out = x.astype(np.float64)
    turned = (out[..., first] + 1j * out[..., first + distance]) * np.exp(1j * angles)[:, None]
    out[..., first], out[..., first + distance] = turned.real, turned.imag
    return out


def store_exact(cache: np.ndarray, x: np.ndarray, positions: list[int], first_blocks: list[int]) -> None:
    """Store the rows x (T, G, D) in a cache (blocks, G, D, 8), float16 or float32, each in its own sequence."""
    for row, position, first in zip(x, positions, first_blocks, strict=True):
        cache[first + position // 8, :, :, position % 8] = row.astype(cache.dtype)
