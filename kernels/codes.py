"""Codes of a block of 32 weights for 8 outputs: from packed bytes to registers, and their products with activations.

In registers they are eight vectors of 32 bytes, w0 .. w7; byte 4r + c of vector j is the code of output r, k = 4j + c,
so that four k of one output meet in one lane of the sum. Packed:

    4 bits   four vectors; byte b of vector j: low nibble for w[j], high nibble for w[j + 4]          128 bytes
    5 bits   the same, then one vector: bit j of byte b is the fifth bit of byte b of w[j]            160 bytes
    8 bits   as in registers                                                                          256 bytes

Bounds: pairs of products are added in int16, at most 2 * 15 * 127 = 3810 each for 4 bits, of which eight make 30480, and
2 * 31 * 127 = 7874 each for 5 bits, of which four make 31496. The sum of a block is at most 32 * 31 * 127 = 125984, for
8 bits 32 * 255 * 127 = 1036320.
"""

import numpy as np

from kernels.registry import subroutine
from kernels.simd import (
    broadcast_i8x4,
    dot_u4,
    dot_u8,
    high_nibbles,
    load_u8x32,
    low_nibbles,
    pair_sums,
    quad_sums,
    zero_pair_sums,
    zero_quad_sums,
)
from kernels.types import F16, I8, I32, U8, I32x8, Int, Int32, U8x32

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


@subroutine
def code4(p: U8, i: Int, r: Int, k: Int) -> Int32:
    """The 4-bit code of output r at k in the block packed at p[i]."""
    j = k // 4
    return np.int32((p[i + 32 * (j % 4) + 4 * r + k % 4] >> (4 * (j // 4))) & 15)


@subroutine
def code8(p: U8, i: Int, r: Int, k: Int) -> Int32:
    """The 8-bit code of output r at k in the block packed at p[i]."""
    return np.int32(p[i + 32 * (k // 4) + 4 * r + k % 4])


@subroutine
def put_nibbles(p: U8, i: Int, r: Int, source: U8, at: Int) -> None:
    """16 bytes of a file, low nibbles k 0..15 and high nibbles k 16..31, become output r's 4-bit codes at p[i]."""
    for k in range(16):
        p[i + 32 * (k // 4) + 4 * r + k % 4] = source[at + k]


@subroutine
def put_half(p: F16, i: Int, source: U8, at: Int) -> None:
    """Two bytes of a file become p[i]."""
    p[i] = np.int64(source[at]) | np.int64(source[at + 1]) << 8


@subroutine
def sum_of_block(x_sums: I32, at: Int) -> Int32:
    """The sum of the 32 activations of block `at`."""
    return x_sums[2 * at] + x_sums[2 * at + 1]
