"""Matrix product with Q5_0 weights: INT5 codes in blocks of 32, one float16 scale each, zero point 16.

    term = scale[n, b] * x_scale[t, b] * S
       S = sum over the block of  code[n, k] * x[t, k]  -  16 * sum of x[t, k]     (int32, exact)

Packed: 5-bit codes of `kernels/codes.py`, and 8 half floats, the scales of 8 outputs.

Bound: S is at most 32 * 31 * 127 + 16 * 32 * 127 = 191008.

The Q5_0 format: ggml.
"""

import numpy as np

from kernels.codes import CODES5, put_fifth_bits, put_half, put_nibbles
from kernels.registry import subroutine
from kernels.terms import halves, low_and_fifth, scaled_exact, scaled_format, scaled_truth
from kernels.types import F16, U8, Int

BLOCK_BYTES = 22  # in the file: float16 scale, 4 bytes of fifth bits, 16 bytes of nibbles


@subroutine
def put(codes: U8, scales: F16, n: Int, r: Int, source: U8, at: Int) -> None:
    """Block `at` of the file becomes lane r of block n."""
    put_half(scales, 8 * n + r, source, BLOCK_BYTES * at)
    put_nibbles(codes, 160 * n, r, source, BLOCK_BYTES * at + 6)
    put_fifth_bits(codes, 160 * n, r, source, BLOCK_BYTES * at + 2)


Q5_0 = scaled_format("Q5_0", BLOCK_BYTES, CODES5, 16, put)
matmul_q5_0, pack_q5_0, embed_q5_0 = Q5_0.matmul, Q5_0.pack, Q5_0.embed


def decode(source: np.ndarray, rows: int, blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """A file's Q5_0 bytes -> codes without the zero point (rows, K) int32, and scales (rows, blocks) float32."""
    block = source.reshape(rows, blocks, BLOCK_BYTES)
    return low_and_fifth(block[..., 6:], block[..., 2:6]) - 16, halves(block, 0)


matmul_q5_0_exact, matmul_q5_0_truth = scaled_exact, scaled_truth
