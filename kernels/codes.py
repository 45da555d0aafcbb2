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
    dot_u4,
    dot_u8,
    high_nibbles,
    low_nibbles,
    or_u8,
    pair_sums,
    quad_sums,
    single_bits,
    zero_pair_sums,
    zero_quad_sums,
)
from kernels.registry import subroutine
from kernels.simd import add_i32, broadcast_i8x4, load_u8x32
from kernels.types import F16, I8, U8, I32x8, Int, U8x32

Codes = tuple[U8x32, U8x32, U8x32, U8x32, U8x32, U8x32, U8x32, U8x32]


@subroutine
def load_codes4(p: U8, i: Int) -> Codes:
    """The 4-bit codes packed at p[i]."""
    v0, v1, v2, v3 = load_u8x32(p, i), load_u8x32(p, i + 32), load_u8x32(p, i + 64), load_u8x32(p, i + 96)
    return (
        low_nibbles(v0),
        low_nibbles(v1),
        low_nibbles(v2),
        low_nibbles(v3),
        high_nibbles(v0),
        high_nibbles(v1),
        high_nibbles(v2),
        high_nibbles(v3),
    )


@subroutine
def load_codes5(p: U8, i: Int) -> Codes:
    """The 5-bit codes packed at p[i]."""
    w0, w1, w2, w3, w4, w5, w6, w7 = load_codes4(p, i)
    v = load_u8x32(p, i + 128)
    return (
        or_u8(w0, single_bits(v, 0)),
        or_u8(w1, single_bits(v, 1)),
        or_u8(w2, single_bits(v, 2)),
        or_u8(w3, single_bits(v, 3)),
        or_u8(w4, single_bits(v, 4)),
        or_u8(w5, single_bits(v, 5)),
        or_u8(w6, single_bits(v, 6)),
        or_u8(w7, single_bits(v, 7)),
    )


@subroutine
def load_codes6(p: U8, i: Int) -> Codes:
    """The 6-bit codes packed at p[i]."""
    w0, w1, w2, w3, w4, w5, w6, w7 = load_codes4(p, i)
    v0, v1 = load_u8x32(p, i + 128), load_u8x32(p, i + 160)
    return (
        or_u8(w0, bit_pairs(v0, 0)),
        or_u8(w1, bit_pairs(v0, 2)),
        or_u8(w2, bit_pairs(v0, 4)),
        or_u8(w3, bit_pairs(v0, 6)),
        or_u8(w4, bit_pairs(v1, 0)),
        or_u8(w5, bit_pairs(v1, 2)),
        or_u8(w6, bit_pairs(v1, 4)),
        or_u8(w7, bit_pairs(v1, 6)),
    )


@subroutine
def load_codes8(p: U8, i: Int) -> Codes:
    """The 8-bit codes packed at p[i]."""
    return (
        load_u8x32(p, i),
        load_u8x32(p, i + 32),
        load_u8x32(p, i + 64),
        load_u8x32(p, i + 96),
        load_u8x32(p, i + 128),
        load_u8x32(p, i + 160),
        load_u8x32(p, i + 192),
        load_u8x32(p, i + 224),
    )


@subroutine
def dot4(codes: Codes, x: I8, i: Int) -> I32x8:
    """The sums of products of 8 outputs' 4-bit codes with the 32 activations from x[i]."""
    w0, w1, w2, w3, w4, w5, w6, w7 = codes
    s = dot_u4(zero_pair_sums(), w0, broadcast_i8x4(x, i))
    s = dot_u4(s, w1, broadcast_i8x4(x, i + 4))
    s = dot_u4(s, w2, broadcast_i8x4(x, i + 8))
    s = dot_u4(s, w3, broadcast_i8x4(x, i + 12))
    s = dot_u4(s, w4, broadcast_i8x4(x, i + 16))
    s = dot_u4(s, w5, broadcast_i8x4(x, i + 20))
    s = dot_u4(s, w6, broadcast_i8x4(x, i + 24))
    return pair_sums(dot_u4(s, w7, broadcast_i8x4(x, i + 28)))


@subroutine
def dot5(codes: Codes, x: I8, i: Int) -> I32x8:
    """The sums of products of 8 outputs' 5-bit codes with the 32 activations from x[i]."""
    w0, w1, w2, w3, w4, w5, w6, w7 = codes
    s = dot_u4(zero_pair_sums(), w0, broadcast_i8x4(x, i))
    s = dot_u4(s, w1, broadcast_i8x4(x, i + 4))
    s = dot_u4(s, w2, broadcast_i8x4(x, i + 8))
    s = dot_u4(s, w3, broadcast_i8x4(x, i + 12))
    t = dot_u4(zero_pair_sums(), w4, broadcast_i8x4(x, i + 16))
    t = dot_u4(t, w5, broadcast_i8x4(x, i + 20))
    t = dot_u4(t, w6, broadcast_i8x4(x, i + 24))
    return add_i32(pair_sums(s), pair_sums(dot_u4(t, w7, broadcast_i8x4(x, i + 28))))


@subroutine
def dot6(w0: U8x32, w1: U8x32, w2: U8x32, w3: U8x32, x: I8, i: Int) -> I32x8:
    """The sums of products of 8 outputs' 6-bit codes in four vectors with the 16 activations from x[i]."""
    s = dot_u4(dot_u4(zero_pair_sums(), w0, broadcast_i8x4(x, i)), w1, broadcast_i8x4(x, i + 4))
    t = dot_u4(dot_u4(zero_pair_sums(), w2, broadcast_i8x4(x, i + 8)), w3, broadcast_i8x4(x, i + 12))
    return add_i32(pair_sums(s), pair_sums(t))


@subroutine
def dot8(codes: Codes, x: I8, i: Int) -> I32x8:
    """The sums of products of 8 outputs' 8-bit codes with the 32 activations from x[i]."""
    w0, w1, w2, w3, w4, w5, w6, w7 = codes
    s = dot_u8(zero_quad_sums(), w0, broadcast_i8x4(x, i))
    s = dot_u8(s, w1, broadcast_i8x4(x, i + 4))
    s = dot_u8(s, w2, broadcast_i8x4(x, i + 8))
    s = dot_u8(s, w3, broadcast_i8x4(x, i + 12))
    s = dot_u8(s, w4, broadcast_i8x4(x, i + 16))
    s = dot_u8(s, w5, broadcast_i8x4(x, i + 20))
    s = dot_u8(s, w6, broadcast_i8x4(x, i + 24))
    return quad_sums(dot_u8(s, w7, broadcast_i8x4(x, i + 28)))


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
    """Codes of one width: the packed bytes of a block, and the subroutines above that serve it."""

    bytes: int
    load: Callable[..., Any]
    dot: Callable[..., Any]
    code: Callable[..., Any]


CODES4, CODES5 = Coding(128, load_codes4, dot4, code4), Coding(160, load_codes5, dot5, code5)
CODES8 = Coding(256, load_codes8, dot8, code8)
