"""Fixed-point numbers and the one step between two of them: an int64 product, rounded once.

    rescaled = (value * multiplier + 2^(shift - 1)) >> shift        ratio = multiplier / 2^shift

as in `kernels/requantize.py`, but with a sign, and without the bound of int8: what comes out is kept within a limit that the
caller names. The ratio stands for (scale of the value) / (scale of the result); both scales are known before the model runs.

Bound: |value| <= 2^31 and |multiplier| < 2^31, so the product and its rounding fit into int64.
"""

from typing import Any

import numpy as np

from kernels.registry import subroutine
from kernels.types import I32, Int

INT32_LIMIT = (1 << 31) - 1


@subroutine
def rescaled(value: Int, multiplier: Int, shift: Int) -> Int:
    """value * multiplier / 2^shift, rounded to the nearest integer, a tie towards plus infinity."""
    return (value * multiplier + (1 << (shift - 1))) >> shift


@subroutine
def within(value: Int, limit: Int) -> Int:
    """The value, or the nearer end of -limit .. limit."""
    return -limit if value < -limit else limit if value > limit else value


@subroutine
def element(x: I32, i: Int) -> Int:
    """x[i], as an integer whose products don't overflow."""
    value: Any = np.int64(x[i])
    return value


@subroutine
def by_ratio(value: Int, multipliers: I32, shifts: I32, n: Int) -> Int:
    """The value, rescaled by the n-th ratio."""
    return rescaled(value, element(multipliers, n), element(shifts, n))


def multipliers_and_shifts(ratios: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The int32 multiplier and shift of each ratio, exact to 31 bits, found without rounding anything twice.

    Args:
        ratios: (N,) float64 of any sign; one whose size is below 2^-32 becomes 0.

    Returns:
        multipliers (N,) int32, 0 or at least 2^30 in size, and shifts (N,) int32 in 1 .. 62.

    Raises:
        ValueError: a ratio is not finite, or 2^30 and more.
    """
    ratios = np.asarray(ratios, np.float64)
    if not np.isfinite(ratios).all() or (np.abs(ratios) >= 2.0**30).any():
        raise ValueError("a ratio of scales is not finite, or 2^30 and more")
    mantissa, exponent = np.frexp(ratios)
    whole = np.rint(mantissa * 2.0**31).astype(np.int64)  # exact but for the rounding: 53 bits
    full = np.abs(whole) == 2**31
    whole, exponent = np.where(full, whole // 2, whole), exponent + full
    shift = 31 - exponent
    nothing = np.abs(ratios) < 2.0**-32
    return np.where(nothing, 0, whole).astype(np.int32), np.where(nothing, 1, shift).astype(np.int32)


def rescaled_exact(values: np.ndarray, multipliers: np.ndarray, shifts: np.ndarray, limit: int) -> np.ndarray:
    """The same integers in NumPy, within the limit: values (T, N), multipliers and shifts (N,) -> (T, N) int64."""
    shift = shifts.astype(np.int64)
    wide = values.astype(np.int64) * multipliers.astype(np.int64)
    return np.clip((wide + (np.int64(1) << (shift - 1))) >> shift, -limit, limit)
