"""Matrix product with TQ1_0 weights: ternary codes in blocks of 256, five to a byte in the file, one float16 scale.

    digit n of a byte b = ((b * 3^n mod 256) * 3) >> 8        0, 1, 2: b / 256 is a fraction in base 3
    elements 0..159: digit e / 32 of byte e % 32;  160..239: digit r / 16 of byte 32 + r % 16, r = e - 160;
    240..255: digit r / 4 of byte 48 + r % 4, r = e - 240

Packed and multiplied like TQ2_0 (`kernels/matmul_tq2_0.py`). The TQ1_0 format: ggml.
"""

from dataclasses import replace

import numpy as np

from kernels.codes import CODES4, byte, put_code4, put_half
from kernels.registry import subroutine
from kernels.terms import halves, scaled_exact, scaled_format, scaled_truth
from kernels.types import F16, U8, Int

BLOCK_BYTES = 54  # in the file: 48 bytes of five codes, 4 bytes of four, float16 scale


@subroutine
def code_of(source: U8, block: Int, e: Int) -> Int:
    """Code e, 0..255, of the file's block that begins at `block`."""
    part = 0 if e < 160 else 1 if e < 240 else 2
    r = e - (0, 160, 240)[part]
    width = (32, 16, 4)[part]
    rest = byte(source, block + (0, 32, 48)[part] + r % width)
    for _ in range(r // width):
        rest = rest * 3 & 255
    return rest * 3 >> 8


@subroutine
def put(codes: U8, scales: F16, n: Int, r: Int, source: U8, at: Int) -> None:
    """The 32 weights `at` of the file become lane r of block n."""
    block = BLOCK_BYTES * (at // 8)
    put_half(scales, 8 * n + r, source, block + 52)
    for k in range(32):
        put_code4(codes, 128 * n, r, k, code_of(source, block, at % 8 * 32 + k))


TQ1_0 = replace(scaled_format("TQ1_0", BLOCK_BYTES, CODES4, 1, put), file_block=256)
matmul_tq1_0, pack_tq1_0, embed_tq1_0 = TQ1_0.matmul, TQ1_0.pack, TQ1_0.embed


def decode(source: np.ndarray, rows: int, blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """A file's TQ1_0 bytes -> codes without the zero point (rows, K) int32, and scales (rows, blocks) float32."""
    block = source.reshape(rows, blocks // 8, BLOCK_BYTES)
    powers = 3 ** np.arange(5)[:, None]
    parts = ((block[..., :32], 5), (block[..., 32:48], 5), (block[..., 48:52], 4))
    codes = [
        ((part[..., None, :] * powers[:count] & 255) * 3 >> 8).reshape(*part.shape[:2], -1) for part, count in parts
    ]
    return np.concatenate(codes, -1).reshape(rows, -1).astype(np.int32) - 1, np.repeat(halves(block, 52), 8, axis=1)


matmul_tq1_0_exact, matmul_tq1_0_truth = scaled_exact, scaled_truth
