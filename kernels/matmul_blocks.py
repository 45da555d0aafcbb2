"""What all matrix products with weights in blocks of 32 share: the loops over outputs, rows and blocks.

    out[t, n] = sum over blocks b, ascending, of the format's term for x[t], block b      (float32, by fma)

A weight matrix is repacked when it is loaded: 8 outputs (rows r of the matrix) side by side, so that each lane of a vector
is one output's own running sum and nothing depends on the width of vectors, on threads or on how many rows there are:

    codes     (group of 8 outputs, block of 32, code_bytes)      the integers, laid out as the format's file says
    scales    (group of 8 outputs, block of 32, scale_halves)    float16: scales, and minima behind them

A format is six subroutines, from which the kernels below are made (each is compiled by itself, with them inlined):

    load(codes, scales, n) -> weights                       scales of block n = group * blocks + b, in registers
    dot(codes, n, x, k) -> sums                             its products with the 32 activations from x[k]
    dots(codes, n, x, k) -> (sums, sums, sums, sums)        the same for four rows side by side
    add(acc, sums, weights, x_scales, x_sums, at) -> acc    one block's term for the activation's block `at`
    put(codes, scales, n, r, source, at)                    block `at` of the file becomes lane r of block n, all 0 before
    element(codes, scales, n, r, k) -> float                weight k of lane r in block n

Activations are those of `kernels/quantize.py`: 4 rows lie side by side; the weights of a block are unpacked once for them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.epilogue import finish
from kernels.quantize import share, tile_rows, tiled_block
from kernels.registry import Kernel, kernel
from kernels.simd import prefetch, splat_f32
from kernels.types import F16, F32, I8, I32, I64, U8, Int

AHEAD = 1536  # bytes to prefetch ahead of the one-row product
Subroutine = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Format:
    """A block format: its sizes in the file and packed, and its kernels.

    Attributes:
        name: As in GGUF: `Q4_0`.
        file_block: Weights in one block of the file, 32 or 256; K must be a multiple of it.
        file_bytes: Bytes of such a block.
        code_bytes: Packed bytes of `codes` for 8 outputs x 32 weights.
        scale_halves: Packed float16 of `scales` for 8 outputs x 32 weights (for the K types on average).
    """

    name: str
    file_block: int
    file_bytes: int
    code_bytes: int
    scale_halves: int
    matmul: Kernel
    pack: Kernel
    embed: Kernel

    def packed(self, rows: int, columns: int) -> tuple[int, int]:
        """How long `codes` and `scales` are for a matrix of (rows, columns)."""
        blocks = (rows + 7) // 8 * (columns // 32)
        return blocks * self.code_bytes, blocks * self.scale_halves


def block_format(
    name: str,
    file_block: int,
    file_bytes: int,
    code_bytes: int,
    scale_halves: int,
    load: Subroutine,
    dot: Subroutine,
    dots: Subroutine,
    add: Subroutine,
    put: Subroutine,
    element: Subroutine,
) -> Format:
    """A format and its kernels `matmul_<name>`, `pack_<name>` and `embed_<name>`, from its subroutines."""
    return Format(
        name,
        file_block,
        file_bytes,
        code_bytes,
        scale_halves,
        _matmul(f"matmul_{name.lower()}", code_bytes, load, dot, dots, add),
        _pack(f"pack_{name.lower()}", code_bytes, scale_halves, put),
        _embed(f"embed_{name.lower()}", element),
    )


def _named(name: str, body: Callable[..., None]) -> Kernel:
    body.__name__ = name
    return kernel(body)


def _matmul(
    name: str, code_bytes: int, load: Subroutine, dot: Subroutine, dots: Subroutine, add_block: Subroutine
) -> Kernel:
    def matmul(
        rank: Int,
        size: Int,
        run: I64,
        out: F32,
        x: I8,
        x_scales: F32,
        x_sums: I32,
        codes: U8,
        scales: F16,
        bias: F32,
        groups: Int,
        blocks: Int,
        stride: Int,
        add: Int,
        count: Int,
    ) -> None:
        """out[t, 8 groups] = x[t] @ weights + bias for run[count] rows, `stride` floats apart; added to out where add."""
        rows = run[count]
        tile = tile_rows(rows)
        start, end = share(groups, rank, size)
        whole = rows // 4 * 4 if rows > 1 else 0
        for group in range(start, end):
            for t in range(0, whole, 4):
                c0 = splat_f32(np.float32(0.0))
                c1, c2, c3 = c0, c0, c0
                for b in range(blocks):
                    n, at = group * blocks + b, t * blocks + 4 * b
                    s0, s1, s2, s3 = dots(codes, n, x, 32 * at)
                    weights = load(codes, scales, n)
                    c0 = add_block(c0, s0, weights, x_scales, x_sums, at)
                    c1 = add_block(c1, s1, weights, x_scales, x_sums, at + 1)
                    c2 = add_block(c2, s2, weights, x_scales, x_sums, at + 2)
                    c3 = add_block(c3, s3, weights, x_scales, x_sums, at + 3)
                finish(out, t * stride + 8 * group, c0, bias, 8 * group, add)
                finish(out, (t + 1) * stride + 8 * group, c1, bias, 8 * group, add)
                finish(out, (t + 2) * stride + 8 * group, c2, bias, 8 * group, add)
                finish(out, (t + 3) * stride + 8 * group, c3, bias, 8 * group, add)
            for t in range(whole, rows):
                first = tiled_block(t, 0, blocks, rows)
                c = splat_f32(np.float32(0.0))
                for b in range(blocks):
                    n, at = group * blocks + b, first + b * tile
                    for line in range(0, code_bytes, 64):
                        prefetch(codes, n * code_bytes + line + AHEAD)
                    c = add_block(c, dot(codes, n, x, 32 * at), load(codes, scales, n), x_scales, x_sums, at)
                finish(out, t * stride + 8 * group, c, bias, 8 * group, add)

    return _named(name, matmul)


def _pack(name: str, code_bytes: int, scale_halves: int, put: Subroutine) -> Kernel:
    def pack(rank: Int, size: Int, run: I64, codes: U8, scales: F16, source: U8, rows: Int, blocks: Int) -> None:
        """Repack a file's tensor of `rows` rows of `blocks` blocks of 32; outputs beyond the last row become 0."""
        start, end = share((rows + 7) // 8, rank, size)
        for group in range(start, end):
            for i in range(group * blocks * code_bytes, (group + 1) * blocks * code_bytes):
                codes[i] = 0
            for i in range(group * blocks * scale_halves, (group + 1) * blocks * scale_halves):
                scales[i] = 0
            for row in range(8 * group, 8 * group + 8):
                for b in range(blocks if row < rows else 0):
                    put(codes, scales, group * blocks + b, row % 8, source, row * blocks + b)

    return _named(name, pack)


def _embed(name: str, element: Subroutine) -> Kernel:
    def embed(rank: Int, size: Int, run: I64, out: F32, codes: U8, scales: F16, blocks: Int, stride: Int) -> None:
        """out[t] = the weight row of row t's token, dequantised."""
        start, end = share(run[0] * blocks, rank, size)
        for n in range(start, end):
            t = n // blocks
            b = n - t * blocks
            token = run[8 + 4 * t]
            for k in range(32):
                out[t * stride + 32 * b + k] = element(codes, scales, token // 8 * blocks + b, token % 8, k)

    return _named(name, embed)
