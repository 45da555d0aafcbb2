"""Activations to INT8: blocks of 32 along k, one float32 scale each, quantised on the fly.

    scale = max|x| / 127, counted as 0 (and all codes 0) below 2^-126
    code  = clamp(round half to even(x / scale), -127, 127)

The many-row matrix product reads TILE rows side by side, so their blocks lie together (tile, block, row, 32):

    codes   | row 0: 32 codes of block 0 | row 1: block 0 | row 2: block 0 | row 3: block 0 | row 0: block 1 | ...
    scales  | two floats for each of these: its scale, and that times the sum of its codes (for minima of weights)
    sums    | three int32 for each: the sum of its codes, and 32 times that of its first half, and of its last

A single row is its own tile. A NaN gets the code -127 (it passes no comparison); a block that holds an infinity gets an
infinite scale, so its products are not finite either.
"""

import numpy as np

from kernels.registry import kernel, subroutine
from kernels.simd import (
    abs_f32,
    add_i32,
    div_f32,
    load_f32x8,
    max_f32,
    max_lane,
    min_f32,
    rint_f32,
    splat_f32,
    store_i8x8,
    sum_i32,
    to_i32,
)
from kernels.types import F32, I8, I32, I64, F32x8, I32x8, Int

BLOCK = 32
TILE = 4
SCALES, SUMS = 2, 3  # for each block
SMALLEST_SCALE = np.float32(2.0**-126)


@subroutine
def share(count: Int, rank: Int, size: Int) -> tuple[Int, Int]:
    """The part of 0..count that worker `rank` of `size` computes: start and end."""
    return count * rank // size, count * (rank + 1) // size


@subroutine
def tile_rows(rows: Int) -> Int:
    """How many rows lie side by side in the quantised activations of `rows` rows."""
    return TILE if rows > 1 else 1


@subroutine
def tiled_block(row: Int, block: Int, blocks: Int, rows: Int) -> Int:
    """Where block `block` of row `row` lies among all quantised blocks, each row having `blocks` of them."""
    tile = tile_rows(rows)
    return (row // tile * blocks + block) * tile + row % tile


@subroutine
def store_quantized(v0: F32x8, v1: F32x8, v2: F32x8, v3: F32x8, codes: I8, scales: F32, sums: I32, at: Int) -> None:
    """Quantise the 32 values of v0..v3 into block `at`: its codes, its scales and its sums."""
    largest = max_lane(max_f32(max_f32(abs_f32(v0), abs_f32(v1)), max_f32(abs_f32(v2), abs_f32(v3))))
    scale = np.float32(largest / np.float32(127.0))
    if not scale >= SMALLEST_SCALE:
        scale = np.float32(0.0)
    divisor = splat_f32(scale if scale > np.float32(0.0) else np.float32(np.inf))
    c0, c1, c2, c3 = _codes(v0, divisor), _codes(v1, divisor), _codes(v2, divisor), _codes(v3, divisor)
    store_i8x8(codes, 32 * at, c0)
    store_i8x8(codes, 32 * at + 8, c1)
    store_i8x8(codes, 32 * at + 16, c2)
    store_i8x8(codes, 32 * at + 24, c3)
    first = add_i32(c0, c1)
    both, half = sum_i32(add_i32(first, add_i32(c2, c3))), sum_i32(first)
    scales[SCALES * at], scales[SCALES * at + 1] = scale, scale * np.float32(both)
    sums[SUMS * at] = both
    sums[SUMS * at + 1] = 32 * half
    sums[SUMS * at + 2] = 32 * (both - half)


@subroutine
def _codes(v: F32x8, divisor: F32x8) -> I32x8:
    ratio = rint_f32(div_f32(v, divisor))
    low = max_f32(ratio, splat_f32(np.float32(-127.0)))  # a NaN becomes -127
    return to_i32(min_f32(low, splat_f32(np.float32(127.0))))


@kernel
def quantize(
    rank: Int, size: Int, run: I64, codes: I8, scales: F32, sums: I32, x: F32, blocks: Int, stride: Int, count: Int
) -> None:
    """Quantise rows of `blocks` blocks, `stride` floats apart in x; run[count] is the number of rows."""
    rows = run[count]
    start, end = share(rows * blocks, rank, size)
    for i in range(start, end):
        row = i // blocks
        block = i - row * blocks
        at = row * stride + block * 32
        store_quantized(
            load_f32x8(x, at),
            load_f32x8(x, at + 8),
            load_f32x8(x, at + 16),
            load_f32x8(x, at + 24),
            codes,
            scales,
            sums,
            tiled_block(row, block, blocks, rows),
        )


def quantize_exact(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same in NumPy, bit for bit.

    Args:
        x: (T, K) float32, finite, K a multiple of 32.

    Returns:
        codes (T, K) int8 in their natural order, and scales (T, K / 32) float32.
    """
    blocks = x.reshape(x.shape[0], -1, BLOCK)
    scale = np.abs(blocks).max(-1) / np.float32(127)
    scale[~(scale >= SMALLEST_SCALE)] = 0
    divisor = np.where(scale > 0, scale, np.float32(np.inf))
    codes = np.clip(np.rint(blocks / divisor[..., None]), -127, 127).astype(np.int8)
    return codes.reshape(x.shape), scale


def quantized_shapes(rows: int, blocks: int) -> dict[str, tuple[str, int]]:
    """dtype and length of the arrays that `rows` quantised rows of `blocks` blocks take: codes, scales, sums."""
    count = tiled_rows(rows) * blocks
    return {"codes": ("int8", BLOCK * count), "scales": ("float32", SCALES * count), "sums": ("int32", SUMS * count)}


def empty_quantized(rows: int, blocks: int) -> dict[str, np.ndarray]:
    """These arrays, zeros."""
    return {name: np.zeros(length, dtype) for name, (dtype, length) in quantized_shapes(rows, blocks).items()}


def untile(values: np.ndarray, rows: int, blocks: int) -> np.ndarray:
    """Undo the tiling: values of shape (slots, ...) in tiled order -> (rows, blocks, ...)."""
    order = [[tiled_block(row, block, blocks, rows) for block in range(blocks)] for row in range(rows)]
    return values[np.array(order)]


def tiled_rows(rows: int) -> int:
    """Rows of memory that `rows` quantised rows take: whole tiles."""
    return rows if rows <= 1 else -(-rows // TILE) * TILE
