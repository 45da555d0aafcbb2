"""Rotary position embedding of the queries and keys of each row, and storing keys and values in the cache.

    a' = a cos - b sin        b' = a sin + b cos        for each pair (a, b) of the first 2 * pairs elements of a head

    interleaved   pair i is (2 i, 2 i + 1)         spacing 2, distance 1
    halves        pair i is (i, i + pairs)         spacing 1, distance pairs

The other elements stay as they are. Products and their difference or sum are rounded each by itself (no fma).

Cache of one layer: keys and values each (slots, G, blocks of 8 positions, D, 8), float16 or float32; a sequence has one
slot, and the lane is the position modulo 8. A head's positions lie together, so that reading them is reading a stream:

    slot, head | block 0: element 0 of positions 0..7 | element 1 of positions 0..7 | ... | block 1: ...

The tables of cosines and sines, (context, pairs): `kernels/rope_table.py`. Work is split over (head, row), heads of queries,
keys and values alike.

Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021, section 3.4.2.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.quantize import share
from kernels.registry import Kernel, kernel, subroutine
from kernels.run import FIRST, POSITION, ROWS, SLOT, WIDTH
from kernels.simd import store_f16
from kernels.types import F16, F32, I64, Float, Int


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
def put_f16(cache: F16, i: Int, x: Float) -> None:
    """cache[i] = x, rounded."""
    store_f16(cache, i, x)


@subroutine
def put_f32(cache: F32, i: Int, x: Float) -> None:
    """cache[i] = x."""
    cache[i] = x


def _rope_store(name: str, put: Callable[..., None], Cache: Any) -> Kernel:
    def rope_store(
        rank: Int,
        size: Int,
        run: I64,
        q: F32,
        k: F32,
        v: F32,
        keys: Any,
        values: Any,
        cos: F32,
        sin: F32,
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
    ) -> None:
        """Turn q (T, H, D) and k (T, G, D) in place, and store k and v in the cache.

        Rows are q_stride floats apart in q, kv_stride floats in k and in v. Slot s has slot_blocks blocks for each head and
        begins slots[s] * G blocks from the cache's first.
        """
        rows = run[ROWS]
        start, end = share((heads + 2 * kv_heads) * rows, rank, size)
        for i in range(start, end):
            head = i // rows
            t = i - head * rows
            position = run[FIRST + WIDTH * t + POSITION]
            if head < heads:
                turn(q, t * q_stride + head * head_size, cos, sin, position * pairs, pairs, spacing, distance)
            else:
                g = (head - heads) % kv_heads
                at = t * kv_stride + g * head_size
                first = slots[run[FIRST + WIDTH * t + SLOT]] * kv_heads + g * slot_blocks
                place = (first + position // 8) * head_size * 8 + position % 8
                if head < heads + kv_heads:
                    turn(k, at, cos, sin, position * pairs, pairs, spacing, distance)
                    for d in range(head_size):
                        put(keys, place + 8 * d, k[at + d])
                else:
                    for d in range(head_size):
                        put(values, place + 8 * d, v[at + d])

    rope_store.__name__ = name
    rope_store.__annotations__ |= {"keys": Cache, "values": Cache}
    return kernel(rope_store)


rope_store_f16 = _rope_store("rope_store_f16", put_f16, F16)
rope_store_f32 = _rope_store("rope_store_f32", put_f32, F32)


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


def store_exact(cache: np.ndarray, x: np.ndarray, positions: list[int], slots: list[int]) -> None:
    """Store the rows x (T, G, D) in a cache (slots, G, blocks, D, 8), float16 or float32, each in its own slot."""
    for row, position, slot in zip(x, positions, slots, strict=True):
        cache[slot, :, position // 8, :, position % 8] = row.astype(cache.dtype)
