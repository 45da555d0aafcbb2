"""The vocabulary: operations on vectors that stay in registers, each given here as its NumPy twin.

A kernel that is written in these runs as plain Python, where the twins check what the machine does not: that a load stays
inside its array and that a sum stays inside its bound. `lower_generic.py` says the same in LLVM for any processor, and
`lower_native.py` in the instructions of those that have better ones; the bits are equal.

Vectors are 32 bytes: `I8x32`, `U8x32`, `I32x8`, `F32x8`. Integer products come in groups of four:

    w: U8x32   w0 w1 w2 w3 | w4 w5 w6 w7 | ...      lane r of the sum gets
    a: I8x32   a0 a1 a2 a3 | a4 a5 a6 a7 | ...      w[4r] a[4r] + ... + w[4r+3] a[4r+3]
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
    Float,
    I8x32,
    I32x8,
    Int,
    Int32,
    PairSums,
    QuadSums,
    U8x32,
)

INT16_MAX = 32767


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


# ---- floats ----


@operation
def splat_f32(x: Float) -> F32x8:
    """x in each lane."""
    return np.full(8, x, np.float32)


@operation
def add_f32(a: F32x8, b: F32x8) -> F32x8:
    """a + b."""
    return a + b


@operation
def sub_f32(a: F32x8, b: F32x8) -> F32x8:
    """a - b."""
    return a - b


@operation
def mul_f32(a: F32x8, b: F32x8) -> F32x8:
    """a * b."""
    return a * b


@operation
def div_f32(a: F32x8, b: F32x8) -> F32x8:
    """a / b."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return a / b


@operation
def fma(a: F32x8, b: F32x8, c: F32x8) -> F32x8:
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
def rint_f32(a: F32x8) -> F32x8:
    """The nearest integer, ties to even."""
    return np.rint(a)


@operation
def abs_f32(a: F32x8) -> F32x8:
    """|a|."""
    return np.abs(a)


@operation
def max_f32(a: F32x8, b: F32x8) -> F32x8:
    """a where a > b, else b: with a NaN on either side the answer is b."""
    return np.where(a > b, a, b)


@operation
def min_f32(a: F32x8, b: F32x8) -> F32x8:
    """a where a < b, else b: with a NaN on either side the answer is b."""
    return np.where(a < b, a, b)


@operation
def keep_below(a: F32x8, start: Int32, limit: Int32, other: F32x8) -> F32x8:
    """Lane r of a where start + r < limit, else of other."""
    return np.where(start + np.arange(8) < limit, a, other)


@operation
def power_of_two(n: I32x8) -> F32x8:
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
def add_i32(a: I32x8, b: I32x8) -> I32x8:
    """a + b; must not overflow."""
    return _exact_i32(a.astype(np.int64) + b)


@operation
def sub_i32(a: I32x8, b: I32x8) -> I32x8:
    """a - b; must not overflow."""
    return _exact_i32(a.astype(np.int64) - b)


@operation
def mul_i32(a: I32x8, b: I32x8) -> I32x8:
    """a * b; must not overflow."""
    return _exact_i32(a.astype(np.int64) * b)


@operation
def sum_i32(v: I32x8) -> Int32:
    """The sum of the lanes."""
    return _exact_i32(v.sum(dtype=np.int64))[()]


@operation
def to_f32(a: I32x8) -> F32x8:
    """int32 to the nearest float."""
    return a.astype(np.float32)


@operation
def to_i32(a: F32x8) -> I32x8:
    """Float to int32; a is integral and within int32 (a NaN gives an unspecified integer)."""
    with np.errstate(invalid="ignore"):
        return a.astype(np.int32)


def _exact_i32(wide: np.ndarray) -> np.ndarray:
    assert (np.abs(wide) <= 2**31 - 1).all(), "int32 overflow"
    return np.asarray(wide).astype(np.int32)


# ---- bytes and their products ----


@operation
def low_nibbles(v: U8x32) -> U8x32:
    """The low four bits of each byte."""
    return v & np.uint8(15)


@operation
def high_nibbles(v: U8x32) -> U8x32:
    """The high four bits of each byte."""
    return v >> np.uint8(4)


@operation
def bit_pairs(v: U8x32, shift: Int) -> U8x32:
    """Two bits of each byte from bit `shift` (a constant) on, moved to bits 4 and 5."""
    return ((v >> np.uint8(shift)) & np.uint8(3)) << np.uint8(4)


@operation
def single_bits(v: U8x32, shift: Int) -> U8x32:
    """Bit `shift` (a constant) of each byte, moved to bit 4."""
    return ((v >> np.uint8(shift)) & np.uint8(1)) << np.uint8(4)


@operation
def or_u8(a: U8x32, b: U8x32) -> U8x32:
    """a | b."""
    return a | b


@operation
def flip_sign_bits(v: I8x32) -> U8x32:
    """v + 128 as unsigned bytes."""
    return v.view(np.uint8) ^ np.uint8(128)


@operation
def zero_pair_sums() -> PairSums:
    """An empty sum for `dot_u4`."""
    return np.zeros(16, np.int32)


@operation
def dot_u4(sums: PairSums, w: U8x32, a: I8x32) -> PairSums:
    """Add the products of w in 0..63 with a in -127..127, pairs of which are held in 16 bits.

    The bound is the caller's to keep: for nibbles (0..15) a pair is at most 2 * 15 * 127 = 3810, so eight calls fit into
    int16 (30480); for six bits (0..63) a pair is at most 16002, so two calls do (32004).
    """
    assert w.max() <= 63 and np.abs(a.astype(np.int32)).max() <= 127
    pairs = (w.astype(np.int32) * a).reshape(16, 2).sum(1, dtype=np.int32)
    total = sums + pairs
    assert np.abs(total).max() <= INT16_MAX, "int16 overflow"
    return total


@operation
def pair_sums(sums: PairSums) -> I32x8:
    """The eight sums of four products (and of as many calls as were added), in int32."""
    return sums.reshape(8, 2).sum(1, dtype=np.int32)


@operation
def zero_quad_sums() -> QuadSums:
    """An empty sum for `dot_u8`."""
    return np.zeros(8, np.int32)


@operation
def dot_u8(sums: QuadSums, w: U8x32, a: I8x32) -> QuadSums:
    """Add the products of w in 0..255 with a in -127..127, at most eight times.

    Where the processor multiplies bytes only in saturating 16-bit pairs, w is cut in two nibbles, each of which keeps the
    bound of `dot_u4`.
    """
    assert np.abs(a.astype(np.int32)).max() <= 127
    return sums + (w.astype(np.int32) * a).reshape(8, 4).sum(1, dtype=np.int32)


@operation
def quad_sums(sums: QuadSums) -> I32x8:
    """The eight sums of `dot_u8`, in int32."""
    return sums
