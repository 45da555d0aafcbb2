"""The gate of a feed-forward layer, alone and followed at once by the quantisation of `kernels/quantize.py`.

    out = silu(gate) * up        silu(g) = g / (1 + exp(-g))

Rows are padded to whole blocks of 32; where gate and up are 0 the output is 0. Work is split over (row, block).

Shazeer, "GLU Variants Improve Transformer", 2020; exp: `kernels/exp.py`.
"""

import numpy as np

from kernels.exp import exp, exp_exact
from kernels.quantize import quantize_exact, share, store_quantized, tiled_block
from kernels.registry import kernel, subroutine
from kernels.simd import add_f32, div_f32, load_f32x8, mul_f32, splat_f32, store_f32x8, sub_f32
from kernels.types import F32, I8, I32, I64, F32x8, Int

ZERO, ONE = np.float32(0.0), np.float32(1.0)


@subroutine
def gated(gate: F32, up: F32, i: Int) -> F32x8:
    """silu(gate[i:i+8]) * up[i:i+8]."""
    g = load_f32x8(gate, i)
    below = add_f32(splat_f32(ONE), exp(sub_f32(splat_f32(ZERO), g)))
    return mul_f32(div_f32(g, below), load_f32x8(up, i))


@kernel
def silu_gate(
    rank: Int, size: Int, run: I64, out: F32, gate: F32, up: F32, blocks: Int, stride: Int, count: Int
) -> None:
    """out = silu(gate) * up for run[count] rows of `blocks` blocks of 32, `stride` floats apart; out may be gate or up."""
    start, end = share(run[count] * blocks, rank, size)
    for i in range(start, end):
        row = i // blocks
        at = row * stride + (i - row * blocks) * 32
        v0, v1 = gated(gate, up, at), gated(gate, up, at + 8)
        v2, v3 = gated(gate, up, at + 16), gated(gate, up, at + 24)
        store_f32x8(out, at, v0)
        store_f32x8(out, at + 8, v1)
        store_f32x8(out, at + 16, v2)
        store_f32x8(out, at + 24, v3)


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
    """The same rows as `silu_gate`, quantised: codes, scales and sums in the tiled order of `kernels/quantize.py`."""
    rows = run[count]
    start, end = share(rows * blocks, rank, size)
    for i in range(start, end):
        row = i // blocks
        block = i - row * blocks
        at = row * stride + block * 32
        v0, v1 = gated(gate, up, at), gated(gate, up, at + 8)
        v2, v3 = gated(gate, up, at + 16), gated(gate, up, at + 24)
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
