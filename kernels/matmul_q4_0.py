"""Matrix product with Q4_0 weights: INT4 codes in blocks of 32, one float16 scale each, zero point 8.

    term = scale[n, b] * x_scale[t, b] * S
       S = sum over the block of  code[n, k] * x[t, k]  -  8 * sum of x[t, k]     (int32, exact)

Packed: 4-bit codes of `kernels/codes.py`, and 8 half floats, the scales of 8 outputs.

Bound: S is at most 32 * 15 * 127 + 8 * 32 * 127 = 93472.

The Q4_0 format: ggml.
"""

import numpy as np

from kernels.codes import CODES4, put_half, put_nibbles
from kernels.registry import subroutine
from kernels.terms import halves, scaled_exact, scaled_format, scaled_truth
from kernels.types import F16, U8, Int

BLOCK_BYTES = 18  # in the file: float16 scale, 16 bytes of nibbles


@subroutine
def put(codes: U8, scales: F16, n: Int, r: Int, source: U8, at: Int) -> None:
    """Block `at` of the file becomes lane r of block n."""
    put_half(scales, 8 * n + r, source, BLOCK_BYTES * at)
    put_nibbles(codes, 128 * n, r, source, BLOCK_BYTES * at + 2)


Q4_0 = scaled_format("Q4_0", BLOCK_BYTES, CODES4, 8, put)
matmul_q4_0, pack_q4_0, embed_q4_0 = Q4_0.matmul, Q4_0.pack, Q4_0.embed


def decode(source: np.ndarray, rows: int, blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """A file's Q4_0 bytes -> codes without the zero point (rows, K) int32, and scales (rows, blocks) float32."""
    block = source.reshape(rows, blocks, BLOCK_BYTES)
    codes = np.concatenate([block[..., 2:] & 15, block[..., 2:] >> 4], -1)
    return codes.reshape(rows, -1).astype(np.int32) - 8, halves(block, 0)


matmul_q4_0_exact, matmul_q4_0_truth = scaled_exact, scaled_truth
