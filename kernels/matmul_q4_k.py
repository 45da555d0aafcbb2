"""Matrix product with Q4_K weights: INT4 codes in blocks of 256, with 6-bit sub-scales and sub-minima for every 32.

    weight = d * sub_scale * code - dmin * sub_minimum
    terms  = (d * x_scale) * (sub_scale * S)  and then  - (dmin * sub_minimum) * (x_scale * sum of x)
         S = sum over 32 of  code[n, k] * x[t, k]      (int32, exact)

Packed, for 8 outputs x 256 k: eight blocks of 4-bit codes of `kernels/codes.py`, then for each of them 8 sub-scales and
8 sub-minima, one byte each; 16 half floats: 8 times d, 8 times -dmin.

Bound: sub_scale * S is at most 63 * 32 * 15 * 127 = 3840480, exact in float32 too.

The Q4_K format: ggml.
"""

import numpy as np

from kernels.codes import CODES4, byte, put_code4
from kernels.registry import subroutine
from kernels.terms import (
    halves,
    k_scales,
    put_k_scales,
    sub_scaled_exact,
    sub_scaled_format,
    sub_scaled_truth,
)
from kernels.types import F16, U8, Int

BLOCK_BYTES = 144  # in the file: d, dmin, 12 bytes of sub-scales and sub-minima, 128 bytes of nibbles
RECORD = 8 * (128 + 16)


@subroutine
def put(codes: U8, scales: F16, n: Int, r: Int, source: U8, at: Int) -> None:
    """The 32 weights `at` of the file become lane r of block n."""
    block, j = BLOCK_BYTES * (at // 8), n % 8
    start = RECORD * (n // 8)
    put_k_scales(codes, start + 8 * 128 + 16 * j + r, scales, 16 * (n // 8) + r, source, block, j)
    for k in range(32):
        pair = byte(source, block + 16 + j // 2 * 32 + k)
        put_code4(codes, start + 128 * j, r, k, pair >> (j % 2 * 4))


Q4_K = sub_scaled_format("Q4_K", BLOCK_BYTES, CODES4, put)
matmul_q4_k, pack_q4_k, embed_q4_k = Q4_K.matmul, Q4_K.pack, Q4_K.embed


def decode(source: np.ndarray, rows: int, blocks: int) -> tuple[np.ndarray, ...]:
    """A file's Q4_K bytes -> codes (rows, K), sub-scales and sub-minima (rows, blocks), d and -dmin (rows, blocks / 8)."""
    block = source.reshape(rows, blocks // 8, BLOCK_BYTES)
    pairs = block[..., 16:].reshape(rows, -1, 4, 1, 32)
    codes = np.concatenate([pairs & 15, pairs >> 4], 3).reshape(rows, -1).astype(np.int32)
    return codes, *k_scales(block[..., 4:16]), halves(block, 0), -halves(block, 2)


matmul_q4_k_exact, matmul_q4_k_truth = sub_scaled_exact, sub_scaled_truth
