"""The vocabulary's third part: vectors of 64 bytes, where a processor has 32 of them; NumPy twins as in `kernels/simd.py`.

A vector of 64 bytes is two of 32, one behind the other: the same of 16 outputs as that of 8. It saves half the instructions,
and half the loads of what is broadcast. What is written with it goes into a subroutine marked `wide_subroutine`, which is
called where `wide()` is 1, and not compiled elsewhere.
"""

import numpy as np

from kernels.registry import operation
from kernels.simd import broadcast_i8x4, load_f32x8, store_f32x8
from kernels.types import F32, I8, F32x8, F32x16, I8x64, I32x8, I32x16, Int, PairSums32, U8x32, U8x64


@operation
def wide() -> Int:
    """1 where there are vectors of 64 bytes, else 0: a constant."""
    return 1


@operation
def join_u8(a: U8x32, b: U8x32) -> U8x64:
    """a, then b."""
    return np.concatenate([a, b])


@operation
def join_i32(a: I32x8, b: I32x8) -> I32x16:
    """a, then b."""
    return np.concatenate([a, b])


@operation
def join_f32(a: F32x8, b: F32x8) -> F32x16:
    """a, then b."""
    return np.concatenate([a, b])


@operation
def load_f32x16(p: F32, i: Int) -> F32x16:
    """Sixteen floats from p[i]."""
    return join_f32(load_f32x8(p, i), load_f32x8(p, i + 8))


@operation
def store_f32x16(p: F32, i: Int, v: F32x16) -> None:
    """p[i:i+16] = v."""
    store_f32x8(p, i, v[:8])
    store_f32x8(p, i + 8, v[8:])


@operation
def low_half(v: F32x16) -> F32x8:
    """The first eight lanes."""
    return v[:8]


@operation
def high_half(v: F32x16) -> F32x8:
    """The last eight lanes."""
    return v[8:]


@operation
def broadcast_i8x4_wide(p: I8, i: Int) -> I8x64:
    """Four bytes from p[i], repeated sixteen times."""
    return np.tile(broadcast_i8x4(p, i), 2)


@operation
def zero_pair_sums_wide() -> PairSums32:
    """An empty sum of 64 bytes for `dot_u4` and `dot_i6`."""
    return np.zeros(32, np.int32)
