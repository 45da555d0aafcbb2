"""Matrix product with Q4_0 weights: INT4 codes in blocks of 32, one float16 scale each, zero point 8.

    term = scale[n, b] * x_scale[t, b] * S
       S = sum over the block of  code[n, k] * x[t, k]  -  8 * sum of x[t, k]     (int32, exact)

Packed: 4-bit codes of `kernels/codes.py`, and 8 half floats, the scales of 8 outputs.

Bound: S is at most 32 * 15 * 127 + 8 * 32 * 127 = 93472.

The Q4_0 format: ggml.
"""

import numpy as np

from kernels.codes import Codes, code4, dot4, load_codes4, put_half, put_nibbles, sum_of_block
from kernels.matmul_blocks import block_format, scaled_exact, scaled_truth
from kernels.registry import subroutine
from kernels.simd import fma, load_f16x8, mul_f32, splat_f32, splat_i32, sub_i32, to_f32, widen_f16
from kernels.types import F16, F32, I8, I32, U8, F32x8, Float, Int

ZERO_POINT = 8
BLOCK_BYTES = 18  # in the file: float16 scale, 16 bytes of nibbles
Weights = tuple[Codes, F32x8]


@subroutine
def load(codes: U8, scales: F16, n: Int) -> Weights:
    """Block n in registers: codes and scales."""
    return load_codes4(codes, 128 * n), load_f16x8(scales, 8 * n)


@subroutine
def add(acc: F32x8, weights: Weights, x: I8, x_scales: F32, x_sums: I32, at: Int) -> F32x8:
    """acc plus one block's term."""
    codes, scale = weights
    offset = splat_i32(np.int32(ZERO_POINT) * sum_of_block(x_sums, at))
    return fma(to_f32(sub_i32(dot4(codes, x, 32 * at), offset)), mul_f32(scale, splat_f32(x_scales[at])), acc)


@subroutine
def put(codes: U8, scales: F16, n: Int, r: Int, source: U8, at: Int) -> None:
    """Block `at` of the file becomes lane r of block n."""
    put_half(scales, 8 * n + r, source, BLOCK_BYTES * at)
    put_nibbles(codes, 128 * n, r, source, BLOCK_BYTES * at + 2)


@subroutine
def element(codes: U8, scales: F16, n: Int, r: Int, k: Int) -> Float:
    """Weight k of lane r in block n."""
    return np.float32(code4(codes, 128 * n, r, k) - np.int32(ZERO_POINT)) * widen_f16(scales[8 * n + r])


Q4_0 = block_format("Q4_0", 32, BLOCK_BYTES, 128, 8, load, add, put, element)
matmul_q4_0, pack_q4_0, embed_q4_0 = Q4_0.matmul, Q4_0.pack, Q4_0.embed


def decode(source: np.ndarray, rows: int, blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """A file's Q4_0 bytes -> codes without the zero point (rows, K), -8..7, and scales (rows, blocks) float32."""
    block = source.reshape(rows, blocks, BLOCK_BYTES)
    scale = block[..., :2].copy().view(np.float16)[..., 0].astype(np.float32)
    codes = np.concatenate([block[..., 2:] & 15, block[..., 2:] >> 4], -1)
    return codes.reshape(rows, -1).astype(np.int32) - ZERO_POINT, scale


matmul_q4_0_exact, matmul_q4_0_truth = scaled_exact, scaled_truth
