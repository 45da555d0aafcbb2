"""The vocabulary: operations on vectors that stay in registers, each given here as its NumPy twin.

A kernel that is written in these runs as plain Python, where the twins check what the machine does not: that a load stays
inside its array and that a sum stays inside its bound. `lower_generic.py` says the same in LLVM for any processor, and
`lower_native.py` in the instructions of those that have better ones; the bits are equal.

Vectors are 32 bytes: `I8x32`, `U8x32`, `I32x8`, `F32x8`. Some operations take 64 bytes as well, `F32xN` and so on, where
the processor has such registers (`kernels/wide.py`). What is done with bytes stands in `kernels/dot.py`.
"""

import numpy as np

from kernels.registry import operation
from kernels.types import (
    F16,
    F32,
    I8,
    I32,
    U8,
    F32x8,
    F32xN,
    Float,
    I8x32,
    I32x8,
    I32xN,
    Int,
    Int32,
    U8x32,
)


def _window(array: np.ndarray, i: int, count: int) -> np.ndarray:
    assert i >= 0 and i + count <= len(array), f"elements {i} to {i + count} of an array of {len(array)}"
    return array[i : i + count]


# ---- memory ----


@operation
def load_u8x32(p: U8, i: Int) -> U8x32:
    """32 bytes from p[i]."""
    return _window(p, i, 32).copy()


@operation
def load_i8x32(p: I8, i: Int) -> I8x32:
    """32 signed bytes from p[i]."""
    return _window(p, i, 32).copy()


@operation
def load_i32x8(p: I32, i: Int) -> I32x8:
    """Eight int32 from p[i]."""
    return _window(p, i, 8).copy()


@operation
def load_i8x8(p: I8, i: Int) -> I32x8:
    """Eight signed bytes from p[i], widened."""
    return _window(p, i, 8).astype(np.int32)


@operation
def load_u8x8(p: U8, i: Int) -> I32x8:
    """Eight unsigned bytes from p[i], widened."""
    return _window(p, i, 8).astype(np.int32)


@operation
def load_f32x8(p: F32, i: Int) -> F32x8:
    """Eight floats from p[i]."""
    return _window(p, i, 8).copy()


@operation
def load_f16x8(p: F16, i: Int) -> F32x8:
    """Eight half floats from p[i], widened exactly."""
    return _window(p, i, 8).view(np.float16).astype(np.float32)


@operation
def load_bf16x8(p: F16, i: Int) -> F32x8:
    """Eight bfloat16 from p[i], widened exactly."""
    return (_window(p, i, 8).astype(np.uint32) << 16).view(np.float32)


@operation
def broadcast_i8x4(p: I8, i: Int) -> I8x32:
    """Four bytes from p[i], repeated eight times."""
    return np.tile(_window(p, i, 4), 8)


@operation
def broadcast_i32(p: I32, i: Int, like: I32xN) -> I32xN:
    """p[i] in each lane of a vector like this."""
    return np.full(len(like), _window(p, i, 1)[0])


@operation
def broadcast_times(p: I32, i: Int, factor: Int, like: I32xN) -> I32xN:
    """p[i] times a constant factor, in each lane of a vector like this; must not overflow."""
    return _exact_i32(np.full(len(like), _window(p, i, 1)[0], np.int64) * factor)


@operation
def store_f32x8(p: F32, i: Int, v: F32x8) -> None:
    """p[i:i+8] = v."""
    _window(p, i, 8)[:] = v


@operation
def store_i32x8(p: I32, i: Int, v: I32x8) -> None:
    """p[i:i+8] = v."""
    _window(p, i, 8)[:] = v


@operation
def store_i8x8(p: I8, i: Int, v: I32x8) -> None:
    """p[i:i+8] = the low bytes of v, which lie in -128..127."""
    assert (np.abs(v.astype(np.int64)) <= 128).all()
    _window(p, i, 8)[:] = v.astype(np.int8)


@operation
def store_u8x32(p: U8, i: Int, v: U8x32) -> None:
    """p[i:i+32] = v."""
    _window(p, i, 32)[:] = v


@operation
def store_f16x8(p: F16, i: Int, v: F32x8) -> None:
    """p[i:i+8] = v as half floats, rounded to nearest, ties to even; too large becomes infinity."""
    with np.errstate(over="ignore"):
        _window(p, i, 8)[:] = v.astype(np.float16).view(np.uint16)


@operation
def store_f16(p: F16, i: Int, x: Float) -> None:
    """p[i] = x as a half float, rounded as by `store_f16x8`."""
    with np.errstate(over="ignore"):
        _window(p, i, 1)[:] = np.float32(x).astype(np.float16).view(np.uint16)


@operation
def prefetch(p: U8, i: Int) -> None:
    """Ask for the cache line of p[i], which may lie beyond the end; changes nothing."""


@operation
def prefetch_f16(p: F16, i: Int) -> None:
    """Ask for the cache line of p[i], as `prefetch` does."""


@operation
def prefetch_f32(p: F32, i: Int) -> None:
    """Ask for the cache line of p[i], as `prefetch` does."""


# ---- floats ----


@operation
def splat_f32(x: Float) -> F32x8:
    """x in each lane."""
    return np.full(8, x, np.float32)


@operation
def spread_f32(x: Float, like: F32xN) -> F32xN:
    """x in each lane of a vector like this."""
    return np.full(len(like), x, np.float32)


@operation
def add_f32(a: F32xN, b: F32xN) -> F32xN:
    """a + b."""
    return a + b


@operation
def sub_f32(a: F32xN, b: F32xN) -> F32xN:
    """a - b."""
    return a - b


@operation
def mul_f32(a: F32xN, b: F32xN) -> F32xN:
    """a * b."""
    return a * b


@operation
def div_f32(a: F32xN, b: F32xN) -> F32xN:
    """a / b."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return a / b


@operation
def fma(a: F32xN, b: F32xN, c: F32xN) -> F32xN:
    """a * b + c with one rounding.

    The twin computes in float64 with the sum rounded to odd, which makes the second rounding harmless (Boldo and
    Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
    """
    with np.errstate(invalid="ignore", over="ignore"):
        product = np.asarray(a, np.float64) * np.asarray(b, np.float64)  # exact: 24 + 24 bits
        addend = np.asarray(c, np.float64)
        total = np.asarray(product + addend)
        back = total - product
        error = (product - (total - back)) + (addend - back)  # Knuth's two-sum: total + error is exact
        bits = total.view(np.int64)
        inexact = np.isfinite(total) & (error != 0) & ((bits & 1) == 0)
        away = (error > 0) == (total > 0)
        odd = np.where(inexact, np.where(away, bits + 1, bits - 1), bits)
        return odd.view(np.float64).astype(np.float32)


@operation
def sqrt_f32(a: F32x8) -> F32x8:
    """The square root, correctly rounded."""
    return np.sqrt(a)


@operation
def rint_f32(a: F32xN) -> F32xN:
    """The nearest integer, ties to even."""
    return np.rint(a)


@operation
def abs_f32(a: F32x8) -> F32x8:
    """|a|."""
    return np.abs(a)


@operation
def max_f32(a: F32xN, b: F32xN) -> F32xN:
    """a where a > b, else b: with a NaN on either side the answer is b."""
    return np.where(a > b, a, b)


@operation
def min_f32(a: F32xN, b: F32xN) -> F32xN:
    """a where a < b, else b: with a NaN on either side the answer is b."""
    return np.where(a < b, a, b)


@operation
def keep_below(a: F32x8, start: Int32, limit: Int32, other: F32x8) -> F32x8:
    """Lane r of a where start + r < limit, else of other."""
    return np.where(start + np.arange(8) < limit, a, other)


@operation
def power_of_two(n: I32xN) -> F32xN:
    """2^n for n in -126..127; 0 for -127."""
    return ((n + np.int32(127)) << np.int32(23)).astype(np.int32).view(np.float32)


@operation
def sum_f32(v: F32x8) -> Float:
    """The sum of the lanes in a fixed tree: lanes 4 apart, then 2, then 1."""
    v = v[:4] + v[4:]
    v = v[:2] + v[2:]
    return v[0] + v[1]


@operation
def sum_each(v0: F32x8, v1: F32x8, v2: F32x8, v3: F32x8, v4: F32x8, v5: F32x8, v6: F32x8, v7: F32x8) -> F32x8:
    """Lane r is `sum_f32` of the r-th vector."""
    v = np.stack([v0, v1, v2, v3, v4, v5, v6, v7])
    v = v[:, :4] + v[:, 4:]
    v = v[:, :2] + v[:, 2:]
    return v[:, 0] + v[:, 1]


@operation
def max_lane(v: F32x8) -> Float:
    """The largest lane, by `max_f32` in the tree of `sum_f32`."""
    v = np.where(v[:4] > v[4:], v[:4], v[4:])
    v = np.where(v[:2] > v[2:], v[:2], v[2:])
    return v[0] if v[0] > v[1] else v[1]


@operation
def widen_f16(bits: Int) -> Float:
    """The float whose half-float bits these are."""
    return np.array([bits], np.uint16).view(np.float16).astype(np.float32)[0]


@operation
def widen_bf16(bits: Int) -> Float:
    """The float whose upper half these bits are."""
    return (np.array([bits], np.uint32) << 16).view(np.float32)[0]


# ---- integers ----


@operation
def splat_i32(x: Int32) -> I32x8:
    """x in each lane."""
    return np.full(8, x, np.int32)


@operation
def add_i32(a: I32xN, b: I32xN) -> I32xN:
    """a + b; must not overflow."""
    return _exact_i32(a.astype(np.int64) + b)


@operation
def sub_i32(a: I32xN, b: I32xN) -> I32xN:
    """a - b; must not overflow."""
    return _exact_i32(a.astype(np.int64) - b)


@operation
def mul_i32(a: I32xN, b: I32xN) -> I32xN:
    """a * b; must not overflow."""
    return _exact_i32(a.astype(np.int64) * b)


@operation
def sum_i32(v: I32x8) -> Int32:
    """The sum of the lanes."""
    return _exact_i32(v.sum(dtype=np.int64))[()]


@operation
def to_f32(a: I32xN) -> F32xN:
    """int32 to the nearest float."""
    return a.astype(np.float32)


@operation
def to_i32(a: F32xN) -> I32xN:
    """Float to int32; a is integral and within int32 (a NaN gives an unspecified integer)."""
    with np.errstate(invalid="ignore"):
        return a.astype(np.int32)


def _exact_i32(wide: np.ndarray) -> np.ndarray:
    assert (np.abs(wide) <= 2**31 - 1).all(), "int32 overflow"
    return np.asarray(wide).astype(np.int32)
