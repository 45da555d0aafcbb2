"""The inner loops of attention: query heads against a tile of the cache, two or four heads at a time.

Eight running sums hide the latency of fma: two heads with four blocks of scores or four elements of the output, or four
heads with two, where each half float that is loaded, and widened, is used four times.

A tile is TILE blocks. Values are read an element at a time, a block apart, which no processor foresees. So each step of a
loop asks for its share of what comes next, evenly and in the order of memory: keys AHEAD blocks further on, and the next
tile's values.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.registry import subroutine
from kernels.simd import fma, keep_below, load_f32x8, mul_f32, splat_f32, store_f32x8
from kernels.types import F32, Float, Int

TILE = 16
AHEAD = 8
ZERO = np.float32(0.0)


@subroutine
def least(a: Int, b: Int) -> Int:
    """The smaller of two (Numba's own `min` would be a call into code that is not there)."""
    return a if a < b else b


def retyped(body: Callable[..., None], Cache: Any, *names: str) -> Callable[..., None]:
    """Say which type the cache has: one source serves both."""
    body.__annotations__.update(dict.fromkeys(names, Cache))
    return body


def tiles(load: Callable[..., Any], prefetch: Callable[..., None], Cache: Any) -> tuple[Callable[..., None], ...]:
    """score_pair, score_quad, mix_pair, mix_quad and mix_last over a cache of type Cache, read by `load` and `prefetch`."""

    def score_pair(
        scores: F32,
        a: Int,
        b: Int,
        q: F32,
        qa: Int,
        qb: Int,
        keys: Any,
        k: Int,
        step: Int,
        head_size: Int,
        block: Int,
        last: Int,
        scale: Float,
    ) -> None:
        """Scores of the heads at q[qa] and q[qb] with four blocks from `block`; those beyond `last` are `last` again."""
        b1, b2, b3 = least(block + 1, last), least(block + 2, last), least(block + 3, last)
        i0, i1, i2, i3 = k + step * block, k + step * b1, k + step * b2, k + step * b3
        zero = splat_f32(ZERO)
        s0, s1, s2, s3, t0, t1, t2, t3 = zero, zero, zero, zero, zero, zero, zero, zero
        for d in range(head_size):
            prefetch(keys, i0 + AHEAD * step + 32 * d)
            x, y = splat_f32(q[qa + d]), splat_f32(q[qb + d])
            k0, k1 = load(keys, i0 + 8 * d), load(keys, i1 + 8 * d)
            s0, t0, s1, t1 = fma(x, k0, s0), fma(y, k0, t0), fma(x, k1, s1), fma(y, k1, t1)
            k2, k3 = load(keys, i2 + 8 * d), load(keys, i3 + 8 * d)
            s2, t2, s3, t3 = fma(x, k2, s2), fma(y, k2, t2), fma(x, k3, s3), fma(y, k3, t3)
        factor = splat_f32(scale)
        store_f32x8(scores, a + 8 * block, mul_f32(s0, factor))
        store_f32x8(scores, a + 8 * b1, mul_f32(s1, factor))
        store_f32x8(scores, a + 8 * b2, mul_f32(s2, factor))
        store_f32x8(scores, a + 8 * b3, mul_f32(s3, factor))
        store_f32x8(scores, b + 8 * block, mul_f32(t0, factor))
        store_f32x8(scores, b + 8 * b1, mul_f32(t1, factor))
        store_f32x8(scores, b + 8 * b2, mul_f32(t2, factor))
        store_f32x8(scores, b + 8 * b3, mul_f32(t3, factor))

    def mix_pair(
        scratch: F32,
        a: Int,
        b: Int,
        sum_a: Int,
        sum_b: Int,
        values: Any,
        v: Int,
        step: Int,
        d: Int,
        dims: Int,
        blocks: Int,
    ) -> None:
        """Add blocks, weighted by scratch[a:] and scratch[b:], to the sums of elements d..d+3 (beyond `dims`, the last)."""
        d1, d2, d3 = 8 * least(d + 1, dims - 1), 8 * least(d + 2, dims - 1), 8 * least(d + 3, dims - 1)
        d0 = 8 * d
        s0, s1 = load_f32x8(scratch, sum_a + d0), load_f32x8(scratch, sum_a + d1)
        s2, s3 = load_f32x8(scratch, sum_a + d2), load_f32x8(scratch, sum_a + d3)
        t0, t1 = load_f32x8(scratch, sum_b + d0), load_f32x8(scratch, sum_b + d1)
        t2, t3 = load_f32x8(scratch, sum_b + d2), load_f32x8(scratch, sum_b + d3)
        for n in range(blocks):
            x, y = load_f32x8(scratch, a + 8 * n), load_f32x8(scratch, b + 8 * n)
            i = v + step * n
            prefetch(values, v + TILE * step + 8 * TILE * d + 32 * n)
            v0, v1 = load(values, i + d0), load(values, i + d1)
            s0, t0, s1, t1 = fma(x, v0, s0), fma(y, v0, t0), fma(x, v1, s1), fma(y, v1, t1)
            v2, v3 = load(values, i + d2), load(values, i + d3)
            s2, t2, s3, t3 = fma(x, v2, s2), fma(y, v2, t2), fma(x, v3, s3), fma(y, v3, t3)
        store_f32x8(scratch, sum_a + d0, s0)
        store_f32x8(scratch, sum_a + d1, s1)
        store_f32x8(scratch, sum_a + d2, s2)
        store_f32x8(scratch, sum_a + d3, s3)
        store_f32x8(scratch, sum_b + d0, t0)
        store_f32x8(scratch, sum_b + d1, t1)
        store_f32x8(scratch, sum_b + d2, t2)
        store_f32x8(scratch, sum_b + d3, t3)

    def mix_last(scratch: F32, a: Int, sum_a: Int, values: Any, v: Int, dims: Int, start: Int, length: Int) -> None:
        """Add the block of positions from `start`, of which those below `length` count."""
        w = load_f32x8(scratch, a)
        for d in range(dims):
            value = keep_below(load(values, v + 8 * d), np.int32(start), np.int32(length), splat_f32(ZERO))
            store_f32x8(scratch, sum_a + 8 * d, fma(w, value, load_f32x8(scratch, sum_a + 8 * d)))

    def score_quad(
        scores: F32,
        a: Int,
        row: Int,
        q: F32,
        qa: Int,
        qd: Int,
        keys: Any,
        k: Int,
        step: Int,
        head_size: Int,
        block: Int,
        last: Int,
        scale: Float,
    ) -> None:
        """Scores of the heads at q[qa], the two after it, and q[qd] with two blocks from `block`, or with `last` twice."""
        b1 = least(block + 1, last)
        i0, i1, qb, qc = k + step * block, k + step * b1, qa + head_size, qa + 2 * head_size
        zero = splat_f32(ZERO)
        s0, s1, t0, t1, u0, u1, v0, v1 = zero, zero, zero, zero, zero, zero, zero, zero
        for d in range(head_size):
            prefetch(keys, i0 + AHEAD * step + 16 * d)
            k0, k1 = load(keys, i0 + 8 * d), load(keys, i1 + 8 * d)
            x, y = splat_f32(q[qa + d]), splat_f32(q[qb + d])
            s0, s1, t0, t1 = fma(x, k0, s0), fma(x, k1, s1), fma(y, k0, t0), fma(y, k1, t1)
            x, y = splat_f32(q[qc + d]), splat_f32(q[qd + d])
            u0, u1, v0, v1 = fma(x, k0, u0), fma(x, k1, u1), fma(y, k0, v0), fma(y, k1, v1)
        factor, i0, i1 = splat_f32(scale), a + 8 * block, a + 8 * b1
        store_f32x8(scores, i0, mul_f32(s0, factor))
        store_f32x8(scores, i1, mul_f32(s1, factor))
        store_f32x8(scores, i0 + row, mul_f32(t0, factor))
        store_f32x8(scores, i1 + row, mul_f32(t1, factor))
        store_f32x8(scores, i0 + 2 * row, mul_f32(u0, factor))
        store_f32x8(scores, i1 + 2 * row, mul_f32(u1, factor))
        store_f32x8(scores, i0 + 3 * row, mul_f32(v0, factor))
        store_f32x8(scores, i1 + 3 * row, mul_f32(v1, factor))

    def mix_quad(
        scratch: F32,
        a: Int,
        row: Int,
        sums: Int,
        width: Int,
        values: Any,
        v: Int,
        step: Int,
        d: Int,
        dims: Int,
        blocks: Int,
    ) -> None:
        """`mix_pair` of four heads: weights `row` apart from scratch[a], sums `width` apart; elements d and d + 1."""
        d0, d1 = 8 * d, 8 * least(d + 1, dims - 1)
        b, c, e = a + row, a + 2 * row, a + 3 * row
        i0, i1 = sums + d0, sums + d1
        s0, s1 = load_f32x8(scratch, i0), load_f32x8(scratch, i1)
        t0, t1 = load_f32x8(scratch, i0 + width), load_f32x8(scratch, i1 + width)
        u0, u1 = load_f32x8(scratch, i0 + 2 * width), load_f32x8(scratch, i1 + 2 * width)
        z0, z1 = load_f32x8(scratch, i0 + 3 * width), load_f32x8(scratch, i1 + 3 * width)
        for n in range(blocks):
            i = v + step * n
            prefetch(values, v + TILE * step + 8 * TILE * d + 16 * n)
            v0, v1 = load(values, i + d0), load(values, i + d1)
            x, y = load_f32x8(scratch, a + 8 * n), load_f32x8(scratch, b + 8 * n)
            s0, s1, t0, t1 = fma(x, v0, s0), fma(x, v1, s1), fma(y, v0, t0), fma(y, v1, t1)
            x, y = load_f32x8(scratch, c + 8 * n), load_f32x8(scratch, e + 8 * n)
            u0, u1, z0, z1 = fma(x, v0, u0), fma(x, v1, u1), fma(y, v0, z0), fma(y, v1, z1)
        store_f32x8(scratch, i0, s0)
        store_f32x8(scratch, i1, s1)
        store_f32x8(scratch, i0 + width, t0)
        store_f32x8(scratch, i1 + width, t1)
        store_f32x8(scratch, i0 + 2 * width, u0)
        store_f32x8(scratch, i1 + 2 * width, u1)
        store_f32x8(scratch, i0 + 3 * width, z0)
        store_f32x8(scratch, i1 + 3 * width, z1)

    subroutine(retyped(score_pair, Cache, "keys"))
    subroutine(retyped(score_quad, Cache, "keys"))
    subroutine(retyped(mix_pair, Cache, "values"))
    subroutine(retyped(mix_quad, Cache, "values"))
    subroutine(retyped(mix_last, Cache, "values"))
    return score_pair, score_quad, mix_pair, mix_quad, mix_last
