"""The inner loops of attention: query heads against a tile of the cache, two or four heads at a time.

Eight running sums hide the latency of fma: two heads with four blocks of scores or four elements of the output, or four
heads with two, where each half float that is loaded, and widened, is used four times. `kernels/attention_wide.py` has eight.

A tile is TILE blocks. Values are read an element at a time, a block apart, which no processor foresees. So each step of a
loop asks for its share of what comes next, evenly and in the order of memory: keys AHEAD blocks further on, and the next
tile's values.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.lanes import Subroutine
from kernels.registry import subroutine, typed
from kernels.rows import several
from kernels.simd import fma, keep_below, load_f32x8, mul_f32, splat_f32, store_f32x8
from kernels.types import F32, F32x8, Float, Int

TILE = 16
AHEAD = 8
ZERO = np.float32(0.0)


@subroutine
def least(a: Int, b: Int) -> Int:
    """The smaller of two (Numba's own `min` would be a call into code that is not there)."""
    return a if a < b else b


Sums = several(8, F32x8)  # of four heads: two of the first, two of the second, ...


@subroutine
@typed(result=Sums)
def no_sums() -> Any:
    """Empty sums."""
    z = splat_f32(ZERO)
    return z, z, z, z, z, z, z, z


@subroutine
@typed(sums=Sums, result=Sums)
def grow(sums: Any, v0: F32x8, v1: F32x8, w: F32x8, x: F32x8, y: F32x8, z: F32x8) -> Any:
    """Add w v0 and w v1 to the sums of the first head, x v0 and x v1 to those of the second, and so on."""
    a0, a1, b0, b1, c0, c1, e0, e1 = sums
    a0, a1, b0, b1 = fma(w, v0, a0), fma(w, v1, a1), fma(x, v0, b0), fma(x, v1, b1)
    return a0, a1, b0, b1, fma(y, v0, c0), fma(y, v1, c1), fma(z, v0, e0), fma(z, v1, e1)


@subroutine
@typed(sums=Sums, result=Sums)
def scaled(sums: Any, factor: F32x8) -> Any:
    """sums * factor."""
    a, b, c, e, f, g, h, i = sums
    a, b, c, e = mul_f32(a, factor), mul_f32(b, factor), mul_f32(c, factor), mul_f32(e, factor)
    return a, b, c, e, mul_f32(f, factor), mul_f32(g, factor), mul_f32(h, factor), mul_f32(i, factor)


@subroutine
@typed(result=Sums)
def take(x: F32, i0: Int, i1: Int, apart: Int) -> Any:
    """The sums at x[i0] and x[i1], and those of the other heads, each `apart` from the last."""
    j0, j1, k0, k1, m0, m1 = i0 + apart, i1 + apart, i0 + 2 * apart, i1 + 2 * apart, i0 + 3 * apart, i1 + 3 * apart
    a0, a1, b0, b1 = load_f32x8(x, i0), load_f32x8(x, i1), load_f32x8(x, j0), load_f32x8(x, j1)
    return a0, a1, b0, b1, load_f32x8(x, k0), load_f32x8(x, k1), load_f32x8(x, m0), load_f32x8(x, m1)


@subroutine
@typed(sums=Sums)
def put(x: F32, i0: Int, i1: Int, apart: Int, sums: Any) -> None:
    """Store what `take` takes."""
    a0, a1, b0, b1, c0, c1, e0, e1 = sums
    store_f32x8(x, i0, a0)
    store_f32x8(x, i1, a1)
    store_f32x8(x, i0 + apart, b0)
    store_f32x8(x, i1 + apart, b1)
    store_f32x8(x, i0 + 2 * apart, c0)
    store_f32x8(x, i1 + 2 * apart, c1)
    store_f32x8(x, i0 + 3 * apart, e0)
    store_f32x8(x, i1 + 3 * apart, e1)


@subroutine
def at(q: F32, i: Int) -> F32x8:
    """q[i] in each lane."""
    return splat_f32(q[i])


@subroutine
@typed(sums=Sums, result=Sums)
def add_scores(sums: Any, k0: F32x8, k1: F32x8, q: F32, i: Int, head_size: Int, last: Int) -> Any:
    """Add the products of two blocks' element with that of the heads at q[i], of the two after it, and at q[last]."""
    return grow(sums, k0, k1, at(q, i), at(q, i + head_size), at(q, i + 2 * head_size), at(q, last))


@subroutine
@typed(sums=Sums, result=Sums)
def add_values(sums: Any, v0: F32x8, v1: F32x8, x: F32, i: Int, row: Int) -> Any:
    """Add two elements, times each head's weights: those at x[i], and `row` apart."""
    w = load_f32x8(x, i), load_f32x8(x, i + row), load_f32x8(x, i + 2 * row), load_f32x8(x, i + 3 * row)
    return grow(sums, v0, v1, w[0], w[1], w[2], w[3])


def retyped(body: Callable[..., Any], Cache: Any, *names: str) -> Callable[..., Any]:
    """Say which type the cache has: one source serves both."""
    body.__annotations__.update(dict.fromkeys(names, Cache))
    return body


def pair_tiles(load: Subroutine, prefetch: Subroutine, Cache: Any) -> tuple[Subroutine, Subroutine, Subroutine]:
    """score and mix of two heads, and mix_last of one; the cache is read by `load` and `prefetch`."""

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

    subroutine(retyped(score_pair, Cache, "keys"))
    subroutine(retyped(mix_pair, Cache, "values"))
    subroutine(retyped(mix_last, Cache, "values"))
    return score_pair, mix_pair, mix_last


def quad_tiles(load: Subroutine, prefetch: Subroutine, Cache: Any) -> tuple[Subroutine, Subroutine]:
    """score and mix of four heads."""

    def score_quad(
        scores: F32,
        a: Int,
        row: Int,
        q: F32,
        first: Int,
        final: Int,
        keys: Any,
        k: Int,
        step: Int,
        head_size: Int,
        block: Int,
        last: Int,
        scale: Float,
    ) -> None:
        """Scores of the heads at q[first], the two after it, and q[final], with two blocks from `block`, or `last` twice."""
        b1 = least(block + 1, last)
        i0, i1 = k + step * block, k + step * b1
        s = no_sums()
        for d in range(head_size):
            prefetch(keys, i0 + AHEAD * step + 16 * d)
            k0, k1 = load(keys, i0 + 8 * d), load(keys, i1 + 8 * d)
            s = add_scores(s, k0, k1, q, first + d, head_size, final + d)
        put(scores, a + 8 * block, a + 8 * b1, row, scaled(s, splat_f32(scale)))

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
        """`mix_pair` of these heads: weights `row` apart from scratch[a], sums `width` apart; elements d and d + 1."""
        d0, d1 = 8 * d, 8 * least(d + 1, dims - 1)
        s = take(scratch, sums + d0, sums + d1, width)
        for n in range(blocks):
            i = v + step * n
            prefetch(values, v + TILE * step + 8 * TILE * d + 16 * n)
            v0, v1 = load(values, i + d0), load(values, i + d1)
            s = add_values(s, v0, v1, scratch, a + 8 * n, row)
        put(scratch, sums + d0, sums + d1, width, s)

    return subroutine(retyped(score_quad, Cache, "keys")), subroutine(retyped(mix_quad, Cache, "values"))
