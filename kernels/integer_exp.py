"""The exponential function and the logarithm in integers alone: polynomials in fixed point.

    2^-t = 2^-n p(f)        n = floor(t), f = t - n in 0 .. 1, p a polynomial of degree 5

After I-BERT (Kim et al., 2021, section 3.4), which takes a multiple of ln 2 out of the argument and a polynomial of degree 2
for the rest; degree 5 costs three more products and is within 8.5e-8 instead of 3e-3, so that no weight of a softmax is
noticeably wrong. Arguments and results:

    exp2_negative    t in units of 2^-24, not negative  ->  2^-t in units of 2^-30
    natural_log      n in 1 .. 2^62  ->  ln(n) in units of 2^-30, through 2 artanh((m - 1) / (m + 1)), m in 1 .. 2

Bound: a coefficient of at most 2^30 times f below 2^24 is below 2^54.
"""

import numpy as np

from kernels.registry import subroutine
from kernels.types import Int

ARGUMENT_BITS, RESULT_BITS = 24, 30
ONE = 1 << RESULT_BITS
FRACTION = (1 << ARGUMENT_BITS) - 1
C1, C2, C3, C4, C5 = -744257403, 257891465, -59375086, 9884651, -1014583  # minimax for the relative error, times 2^30
LN2 = round(0.6931471805599453 * ONE)
TERMS = 9  # z is at most 1/3: the next term is below 2^-32


@subroutine
def exp2_negative(t: Int) -> Int:
    """2^-t."""
    n, f = t >> ARGUMENT_BITS, t & FRACTION
    p = C4 + (C5 * f >> ARGUMENT_BITS)
    p = C3 + (p * f >> ARGUMENT_BITS)
    p = C2 + (p * f >> ARGUMENT_BITS)
    p = C1 + (p * f >> ARGUMENT_BITS)
    p = ONE + (p * f >> ARGUMENT_BITS)
    n = n if n < 40 else 40
    return (p + (1 << n >> 1)) >> n


@subroutine
def natural_log(n: Int) -> Int:
    """ln(n)."""
    bits = 0
    while n >> bits > 1:
        bits += 1
    m = n >> (bits - RESULT_BITS) if bits > RESULT_BITS else n << (RESULT_BITS - bits)
    z = ((m - ONE) << RESULT_BITS) // (m + ONE)
    square = z * z >> RESULT_BITS
    term, log = z, 0
    for k in range(TERMS):
        log += term // (2 * k + 1)
        term = term * square >> RESULT_BITS
    return bits * LN2 + 2 * log


def exp2_negative_exact(t: np.ndarray) -> np.ndarray:
    """The same integers in NumPy: t int64 of any shape."""
    n, f = np.minimum(t >> ARGUMENT_BITS, 40), t & FRACTION
    p = np.full_like(t, C5)
    for c in (C4, C3, C2, C1, ONE):
        p = c + (p * f >> ARGUMENT_BITS)
    return (p + (np.int64(1) << n >> 1)) >> n


def exp2_negative_truth(t: np.ndarray) -> np.ndarray:
    """2^-t in float64, in units of 1."""
    return 2.0 ** (-t.astype(np.float64) / 2**ARGUMENT_BITS)
