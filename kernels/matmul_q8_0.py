"""Matrix product with Q8_0 weights: INT8 codes in blocks of 32, one float16 scale each.

    term = scale[n, b] * x_scale[t, b] * S
       S = sum over the block of  (code[n, k] + 128) * x[t, k]  -  128 * sum of x[t, k]     (int32, exact)

Packed: eight vectors of 32 bytes for 8 outputs x 32 k; vector j:

    byte 4r + c     code + 128 of row r, k = 4j + c

and 8 half floats, the scales.

Bound: one product is at most 255 * 127, S at most 32 * 255 * 127 + 128 * 32 * 127 = 1556512.

The Q8_0 format: ggml.
"""

import numpy as np

from kernels.matmul_blocks import block_format
from kernels.registry import subroutine
from kernels.simd import (
    broadcast_i8x4,
    dot_u8,
    fma,
    load_f16x8,
    load_u8x32,
    mul_f32,
    quad_sums,
    splat_f32,
    splat_i32,
    sub_i32,
    to_f32,
    widen_f16,
    zero_quad_sums,
)
from kernels.types import F16, F32, I8, I32, U8, F32x8, Float, Int, U8x32

BLOCK_BYTES = 34  # in the file: float16 scale, 32 signed bytes
Weights = tuple[U8x32, U8x32, U8x32, U8x32, U8x32, U8x32, U8x32, U8x32, F32x8]


@subroutine
def load(codes: U8, scales: F16, n: Int) -> Weights:
    """Block n: eight vectors of codes, and the scales."""
    i = 256 * n
    return (
        load_u8x32(codes, i),
        load_u8x32(codes, i + 32),
        load_u8x32(codes, i + 64),
        load_u8x32(codes, i + 96),
        load_u8x32(codes, i + 128),
        load_u8x32(codes, i + 160),
        load_u8x32(codes, i + 192),
        load_u8x32(codes, i + 224),
        load_f16x8(scales, 8 * n),
    )


@subroutine
def add(acc: F32x8, weights: Weights, x: I8, x_scales: F32, x_sums: I32, at: Int) -> F32x8:
    """acc plus one block's term."""
    w0, w1, w2, w3, w4, w5, w6, w7, scale = weights
    i = 32 * at
    s = dot_u8(zero_quad_sums(), w0, broadcast_i8x4(x, i))
    s = dot_u8(s, w1, broadcast_i8x4(x, i + 4))
    s = dot_u8(s, w2, broadcast_i8x4(x, i + 8))
    s = dot_u8(s, w3, broadcast_i8x4(x, i + 12))
    s = dot_u8(s, w4, broadcast_i8x4(x, i + 16))
    s = dot_u8(s, w5, broadcast_i8x4(x, i + 20))
    s = dot_u8(s, w6, broadcast_i8x4(x, i + 24))
    s = dot_u8(s, w7, broadcast_i8x4(x, i + 28))
    offset = splat_i32(np.int32(128) * (x_sums[2 * at] + x_sums[2 * at + 1]))
    return fma(to_f32(sub_i32(quad_sums(s), offset)), mul_f32(scale, splat_f32(x_scales[at])), acc)


@subroutine
def put(codes: U8, scales: F16, n: Int, r: Int, source: U8, at: Int) -> None:
    """Block `at` of the file becomes lane r of block n."""
    i = 34 * at
    scales[8 * n + r] = np.int64(source[i]) | np.int64(source[i + 1]) << 8
    for k in range(32):
        codes[256 * n + 32 * (k // 4) + 4 * r + k % 4] = source[i + 2 + k] ^ 128


@subroutine
def element(codes: U8, scales: F16, n: Int, r: Int, k: Int) -> Float:
    """Weight k of lane r in block n."""
    code = np.int32(codes[256 * n + 32 * (k // 4) + 4 * r + k % 4]) - np.int32(128)
    return np.float32(code) * widen_f16(scales[8 * n + r])


Q8_0 = block_format("Q8_0", 32, BLOCK_BYTES, 256, 8, load, add, put, element)
matmul_q8_0, pack_q8_0, embed_q8_0 = Q8_0.matmul, Q8_0.pack, Q8_0.embed


def decode(source: np.ndarray, rows: int, blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """A file's Q8_0 bytes -> codes (rows, K) int8 and scales (rows, blocks) float32."""
    block = source.reshape(rows, blocks, BLOCK_BYTES)
    scale = block[..., :2].copy().view(np.float16)[..., 0].astype(np.float32)
    return block[..., 2:].copy().view(np.int8).reshape(rows, -1), scale


def matmul_q8_0_exact(x: np.ndarray, x_scale: np.ndarray, codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The kernel's integers and float32 steps in NumPy, bit for bit.

    Args:
        x: (T, K) int8 codes; x_scale: (T, B) float32.
        codes: (N, K) int8; scale: (N, B) float32.

    Returns:
        (T, N) float32.
    """
    (T, _), (N, B) = x.shape, scale.shape
    xb, wb = x.reshape(T, B, 32).astype(np.int32), codes.reshape(N, B, 32).astype(np.int32)
    acc = np.zeros((T, N), np.float32)
    for b in range(B):
        products = xb[:, b] @ wb[:, b].T
        acc = fma(products.astype(np.float32), scale[None, :, b] * x_scale[:, None, b], acc)
    return acc


def matmul_q8_0_truth(x: np.ndarray, codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """x (T, K) float64 times the exactly dequantised weights, in float64: (T, N)."""
    weights = codes.astype(np.float64) * np.repeat(scale.astype(np.float64), 32, axis=1)
    return x.astype(np.float64) @ weights.T
