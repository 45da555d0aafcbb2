"""Logits as integers with one scale, and log-probabilities of tokens under their softmax, in integers.

    integer_logits              logit[t, n] = round(sum * ratio of row n of the output matrix), in place, within 2^24
    integer_log_probabilities   logit[id] - max - ln(sum of exp(logit - max)), in units of 2^-24

One step of a logit is 2^-bits, and 24 bits hold it, so that its float32 is exact where one is wanted.
Exponentials have 30 bits: what is 21 or more below the largest counts as nothing, 2^22 tokens of it as less than 0.004.

Bound: 2^30 for each of 2^24 tokens is below 2^55.
"""

import numpy as np

from kernels.integer_exp import ARGUMENT_BITS, RESULT_BITS, exp2_negative, exp2_negative_exact, natural_log
from kernels.integer_rescale import by_ratio, element, rescaled, rescaled_exact, within
from kernels.quantize import share
from kernels.registry import kernel, subroutine
from kernels.run import LOGIT_ROWS
from kernels.types import I32, I64, Int

LOGIT_LIMIT = 1 << 24
LOGIT_BITS = 20  # of the largest that calibration saw, which leaves room for 16 times as much
LOG_BITS = 24
LOWEST = -(1 << 31)


@kernel
def integer_logits(
    rank: Int, size: Int, run: I64, logits: I32, multipliers: I32, shifts: I32, vocab: Int, stride: Int
) -> None:
    """Turn the sums of run[LOGIT_ROWS] rows, `stride` apart, into logits, in place; multipliers and shifts: (V,)."""
    start, end = share(vocab, rank, size)
    for t in range(run[LOGIT_ROWS]):
        for n in range(start, end):
            logit = by_ratio(element(logits, t * stride + n), multipliers, shifts, n)
            logits[t * stride + n] = within(logit, LOGIT_LIMIT)


@subroutine
def integer_largest(x: I32, start: Int, end: Int) -> Int:
    """The largest of x[start:end]; -2^31 of none."""
    largest = LOWEST
    for i in range(start, end):
        v = element(x, i)
        largest = v if v > largest else largest
    return largest


@subroutine
def integer_exp_sum(x: I32, start: Int, end: Int, largest: Int, multiplier: Int, shift: Int) -> Int:
    """The sum of exp(x - largest) in units of 2^-30; multiplier and shift turn x into octaves in units of 2^-24."""
    total = 0
    for i in range(start, end):
        total += exp2_negative(rescaled(largest - element(x, i), multiplier, shift))
    return total


@subroutine
def integer_log_probability(x: Int, largest: Int, total: Int, bits: Int) -> Int:
    """ln of the part that exp(x - largest) has in the total, in units of 2^-24; x has `bits` bits behind the point."""
    below = largest - x
    below = below << (LOG_BITS - bits) if bits < LOG_BITS else below >> (bits - LOG_BITS)
    log = natural_log(total) - natural_log(1 << RESULT_BITS)
    return -below - (log >> (RESULT_BITS - LOG_BITS))


@kernel
def integer_log_probabilities(
    rank: Int,
    size: Int,
    run: I64,
    out: I64,
    logits: I32,
    ids: I64,
    vocab: Int,
    stride: Int,
    multiplier: Int,
    shift: Int,
    bits: Int,
) -> None:
    """out[t] = the log-probability of ids[t] under row t of the logits, in units of 2^-24."""
    start, end = share(run[LOGIT_ROWS], rank, size)
    for t in range(start, end):
        at = t * stride
        largest = integer_largest(logits, at, at + vocab)
        total = integer_exp_sum(logits, at, at + vocab, largest, multiplier, shift)
        out[t] = integer_log_probability(element(logits, at + ids[t]), largest, total, bits)


def octave_ratio(bits: int) -> float:
    """What turns a logit with `bits` bits behind the point into octaves with ARGUMENT_BITS: log2(e), scaled."""
    return 1.4426950408889634 * 2.0 ** (ARGUMENT_BITS - bits)


def integer_logits_exact(sums: np.ndarray, multipliers: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """The same integers in NumPy: sums (T, V) -> (T, V) int64."""
    return rescaled_exact(sums, multipliers, shifts, LOGIT_LIMIT)


def integer_log_probability_exact(x: np.ndarray, id_: int, multiplier: int, shift: int, bits: int) -> int:
    """The log-probability of one id under a row x (V,), the same integer."""
    below = x.max().astype(np.int64) - x.astype(np.int64)
    t = rescaled_exact(below[:, None], np.array([multiplier]), np.array([shift]), 2**62)[:, 0]
    total = int(exp2_negative_exact(t).sum())
    own = int(below[id_])
    own = own << (LOG_BITS - bits) if bits < LOG_BITS else own >> (bits - LOG_BITS)
    log = natural_log(total) - natural_log(1 << RESULT_BITS)
    return -own - (log >> (RESULT_BITS - LOG_BITS))


def integer_log_probability_truth(x: np.ndarray, id_: int, bits: int) -> float:
    """The log-probability of one id in float64, in units of 1."""
    wide = x.astype(np.float64) * 2.0**-bits
    return float(wide[id_] - wide.max() - np.log(np.exp(wide - wide.max()).sum()))
