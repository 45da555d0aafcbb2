"""Matrix product with float weights: float32, float16 or bfloat16, and float32 activations.

    out[t, n] = sum over k, ascending, of  weight[n, k] * x[t, k]      (float32, one chain of fma for each output)

Packed: (group of 8 outputs, k, 8 lanes), in the file's own type, so that one load holds 8 outputs' weights for one k. Every
output has one running sum: its bits don't depend on what is computed beside it. Eight sums at a time (2 groups x 4 rows, or
4 groups of one row) hide the latency of fma and use each load more than once. Any number of columns will do.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.epilogue import finish
from kernels.quantize import share
from kernels.registry import Kernel, kernel, subroutine, typed
from kernels.simd import fma, load_bf16x8, load_f16x8, load_f32x8, splat_f32, widen_bf16, widen_f16
from kernels.types import F16, F32, I64, Float, Int

Subroutine = Callable[..., Any]


def _kernel(name: str, body: Callable[..., None]) -> Kernel:
    body.__name__ = name
    return kernel(body)


def _matmul(name: str, load: Subroutine, Weights: Any) -> Kernel:
    @subroutine
    @typed(weights=Weights)
    def two_by_four(
        out: F32,
        o: Int,
        x: F32,
        i: Int,
        weights: Any,
        group: Int,
        bias: F32,
        columns: Int,
        x_stride: Int,
        stride: Int,
        add: Int,
    ) -> None:
        v, w, n = 8 * columns * group, 8 * columns * (group + 1), 8 * group
        zero = splat_f32(np.float32(0.0))
        a0, a1, a2, a3, b0, b1, b2, b3 = zero, zero, zero, zero, zero, zero, zero, zero
        for k in range(columns):
            a, b = load(weights, v + 8 * k), load(weights, w + 8 * k)
            x0, x1 = splat_f32(x[i + k]), splat_f32(x[i + x_stride + k])
            x2, x3 = splat_f32(x[i + 2 * x_stride + k]), splat_f32(x[i + 3 * x_stride + k])
            a0, b0 = fma(a, x0, a0), fma(b, x0, b0)
            a1, b1 = fma(a, x1, a1), fma(b, x1, b1)
            a2, b2 = fma(a, x2, a2), fma(b, x2, b2)
            a3, b3 = fma(a, x3, a3), fma(b, x3, b3)
        finish(out, o, a0, bias, n, add)
        finish(out, o + 8, b0, bias, n + 8, add)
        finish(out, o + stride, a1, bias, n, add)
        finish(out, o + stride + 8, b1, bias, n + 8, add)
        finish(out, o + 2 * stride, a2, bias, n, add)
        finish(out, o + 2 * stride + 8, b2, bias, n + 8, add)
        finish(out, o + 3 * stride, a3, bias, n, add)
        finish(out, o + 3 * stride + 8, b3, bias, n + 8, add)

    @subroutine
    @typed(weights=Weights)
    def four_by_one(
        out: F32, o: Int, x: F32, i: Int, weights: Any, group: Int, bias: F32, columns: Int, add: Int
    ) -> None:
        v, n = 8 * columns * group, 8 * group
        zero = splat_f32(np.float32(0.0))
        a, b, c, d = zero, zero, zero, zero
        for k in range(columns):
            xk = splat_f32(x[i + k])
            a = fma(load(weights, v + 8 * k), xk, a)
            b = fma(load(weights, v + 8 * (columns + k)), xk, b)
            c = fma(load(weights, v + 8 * (2 * columns + k)), xk, c)
            d = fma(load(weights, v + 8 * (3 * columns + k)), xk, d)
        finish(out, o, a, bias, n, add)
        finish(out, o + 8, b, bias, n + 8, add)
        finish(out, o + 16, c, bias, n + 16, add)
        finish(out, o + 24, d, bias, n + 24, add)

    @typed(weights=Weights)
    def matmul(
        rank: Int,
        size: Int,
        run: I64,
        out: F32,
        x: F32,
        weights: Any,
        bias: F32,
        groups: Int,
        columns: Int,
        x_stride: Int,
        stride: Int,
        add: Int,
        count: Int,
    ) -> None:
        """out[t, 8 groups] = x[t, :columns] @ weights + bias for run[count] rows; added to out where add.

        Rows of x lie `x_stride` floats apart, rows of out `stride`.
        """
        rows = run[count]
        start, end = share(groups, rank, size)
        tiled_end = start + (end - start) // 2 * 2
        for group in range(start, tiled_end, 2):
            for t in range(0, rows // 4 * 4, 4):
                o = t * stride + 8 * group
                two_by_four(out, o, x, t * x_stride, weights, group, bias, columns, x_stride, stride, add)
        for t in range(rows):
            i, o = t * x_stride, t * stride
            first = tiled_end if t < rows // 4 * 4 else start
            fours_end = first + (end - first) // 4 * 4
            for group in range(first, fours_end, 4):
                four_by_one(out, o + 8 * group, x, i, weights, group, bias, columns, add)
            for group in range(fours_end, end):
                c = splat_f32(np.float32(0.0))
                for k in range(columns):
                    c = fma(load(weights, 8 * (columns * group + k)), splat_f32(x[i + k]), c)
                finish(out, o + 8 * group, c, bias, 8 * group, add)

    return _kernel(name, matmul)


def _pack(name: str, Weights: Any) -> Kernel:
    @typed(weights=Weights, source=Weights)
    def pack(rank: Int, size: Int, run: I64, weights: Any, source: Any, rows: Int, columns: Int) -> None:
        """Repack a file's tensor of (rows, columns); outputs beyond the last row become 0."""
        start, end = share((rows + 7) // 8, rank, size)
        for group in range(start, end):
            for r in range(8):
                row = 8 * group + r
                for k in range(columns):
                    weights[8 * (group * columns + k) + r] = source[row * columns + k] if row < rows else 0

    return _kernel(name, pack)


def _embed(name: str, widen: Subroutine, Weights: Any) -> Kernel:
    @typed(weights=Weights)
    def embed(rank: Int, size: Int, run: I64, out: F32, weights: Any, columns: Int, stride: Int) -> None:
        """out[t] = the weight row of row t's token, widened."""
        start, end = share(run[0] * columns, rank, size)
        for n in range(start, end):
            t = n // columns
            k = n - t * columns
            token = run[8 + 4 * t]
            out[t * stride + k] = widen(weights, 8 * (token // 8 * columns + k) + token % 8)

    return _kernel(name, embed)


@subroutine
def float_at(p: F32, i: Int) -> Float:
    """p[i]."""
    return p[i]


@subroutine
def half_at(p: F16, i: Int) -> Float:
    """The half float p[i]."""
    return widen_f16(p[i])


@subroutine
def bfloat_at(p: F16, i: Int) -> Float:
    """The bfloat16 p[i]."""
    return widen_bf16(p[i])


matmul_f32 = _matmul("matmul_f32", load_f32x8, F32)
matmul_f16 = _matmul("matmul_f16", load_f16x8, F16)
matmul_bf16 = _matmul("matmul_bf16", load_bf16x8, F16)
pack_f32, pack_f16 = _pack("pack_f32", F32), _pack("pack_f16", F16)  # pack_f16 serves bfloat16 too
embed_f32 = _embed("embed_f32", float_at, F32)
embed_f16 = _embed("embed_f16", half_at, F16)
embed_bf16 = _embed("embed_bf16", bfloat_at, F16)


def matmul_float_exact(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The kernels' float32 steps in NumPy, bit for bit: x (T, K) float32, weights (N, K) widened to float32 -> (T, N)."""
    acc = np.zeros((len(x), len(weights)), np.float32)
    for k in range(x.shape[1]):
        acc = fma(weights[None, :, k], x[:, None, k], acc)
    return acc


def matmul_float_truth(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """x (T, K) times weights (N, K), in float64: (T, N)."""
    return x.astype(np.float64) @ weights.astype(np.float64).T
