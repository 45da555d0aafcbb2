"""The end of every matrix product: add the bias, add to what is there (a residual), store."""

from kernels.registry import subroutine
from kernels.simd import add_f32, load_f32x8, store_f32x8
from kernels.types import F32, F32x8, Int


@subroutine
def finish(out: F32, i: Int, acc: F32x8, bias: F32, n: Int, add: Int) -> None:
    """out[i:i+8] = acc + bias[n:n+8], plus what was there where `add` is not 0 (in this order)."""
    v = add_f32(acc, load_f32x8(bias, n))
    if add != 0:
        v = add_f32(load_f32x8(out, i), v)
    store_f32x8(out, i, v)
