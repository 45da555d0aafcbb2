"""RMSNorm in integers: the int32 residual stream in, static INT8 out.

    out[c] = clamp(round(x[c] / sqrt(sum of x^2 + eps) * ratio[c]), -127, 127)

The ratio of a channel, a multiplier and a shift, holds its norm weight, sqrt(n) and the scale of its codes; so a scale for
each channel costs nothing here, and the matrices that read the codes have it in their columns.

    y = x / sqrt(sum) = x * floor(2^61 / root) / 2^..        y in -1 .. 1, in units of 2^-30
    root = floor(sqrt(sum * 4^up)) in 2^30 .. 2^31

Rows are shifted down until they fit into 22 bits before they are squared, the sum is shifted up to 61 or 62 bits before the
root is taken: both keep the relative error below 2^-20. The square root is found bit by bit and is exact.

Bound: 2^44 * n < 2^62 for n <= 2^17; x * floor(2^61 / root) <= 2^31 * 2^31.

I-BERT: Kim et al., 2021, section 3.5 (there by Newton's iteration).
"""

import math

import numpy as np

from kernels.integer_rescale import by_ratio, element, rescaled, rescaled_exact, within
from kernels.norm import source_row
from kernels.quantize import share
from kernels.registry import kernel, subroutine
from kernels.types import I8, I32, I64, Int

KEPT_BITS = 22
UNIT_BITS = 30
LARGEST = 127
MOST_CHANNELS = 1 << 17


@subroutine
def integer_sqrt(n: Int) -> Int:
    """floor(sqrt(n)), for n in 0 .. 2^62 - 1."""
    root, rest = 0, n
    bit = 1 << 60
    while bit > 0:
        if rest >= root + bit:
            rest -= root + bit
            root = (root >> 1) + bit
        else:
            root >>= 1
        bit >>= 2
    return root


@subroutine
def inverse_root(x: I32, at: Int, n: Int, eps: Int) -> tuple[Int, Int]:
    """(factor, shift): x * factor / 2^shift is x / sqrt(sum of squares + eps) in units of 2^-30."""
    largest = 0
    for k in range(n):
        v = element(x, at + k)
        v = -v if v < 0 else v
        largest = v if v > largest else largest
    down = 0
    while largest >> down >= 1 << KEPT_BITS:
        down += 1
    total = eps >> (2 * down)
    for k in range(n):
        v = element(x, at + k) >> down
        total += v * v
    total = total if total > 0 else 1
    up = 0
    while total < 1 << 60:
        total <<= 2
        up += 1
    return (1 << 61) // integer_sqrt(total), 61 - UNIT_BITS + down - up


@kernel
def integer_rms_norm(
    rank: Int,
    size: Int,
    run: I64,
    out: I8,
    x: I32,
    multipliers: I32,
    shifts: I32,
    n: Int,
    blocks: Int,
    eps: Int,
    count: Int,
) -> None:
    """out = the codes of run[count] rows of n elements, `blocks` blocks of 32 apart in x and in out.

    eps: n times the norm's epsilon, in units of the squares. With count LOGIT_ROWS, the rows that want logits.
    """
    start, end = share(run[count] * blocks, rank, size)
    stride = 32 * blocks
    last, factor, shift = -1, 0, 1
    for i in range(start, end):
        row = i // blocks
        at = source_row(run, count, row) * stride
        if row != last:
            factor, shift = inverse_root(x, at, n, eps)
            last = row
        first = 32 * (i - row * blocks)
        for k in range(first, first + 32):
            y = rescaled(element(x, at + k), factor, shift)
            out[row * stride + k] = within(by_ratio(y, multipliers, shifts, k), LARGEST)


def integer_rms_norm_exact(x: np.ndarray, multipliers: np.ndarray, shifts: np.ndarray, eps: int) -> np.ndarray:
    """The same integers in NumPy and Python: x (T, n) int32, multipliers and shifts (n,) -> (T, n) int8."""
    rows = []
    for row in x.astype(np.int64):
        down = max(0, int(np.abs(row).max()).bit_length() - KEPT_BITS)
        total = max(1, int(((row >> down) ** 2).sum()) + (eps >> (2 * down)))
        up = max(0, (62 - total.bit_length()) // 2)
        factor = 2**61 // math.isqrt(total << (2 * up))
        shift = 61 - UNIT_BITS + down - up
        y = (row * factor + (1 << (shift - 1))) >> shift
        rows.append(rescaled_exact(y[None], multipliers, shifts, LARGEST)[0])
    return np.array(rows).astype(np.int8)


def integer_rms_norm_truth(x: np.ndarray, ratios: np.ndarray, eps: float) -> np.ndarray:
    """The codes in float64, not rounded: ratios (n,), one for each channel, of the units of `inverse_root`."""
    x = x.astype(np.float64)
    y = x / np.sqrt((x * x).sum(-1, keepdims=True) + eps)
    return np.clip(y * 2.0**UNIT_BITS * ratios, -LARGEST, LARGEST)
