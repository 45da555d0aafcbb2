"""Matrix product with Q5_K weights: INT5 codes in blocks of 256, with 6-bit sub-scales and sub-minima for every 32.

    weight = d * sub_scale * code - dmin * sub_minimum
    terms  = (d * x_scale) * (sub_scale * S)  and then  - (dmin * sub_minimum) * (x_scale * sum of x)
         S = sum over 32 of  code[n, k] * x[t, k]      (int32, exact)

Packed, for 8 outputs x 256 k: eight blocks of 5-bit codes of `kernels/codes.py`, then for each of them 8 sub-scales and
8 sub-minima, one byte each; 16 half floats: 8 times d, 8 times -dmin.

Bound: sub_scale * S is at most 63 * 32 * 31 * 127 = 7936992, exact in float32 too.

The Q5_K format: ggml.
"""

import numpy as np

from kernels.codes import CODES5, byte, put_code5
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

BLOCK_BYTES = 176  # in the file: d, dmin, 12 bytes of sub-scales and sub-minima, 32 of fifth bits, 128 of nibbles
RECORD = 8 * (160 + 16)


@subroutine
def put(codes: U8, scales: F16, n: Int, r: Int, source: U8, at: Int) -> None:
    """The 32 weights `at` of the file become lane r of block n."""
    block, j = BLOCK_BYTES * (at // 8), n % 8
    start = RECORD * (n // 8)
    put_k_scales(codes, start + 8 * 160 + 16 * j + r, scales, 16 * (n // 8) + r, source, block, j)
    for k in range(32):
        low = byte(source, block + 48 + j // 2 * 32 + k) >> (j % 2 * 4) & 15
        fifth = byte(source, block + 16 + k) >> j & 1
        put_code5(codes, start + 160 * j, r, k, low | fifth << 4)


Q5_K = sub_scaled_format("Q5_K", BLOCK_BYTES, CODES5, put)
matmul_q5_k, pack_q5_k, embed_q5_k = Q5_K.matmul, Q5_K.pack, Q5_K.embed


def decode(source: np.ndarray, rows: int, blocks: int) -> tuple[np.ndarray, ...]:
    """A file's Q5_K bytes -> codes (rows, K), sub-scales and sub-minima (rows, blocks), d and -dmin (rows, blocks / 8)."""
    block = source.reshape(rows, blocks // 8, BLOCK_BYTES)
    pairs = block[..., 48:].reshape(rows, -1, 4, 1, 32)
    low = np.concatenate([pairs & 15, pairs >> 4], 3).reshape(rows, -1, 8, 32)
    fifth = block[..., None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    codes = (low | fifth << 4).reshape(rows, -1).astype(np.int32)
    return codes, *k_scales(block[..., 4:16]), halves(block, 0), -halves(block, 2)


matmul_q5_k_exact, matmul_q5_k_truth = sub_scaled_exact, sub_scaled_truth
