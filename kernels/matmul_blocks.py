"""What all matrix products with weights in blocks of 32 share: the loops over outputs, rows and blocks.

    out[t, n] = sum over blocks b, ascending, of the format's term for x[t], block b      (float32, by fma)

A weight matrix is repacked when it is loaded: 8 outputs (rows r of the matrix) side by side, so that each lane of a vector
is one output's own running sum and nothing depends on the width of vectors, on threads or on how many rows there are:

    codes     (group of 8 outputs, block of 32, code_bytes)      the integers, laid out as the format's file says
    scales    (group of 8 outputs, block of 32, scale_halves)    float16: scales, and minima behind them

A format is three subroutines, from which the kernels below are made (each is compiled by itself, with them inlined):

    block(rows)(acc, packed, n, blocks, activations, at, apart) -> acc    plus the terms of block n = group * blocks + b
                                                                          with the activations' block `at` of those rows
    put(codes, scales, n, r, source, at)                                  block `at` of the file becomes lane r of block n,
                                                                          which is 0 before
    element(codes, scales, n, r, k) -> float                              weight k of lane r in block n

Most formats' `block` is made by `block_terms` of four others:

    products(rows)(codes, start(n), across, x, k, apart) -> sums          with those rows
    load(codes, scales, n) -> weights                                     scales of block n, in registers
    add(acc, sums, weights, x_scales, x_sums, at) -> acc                  one row's term

Where registers hold 16 outputs, two groups are taken together for eight rows at a time; the other rows four at a time, the
last one alone (`kernels/rows.py`). The weights of a group are read from memory once and stay in the caches for all its rows;
meanwhile those of the next are asked for, a part of them (`pitch` bytes for each block) during each tile of rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kernels.lanes import Subroutine
from kernels.quantize import share, tile_rows, tiled_block
from kernels.registry import Kernel, kernel, typed
from kernels.rows import FOUR, ONE, WIDE, Rows
from kernels.simd import prefetch
from kernels.types import F16, F32, I8, I32, I64, U8, Int
from kernels.wide import wide

AHEAD = 6144  # bytes to ask for ahead of the product that reads each weight once
Activations = tuple[I8, F32, I32]  # codes, scales, sums
Packed = tuple[U8, F16, F32]  # codes, scales, bias


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
    block: Callable[[Rows], Subroutine],
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
        _matmul(f"matmul_{name.lower()}", code_bytes, block),
        _pack(f"pack_{name.lower()}", code_bytes, scale_halves, put),
        _embed(f"embed_{name.lower()}", element),
    )


def block_terms(
    products: Callable[[Rows], Subroutine], start: Subroutine, load: Subroutine, add: Subroutine
) -> Callable[[Rows], Subroutine]:
    """The usual block: its products, then its terms."""
    _, Sum, Weights, *_ = add.__annotations__.values()

    def block(rows: Rows) -> Subroutine:
        dot, weights, terms = products(rows), rows.lanes.load(load, Weights), rows.terms(add, Sum, Weights)
        Floats = rows.zero.__annotations__["return"]

        @rows.lanes.subroutine
        @typed(acc=Floats, result=Floats)
        def add_block(
            acc: Any, packed: Packed, n: Int, blocks: Int, activations: Activations, at: Int, apart: Int
        ) -> Any:
            (x, x_scales, x_sums), (codes, scales, _) = activations, packed
            across = start(n + blocks) - start(n)
            sums = dot(codes, start(n), across, x, 32 * at, apart)
            return terms(acc, sums, weights(codes, scales, n, blocks), x_scales, x_sums, at, apart)

        return add_block

    return block


def _named(name: str, body: Callable[..., None]) -> Kernel:
    body.__name__ = name
    return kernel(body)


def _tile(rows: Rows, lines: int, block: Callable[[Rows], Subroutine]) -> Subroutine:
    """8 or 16 outputs of some rows, from first block to last; for each, so many cache lines are asked for in advance."""
    add_block, zero, finish = block(rows), rows.zero, rows.finish

    @rows.lanes.subroutine
    def tile(
        out: F32,
        i: Int,
        stride: Int,
        activations: Activations,
        first: Int,
        step: Int,
        apart: Int,
        packed: Packed,
        group: Int,
        blocks: Int,
        soon: Int,
        pitch: Int,
        add: Int,
        count: Int,
    ) -> None:
        codes, _, bias = packed
        acc = zero()
        for b in range(blocks):
            n, at = group * blocks + b, first + b * step
            for line in range(lines):
                prefetch(codes, soon + b * pitch + 64 * line)
            acc = add_block(acc, packed, n, blocks, activations, at, apart)
        finish(out, i, stride, acc, bias, 8 * group, add, count)

    return tile


def _matmul(
    name: str,
    code_bytes: int,
    block: Callable[[Rows], Subroutine],
) -> Kernel:
    one, four, eight = (
        _tile(rows, (code_bytes * rows.lanes.outputs // 8 + 63) // 64, block) for rows in (ONE, FOUR, WIDE)
    )

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
        start, end = share(groups, rank, size)
        xs, ws = (x, x_scales, x_sums), (codes, scales, bias)
        fours = rows - 1 if rows % 4 == 1 else rows
        group = start
        while group < end:
            together = 2 if wide() > 0 and rows >= 8 and group + 1 < end else 1
            eights = rows // 8 * 8 if together > 1 else 0
            tiles = eights // 8 + together * ((fours - eights + 3) // 4 + rows - fours)
            pitch = together * code_bytes // tiles if tiles > 0 else 0
            here = group * blocks * code_bytes
            soon = here + together * blocks * code_bytes if tiles > 1 else here + AHEAD
            for t in range(0, eights, 8):
                i, at = t * stride + 8 * group, t * blocks
                eight(out, i, stride, xs, at, 4, 4 * blocks, ws, group, blocks, soon, pitch, add, 8)
                soon += blocks * pitch
            for g in range(group, group + together):
                for t in range(eights, fours, 4):
                    i, at = t * stride + 8 * g, t * blocks
                    four(out, i, stride, xs, at, 4, 0, ws, g, blocks, soon, pitch, add, rows - t)
                    soon += blocks * pitch
                for t in range(fours, rows):
                    i, at = t * stride + 8 * g, tiled_block(t, 0, blocks, rows)
                    one(out, i, stride, xs, at, tile_rows(rows), 0, ws, g, blocks, soon, pitch, add, 1)
                    soon += blocks * pitch
            group += together

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
