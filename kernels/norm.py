"""RMSNorm, alone and followed at once by the quantisation of `kernels/quantize.py`.

    out = x * r * weight        r = 1 / sqrt(sum(x^2) / n + eps)

The squares are summed in 8 lanes (lane = index modulo 8, by fma, ascending), then in the fixed tree of `sum_f32`. Work is
split over (row, block of 32), so that all workers share a single row too; each then sums that row's squares for itself.

x and weight are padded with zeros to whole blocks. Where `count` is LOGIT_ROWS, output row i is made from the i-th row of x
that wants logits; else from row i.

Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019, section 4.
"""

import numpy as np

from kernels.quantize import quantize_exact, share, store_quantized, tiled_block
from kernels.registry import kernel, subroutine
from kernels.run import FIRST, LOGIT_ROW, LOGIT_ROWS, WIDTH
from kernels.simd import div_f32, fma, load_f32x8, mul_f32, splat_f32, sqrt_f32, store_f32x8, sum_f32
from kernels.types import F32, I8, I32, I64, F32x8, Float, Int

ONE = np.float32(1.0)


@subroutine
def source_row(run: I64, count: Int, i: Int) -> Int:
    """The row that output row i is made from."""
    if count == LOGIT_ROWS:
        i = run[FIRST + WIDTH * i + LOGIT_ROW]
    return i


@subroutine
def inverse_rms(x: F32, at: Int, blocks: Int, n: Int, eps: Float) -> F32x8:
    """1 / sqrt(mean square + eps) of the n elements from x[at], in each lane."""
    total = splat_f32(np.float32(0.0))
    for b in range(blocks):
        for k in range(4):
            v = load_f32x8(x, at + 32 * b + 8 * k)
            total = fma(v, v, total)
    mean = np.float32(sum_f32(total) / np.float32(n))
    return div_f32(splat_f32(ONE), sqrt_f32(splat_f32(np.float32(mean + eps))))


@subroutine
def normed(x: F32, i: Int, r: F32x8, weight: F32, k: Int) -> F32x8:
    """x[i:i+8] * r * weight[k:k+8], in this order."""
    return mul_f32(mul_f32(load_f32x8(x, i), r), load_f32x8(weight, k))


@kernel
def rms_norm(
    rank: Int,
    size: Int,
    run: I64,
    out: F32,
    x: F32,
    weight: F32,
    n: Int,
    blocks: Int,
    stride: Int,
    eps: Float,
    count: Int,
) -> None:
    """out = RMSNorm of run[count] rows of n elements (`blocks` blocks of 32), `stride` floats apart in x and in out."""
    start, end = share(run[count] * blocks, rank, size)
    last = -1
    r = splat_f32(ONE)
    for i in range(start, end):
        row = i // blocks
        at = source_row(run, count, row) * stride
        if row != last:
            r = inverse_rms(x, at, blocks, n, eps)
            last = row
        k = (i - row * blocks) * 32
        for j in range(0, 32, 8):
            store_f32x8(out, row * stride + k + j, normed(x, at + k + j, r, weight, k + j))


@kernel
def rms_norm_quantize(
    rank: Int,
    size: Int,
    run: I64,
    codes: I8,
    scales: F32,
    sums: I32,
    x: F32,
    weight: F32,
    n: Int,
    blocks: Int,
    stride: Int,
    eps: Float,
    count: Int,
) -> None:
    """The same rows as `rms_norm`, quantised: codes, scales and sums in the tiled order of `kernels/quantize.py`."""
    rows = run[count]
    start, end = share(rows * blocks, rank, size)
    last = -1
    r = splat_f32(ONE)
    for i in range(start, end):
        row = i // blocks
        at = source_row(run, count, row) * stride
        if row != last:
            r = inverse_rms(x, at, blocks, n, eps)
            last = row
        block = i - row * blocks
        k = 32 * block
        store_quantized(
            normed(x, at + k, r, weight, k),
            normed(x, at + k + 8, r, weight, k + 8),
            normed(x, at + k + 16, r, weight, k + 16),
            normed(x, at + k + 24, r, weight, k + 24),
            codes,
            scales,
            sums,
            tiled_block(row, block, blocks, rows),
        )


def rms_norm_exact(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """The kernel's float32 steps in NumPy, bit for bit.

    Args:
        x: (T, n) float32.
        weight: (n,) float32.

    Returns:
        (T, n) float32.
    """
    T, n = x.shape
    padded = np.zeros((T, -(-n // 32) * 32), np.float32)
    padded[:, :n] = x
    total = np.zeros((T, 8), np.float32)
    for i in range(0, padded.shape[1], 8):
        total = fma(padded[:, i : i + 8], padded[:, i : i + 8], total)
    for half in (4, 2, 1):
        total = total[:, :half] + total[:, half : 2 * half]
    r = ONE / np.sqrt(total / np.float32(n) + np.float32(eps))
    return x * r * weight


def rms_norm_quantize_exact(x: np.ndarray, weight: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """The same, quantised: codes (T, n) int8 in natural order and scales (T, n / 32) float32; n is a multiple of 32."""
    return quantize_exact(rms_norm_exact(x, weight, eps))


def rms_norm_truth(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """RMSNorm in float64."""
    x = x.astype(np.float64)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight
