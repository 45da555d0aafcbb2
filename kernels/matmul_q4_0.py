"""Matrix product with Q4_0 weights: INT4 codes in blocks of 32, one float16 scale each, zero point 8.

    out[t, n] = sum over blocks b, ascending, of  scale[n, b] * x_scale[t, b] * S      (float32, by fma)
            S = sum over the block of  code[n, k] * x[t, k]  -  8 * sum of x[t, k]     (int32, exact)

Packed layout of 8 outputs (rows r of the weight matrix) x 32 k: four vectors of 32 bytes; vector j:

    byte 4r + c     low nibble: code of row r, k = 4j + c      high nibble: code of row r, k = 16 + 4j + c

so that four k of one row meet in one lane of the sum, and each lane is one output's own running sum. Scales: 8 half floats
a block. Both lie in the order (group of 8 outputs, block).

Bound: a pair of products is at most 2 * 15 * 127 = 3810 and eight of them are added in int16: 30480. S is at most
32 * 15 * 127 + 8 * 32 * 127 = 93472.

The Q4_0 format: ggml; the sums in 16 bits: `pmaddubsw`, see `kernels/simd.py`.
"""

import numpy as np

from kernels.epilogue import finish
from kernels.quantize import share, tile_rows, tiled_block
from kernels.registry import kernel, subroutine
from kernels.simd import (
    add_i32,
    broadcast_i8x4,
    dot_u4,
    fma,
    high_nibbles,
    load_f16x8,
    load_u8x32,
    low_nibbles,
    mul_f32,
    pair_sums,
    prefetch,
    splat_f32,
    splat_i32,
    sub_i32,
    to_f32,
    widen_f16,
    zero_pair_sums,
)
from kernels.types import F16, F32, I8, I32, I64, U8, F32x8, I32x8, Int, U8x32

BLOCK_BYTES = 18  # in the file: float16 scale, 16 bytes of nibbles
ZERO_POINT = 8
AHEAD = 1536  # bytes to prefetch ahead of the one-row product


@subroutine
def dot_block(
    w0: U8x32, w1: U8x32, w2: U8x32, w3: U8x32, w4: U8x32, w5: U8x32, w6: U8x32, w7: U8x32, x: I8, i: Int
) -> I32x8:
    """The sums of products of 8 outputs' nibbles with the 32 codes from x[i]; w0..w3 hold k 0..15, w4..w7 k 16..31."""
    s = dot_u4(zero_pair_sums(), w0, broadcast_i8x4(x, i))
    s = dot_u4(s, w1, broadcast_i8x4(x, i + 4))
    s = dot_u4(s, w2, broadcast_i8x4(x, i + 8))
    s = dot_u4(s, w3, broadcast_i8x4(x, i + 12))
    s = dot_u4(s, w4, broadcast_i8x4(x, i + 16))
    s = dot_u4(s, w5, broadcast_i8x4(x, i + 20))
    s = dot_u4(s, w6, broadcast_i8x4(x, i + 24))
    return pair_sums(dot_u4(s, w7, broadcast_i8x4(x, i + 28)))


@subroutine
def add_block(acc: F32x8, products: I32x8, scale: F32x8, x_scales: F32, x_sums: I32, at: Int) -> F32x8:
    """acc plus one block's products, without the zero point, times both scales; `at` is the activation's block."""
    offset = splat_i32(np.int32(8) * (x_sums[2 * at] + x_sums[2 * at + 1]))
    return fma(to_f32(sub_i32(products, offset)), mul_f32(scale, splat_f32(x_scales[at])), acc)


@subroutine
def one_row(
    codes: U8, scales: F16, x: I8, x_scales: F32, x_sums: I32, group: Int, blocks: Int, first: Int, step: Int
) -> F32x8:
    """Eight outputs of one row, whose blocks lie at first, first + step, ..."""
    acc = splat_f32(np.float32(0.0))
    for b in range(blocks):
        i = (group * blocks + b) * 128
        at = first + b * step
        prefetch(codes, i + AHEAD)
        prefetch(codes, i + AHEAD + 64)
        v0, v1, v2, v3 = (
            load_u8x32(codes, i),
            load_u8x32(codes, i + 32),
            load_u8x32(codes, i + 64),
            load_u8x32(codes, i + 96),
        )
        low = dot_u4(zero_pair_sums(), low_nibbles(v0), broadcast_i8x4(x, 32 * at))
        high = dot_u4(zero_pair_sums(), high_nibbles(v0), broadcast_i8x4(x, 32 * at + 16))
        low = dot_u4(low, low_nibbles(v1), broadcast_i8x4(x, 32 * at + 4))
        high = dot_u4(high, high_nibbles(v1), broadcast_i8x4(x, 32 * at + 20))
        low = dot_u4(low, low_nibbles(v2), broadcast_i8x4(x, 32 * at + 8))
        high = dot_u4(high, high_nibbles(v2), broadcast_i8x4(x, 32 * at + 24))
        low = dot_u4(low, low_nibbles(v3), broadcast_i8x4(x, 32 * at + 12))
        high = dot_u4(high, high_nibbles(v3), broadcast_i8x4(x, 32 * at + 28))
        products = add_i32(pair_sums(low), pair_sums(high))
        acc = add_block(acc, products, load_f16x8(scales, (group * blocks + b) * 8), x_scales, x_sums, at)
    return acc


@kernel
def matmul_q4_0(
    rank: Int,
    size: Int,
    run: I64,
    out: F32,
    x: I8,
    x_scales: F32,
    x_sums: I32,
    codes: U8,
    scales: F16,
    bias: F32,
    groups: Int,
    blocks: Int,
    stride: Int,
    add: Int,
    count: Int,
) -> None:
    """out[t, 8 groups] = x[t] @ weights + bias for run[count] rows, `stride` floats apart in out; added to out where add."""
    rows = run[count]
    tile = tile_rows(rows)
    start, end = share(groups, rank, size)
    whole = rows // 4 * 4 if rows > 1 else 0
    for group in range(start, end):
        for t in range(0, whole, 4):
            c0 = splat_f32(np.float32(0.0))
            c1, c2, c3 = c0, c0, c0
            for b in range(blocks):
                i = (group * blocks + b) * 128
                v0, v1, v2, v3 = (
                    load_u8x32(codes, i),
                    load_u8x32(codes, i + 32),
                    load_u8x32(codes, i + 64),
                    load_u8x32(codes, i + 96),
                )
                w0, w1, w2, w3 = low_nibbles(v0), low_nibbles(v1), low_nibbles(v2), low_nibbles(v3)
                w4, w5, w6, w7 = high_nibbles(v0), high_nibbles(v1), high_nibbles(v2), high_nibbles(v3)
                scale = load_f16x8(scales, (group * blocks + b) * 8)
                at = t * blocks + 4 * b
                p0 = dot_block(w0, w1, w2, w3, w4, w5, w6, w7, x, 32 * at)
                c0 = add_block(c0, p0, scale, x_scales, x_sums, at)
                p1 = dot_block(w0, w1, w2, w3, w4, w5, w6, w7, x, 32 * at + 32)
                c1 = add_block(c1, p1, scale, x_scales, x_sums, at + 1)
                p2 = dot_block(w0, w1, w2, w3, w4, w5, w6, w7, x, 32 * at + 64)
                c2 = add_block(c2, p2, scale, x_scales, x_sums, at + 2)
                p3 = dot_block(w0, w1, w2, w3, w4, w5, w6, w7, x, 32 * at + 96)
                c3 = add_block(c3, p3, scale, x_scales, x_sums, at + 3)
            finish(out, t * stride + 8 * group, c0, bias, 8 * group, add)
            finish(out, (t + 1) * stride + 8 * group, c1, bias, 8 * group, add)
            finish(out, (t + 2) * stride + 8 * group, c2, bias, 8 * group, add)
            finish(out, (t + 3) * stride + 8 * group, c3, bias, 8 * group, add)
        for t in range(whole, rows):
            c = one_row(codes, scales, x, x_scales, x_sums, group, blocks, tiled_block(t, 0, blocks, rows), tile)
            finish(out, t * stride + 8 * group, c, bias, 8 * group, add)


@kernel
def embed_q4_0(rank: Int, size: Int, run: I64, out: F32, codes: U8, scales: F16, blocks: Int, stride: Int) -> None:
    """out[t] = the weight row of row t's token, dequantised."""
    start, end = share(run[0] * blocks, rank, size)
    for n in range(start, end):
        t = n // blocks
        b = n - t * blocks
        token = run[8 + 4 * t]
        at = token // 8 * blocks + b
        r = token % 8
        scale = widen_f16(scales[8 * at + r])
        for k in range(16):
            byte = codes[128 * at + 32 * (k // 4) + 4 * r + k % 4]
            out[t * stride + 32 * b + k] = np.float32(np.int32(byte & 15) - np.int32(8)) * scale
            out[t * stride + 32 * b + 16 + k] = np.float32(np.int32(byte >> 4) - np.int32(8)) * scale


@kernel
def pack_q4_0(rank: Int, size: Int, run: I64, codes: U8, scales: F16, source: U8, rows: Int, blocks: Int) -> None:
    """Repack a file's Q4_0 tensor of (rows, blocks) blocks; outputs beyond the last row get the scale 0."""
    groups = (rows + 7) // 8
    start, end = share(groups, rank, size)
    for group in range(start, end):
        for r in range(8):
            row = 8 * group + r
            for b in range(blocks):
                to = 128 * (group * blocks + b) + 4 * r
                if row < rows:
                    at = (row * blocks + b) * 18
                    scales[8 * (group * blocks + b) + r] = np.int64(source[at]) | np.int64(source[at + 1]) << 8
                    for k in range(16):
                        codes[to + 32 * (k // 4) + k % 4] = source[at + 2 + k]
                else:
                    scales[8 * (group * blocks + b) + r] = 0
                    for k in range(16):
                        codes[to + 32 * (k // 4) + k % 4] = 0


def decode(source: np.ndarray, rows: int, blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """A file's Q4_0 bytes -> codes (rows, K) uint8 in 0..15 and scales (rows, blocks) float32."""
    block = source.reshape(rows, blocks, BLOCK_BYTES)
    scale = block[..., :2].copy().view(np.float16)[..., 0].astype(np.float32)
    codes = np.concatenate([block[..., 2:] & 15, block[..., 2:] >> 4], -1)
    return codes.reshape(rows, -1), scale


def matmul_q4_0_exact(x: np.ndarray, x_scale: np.ndarray, codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The kernel's integers and float32 steps in NumPy, bit for bit.

    Args:
        x: (T, K) int8 codes; x_scale: (T, B) float32.
        codes: (N, K) in 0..15; scale: (N, B) float32.

    Returns:
        (T, N) float32.
    """
    (T, _), (N, B) = x.shape, scale.shape
    xb = x.reshape(T, B, 32).astype(np.int32)
    wb = codes.reshape(N, B, 32).astype(np.int32) - ZERO_POINT
    acc = np.zeros((T, N), np.float32)
    for b in range(B):
        products = xb[:, b] @ wb[:, b].T
        acc = fma(products.astype(np.float32), scale[None, :, b] * x_scale[:, None, b], acc)
    return acc


def matmul_q4_0_truth(x: np.ndarray, codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """x (T, K) float64 times the exactly dequantised weights, in float64: (T, N)."""
    weights = (codes.astype(np.float64) - ZERO_POINT) * np.repeat(scale.astype(np.float64), 32, axis=1)
    return x.astype(np.float64) @ weights.T
