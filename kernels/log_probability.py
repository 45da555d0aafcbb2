"""The log-probability of a token under softmax(x), for each row x of the logits.

    x[id] - max x - ln(sum of exp(x - max x))          a NaN in x counts as -infinity

The vocabulary is cut into parts of PART ids. The exponentials of one part are summed in 8 float32 lanes (lane = id modulo 8,
ascending) and by the tree of `sum_f32`, those of all parts in float64, ascending. exp: `kernels/exp.py`.
"""

import numpy as np

from kernels.exp import exp, exp_exact
from kernels.quantize import share
from kernels.registry import kernel, subroutine
from kernels.run import LOGIT_ROWS
from kernels.simd import add_f32, keep_below, load_f32x8, max_f32, max_lane, splat_f32, sub_f32, sum_f32
from kernels.types import F32, I64, F32x8, Float, Int

PART = 2048
MINUS_INFINITY, ZERO = np.float32(-np.inf), np.float32(0.0)
LN2 = np.float64(0.6931471805599453)


@subroutine
def parts_of(vocab: Int) -> Int:
    """How many parts a vocabulary has."""
    return (vocab + PART - 1) // PART


@subroutine
def part_end(part: Int, vocab: Int) -> Int:
    """The first id behind a part."""
    return vocab if vocab < (part + 1) * PART else (part + 1) * PART


@subroutine
def load_below(x: F32, i: Int, at: Int, end: Int) -> F32x8:
    """x[i + at:i + at + 8], -infinity for a NaN and from `end` on."""
    lowest = splat_f32(MINUS_INFINITY)
    return max_f32(keep_below(load_f32x8(x, i + at), np.int32(at), np.int32(end), lowest), lowest)


@subroutine
def largest_of(x: F32, i: Int, start: Int, end: Int) -> Float:
    """The largest of x[i + start:i + end], a NaN counting as -infinity."""
    largest = splat_f32(MINUS_INFINITY)
    for at in range(start, end, 8):
        largest = max_f32(load_below(x, i, at, end), largest)
    return max_lane(largest)


@subroutine
def exp_sum(x: F32, i: Int, start: Int, end: Int, largest: Float) -> Float:
    """The sum of exp(x - largest) over x[i + start:i + end], in 8 lanes; a NaN counts as -infinity."""
    total = splat_f32(ZERO)
    for at in range(start, end, 8):
        total = add_f32(total, exp(sub_f32(load_below(x, i, at, end), splat_f32(largest))))
    return sum_f32(total)


@subroutine
def log_probability(x: Float, largest: Float, totals: F32, at: Int, step: Int, parts: Int) -> Float:
    """x - largest - ln(s), s the sum of the parts' totals: in float64, by halving s, then 2 artanh((s - 1) / (s + 1))."""
    s = np.float64(0.0)
    for part in range(parts):
        s += np.float64(totals[at + part * step])
    log = np.float64(0.0)
    for _ in range(32):
        if s > 1.5:
            s *= 0.5
            log += LN2
    z = (s - 1.0) / (s + 1.0)
    term = z + z
    for n in range(14):
        log += term / np.float64(2 * n + 1)
        term *= z * z
    return np.float32(np.float64(x) - np.float64(largest) - log)


@kernel
def log_probabilities(
    rank: Int, size: Int, run: I64, out: F32, totals: F32, logits: F32, ids: I64, vocab: Int, stride: Int
) -> None:
    """out[t] = the log-probability of ids[t] under row t of the logits, the same float as `sample_choose` gives it.

    Rows are `stride` floats apart, run[LOGIT_ROWS] of them; totals: one float for each part and worker, as scratch.
    """
    parts = parts_of(vocab)
    start, end = share(run[LOGIT_ROWS], rank, size)
    own = rank * parts
    for t in range(start, end):
        largest = largest_of(logits, t * stride, 0, vocab)
        for part in range(parts):
            low, high = part * PART, part_end(part, vocab)
            totals[own + part] = exp_sum(logits, t * stride, low, high, largest)
        out[t] = log_probability(logits[t * stride + ids[t]], largest, totals, own, 1, parts)


def log_probability_exact(x: np.ndarray, id_: int) -> np.float32:
    """The log-probability of one id under a row x (V,) float32, bit for bit; no NaN and no +infinity."""
    largest = x.max()
    s = np.float64(0)
    for part in range(0, len(x), PART):
        e = exp_exact(np.append(x[part : part + PART], [MINUS_INFINITY] * (-len(x[part : part + PART]) % 8)) - largest)
        total = np.zeros(8, np.float32)
        for lanes in e.reshape(-1, 8):
            total = total + lanes
        s += np.float64(sum_f32(total))
    log = np.float64(0)
    while s > 1.5:
        s, log = s * 0.5, log + LN2
    z = (s - 1) / (s + 1)
    term = z + z
    for n in range(14):
        log += term / (2 * n + 1)
        term *= z * z
    return np.float32(np.float64(x[id_]) - np.float64(largest) - log)


def log_probability_truth(x: np.ndarray, id_: int) -> float:
    """The log-probability of one id in float64."""
    x = x.astype(np.float64)
    return float(x[id_] - x.max() - np.log(np.exp(x - x.max()).sum()))
