"""Codes of a block of 32 weights for 8 outputs: from packed bytes to registers, and their products with activations.

In registers they are eight vectors of 32 bytes, w0 .. w7; byte 4r + c of vector j is the code of output r, k = 4j + c,
so that four k of one output meet in one lane of the sum; `kernels/rows.py` multiplies them. Packed:

    4 bits   four vectors; byte b of vector j: low nibble for w[j], high nibble for w[j + 4]          128 bytes
    5 bits   the same, then one vector: bit j of byte b is bit 4 for byte b of w[j]                   160 bytes
    6 bits   three vectors for w[0] to w[3]: the low six bits of byte b for the first three, of whose high two bits w[3]
             has those of the first as its lowest; then three for w[4] to w[7]                        192 bytes
    8 bits   as in registers                                                                          256 bytes

Bounds: pairs of products are added in int16: at most 2 * 15 * 127 = 3810 each for 4 bits, of which eight make 30480;
2 * 31 * 127 = 7874 for 5 bits, of which four make 31496; 2 * 32 * 127 = 8128 for 6 bits less 32, of which four make 32512.
In int32 the sum of a block is at most 32 * 63 * 127 = 256032, for 8 bits 32 * 255 * 127 = 1036320.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from kernels.dot import high_nibbles, high_pairs, low_nibbles, low_six, or_u8, single_bits
from kernels.lanes import Subroutine
from kernels.registry import subroutine, typed
from kernels.rows import SIGNED6, SIGNED8, UNSIGNED, Rows
from kernels.types import F16, I8, U8, Int

# ---- products of the 32 codes packed at p[i] (`across`: `kernels/lanes.py`) with some rows of activations from x[k] ----


@cache
def products4(rows: Rows) -> Subroutine:
    """4-bit codes."""
    running, load = rows.running(UNSIGNED), rows.lanes.load_codes
    zero, add, total = running.zero, running.add, running.total

    @rows.lanes.subroutine
    @typed(result=rows.Sums)
    def dot(p: U8, i: Int, across: Int, x: I8, k: Int, apart: Int) -> Any:
        s = zero()
        for j in range(4):
            v = load(p, i + 32 * j, across)
            s = add(s, low_nibbles(v), x, k + 4 * j, apart)
            s = add(s, high_nibbles(v), x, k + 16 + 4 * j, apart)
        return total(s)

    return dot


@cache
def products5(rows: Rows) -> Subroutine:
    """5-bit codes."""
    running, plus, load = rows.running(UNSIGNED), rows.plus, rows.lanes.load_codes
    zero, add, total = running.zero, running.add, running.total

    @rows.lanes.subroutine
    @typed(result=rows.Sums)
    def dot(p: U8, i: Int, across: Int, x: I8, k: Int, apart: Int) -> Any:
        fifth = load(p, i + 128, across)
        s = zero()
        for j in range(4):
            s = add(s, or_u8(low_nibbles(load(p, i + 32 * j, across)), single_bits(fifth, j)), x, k + 4 * j, apart)
        first = total(s)
        s = zero()
        for j in range(4):
            w = or_u8(high_nibbles(load(p, i + 32 * j, across)), single_bits(fifth, j + 4))
            s = add(s, w, x, k + 16 + 4 * j, apart)
        return plus(first, total(s))

    return dot


@cache
def products6(rows: Rows) -> Subroutine:
    """16 6-bit codes, less 32 once `centred` has seen the sums."""
    running, load = rows.running(SIGNED6), rows.lanes.load_codes
    zero, add, total = running.zero, running.add, running.total

    @rows.lanes.subroutine
    @typed(result=rows.Sums)
    def dot(p: U8, i: Int, across: Int, x: I8, k: Int, apart: Int) -> Any:
        a, b, c = load(p, i, across), load(p, i + 32, across), load(p, i + 64, across)
        s = add(zero(), low_six(a), x, k, apart)
        s = add(s, low_six(b), x, k + 4, apart)
        s = add(s, low_six(c), x, k + 8, apart)
        s = add(s, high_pairs(a, b, c), x, k + 12, apart)
        return total(s)

    return dot


@cache
def products8(rows: Rows) -> Subroutine:
    """8-bit codes, less 128 once `centred` has seen the sums."""
    running, load = rows.running(SIGNED8), rows.lanes.load_codes
    zero, add, total = running.zero, running.add, running.total

    @rows.lanes.subroutine
    @typed(result=rows.Sums)
    def dot(p: U8, i: Int, across: Int, x: I8, k: Int, apart: Int) -> Any:
        s = zero()
        for j in range(8):
            s = add(s, load(p, i + 32 * j, across), x, k + 4 * j, apart)
        return total(s)

    return dot


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
    at, j = i + 96 * (k // 16) + 4 * r + k % 4, k // 4 % 4
    if j < 3:
        p[at + 32 * j] = p[at + 32 * j] | code
    else:
        for n in range(3):
            p[at + 32 * n] = p[at + 32 * n] | (code >> 2 * n & 3) << 6


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
    at, j = i + 96 * (k // 16) + 4 * r + k % 4, k // 4 % 4
    if j < 3:
        return byte(p, at + 32 * j) & 63
    return byte(p, at) >> 6 | byte(p, at + 32) >> 6 << 2 | byte(p, at + 64) >> 6 << 4


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
    """Codes of one width: the packed bytes of a block, its products by rows, and the look-up of one code.

    `signed`: the products are those of code - 128, once `centred` has seen them.
    """

    bytes: int
    products: Callable[[Rows], Subroutine]
    code: Subroutine
    signed: bool = False


CODES4, CODES5 = Coding(128, products4, code4), Coding(160, products5, code5)
CODES8 = Coding(256, products8, code8, True)
