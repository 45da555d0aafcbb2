"""Matrix product with Q8_0 weights: INT8 codes in blocks of 32, one float16 scale each.

    term = scale[n, b] * x_scale[t, b] * S
       S = sum over the block of  (code[n, k] + 128) * x[t, k]  -  128 * sum of x[t, k]     (int32, exact)

Packed: code + 128 as 8-bit codes of `kernels/codes.py`, and 8 half floats, the scales of 8 outputs.

Bound: S is at most 32 * 255 * 127 + 128 * 32 * 127 = 1556512.

The Q8_0 format: ggml.
"""

import numpy as np

from kernels.codes import Codes, code8, dot8, load_codes8, put_half, sum_of_block
from kernels.matmul_blocks import block_format, scaled_exact, scaled_truth
from kernels.registry import subroutine
from kernels.simd import fma, load_f16x8, mul_f32, splat_f32, splat_i32, sub_i32, to_f32, widen_f16
from kernels.types import F16, F32, I8, I32, U8, F32x8, Float, Int

ZERO_POINT = 128
BLOCK_BYTES = 34  # in the file: float16 scale, 32 signed bytes
Weights = tuple[Codes, F32x8]


@subroutine
def load(codes: U8, scales: F16, n: Int) -> Weights:
    """Block n in registers: codes and scales."""
    return load_codes8(codes, 256 * n), load_f16x8(scales, 8 * n)


@subroutine
def add(acc: F32x8, weights: Weights, x: I8, x_scales: F32, x_sums: I32, at: Int) -> F32x8:
    """acc plus one block's term."""
    codes, scale = weights
    offset = splat_i32(np.int32(ZERO_POINT) * sum_of_block(x_sums, at))
    return fma(to_f32(sub_i32(dot8(codes, x, 32 * at), offset)), mul_f32(scale, splat_f32(x_scales[at])), acc)


@subroutine
def put(codes: U8, scales: F16, n: Int, r: Int, source: U8, at: Int) -> None:
    """Block `at` of the file becomes lane r of block n."""
    put_half(scales, 8 * n + r, source, BLOCK_BYTES * at)
    for k in range(32):
        codes[256 * n + 32 * (k // 4) + 4 * r + k % 4] = source[BLOCK_BYTES * at + 2 + k] ^ 128


@subroutine
def element(codes: U8, scales: F16, n: Int, r: Int, k: Int) -> Float:
    """Weight k of lane r in block n."""
    return np.float32(code8(codes, 256 * n, r, k) - np.int32(ZERO_POINT)) * widen_f16(scales[8 * n + r])


Q8_0 = block_format("Q8_0", 32, BLOCK_BYTES, 256, 8, load, add, put, element)
matmul_q8_0, pack_q8_0, embed_q8_0 = Q8_0.matmul, Q8_0.pack, Q8_0.embed


def decode(source: np.ndarray, rows: int, blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """A file's Q8_0 bytes -> codes (rows, K) in -128..127 and scales (rows, blocks) float32."""
    block = source.reshape(rows, blocks, BLOCK_BYTES)
    scale = block[..., :2].copy().view(np.float16)[..., 0].astype(np.float32)
    return block[..., 2:].copy().view(np.int8).reshape(rows, -1).astype(np.int32), scale


matmul_q8_0_exact, matmul_q8_0_truth = scaled_exact, scaled_truth
