"""Requantisation: the int32 sums of a product become the int8 input of the next one, in integers alone.

    out = clamp((value * multiplier + 2^(shift - 1)) >> shift, -128, 127)      (one int64 product, one rounding)

so that value * multiplier / 2^shift is rounded once, to the nearest integer, a tie towards plus infinity. `multiplier` is an
int32 in 2^30 .. 2^31 - 1 and `shift` lies in 1 .. 62; together they stand for the real ratio of scales

    ratio = input scale * weight scale / output scale  =  multiplier / 2^shift, to a relative error of 2^-31

Bound: |value| <= 2^31, so |value * multiplier| < 2^62, and half of 2^62 may still be added to it in int64.

Gemmlowp's form (a doubling high product, then a rounding shift) rounds twice; this one does not.
"""

import math
from fractions import Fraction

import numpy as np

from kernels.quantize import share
from kernels.registry import kernel, subroutine
from kernels.types import I8, I32, I64, Int

LARGEST_SHIFT = 62


@subroutine
def requantized(value: Int, multiplier: Int, shift: Int) -> Int:
    """One value: the product, rounded once, within int8."""
    product = value * multiplier + (1 << (shift - 1))
    rounded = product >> shift
    return -128 if rounded < -128 else 127 if rounded > 127 else rounded


@kernel
def requantize(
    rank: Int,
    size: Int,
    run: I64,
    out: I8,
    values: I32,
    multipliers: I32,
    shifts: I32,
    columns: Int,
    stride: Int,
    count: Int,
) -> None:
    """out[t, n] = values[t, n] requantised by column n's multiplier and shift, for run[count] rows `stride` apart."""
    start, end = share(columns, rank, size)
    for t in range(run[count]):
        for n in range(start, end):
            wide = (np.int64(values[t * stride + n]), np.int64(multipliers[n]), np.int64(shifts[n]))
            out[t * stride + n] = requantized(*wide)  # type: ignore[arg-type]


def multiplier_and_shift(ratio: float | Fraction) -> tuple[int, int]:
    """The multiplier and shift that stand for a positive ratio of scales, found exactly (a float is a fraction).

    A ratio too small for any shift becomes (0, 1), which requantises everything to 0: below 2^-32 no int32 reaches 1/2.

    Raises:
        ValueError: The ratio is negative, not finite, or 2^30 and more.
    """
    if not math.isfinite(ratio) or ratio < 0:
        raise ValueError(f"a ratio of scales is {ratio}; expected a positive number")
    exact = Fraction(ratio)
    if exact < Fraction(1, 2**32):
        return 0, 1
    shift = 30  # the least for which exact * 2^shift reaches 2^30
    while exact * 2**shift >= 2**31:
        shift -= 1
    while exact * 2**shift < 2**30:
        shift += 1
    multiplier = round(exact * 2**shift)
    if multiplier == 2**31:
        multiplier, shift = 2**30, shift - 1
    if shift < 1:
        raise ValueError(f"a ratio of scales is {ratio}; it must be less than 2^30")
    return multiplier, shift


def requantize_exact(values: np.ndarray, multipliers: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """The kernel's integers in NumPy: values (T, N) int32, multipliers and shifts (N,) -> (T, N) int8."""
    wide, shift = values.astype(np.int64) * multipliers, shifts.astype(np.int64)
    return np.clip((wide + (np.int64(1) << (shift - 1))) >> shift, -128, 127).astype(np.int8)


def requantize_truth(values: np.ndarray, ratios: np.ndarray) -> np.ndarray:
    """values (T, N) times the ratios (N,) in float64, not rounded, within -128 .. 127."""
    return np.clip(values.astype(np.float64) * ratios, -128, 127)
