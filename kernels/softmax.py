"""The weights of a softmax, and their sum: the part of it that attention needs between scores and values.

    w = exp(x - max x)        softmax(x) = w / sum of w

The maximum comes first. The sum runs in 8 lanes (lane = index modulo 8, ascending), then through the tree of `sum_f32`.
exp: `kernels/exp.py`.
"""

import numpy as np

from kernels.exp import exp, exp_exact
from kernels.registry import subroutine, wide_subroutine
from kernels.simd import add_f32, keep_below, load_f32x8, max_f32, max_lane, splat_f32, store_f32x8, sub_f32
from kernels.types import F32, F32x8, Int
from kernels.wide import high_half, join_f32, load_f32x16, low_half, store_f32x16, wide

ZERO, MINUS_INFINITY = np.float32(0.0), np.float32(-np.inf)


@wide_subroutine
def weights_wide(x: F32, start: Int, end: Int, largest: F32x8) -> F32x8:
    """Turn x[start:end], a multiple of 16 numbers, into weights, and return their sum in 8 lanes."""
    total = splat_f32(ZERO)
    for i in range(start, end, 16):
        w = exp(sub_f32(load_f32x16(x, i), join_f32(largest, largest)))
        store_f32x16(x, i, w)
        total = add_f32(add_f32(total, low_half(w)), high_half(w))
    return total


@subroutine
def softmax_weights(x: F32, at: Int, length: Int, totals: F32, to: Int) -> None:
    """Turn `length` numbers from x[at] into weights, in place, and store their sum in 8 lanes at totals[to].

    Of the last vector, the lanes behind the numbers become 0; what they hold before does not count.
    """
    whole = (length - 1) // 8 * 8
    end = at + whole + 8
    last = load_f32x8(x, end - 8)
    store_f32x8(x, end - 8, keep_below(last, np.int32(whole), np.int32(length), splat_f32(MINUS_INFINITY)))
    largest = splat_f32(MINUS_INFINITY)
    for i in range(at, end, 8):
        largest = max_f32(largest, load_f32x8(x, i))
    largest = splat_f32(max_lane(largest))
    total = splat_f32(ZERO)
    begin = at
    if wide() > 0:
        begin = at + (end - at) // 16 * 16
        total = weights_wide(x, at, begin, largest)
    for i in range(begin, end, 8):
        w = exp(sub_f32(load_f32x8(x, i), largest))
        store_f32x8(x, i, w)
        total = add_f32(total, w)
    store_f32x8(totals, to, total)


def softmax_weights_exact(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The weights and their sum, bit for bit.

    Args:
        x: (T, n) float32.

    Returns:
        (T, n rounded up to a multiple of 8) float32, zeros behind n; and (T,) float32.
    """
    T, n = x.shape
    padded = np.full((T, -(-n // 8) * 8), -np.inf, np.float32)
    padded[:, :n] = x
    weights = exp_exact(padded - x.max(-1, keepdims=True))
    total = np.zeros((T, 8), np.float32)
    for i in range(0, padded.shape[1], 8):
        total = total + weights[:, i : i + 8]
    for half in (4, 2, 1):
        total = total[:, :half] + total[:, half : 2 * half]
    return weights, total[:, 0]


def softmax_truth(x: np.ndarray) -> np.ndarray:
    """softmax along the last axis in float64."""
    w = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    return w / w.sum(-1, keepdims=True)
