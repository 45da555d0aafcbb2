"""The exponential function as a polynomial: the same bits on every processor, which no C or NumPy library promises.

    n = round(x / ln 2)      r = x - n ln 2, in two steps      exp(x) = 2^n exp(r),  |r| <= 0.347

    exp(r) = 1 + r + r^2 (C2 + C3 r + C4 r^2 + C5 r^3 + C6 r^4)

The coefficients are the minimax ones for the relative error, each rounded to float32 before the next was fitted; the
polynomial is within 4e-9, and the float32 steps bring the error to less than 1 unit in the last place. The whole polynomial
is doubled, and the power of two halved, so that one multiplication reaches results up to the largest float.

A result below 2^-125.5 is 0 (n <= -126), one above the largest float is infinite, a NaN stays one.
"""

import numpy as np

from kernels.registry import subroutine
from kernels.simd import fma, max_f32, min_f32, mul_f32, power_of_two, rint_f32, spread_f32, sub_f32, to_i32
from kernels.types import F32xN

LOWEST, HIGHEST = np.float32(-87.25), np.float32(89.0)  # from here on the result stays 0, or infinite
INVERSE_LN2 = np.float32(float.fromhex("0x1.715476p+0"))
LN2 = np.float32(float.fromhex("0x1.62e430p-1"))
LN2_REST = np.float32(float.fromhex("-0x1.05c610p-29"))
ONE, TWO = np.float32(1.0), np.float32(2.0)
C2 = np.float32(2 * float.fromhex("0x1.fffffcp-2"))  # all doubled
C3 = np.float32(2 * float.fromhex("0x1.555492p-3"))
C4 = np.float32(2 * float.fromhex("0x1.5558b2p-5"))
C5 = np.float32(2 * float.fromhex("0x1.12398ep-7"))
C6 = np.float32(2 * float.fromhex("0x1.6a4b36p-10"))


@subroutine
def exp(x: F32xN) -> F32xN:
    """exp(x), lane by lane."""
    x = min_f32(spread_f32(HIGHEST, x), max_f32(spread_f32(LOWEST, x), x))  # in this order a NaN passes
    n = rint_f32(mul_f32(x, spread_f32(INVERSE_LN2, x)))
    r = fma(n, spread_f32(-LN2, x), x)
    r = fma(n, spread_f32(-LN2_REST, x), r)
    p = fma(spread_f32(C6, x), r, spread_f32(C5, x))
    p = fma(p, r, spread_f32(C4, x))
    p = fma(p, r, spread_f32(C3, x))
    p = fma(p, r, spread_f32(C2, x))
    p = fma(p, r, spread_f32(TWO, x))
    p = fma(p, r, spread_f32(TWO, x))
    return mul_f32(p, power_of_two(to_i32(sub_f32(n, spread_f32(ONE, x)))))


def exp_exact(x: np.ndarray) -> np.ndarray:
    """The same in NumPy, bit for bit, on a float32 array of any shape; a NaN gives a NaN."""
    x = np.asarray(x, np.float32)
    clamped = np.where(x < LOWEST, LOWEST, np.where(x > HIGHEST, HIGHEST, x))
    n = np.rint(clamped * INVERSE_LN2)
    r = fma(n, np.asarray(-LN2_REST), fma(n, np.asarray(-LN2), clamped))
    p = np.asarray(C6)
    for c in (C5, C4, C3, C2, TWO, TWO):
        p = fma(p, r, np.asarray(c))
    exponent = np.where(np.isnan(n), 0, n - ONE).astype(np.int32)
    scale = ((exponent + np.int32(127)) << np.int32(23)).astype(np.int32).view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        return p * scale


def exp_truth(x: np.ndarray) -> np.ndarray:
    """exp(x) in float64."""
    with np.errstate(over="ignore"):
        return np.exp(np.asarray(x, np.float64))
