"""Kernels that are small and quick to compile, for the tests of what runs kernels."""

import numpy as np

from kernels.machine import set_float_mode
from kernels.quantize import share
from kernels.registry import kernel
from kernels.types import F32, I64, Float, Int


@kernel
def copy_scaled(rank: Int, size: Int, run: I64, out: F32, x: F32, count: Int, factor: Float) -> None:
    """out[i] = factor * x[i]."""
    start, end = share(count, rank, size)
    for i in range(start, end):
        out[i] = np.float32(factor * x[i])


@kernel
def add_from_left(rank: Int, size: Int, run: I64, out: I64, x: I64, count: Int) -> None:
    """out[i] = x[i] + 3 x[i - 1], round the corner: a worker reads what another one wrote."""
    start, end = share(count, rank, size)
    for i in range(start, end):
        j = i - 1 if i > 0 else count - 1
        out[i] = x[i] + 3 * x[j]


@kernel
def divide(rank: Int, size: Int, run: I64, out: F32, x: F32, y: F32, count: Int) -> None:
    """out[i] = x[i] / y[i]."""
    start, end = share(count, rank, size)
    for i in range(start, end):
        out[i] = np.float32(x[i] / y[i])


@kernel
def count_up(rank: Int, size: Int, run: I64, out: I64, count: Int) -> None:
    """Each worker adds 1 to its own out[16 * rank], `count` times, slowly."""
    for _ in range(count):
        out[16 * rank] = out[16 * rank] ^ run[7]
        out[16 * rank] += 1


@kernel
def scale_rows(rank: Int, size: Int, run: I64, out: F32, x: F32, width: Int, factor: Float, count: Int) -> None:
    """out = factor * x for run[count] rows of `width` floats."""
    start, end = share(run[count] * width, rank, size)
    for i in range(start, end):
        out[i] = np.float32(factor * x[i])


@kernel
def float_mode(rank: Int, size: Int, run: I64, out: I64, mode: Int) -> None:
    """Set the float mode of the calling thread, and leave the one before in out[0]."""
    out[0] = set_float_mode(mode)
