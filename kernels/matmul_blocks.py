"""What all matrix products with weights in blocks of 32 share: the loops over outputs, rows and blocks.

    out[t, n] = sum over blocks b, ascending, of the format's term for x[t], block b      (float32, by fma)

A weight matrix is repacked when it is loaded: 8 outputs (rows r of the matrix) side by side, so that each lane of a vector
is one output's own running sum and nothing depends on the width of vectors, on threads or on how many rows there are:

    codes     (group of 8 outputs, block of 32, code_bytes)      the integers, laid out as the format's file says
    scales    (group of 8 outputs, block of 32, scale_halves)    float16: scales, and minima behind them

A format is six subroutines, from which the kernels below are made (each is compiled by itself, with them inlined):

    products(rows)(codes, start(n), x, k, apart) -> sums    of block n = group * blocks + b with those rows
    load(codes, scales, n) -> weights                       scales of block n, in registers
    add(acc, sums, weights, x_scales, x_sums, at) -> acc    one block's term for the activation's block `at`
    put(codes, scales, n, r, source, at)                    block `at` of the file becomes lane r of block n, all 0 before
    element(codes, scales, n, r, k) -> float                weight k of lane r in block n

Rows are taken four at a time, or eight where there are registers enough (`kernels/rows.py`); then one by one. The packed
weights of a group stay in the first-level cache for all rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

from kernels.quantize import share, tile_rows, tiled_block
from kernels.registry import Kernel, kernel, subroutine
from kernels.rows import EIGHT, FOUR, ONE, Rows, Subroutine
from kernels.simd import prefetch, vector_registers
from kernels.types import F16, F32, I8, I32, I64, U8, Int

AHEAD = 1536  # bytes to prefetch ahead of the one-row product


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
    products: Callable[[Rows], Subroutine],
    start: Subroutine,
    load: Subroutine,
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
        _matmul(f"matmul_{name.lower()}", code_bytes, products, start, load, add),
        _pack(f"pack_{name.lower()}", code_bytes, scale_halves, put),
        _embed(f"embed_{name.lower()}", element),
    )


def _named(name: str, body: Callable[..., None]) -> Kernel:
    body.__name__ = name
    return kernel(body)


def _tile(
    rows: Rows,
    ahead: int,
    products: Callable[[Rows], Subroutine],
    start: Subroutine,
    load: Subroutine,
    add_block: Subroutine,
) -> Subroutine:
    """8 outputs of some rows, from first block to last; `ahead`: bytes of codes to prefetch for each block."""
    dot, zero, finish = products(rows), rows.zero, rows.finish
    _, Sum, Weights, *_ = add_block.__annotations__.values()
    terms = rows.terms(add_block, Sum, Weights)

    @subroutine
    def tile(
        out: F32,
        i: Int,
        stride: Int,
        x: I8,
        x_scales: F32,
        x_sums: I32,
        first: Int,
        step: Int,
        apart: Int,
        codes: U8,
        scales: F16,
        bias: F32,
        group: Int,
        blocks: Int,
        add: Int,
    ) -> None:
        acc = zero()
        for b in range(blocks):
            n, at = group * blocks + b, first + b * step
            for line in range(0, ahead, 64):
                prefetch(codes, n * ahead + line + AHEAD)
            sums = dot(codes, start(n), x, 32 * at, apart)
            acc = terms(acc, sums, load(codes, scales, n), x_scales, x_sums, at, apart)
        finish(out, i, stride, acc, bias, 8 * group, add)

    return tile


def _matmul(
    name: str,
    code_bytes: int,
    products: Callable[[Rows], Subroutine],
    start: Subroutine,
    load: Subroutine,
    add_block: Subroutine,
) -> Kernel:
    one = _tile(ONE, code_bytes, products, start, load, add_block)
    four = _tile(FOUR, 0, products, start, load, add_block)
    eight = _tile(EIGHT, 0, products, start, load, add_block)

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
        step = tile_rows(rows)
        fours = rows // 4 * 4 if rows > 1 else 0
        eights = rows // 8 * 8 if vector_registers() >= 32 else 0
        for group in range(start, end):
            for t in range(0, eights, 8):
                i, at = t * stride + 8 * group, t * blocks
                eight(out, i, stride, x, x_scales, x_sums, at, 4, 4 * blocks, codes, scales, bias, group, blocks, add)
            for t in range(eights, fours, 4):
                i, at = t * stride + 8 * group, t * blocks
                four(out, i, stride, x, x_scales, x_sums, at, 4, 0, codes, scales, bias, group, blocks, add)
            for t in range(fours, rows):
                i, at = t * stride + 8 * group, tiled_block(t, 0, blocks, rows)
                one(out, i, stride, x, x_scales, x_sums, at, step, 0, codes, scales, bias, group, blocks, add)

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
