"""Causal attention of each row's query heads over the cache; query heads share key/value heads in equal groups.

    s[p] = scale * q . k[p]        w[p] = exp(s[p] - max s)        out = sum of w[p] v[p] / sum of w[p]       p <= position

Orders of summation, none of which depends on the split of work, the length of tiles, or the rows beside a row:

    q . k      one chain of fma over ascending d, for 8 positions side by side in a vector
    sums of w, and of w v     in 8 lanes, lane = position modulo 8, ascending; then the fixed tree of `sum_f32`

Cache: keys and values (G, blocks of 8 positions, D, 8), see `kernels/rope.py`. In the last block, positions beyond the row's
own get weight 0 and value 0, whatever memory holds there.

Four query heads are computed at a time by the loops of `kernels/attention_tiles.py`; two, where no more are left (an odd
last head is computed twice); 8, 7, 4 or 3 by those of `kernels/attention_wide.py`, where vectors hold 64 bytes. Tiles of
TILE blocks stay in the first cache while all heads that a worker has pass over them. The work, (key/value head, row, pair of
heads), is cut into shares of equal cost, a row costing its blocks plus OVERHEAD.

Scratch of one worker, `score_floats` long, for the P = 2 * pairs heads of a group:

    | P x D x 8 sums of w v | P x 8 sums of w | P rows of scores, 8 for each block of the longest sequence |

Ainslie et al., "GQA: Training Generalized Multi-Query Transformer Models", 2023, section 2.2.
"""

from typing import Any

import numpy as np

from kernels.attention_tiles import TILE, ZERO, least, pair_tiles, quad_tiles, retyped
from kernels.attention_wide import WIDE_TILE, taken, wide_tiles
from kernels.lanes import Subroutine
from kernels.quantize import share
from kernels.registry import Kernel, kernel, subroutine
from kernels.run import FIRST, POSITION, ROWS, SLOT, WIDTH
from kernels.simd import (
    div_f32,
    fma,
    load_f16x8,
    load_f32x8,
    prefetch_f16,
    prefetch_f32,
    splat_f32,
    store_f32x8,
    sum_each,
    sum_f32,
)
from kernels.softmax import softmax_weights, softmax_weights_exact
from kernels.types import F16, F32, I64, Float, Int
from kernels.wide import wide

OVERHEAD = 8


def score_floats(heads: int, kv_heads: int, head_size: int, blocks: int) -> int:
    """Floats of scratch that each worker needs, for sequences of at most `blocks` blocks of 8 positions."""
    pairs = (heads // kv_heads + 1) // 2
    return -(-2 * pairs * 8 * (head_size + 1 + blocks) // 32) * 32


@subroutine
def items(cost: Int, each: Int, limit: Int) -> Int:
    """How many items of cost `each` begin before `cost`, of `limit` items."""
    return 0 if cost <= 0 else least((cost + each - 1) // each, limit)


@subroutine
def clear(x: F32, start: Int, end: Int) -> None:
    """Set whole vectors of x from start to end to 0."""
    for i in range(start, end, 8):
        store_f32x8(x, i, splat_f32(ZERO))


@subroutine
def finish_head(out: F32, at: Int, sums: F32, i: Int, head_size: Int, total: Float) -> None:
    """out[at:at+D] = the tree sums of the vectors from sums[i], divided by total."""
    whole = head_size // 8 * 8
    for d in range(0, whole, 8):
        j = i + 8 * d
        v = sum_each(
            load_f32x8(sums, j),
            load_f32x8(sums, j + 8),
            load_f32x8(sums, j + 16),
            load_f32x8(sums, j + 24),
            load_f32x8(sums, j + 32),
            load_f32x8(sums, j + 40),
            load_f32x8(sums, j + 48),
            load_f32x8(sums, j + 56),
        )
        store_f32x8(out, at + d, div_f32(v, splat_f32(total)))
    for d in range(whole, head_size):
        out[at + d] = np.float32(sum_f32(load_f32x8(sums, i + 8 * d)) / total)


def _attend(load: Subroutine, prefetch: Subroutine, Cache: Any) -> Subroutine:
    """One row's attention for some heads of a group; the cache is read by `load` and `prefetch`."""
    score_pair, mix_pair, mix_last = pair_tiles(load, prefetch, Cache)
    score_quad, mix_quad = quad_tiles(load, prefetch, Cache)
    score_wide, mix_wide = wide_tiles(load, prefetch, Cache)

    def attend(
        out: F32,
        o: Int,
        q: F32,
        i: Int,
        keys: Any,
        values: Any,
        start: Int,
        step: Int,
        scratch: F32,
        sums: Int,
        totals: Int,
        row: Int,
        group: Int,
        first: Int,
        end: Int,
        head_size: Int,
        length: Int,
        scale: Float,
    ) -> None:
        """Pairs first..end of the `group` query heads at q[i] over `length` positions of the cache from `start`."""
        blocks = (length + 7) // 8
        last = blocks - 1
        region = totals + 8 * 2 * ((group + 1) // 2)
        own, width = least(2 * end, group) - 2 * first, 8 * head_size
        i, o = i + 2 * first * head_size, o + 2 * first * head_size
        done = taken(own) if wide() > 0 and head_size % 4 == 0 else 0
        fours = done + (own - done + 1) // 4 * 4  # the last of them may be computed twice, as that of a pair
        for tile in range(0, blocks, TILE):
            stop = least(tile + TILE, blocks)
            if wide() > 0:
                score_wide(scratch, region, row, q, i, done, keys, start, step, head_size, tile, stop, last, scale)
            for h in range(done, fours, 4):
                a, qa, qd = region + row * h, i + h * head_size, i + least(h + 3, own - 1) * head_size
                for block in range(tile, stop, 2):
                    score_quad(scratch, a, row, q, qa, qd, keys, start, step, head_size, block, last, scale)
            if fours < own:
                a, qa, qb = region + row * fours, i + fours * head_size, i + (own - 1) * head_size
                for block in range(tile, stop, 4):
                    score_pair(scratch, a, a + row, q, qa, qb, keys, start, step, head_size, block, last, scale)
        for h in range(own):
            for n in range(h, least(TILE, blocks), own):  # the first tile of values, meanwhile
                for line in range(head_size // 4):
                    prefetch(values, start + step * n + 32 * line)
            softmax_weights(scratch, region + row * h, length, scratch, totals + 8 * h)
        clear(scratch, sums, sums + (own + 1) // 2 * 2 * width)
        if wide() > 0:
            for tile in range(0, blocks, WIDE_TILE):
                v = start + step * tile
                mix_wide(scratch, region, row, sums, done, values, v, step, head_size, tile, length)
        for tile in range(0, last, TILE):
            count = least(TILE, last - tile)
            v = start + step * tile
            for h in range(done, fours, 4):
                a, sum_a = region + row * h + 8 * tile, sums + width * h
                for d in range(0, head_size, 2):
                    mix_quad(scratch, a, row, sum_a, width, values, v, step, d, head_size, count)
            if fours < own:
                a, sum_a = region + row * fours + 8 * tile, sums + width * fours
                for d in range(0, head_size, 4):
                    mix_pair(scratch, a, a + row, sum_a, sum_a + width, values, v, step, d, head_size, count)
        for h in range(own):
            sum_a = sums + width * h
            if h >= done:
                a, v = region + row * h + 8 * last, start + step * last
                mix_last(scratch, a, sum_a, values, v, head_size, 8 * last, length)
            total = sum_f32(load_f32x8(scratch, totals + 8 * h))
            finish_head(out, o + h * head_size, scratch, sum_a, head_size, total)

    return subroutine(retyped(attend, Cache, "keys", "values"))


def _attention(name: str, load: Subroutine, prefetch: Subroutine, Cache: Any) -> Kernel:
    attend = _attend(load, prefetch, Cache)

    def attention(
        rank: Int,
        size: Int,
        run: I64,
        out: F32,
        q: F32,
        keys: Any,
        values: Any,
        scores: F32,
        slots: I64,
        slot_blocks: Int,
        heads: Int,
        kv_heads: Int,
        head_size: Int,
        q_stride: Int,
        stride: Int,
        score_stride: Int,
        scale: Float,
    ) -> None:
        """out (T, H, D) = attention of q (T, H, D) over the cache, up to and with each row's own position.

        Rows are q_stride floats apart in q, `stride` in out. Each worker has score_stride floats of scratch in `scores`, as
        many as `score_floats` says.
        """
        rows = run[ROWS]
        group = heads // kv_heads
        pairs = (group + 1) // 2
        cost = 0
        for t in range(rows):
            cost += run[FIRST + WIDTH * t + POSITION] // 8 + OVERHEAD
        start, end = share(cost * kv_heads * pairs, rank, size)
        sums = rank * score_stride
        totals = sums + 2 * pairs * 8 * head_size
        row = (score_stride // (2 * pairs) // 8 - head_size - 1) * 8
        step = head_size * 8
        done = 0
        for g in range(kv_heads):
            for t in range(rows):
                position = run[FIRST + WIDTH * t + POSITION]
                cost = position // 8 + OVERHEAD
                # a pair belongs to the share in which its cost begins
                first, stop = items(start - done, cost, pairs), items(end - done, cost, pairs)
                done += cost * pairs
                if first < stop:
                    base = (slots[run[FIRST + WIDTH * t + SLOT]] * kv_heads + g * slot_blocks) * step
                    attend(
                        out,
                        t * stride + g * group * head_size,
                        q,
                        t * q_stride + g * group * head_size,
                        keys,
                        values,
                        base,
                        step,
                        scores,
                        sums,
                        totals,
                        row,
                        group,
                        first,
                        stop,
                        head_size,
                        position + 1,
                        scale,
                    )

    attention.__name__ = name
    return kernel(retyped(attention, Cache, "keys", "values"))


attention_f16 = _attention("attention_f16", load_f16x8, prefetch_f16, F16)
attention_f32 = _attention("attention_f32", load_f32x8, prefetch_f32, F32)


def attention_exact(q: np.ndarray, keys: np.ndarray, values: np.ndarray, scale: float) -> np.ndarray:
    """The kernel's float32 steps for one row, in NumPy, bit for bit.

    Args:
        q: (H, D) float32.
        keys, values: (P, G, D), all positions up to the row's own, as the cache holds them (float16 or float32).

    Returns:
        (H, D) float32.
    """
    (H, D), (P, G, _) = q.shape, keys.shape
    B = -(-P // 8)
    k, v = np.zeros((8 * B, G, D), np.float32), np.zeros((8 * B, G, D), np.float32)
    k[:P], v[:P] = keys, values
    k, v = (np.repeat(x, H // G, axis=1).transpose(1, 0, 2) for x in (k, v))  # (H, 8 B, D)
    scores = np.zeros((H, 8 * B), np.float32)
    for d in range(D):
        scores = fma(q[:, d, None], k[:, :, d], scores)
    weights, total = softmax_weights_exact((scores * np.float32(scale))[:, :P])
    sums = np.zeros((H, D, 8), np.float32)
    for b in range(B):
        sums = fma(weights[:, None, 8 * b : 8 * b + 8], v[:, 8 * b : 8 * b + 8].transpose(0, 2, 1), sums)
    for half in (4, 2, 1):
        sums = sums[..., :half] + sums[..., half : 2 * half]
    return sums[..., 0] / total[:, None]


def attention_truth(q: np.ndarray, keys: np.ndarray, values: np.ndarray, scale: float) -> np.ndarray:
    """The same in float64."""
    H, G = len(q), keys.shape[1]
    out = []
    for h in range(H):
        g = h // (H // G)
        scores = scale * (keys[:, g].astype(np.float64) @ q[h].astype(np.float64))
        weights = np.exp(scores - scores.max())
        out.append(weights @ values[:, g].astype(np.float64) / weights.sum())
    return np.array(out)
