"""The gate of a feed-forward layer, alone and followed at once by the quantisation of `kernels/quantize.py`.

    out = silu(gate) * up        silu(g) = g / (1 + exp(-g))

Rows are padded to whole blocks of 32; where gate and up are 0 the output is 0. Work is split over (row, block).

Shazeer, "GLU Variants Improve Transformer", 2020; exp: `kernels/exp.py`.
"""

import numpy as np

from kernels.exp import exp, exp_exact
from kernels.quantize import quantize_exact, share, store_quantized, tiled_block
from kernels.registry import kernel, subroutine, wide_subroutine
from kernels.simd import add_f32, div_f32, load_f32x8, mul_f32, spread_f32, store_f32x8, sub_f32
from kernels.types import F32, I8, I32, I64, F32xN, Int
from kernels.wide import load_f32x16, store_f32x16, wide

CHUNK = 8  # blocks in a turn
ZERO, ONE = np.float32(0.0), np.float32(1.0)


@subroutine
def gated(g: F32xN, up: F32xN) -> F32xN:
    """silu(g) * up."""
    below = add_f32(spread_f32(ONE, g), exp(sub_f32(spread_f32(ZERO, g), g)))
    return mul_f32(div_f32(g, below), up)


@wide_subroutine
def gate_wide(out: F32, gate: F32, up: F32, at: Int) -> None:
    """A block of 32 as two vectors of 64 bytes."""
    for i in range(at, at + 32, 16):
        store_f32x16(out, i, gated(load_f32x16(gate, i), load_f32x16(up, i)))


@subroutine
def gate_block(out: F32, gate: F32, up: F32, at: Int) -> None:
    """out[at:at+32] = silu(gate) * up; out may be gate or up."""
    if wide() > 0:
        gate_wide(out, gate, up, at)
    else:
        for i in range(at, at + 32, 8):
            store_f32x8(out, i, gated(load_f32x8(gate, i), load_f32x8(up, i)))


@kernel
def silu_gate(
    rank: Int, size: Int, run: I64, out: F32, gate: F32, up: F32, blocks: Int, stride: Int, count: Int
) -> None:
    """out = silu(gate) * up for run[count] rows of `blocks` blocks of 32, `stride` floats apart; out may be gate or up."""
    start, end = share(run[count] * blocks, rank, size)
    for i in range(start, end):
        row = i // blocks
        gate_block(out, gate, up, row * stride + (i - row * blocks) * 32)


@kernel
def silu_gate_quantize(
    rank: Int,
    size: Int,
    run: I64,
    codes: I8,
    scales: F32,
    sums: I32,
    gate: F32,
    up: F32,
    blocks: Int,
    stride: Int,
    count: Int,
) -> None:
    """The same rows as `silu_gate`, quantised: codes, scales and sums in the tiled order of `kernels/quantize.py`.

    In two turns, and `gate` holds silu(gate) * up afterwards: exp and then the search for the largest are chains of
    instructions that wait for each other, more of them than a processor can look ahead to overlap those of two blocks.
    """
    rows = run[count]
    start, end = share(rows * blocks, rank, size)
    for first in range(start, end, CHUNK):
        last = first + CHUNK if first + CHUNK < end else end
        for i in range(first, last):
            row = i // blocks
            gate_block(gate, gate, up, row * stride + (i - row * blocks) * 32)
        for i in range(first, last):
            row = i // blocks
            block = i - row * blocks
            at = row * stride + block * 32
            v0, v1 = load_f32x8(gate, at), load_f32x8(gate, at + 8)
            v2, v3 = load_f32x8(gate, at + 16), load_f32x8(gate, at + 24)
            store_quantized(v0, v1, v2, v3, codes, scales, sums, tiled_block(row, block, blocks, rows))


def silu_gate_exact(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """The kernel's float32 steps in NumPy, bit for bit, on arrays of any one shape."""
    with np.errstate(over="ignore", invalid="ignore"):
        return gate / (ONE + exp_exact(ZERO - gate)) * up


def silu_gate_quantize_exact(gate: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same, quantised: codes (T, K) int8 in natural order and scales (T, K / 32) float32; K is a multiple of 32."""
    return quantize_exact(silu_gate_exact(gate, up))


def silu_gate_truth(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """The same in float64."""
    gate = gate.astype(np.float64)
    with np.errstate(over="ignore"):
        return gate / (1 + np.exp(-gate)) * up
