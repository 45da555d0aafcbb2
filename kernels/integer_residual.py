"""The residual stream in integers: int32, one power of two as its unit for the whole model.

    integer_embed    x[t] = round(code of the token's row * its ratio)        INT8 rows, one scale each
    integer_add      x[t] += round(sum * ratio of its column)                 within -2^30 .. 2^30

Nothing is lost but what the unit can't hold; it is chosen so that the largest value of calibration has 26 bits, which leaves
room for 16 times as much.
"""

from typing import Any

import numpy as np

from kernels.integer_rescale import by_ratio, element, rescaled_exact, within
from kernels.quantize import share
from kernels.registry import kernel
from kernels.run import FIRST, ROWS, TOKEN, WIDTH
from kernels.types import I8, I32, I64, Int

RESIDUAL_LIMIT = 1 << 30
CALIBRATED_BITS = 26


@kernel
def integer_embed(
    rank: Int, size: Int, run: I64, out: I32, codes: I8, multipliers: I32, shifts: I32, blocks: Int
) -> None:
    """out[t] = the row of row t's token, `blocks` blocks of 32 wide; multipliers and shifts: (V,)."""
    start, end = share(run[ROWS] * blocks, rank, size)
    width = 32 * blocks
    for i in range(start, end):
        row = i // blocks
        first = 32 * (i - row * blocks)
        token = run[FIRST + WIDTH * row + TOKEN]
        for k in range(first, first + 32):
            code: Any = np.int64(codes[token * width + k])
            out[row * width + k] = within(by_ratio(code, multipliers, shifts, token), RESIDUAL_LIMIT)


@kernel
def integer_add(rank: Int, size: Int, run: I64, x: I32, sums: I32, multipliers: I32, shifts: I32, blocks: Int) -> None:
    """x += the rescaled sums, rows of `blocks` blocks of 32 side by side in both; multipliers and shifts: of each column."""
    start, end = share(run[ROWS] * blocks, rank, size)
    for i in range(start, end):
        row = i // blocks
        first = 32 * (i - row * blocks)
        at = row * 32 * blocks
        for k in range(first, first + 32):
            term = by_ratio(element(sums, at + k), multipliers, shifts, k)
            x[at + k] = within(element(x, at + k) + term, RESIDUAL_LIMIT)


def integer_embed_exact(codes: np.ndarray, multipliers: np.ndarray, shifts: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The same integers in NumPy: codes (V, n) int8, ids (T,) -> (T, n) int64."""
    return rescaled_exact(codes[ids].T, multipliers[ids], shifts[ids], RESIDUAL_LIMIT).T


def integer_add_exact(x: np.ndarray, sums: np.ndarray, multipliers: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """The same integers in NumPy: x and sums (T, n) -> (T, n) int64."""
    terms = rescaled_exact(sums, multipliers, shifts, 2**62)
    return np.clip(x.astype(np.int64) + terms, -RESIDUAL_LIMIT, RESIDUAL_LIMIT)
