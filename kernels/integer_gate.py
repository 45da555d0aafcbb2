"""The gate of a feed-forward layer in integers: int32 sums of two products in, static INT8 out.

    out = clamp(round(ratio * silu(gate) * up), -127, 127)        silu(g) = g / (1 + exp(-g))

    gate   in units of 2^-20, within 2^30: one multiplier and shift for each channel
    up     in units of 2^-20 of the largest that calibration saw in its channel, within 2^24: 16 times as much
    silu   g * 2^30 / (1 + e) or g * e / (1 + e), e = exp(-|g|) by `kernels/integer_exp.py`

silu(gate) * up, at most 2^54, is shifted down before the channel's ratio is applied, so that the largest product of
calibration has 26 bits: two roundings, the first of which is too fine to be seen.

I-BERT does the same to GELU (Kim et al., 2021, section 3.3); here the
sigmoid is as exact as its exponential, not a polynomial of degree 2.
"""

import numpy as np

from kernels.integer_exp import RESULT_BITS, exp2_negative, exp2_negative_exact
from kernels.integer_rescale import INT32_LIMIT, by_ratio, element, rescaled, rescaled_exact, within
from kernels.quantize import share
from kernels.registry import kernel, subroutine
from kernels.run import ROWS
from kernels.types import I8, I32, I64, Int

GATE_BITS, GATE_LIMIT = 20, 1 << 30
UP_BITS, UP_LIMIT = 20, 1 << 24
LOG2E = round(1.4426950408889634 * 2**28)  # of 2^-20 in, 2^-24 out: a shift of 24
LARGEST = 127
ONE = 1 << RESULT_BITS


@subroutine
def integer_silu(g: Int) -> Int:
    """silu of g, both in units of 2^-20, |g| <= 2^30."""
    size = -g if g < 0 else g
    e = exp2_negative(size * LOG2E >> 24)
    share_of_one = (e if g < 0 else ONE) << RESULT_BITS
    sigmoid = share_of_one // (ONE + e)
    return (g * sigmoid + (ONE >> 1)) >> RESULT_BITS


@kernel
def integer_silu_gate(
    rank: Int,
    size: Int,
    run: I64,
    out: I8,
    gate: I32,
    up: I32,
    gate_multipliers: I32,
    gate_shifts: I32,
    up_multipliers: I32,
    up_shifts: I32,
    product_shifts: I32,
    multipliers: I32,
    shifts: I32,
    blocks: Int,
) -> None:
    """out = the codes of silu(gate) * up for all rows of `blocks` blocks of 32, side by side in gate, up and out."""
    rows = run[ROWS]
    start, end = share(rows * blocks, rank, size)
    for i in range(start, end):
        row = i // blocks
        first = 32 * (i - row * blocks)
        at = row * 32 * blocks
        for k in range(first, first + 32):
            g = by_ratio(element(gate, at + k), gate_multipliers, gate_shifts, k)
            u = by_ratio(element(up, at + k), up_multipliers, up_shifts, k)
            product = integer_silu(within(g, GATE_LIMIT)) * within(u, UP_LIMIT)
            product = within(rescaled(product, 1, element(product_shifts, k)), INT32_LIMIT)
            out[at + k] = within(by_ratio(product, multipliers, shifts, k), LARGEST)


def integer_silu_gate_exact(
    gate: np.ndarray,
    up: np.ndarray,
    gate_fixed: tuple[np.ndarray, np.ndarray],
    up_fixed: tuple[np.ndarray, np.ndarray],
    product_shifts: np.ndarray,
    fixed: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """The same integers in NumPy: gate and up (T, K) int32, all else (K,) -> (T, K) int8."""
    g = rescaled_exact(gate, *gate_fixed, GATE_LIMIT)
    u = rescaled_exact(up, *up_fixed, UP_LIMIT)
    e = exp2_negative_exact(np.abs(g) * LOG2E >> 24)
    sigmoid = (np.where(g < 0, e, ONE) << RESULT_BITS) // (ONE + e)
    silu = (g * sigmoid + (ONE >> 1)) >> RESULT_BITS
    product = rescaled_exact(silu * u, np.ones_like(product_shifts), product_shifts, INT32_LIMIT)
    return rescaled_exact(product, *fixed, LARGEST).astype(np.int8)


def integer_silu_gate_truth(
    gate: np.ndarray, up: np.ndarray, gate_ratios: np.ndarray, up_ratios: np.ndarray, ratios: np.ndarray
) -> np.ndarray:
    """The codes in float64, not rounded; ratios: gate's in units of 1, up's of its unit, out's codes for one of both."""
    g, u = gate * gate_ratios, up * up_ratios
    return np.clip(g / (1 + np.exp(-g)) * u * ratios, -LARGEST, LARGEST)
