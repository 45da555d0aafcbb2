"""Codes of a block of 32 weights for 8 outputs: from packed bytes to registers, and their products with activations.

In registers they are eight vectors of 32 bytes, w0 .. w7; byte 4r + c of vector j is the code of output r, k = 4j + c,
so that four k of one output meet in one lane of the sum. Packed:

    4 bits   four vectors; byte b of vector j: low nibble for w[j], high nibble for w[j + 4]          128 bytes
    5 bits   the same, then one vector: bit j of byte b is bit 4 for byte b of w[j]                   160 bytes
    6 bits   the same as 4 bits, then two vectors: bits 2j and 2j + 1 of byte b of the first
             are bits 4 and 5 for byte b of w[j]; of the second, for w[j + 4]                         192 bytes
    8 bits   as in registers                                                                          256 bytes

Bounds: pairs of products are added in int16: at most 2 * 15 * 127 = 3810 each for 4 bits, of which eight make 30480;
2 * 31 * 127 = 7874 for 5 bits, of which four make 31496; 2 * 63 * 127 = 16002 for 6 bits, of which two make 32004. The sum
of a block is at most 32 * 63 * 127 = 256032, for 8 bits 32 * 255 * 127 = 1036320.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.dot import (
    bit_pairs,
    dot_i8,
    dot_u4,
    high_nibbles,
    low_nibbles,
    or_u8,
    pair_sums,
    single_bits,
    zero_pair_sums,
)
from kernels.registry import subroutine
from kernels.simd import add_i32, broadcast_i8x4, load_u8x32, splat_i32
from kernels.types import F16, I8, U8, I32x8, Int, PairSums, U8x32

Sums4 = tuple[I32x8, I32x8, I32x8, I32x8]
PairSums4 = tuple[PairSums, PairSums, PairSums, PairSums]


# ---- one row of activations: two sums side by side hide the latency of the products ----


@subroutine
def dot4(p: U8, i: Int, x: I8, k: Int) -> I32x8:
    """The sums of products of the 4-bit codes at p[i] with the 32 activations from x[k]."""
    s, t = zero_pair_sums(), zero_pair_sums()
    for j in range(4):
        v = load_u8x32(p, i + 32 * j)
        s = dot_u4(s, low_nibbles(v), broadcast_i8x4(x, k + 4 * j))
        t = dot_u4(t, high_nibbles(v), broadcast_i8x4(x, k + 16 + 4 * j))
    return add_i32(pair_sums(s), pair_sums(t))


@subroutine
def dot5(p: U8, i: Int, x: I8, k: Int) -> I32x8:
    """The sums of products of the 5-bit codes at p[i] with the 32 activations from x[k]."""
    s, t = zero_pair_sums(), zero_pair_sums()
    fifth = load_u8x32(p, i + 128)
    for j in range(4):
        v = load_u8x32(p, i + 32 * j)
        s = dot_u4(s, or_u8(low_nibbles(v), single_bits(fifth, j)), broadcast_i8x4(x, k + 4 * j))
        t = dot_u4(t, or_u8(high_nibbles(v), single_bits(fifth, j + 4)), broadcast_i8x4(x, k + 16 + 4 * j))
    return add_i32(pair_sums(s), pair_sums(t))


@subroutine
def dot6(p: U8, i: Int, x: I8, k: Int) -> tuple[I32x8, I32x8]:
    """The sums of products of the 6-bit codes at p[i] with the activations from x[k] and from x[k + 16], 16 each."""
    s0, s1, t0, t1 = zero_pair_sums(), zero_pair_sums(), zero_pair_sums(), zero_pair_sums()
    u, v = load_u8x32(p, i + 128), load_u8x32(p, i + 160)
    for j in range(2):
        w = load_u8x32(p, i + 32 * j)
        s0 = dot_u4(s0, or_u8(low_nibbles(w), bit_pairs(u, 2 * j)), broadcast_i8x4(x, k + 4 * j))
        t0 = dot_u4(t0, or_u8(high_nibbles(w), bit_pairs(v, 2 * j)), broadcast_i8x4(x, k + 16 + 4 * j))
        w = load_u8x32(p, i + 32 * j + 64)
        s1 = dot_u4(s1, or_u8(low_nibbles(w), bit_pairs(u, 2 * j + 4)), broadcast_i8x4(x, k + 8 + 4 * j))
        t1 = dot_u4(t1, or_u8(high_nibbles(w), bit_pairs(v, 2 * j + 4)), broadcast_i8x4(x, k + 24 + 4 * j))
    return add_i32(pair_sums(s0), pair_sums(s1)), add_i32(pair_sums(t0), pair_sums(t1))


@subroutine
def dot8(p: U8, i: Int, x: I8, k: Int) -> I32x8:
    """The sums of products of the 8-bit codes at p[i], less 128, with the 32 activations from x[k], for `signed_sums`."""
    s = splat_i32(np.int32(0))
    for j in range(8):
        s = dot_i8(s, load_u8x32(p, i + 32 * j), broadcast_i8x4(x, k + 4 * j))
    return s


# ---- four rows, whose blocks of 32 activations lie side by side: each vector of codes is unpacked once for them ----


@subroutine
def zero_pairs4() -> PairSums4:
    """Four empty sums."""
    return zero_pair_sums(), zero_pair_sums(), zero_pair_sums(), zero_pair_sums()


@subroutine
def add_pairs4(sums: PairSums4, w: U8x32, x: I8, k: Int) -> PairSums4:
    """The codes w with four activations of each row."""
    a, b, c, d = sums
    return (
        dot_u4(a, w, broadcast_i8x4(x, k)),
        dot_u4(b, w, broadcast_i8x4(x, k + 32)),
        dot_u4(c, w, broadcast_i8x4(x, k + 64)),
        dot_u4(d, w, broadcast_i8x4(x, k + 96)),
    )


@subroutine
def pair_sums4(sums: PairSums4) -> Sums4:
    """The four sums in int32."""
    a, b, c, d = sums
    return pair_sums(a), pair_sums(b), pair_sums(c), pair_sums(d)


@subroutine
def add4(s: Sums4, t: Sums4) -> Sums4:
    """s + t."""
    (a, b, c, d), (e, f, g, h) = s, t
    return add_i32(a, e), add_i32(b, f), add_i32(c, g), add_i32(d, h)


@subroutine
def dots4(p: U8, i: Int, x: I8, k: Int) -> Sums4:
    """`dot4` for four rows."""
    s = zero_pairs4()
    for j in range(4):
        v = load_u8x32(p, i + 32 * j)
        s = add_pairs4(s, low_nibbles(v), x, k + 4 * j)
        s = add_pairs4(s, high_nibbles(v), x, k + 16 + 4 * j)
    return pair_sums4(s)


@subroutine
def dots5(p: U8, i: Int, x: I8, k: Int) -> Sums4:
    """`dot5` for four rows."""
    s, t = zero_pairs4(), zero_pairs4()
    fifth = load_u8x32(p, i + 128)
    for j in range(4):
        s = add_pairs4(s, or_u8(low_nibbles(load_u8x32(p, i + 32 * j)), single_bits(fifth, j)), x, k + 4 * j)
    for j in range(4):
        w = or_u8(high_nibbles(load_u8x32(p, i + 32 * j)), single_bits(fifth, j + 4))
        t = add_pairs4(t, w, x, k + 16 + 4 * j)
    return add4(pair_sums4(s), pair_sums4(t))


@subroutine
def dots6(p: U8, i: Int, x: I8, k: Int) -> tuple[Sums4, Sums4]:
    """`dot6` for four rows: the sums over their first 16 activations, and over the others."""
    s, t, u, v = zero_pairs4(), zero_pairs4(), zero_pairs4(), zero_pairs4()
    m, n = load_u8x32(p, i + 128), load_u8x32(p, i + 160)
    for j in range(2):
        s = add_pairs4(s, or_u8(low_nibbles(load_u8x32(p, i + 32 * j)), bit_pairs(m, 2 * j)), x, k + 4 * j)
    for j in range(2, 4):
        t = add_pairs4(t, or_u8(low_nibbles(load_u8x32(p, i + 32 * j)), bit_pairs(m, 2 * j)), x, k + 4 * j)
    for j in range(2):
        u = add_pairs4(u, or_u8(high_nibbles(load_u8x32(p, i + 32 * j)), bit_pairs(n, 2 * j)), x, k + 16 + 4 * j)
    for j in range(2, 4):
        v = add_pairs4(v, or_u8(high_nibbles(load_u8x32(p, i + 32 * j)), bit_pairs(n, 2 * j)), x, k + 16 + 4 * j)
    return add4(pair_sums4(s), pair_sums4(t)), add4(pair_sums4(u), pair_sums4(v))


@subroutine
def dots8(p: U8, i: Int, x: I8, k: Int) -> Sums4:
    """`dot8` for four rows."""
    a = splat_i32(np.int32(0))
    b, c, d = a, a, a
    for j in range(8):
        w = load_u8x32(p, i + 32 * j)
        a = dot_i8(a, w, broadcast_i8x4(x, k + 4 * j))
        b = dot_i8(b, w, broadcast_i8x4(x, k + 4 * j + 32))
        c = dot_i8(c, w, broadcast_i8x4(x, k + 4 * j + 64))
        d = dot_i8(d, w, broadcast_i8x4(x, k + 4 * j + 96))
    return a, b, c, d


# ---- one code at a time: packing and lookup; the bytes are zero before anything is put there ----


@subroutine
def byte(p: U8, i: Int) -> Int:
    """p[i], as an integer that can be shifted."""
    value: Any = np.int64(p[i])
    return value


@subroutine
def put_code4(p: U8, i: Int, r: Int, k: Int, code: Int) -> None:
    """The low 4 bits of `code` become those of output r at k in the block packed at p[i]."""
    at = i + 32 * (k // 4 % 4) + 4 * r + k % 4
    p[at] = p[at] | (code & 15) << (k // 16 * 4)


@subroutine
def put_code5(p: U8, i: Int, r: Int, k: Int, code: Int) -> None:
    """`code` becomes the 5-bit code of output r at k."""
    put_code4(p, i, r, k, code)
    at = i + 128 + 4 * r + k % 4
    p[at] = p[at] | (code >> 4) << (k // 4)


@subroutine
def put_code6(p: U8, i: Int, r: Int, k: Int, code: Int) -> None:
    """`code` becomes the 6-bit code of output r at k."""
    put_code4(p, i, r, k, code)
    at = i + 128 + 32 * (k // 16) + 4 * r + k % 4
    p[at] = p[at] | (code >> 4) << (k // 4 % 4 * 2)


@subroutine
def put_code8(p: U8, i: Int, r: Int, k: Int, code: Int) -> None:
    """`code` becomes the 8-bit code of output r at k."""
    p[i + 32 * (k // 4) + 4 * r + k % 4] = code


@subroutine
def put_nibbles(p: U8, i: Int, r: Int, source: U8, at: Int) -> None:
    """16 bytes of a file, low nibbles k 0..15 and high nibbles k 16..31, become output r's 4-bit codes at p[i]."""
    for k in range(16):
        p[i + 32 * (k // 4) + 4 * r + k % 4] = source[at + k]


@subroutine
def put_fifth_bits(p: U8, i: Int, r: Int, source: U8, at: Int) -> None:
    """Four bytes of a file, bit k of which is bit 4 of the code at k, become that of output r's 5-bit codes at p[i]."""
    for k in range(32):
        bit = byte(source, at + k // 8) >> (k % 8) & 1
        p[i + 128 + 4 * r + k % 4] = p[i + 128 + 4 * r + k % 4] | bit << (k // 4)


@subroutine
def code4(p: U8, i: Int, r: Int, k: Int) -> Int:
    """The 4-bit code of output r at k in the block packed at p[i]."""
    return byte(p, i + 32 * (k // 4 % 4) + 4 * r + k % 4) >> (k // 16 * 4) & 15


@subroutine
def code5(p: U8, i: Int, r: Int, k: Int) -> Int:
    """The 5-bit code of output r at k."""
    return code4(p, i, r, k) | (byte(p, i + 128 + 4 * r + k % 4) >> (k // 4) & 1) << 4


@subroutine
def code6(p: U8, i: Int, r: Int, k: Int) -> Int:
    """The 6-bit code of output r at k."""
    return code4(p, i, r, k) | (byte(p, i + 128 + 32 * (k // 16) + 4 * r + k % 4) >> (k // 4 % 4 * 2) & 3) << 4


@subroutine
def code8(p: U8, i: Int, r: Int, k: Int) -> Int:
    """The 8-bit code of output r at k."""
    return byte(p, i + 32 * (k // 4) + 4 * r + k % 4)


@subroutine
def put_half(p: F16, i: Int, source: U8, at: Int) -> None:
    """Two bytes of a file become p[i]."""
    p[i] = byte(source, at) | byte(source, at + 1) << 8


@dataclass(frozen=True, slots=True)
class Coding:
    """Codes of one width: the packed bytes of a block, and the subroutines above that serve it.

    `signed`: the products are those of code - 128, once `signed_sums` has seen them.
    """

    bytes: int
    dot: Callable[..., Any]
    dots: Callable[..., Any]
    code: Callable[..., Any]
    signed: bool = False


CODES4, CODES5, CODES8 = (
    Coding(128, dot4, dots4, code4),
    Coding(160, dot5, dots5, code5),
    Coding(256, dot8, dots8, code8, True),
)
