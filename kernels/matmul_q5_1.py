"""Matrix product with Q5_1 weights: INT5 codes in blocks of 32, one float16 scale and one float16 minimum each.

    weight = scale * code + minimum
    terms  = (scale * x_scale) * S  and then  minimum * (x_scale * sum of x)
         S = sum over the block of  code[n, k] * x[t, k]      (int32, exact)

Packed: 5-bit codes of `kernels/codes.py`, and 16 half floats: the scales of 8 outputs, then their minima.

Bound: S is at most 32 * 31 * 127 = 125984.

The Q5_1 format: ggml.
"""

import numpy as np

from kernels.codes import CODES5, put_fifth_bits, put_half, put_nibbles
from kernels.registry import subroutine
from kernels.terms import halves, low_and_fifth, minimum_exact, minimum_format, minimum_truth
from kernels.types import F16, U8, Int

BLOCK_BYTES = 24  # in the file: float16 scale and minimum, 4 bytes of fifth bits, 16 bytes of nibbles


@subroutine
def put(codes: U8, scales: F16, n: Int, r: Int, source: U8, at: Int) -> None:
    """Block `at` of the file becomes lane r of block n."""
    put_half(scales, 16 * n + r, source, BLOCK_BYTES * at)
    put_half(scales, 16 * n + 8 + r, source, BLOCK_BYTES * at + 2)
    put_nibbles(codes, 160 * n, r, source, BLOCK_BYTES * at + 8)
    put_fifth_bits(codes, 160 * n, r, source, BLOCK_BYTES * at + 4)


Q5_1 = minimum_format("Q5_1", BLOCK_BYTES, CODES5, put)
matmul_q5_1, pack_q5_1, embed_q5_1 = Q5_1.matmul, Q5_1.pack, Q5_1.embed


def decode(source: np.ndarray, rows: int, blocks: int) -> tuple[np.ndarray, ...]:
    """A file's Q5_1 bytes -> codes (rows, K) int32, scales and minima (rows, blocks) float32."""
    block = source.reshape(rows, blocks, BLOCK_BYTES)
    return low_and_fifth(block[..., 8:], block[..., 4:8]), halves(block, 0), halves(block, 2)


matmul_q5_1_exact, matmul_q5_1_truth = minimum_exact, minimum_truth
