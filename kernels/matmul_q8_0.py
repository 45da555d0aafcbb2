"""Matrix product with Q8_0 weights: INT8 codes in blocks of 32, one float16 scale each.

    term = scale[n, b] * x_scale[t, b] * S
       S = sum over the block of  (code[n, k] + 128) * x[t, k]  -  128 * sum of x[t, k]     (int32, exact)

Packed: code + 128 as 8-bit codes of `kernels/codes.py`, and 8 half floats, the scales of 8 outputs.

Bound: S is at most 32 * 255 * 127 + 128 * 32 * 127 = 1556512.

The Q8_0 format: ggml.
"""

import numpy as np

from kernels.codes import CODES8, byte, put_code8, put_half
from kernels.registry import subroutine
from kernels.terms import halves, scaled_exact, scaled_format, scaled_truth
from kernels.types import F16, U8, Int

BLOCK_BYTES = 34  # in the file: float16 scale, 32 signed bytes


@subroutine
def put(codes: U8, scales: F16, n: Int, r: Int, source: U8, at: Int) -> None:
    """Block `at` of the file becomes lane r of block n."""
    put_half(scales, 8 * n + r, source, BLOCK_BYTES * at)
    for k in range(32):
        put_code8(codes, 256 * n, r, k, byte(source, BLOCK_BYTES * at + 2 + k) ^ 128)


Q8_0 = scaled_format("Q8_0", BLOCK_BYTES, CODES8, 128, put)
matmul_q8_0, pack_q8_0, embed_q8_0 = Q8_0.matmul, Q8_0.pack, Q8_0.embed


def decode(source: np.ndarray, rows: int, blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """A file's Q8_0 bytes -> codes (rows, K) int32 in -128..127 and scales (rows, blocks) float32."""
    block = source.reshape(rows, blocks, BLOCK_BYTES)
    return block[..., 2:].copy().view(np.int8).reshape(rows, -1).astype(np.int32), halves(block, 0)


matmul_q8_0_exact, matmul_q8_0_truth = scaled_exact, scaled_truth
