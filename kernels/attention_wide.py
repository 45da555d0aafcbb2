"""The inner loops of attention where vectors hold 64 bytes: 8, 7, 4 or 3 query heads at a time against a tile of the cache.

A vector holds the scores of two blocks, or two elements of the output for the eight positions of a block:

    score    8 sums      head h:  q[h, d] k[block, d] | q[h, d] k[block + 1, d]                     over d
    mix      16 sums     head h:  w[h, block] v[block, d] | w[h, block] v[block, d + 1]             over blocks, d and d + 2

One source has sums for eight heads; of fewer, the compiler leaves out those that are stored nowhere (NumPy's twin computes
the last head again). Four elements of a block are one line of memory, read once for all heads. A tile of the mix is
WIDE_TILE blocks: as many as leave the heads' weights, which are read again for each four elements, in the first cache.
"""

from typing import Any

import numpy as np

from kernels.attention_tiles import AHEAD, ZERO, least, retyped
from kernels.lanes import Subroutine
from kernels.registry import subroutine, typed, wide_subroutine
from kernels.rows import several
from kernels.simd import fma, keep_below, load_f32x8, mul_f32, splat_f32, spread_f32, store_f32x8
from kernels.types import F32, F32x16, Float, Int
from kernels.wide import high_half, join_f32, load_f32x16, low_half, store_f32x16

WIDE_TILE = 64
Eight = several(8, F32x16)  # one vector for each head


@wide_subroutine
def add_query(sum_: F32x16, k: F32x16, q: F32, i: Int) -> F32x16:
    """sum + q[i] k."""
    return fma(spread_f32(q[i], k), k, sum_)


@wide_subroutine
def put_scores(x: F32, i: Int, j: Int, sum_: F32x16, scale: Float) -> None:
    """The lower half of sum * scale to x[i], the upper half to x[j]."""
    v = mul_f32(sum_, spread_f32(scale, sum_))
    store_f32x8(x, i, low_half(v))
    store_f32x8(x, j, high_half(v))


@wide_subroutine
@typed(result=Eight)
def take(x: F32, i: Int, apart: Int, heads: Int) -> Any:
    """Vectors at x[i], `apart` from each other, one for each head."""
    last = i + apart * (heads - 1)
    a, b, c = load_f32x16(x, i), load_f32x16(x, i + apart), load_f32x16(x, i + 2 * apart)
    d, e = load_f32x16(x, least(i + 3 * apart, last)), load_f32x16(x, least(i + 4 * apart, last))
    f, g = load_f32x16(x, least(i + 5 * apart, last)), load_f32x16(x, least(i + 6 * apart, last))
    return a, b, c, d, e, f, g, load_f32x16(x, least(i + 7 * apart, last))


@wide_subroutine
@typed(sums=Eight)
def put(x: F32, i: Int, apart: Int, heads: Int, sums: Any) -> None:
    """Store what `take` takes."""
    store_f32x16(x, i, sums[0])
    store_f32x16(x, i + apart, sums[1])
    store_f32x16(x, i + 2 * apart, sums[2])
    if heads > 3:
        store_f32x16(x, i + 3 * apart, sums[3])
    if heads > 4:
        store_f32x16(x, i + 4 * apart, sums[4])
        store_f32x16(x, i + 5 * apart, sums[5])
        store_f32x16(x, i + 6 * apart, sums[6])
    if heads > 7:
        store_f32x16(x, i + 7 * apart, sums[7])


@wide_subroutine
def add_value(sum_: F32x16, v: F32x16, x: F32, i: Int) -> F32x16:
    """sum + v, either half times x[i:i+8]."""
    w = load_f32x8(x, i)
    return fma(join_f32(w, w), v, sum_)


@wide_subroutine
@typed(s=Eight, result=Eight)
def add_values(s: Any, v: F32x16, x: F32, i: Int, row: Int, heads: Int) -> Any:
    """Add v, times each head's weights, to its sum: weights at x[i], the next head's `row` further on."""
    last = i + row * (heads - 1)
    a, b, c = add_value(s[0], v, x, i), add_value(s[1], v, x, i + row), add_value(s[2], v, x, i + 2 * row)
    d, e = add_value(s[3], v, x, least(i + 3 * row, last)), add_value(s[4], v, x, least(i + 4 * row, last))
    f, g = add_value(s[5], v, x, least(i + 5 * row, last)), add_value(s[6], v, x, least(i + 6 * row, last))
    return a, b, c, d, e, f, g, add_value(s[7], v, x, least(i + 7 * row, last))


def _tiles(load: Subroutine, prefetch: Subroutine, Cache: Any, heads: int) -> tuple[Subroutine, Subroutine]:
    """score and mix of so many heads; the cache is read by `load` and `prefetch`."""

    def score(
        scores: F32,
        a: Int,
        row: Int,
        q: F32,
        first: Int,
        keys: Any,
        k: Int,
        step: Int,
        head_size: Int,
        block: Int,
        last: Int,
        scale: Float,
    ) -> None:
        """Scores of the heads from q[first] with two blocks from `block`, or `last` twice."""
        b1 = least(block + 1, last)
        i0, i1, final = k + step * block, k + step * b1, head_size * (heads - 1)
        zero = join_f32(splat_f32(ZERO), splat_f32(ZERO))
        s0, s1, s2, s3, s4, s5, s6, s7 = zero, zero, zero, zero, zero, zero, zero, zero
        for d in range(head_size):
            prefetch(keys, i0 + AHEAD * step + 16 * d)
            v, i = join_f32(load(keys, i0 + 8 * d), load(keys, i1 + 8 * d)), first + d
            s0, s1 = add_query(s0, v, q, i), add_query(s1, v, q, i + head_size)
            s2, s3 = add_query(s2, v, q, i + 2 * head_size), add_query(s3, v, q, i + least(3 * head_size, final))
            s4 = add_query(s4, v, q, i + least(4 * head_size, final))
            s5 = add_query(s5, v, q, i + least(5 * head_size, final))
            s6 = add_query(s6, v, q, i + least(6 * head_size, final))
            s7 = add_query(s7, v, q, i + least(7 * head_size, final))
        i0, i1 = a + 8 * block, a + 8 * b1
        put_scores(scores, i0, i1, s0, scale)
        put_scores(scores, i0 + row, i1 + row, s1, scale)
        put_scores(scores, i0 + 2 * row, i1 + 2 * row, s2, scale)
        if heads > 3:
            put_scores(scores, i0 + 3 * row, i1 + 3 * row, s3, scale)
        if heads > 4:
            put_scores(scores, i0 + 4 * row, i1 + 4 * row, s4, scale)
            put_scores(scores, i0 + 5 * row, i1 + 5 * row, s5, scale)
            put_scores(scores, i0 + 6 * row, i1 + 6 * row, s6, scale)
        if heads > 7:
            put_scores(scores, i0 + 7 * row, i1 + 7 * row, s7, scale)

    def two(values: Any, i: Int) -> F32x16:
        return join_f32(load(values, i), load(values, i + 8))

    def two_below(values: Any, i: Int, start: Int, length: Int) -> F32x16:
        """The same, 0 for the positions from `start` that are not below `length`."""
        a, b, zero = load(values, i), load(values, i + 8), splat_f32(ZERO)
        a = keep_below(a, np.int32(start), np.int32(length), zero)
        return join_f32(a, keep_below(b, np.int32(start), np.int32(length), zero))

    wide_subroutine(retyped(two, Cache, "values"))
    wide_subroutine(retyped(two_below, Cache, "values"))

    def mix(
        scratch: F32,
        a: Int,
        row: Int,
        sums: Int,
        width: Int,
        values: Any,
        v: Int,
        step: Int,
        d: Int,
        tile: Int,
        length: Int,
    ) -> None:
        """Add a tile, weighted by scratch[a:] and what lies `row` apart, to the sums of elements d..d+3, `width` apart.

        It begins with block `tile`, at values[v]. In the last block, that of position length - 1, later ones don't count.
        """
        at, last = sums + 8 * d, (length - 1) // 8
        s, t = take(scratch, at, width, heads), take(scratch, at + 16, width, heads)
        for n in range(least(WIDE_TILE, last - tile)):
            i = v + step * n + 8 * d
            prefetch(values, v + WIDE_TILE * step + 8 * WIDE_TILE * d + 32 * n)
            s = add_values(s, two(values, i), scratch, a + 8 * n, row, heads)
            t = add_values(t, two(values, i + 16), scratch, a + 8 * n, row, heads)
        if last < tile + WIDE_TILE:
            i, n = v + step * (last - tile) + 8 * d, a + 8 * (last - tile)
            s = add_values(s, two_below(values, i, 8 * last, length), scratch, n, row, heads)
            t = add_values(t, two_below(values, i + 16, 8 * last, length), scratch, n, row, heads)
        put(scratch, at, width, heads, s)
        put(scratch, at + 16, width, heads, t)

    return wide_subroutine(retyped(score, Cache, "keys")), wide_subroutine(retyped(mix, Cache, "values"))


@subroutine
def taken(heads: Int) -> Int:
    """How many of so many heads are computed here, 8, 7, 4 or 3 together: all but one or two that may be left over."""
    return heads if heads % 4 == 3 else heads // 4 * 4


@wide_subroutine
def together(heads: Int) -> Int:
    """How many of so many heads that are left, none of them to be left over, come next."""
    return least(heads, 8) if heads > 6 else least(heads, 4)


def wide_tiles(load: Subroutine, prefetch: Subroutine, Cache: Any) -> tuple[Subroutine, Subroutine]:
    """score and mix of as many heads as are `taken`.

    The cache is read by `load` and `prefetch`; heads have a multiple of four elements.
    """
    forms = (_tiles(load, prefetch, Cache, heads) for heads in (8, 7, 4, 3))
    (score8, mix8), (score7, mix7), (score4, mix4), (score3, mix3) = forms

    def score_wide(
        scores: F32,
        region: Int,
        row: Int,
        q: F32,
        i: Int,
        heads: Int,
        keys: Any,
        k: Int,
        step: Int,
        head_size: Int,
        tile: Int,
        stop: Int,
        last: Int,
        scale: Float,
    ) -> None:
        """Scores of the heads from q[i] with the blocks tile..stop, `row` apart from scores[region]."""
        h = 0
        while h < heads:
            n, a, first = together(heads - h), region + row * h, i + head_size * h
            for block in range(tile, stop, 2):
                if n == 8:
                    score8(scores, a, row, q, first, keys, k, step, head_size, block, last, scale)
                elif n == 7:
                    score7(scores, a, row, q, first, keys, k, step, head_size, block, last, scale)
                elif n == 4:
                    score4(scores, a, row, q, first, keys, k, step, head_size, block, last, scale)
                else:
                    score3(scores, a, row, q, first, keys, k, step, head_size, block, last, scale)
            h += n

    def mix_wide(
        scratch: F32,
        region: Int,
        row: Int,
        sums: Int,
        heads: Int,
        values: Any,
        v: Int,
        step: Int,
        head_size: Int,
        tile: Int,
        length: Int,
    ) -> None:
        """Add the tile that begins with block `tile`, at values[v], to the heads' sums, 8 head_size apart."""
        h, width = 0, 8 * head_size
        while h < heads:
            n, a, at = together(heads - h), region + row * h + 8 * tile, sums + width * h
            for d in range(0, head_size, 4):
                if n == 8:
                    mix8(scratch, a, row, at, width, values, v, step, d, tile, length)
                elif n == 7:
                    mix7(scratch, a, row, at, width, values, v, step, d, tile, length)
                elif n == 4:
                    mix4(scratch, a, row, at, width, values, v, step, d, tile, length)
                else:
                    mix3(scratch, a, row, at, width, values, v, step, d, tile, length)
            h += n

    return wide_subroutine(retyped(score_wide, Cache, "keys")), wide_subroutine(retyped(mix_wide, Cache, "values"))
