"""Matrix product with TQ2_0 weights: ternary codes in blocks of 256, two bits each in the file, one float16 scale.

    weight = scale * (code - 1)                                    code 0, 1, 2
    term   = scale[n, b] * x_scale[t, b] * S
       S = sum over 32 of  code[n, k] * x[t, k]  -  sum of x[t, k]        (int32, exact)

Packed as 4-bit codes of `kernels/codes.py`, a block of 32 at a time, each with its copy of the scale: the product is that of
Q4_0 with another zero point. (Two bits a code would halve the memory that is read; that form is yet to be written.)

The TQ2_0 format: ggml. The code 3, which no writer makes, stands for 2 * scale as it does there.
"""

from dataclasses import replace

import numpy as np

from kernels.codes import CODES4, byte, put_code4, put_half
from kernels.registry import subroutine
from kernels.terms import halves, scaled_exact, scaled_format, scaled_truth
from kernels.types import F16, U8, Int

BLOCK_BYTES = 66  # in the file: 64 bytes of four codes each, float16 scale


@subroutine
def put(codes: U8, scales: F16, n: Int, r: Int, source: U8, at: Int) -> None:
    """The 32 weights `at` of the file become lane r of block n."""
    block, j = BLOCK_BYTES * (at // 8), at % 8
    put_half(scales, 8 * n + r, source, block + 64)
    for k in range(32):
        put_code4(codes, 128 * n, r, k, byte(source, block + j // 4 * 32 + k) >> (j % 4 * 2) & 3)


TQ2_0 = replace(scaled_format("TQ2_0", BLOCK_BYTES, CODES4, 1, put), file_block=256)
matmul_tq2_0, pack_tq2_0, embed_tq2_0 = TQ2_0.matmul, TQ2_0.pack, TQ2_0.embed


def decode(source: np.ndarray, rows: int, blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """A file's TQ2_0 bytes -> codes without the zero point (rows, K) int32, and scales (rows, blocks) float32."""
    block = source.reshape(rows, blocks // 8, BLOCK_BYTES)
    quads = block[..., :64].reshape(rows, -1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    return quads.reshape(rows, -1).astype(np.int32) - 1, np.repeat(halves(block, 64), 8, axis=1)


matmul_tq2_0_exact, matmul_tq2_0_truth = scaled_exact, scaled_truth
