"""Causal attention of each row's query heads over the cache; query heads share key/value heads in equal groups.

    s[p] = scale * q . k[p]        w[p] = exp(s[p] - max s)        out = sum of w[p] v[p] / sum of w[p]       p <= position

Orders of summation, none of which depends on the split of work, the length of tiles, or the rows beside a row:

    q . k      one chain of fma over ascending d, for 8 positions side by side in a vector
    sums of w, and of w v     in 8 lanes, lane = position modulo 8, ascending; then the fixed tree of `sum_f32`

Cache: keys and values (G, blocks of 8 positions, D, 8), see `kernels/rope.py`. In the last block, positions beyond the row's
own get weight 0 and value 0, whatever memory holds there.

Two query heads are computed at a time, with four blocks of scores or four elements of the output: eight running sums hide
the latency of fma, and every load is used twice. An odd last head is computed twice. Tiles of TILE blocks stay in the first
cache while all pairs of heads that a worker has pass over them. The work, (key/value head, row, pair of heads), is cut into
shares of equal cost, a row costing its blocks plus OVERHEAD.

Scratch of one worker, `score_floats` long, for the P = 2 * pairs heads of a group:

    | P x D x 8 sums of w v | P x 8 sums of w | P rows of scores, 8 for each block of the longest sequence |

Ainslie et al., "GQA: Training Generalized Multi-Query Transformer Models", 2023, section 2.2.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.quantize import share
from kernels.registry import Kernel, kernel, subroutine
from kernels.run import FIRST, POSITION, ROWS, SLOT, WIDTH
from kernels.simd import (
    div_f32,
    fma,
    keep_below,
    load_f16x8,
    load_f32x8,
    mul_f32,
    splat_f32,
    store_f32x8,
    sum_each,
    sum_f32,
)
from kernels.softmax import softmax_weights, softmax_weights_exact
from kernels.types import F16, F32, I64, Float, Int

TILE = 16
OVERHEAD = 8
ZERO = np.float32(0.0)


def score_floats(heads: int, kv_heads: int, head_size: int, blocks: int) -> int:
    """Floats of scratch that each worker needs, for sequences of at most `blocks` blocks of 8 positions."""
    pairs = (heads // kv_heads + 1) // 2
    return -(-2 * pairs * 8 * (head_size + 1 + blocks) // 32) * 32


@subroutine
def least(a: Int, b: Int) -> Int:
    """The smaller of two (Numba's own `min` would be a call into code that is not there)."""
    return a if a < b else b


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


def _retyped(body: Callable[..., None], Cache: Any, *names: str) -> Callable[..., None]:
    """Say which type the cache has: one source serves both."""
    body.__annotations__.update(dict.fromkeys(names, Cache))
    return body


def _attention(name: str, load: Callable[..., Any], Cache: Any) -> Kernel:
    def score_tile(
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

    def mix_tile(
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
        for tile in range(0, blocks, TILE):
            for pair in range(first, end):
                ha, hb = 2 * pair, least(2 * pair + 1, group - 1)
                a, b = region + row * (ha - 2 * first), region + row * (ha - 2 * first + 1)
                qa, qb = i + ha * head_size, i + hb * head_size
                for block in range(tile, least(tile + TILE, blocks), 4):
                    score_tile(scratch, a, b, q, qa, qb, keys, start, step, head_size, block, last, scale)
        heads = 2 * (end - first)
        for h in range(heads):
            softmax_weights(scratch, region + row * h, length, scratch, totals + 8 * h)
        clear(scratch, sums, sums + heads * 8 * head_size)
        for tile in range(0, last, TILE):
            count = least(TILE, last - tile)
            for h in range(0, heads, 2):
                a, b = region + row * h + 8 * tile, region + row * (h + 1) + 8 * tile
                sum_a, sum_b = sums + 8 * head_size * h, sums + 8 * head_size * (h + 1)
                for d in range(0, head_size, 4):
                    mix_tile(scratch, a, b, sum_a, sum_b, values, start + step * tile, step, d, head_size, count)
        for h in range(least(heads, group - 2 * first)):
            sum_a = sums + 8 * head_size * h
            mix_last(
                scratch, region + row * h + 8 * last, sum_a, values, start + step * last, head_size, 8 * last, length
            )
            total = sum_f32(load_f32x8(scratch, totals + 8 * h))
            finish_head(out, o + (2 * first + h) * head_size, scratch, sum_a, head_size, total)

    subroutine(_retyped(score_tile, Cache, "keys"))
    subroutine(_retyped(mix_tile, Cache, "values"))
    subroutine(_retyped(mix_last, Cache, "values"))
    subroutine(_retyped(attend, Cache, "keys", "values"))

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
    return kernel(_retyped(attention, Cache, "keys", "values"))


attention_f16 = _attention("attention_f16", load_f16x8, F16)
attention_f32 = _attention("attention_f32", load_f32x8, F32)


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
