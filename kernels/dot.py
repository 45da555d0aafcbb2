"""The vocabulary's second part: vectors of bytes, and sums of their products; NumPy twins, as in `kernels/simd.py`.

Integer products come in groups of four:

    w: U8x32   w0 w1 w2 w3 | w4 w5 w6 w7 | ...      lane r of the sum gets
    a: I8x32   a0 a1 a2 a3 | a4 a5 a6 a7 | ...      w[4r] a[4r] + ... + w[4r+3] a[4r+3]
"""

import numpy as np

from kernels.registry import operation
from kernels.types import I8x32, I8xN, I32x8, I32xN, Int, PairSums, PairSumsN, QuadSums, U8x32, U8xN

INT16_MAX = 32767


@operation
def low_nibbles(v: U8xN) -> U8xN:
    """The low four bits of each byte."""
    return v & np.uint8(15)


@operation
def high_nibbles(v: U8xN) -> U8xN:
    """The high four bits of each byte."""
    return v >> np.uint8(4)


@operation
def low_six(v: U8xN) -> U8xN:
    """The low six bits of each byte."""
    return v & np.uint8(63)


@operation
def high_pairs(a: U8xN, b: U8xN, c: U8xN) -> U8xN:
    """The high two bits of each byte of a, b and c, as bits 0 and 1, 2 and 3, 4 and 5."""
    return a >> np.uint8(6) | b >> np.uint8(6) << np.uint8(2) | c >> np.uint8(6) << np.uint8(4)


@operation
def single_bits(v: U8xN, shift: Int) -> U8xN:
    """Bit `shift` (a constant) of each byte, moved to bit 4."""
    return ((v >> np.uint8(shift)) & np.uint8(1)) << np.uint8(4)


@operation
def or_u8(a: U8xN, b: U8xN) -> U8xN:
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
def dot_u4(sums: PairSumsN, w: U8xN, a: I8xN) -> PairSumsN:
    """Add the products of w in 0..63 with a in -127..127, pairs of which are held in 16 bits.

    The bound is the caller's to keep: for nibbles (0..15) a pair is at most 2 * 15 * 127 = 3810, so eight calls fit into
    int16 (30480); for six bits (0..63) a pair is at most 16002, so two calls do (32004).
    """
    assert w.max() <= 63 and np.abs(a.astype(np.int32)).max() <= 127
    pairs = (w.astype(np.int32) * a).reshape(-1, 2).sum(1, dtype=np.int32)
    total = sums + pairs
    assert np.abs(total).max() <= INT16_MAX, "int16 overflow"
    return total


@operation
def pair_sums(sums: PairSumsN) -> I32xN:
    """The sums of four products (and of as many calls as were added), in int32."""
    return sums.reshape(-1, 2).sum(1, dtype=np.int32)


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
def dot_i8(sums: I32xN, w: U8xN, a: I8xN) -> I32xN:
    """Add the products of w - 128, in -128..127, with a in -127..127; `centred` must see the sum at last.

    Two such products are at most 2 * 128 * 127 = 32512, which fits into int16 (|w - 128| times a with its sign).
    """
    assert np.abs(a.astype(np.int32)).max() <= 127
    return sums + ((w.astype(np.int32) - 128) * a).reshape(-1, 4).sum(1, dtype=np.int32)


@operation
def dot_i6(sums: PairSumsN, w: U8xN, a: I8xN) -> PairSumsN:
    """Add the products of w - 32, w in 0..63, with a in -127..127, at most four times; `centred` must see the sum at last.

    Two such products are at most 2 * 32 * 127 = 8128, and four times that is 32512.
    """
    assert w.max() <= 63 and np.abs(a.astype(np.int32)).max() <= 127
    total = sums + ((w.astype(np.int32) - 32) * a).reshape(-1, 2).sum(1, dtype=np.int32)
    assert np.abs(total).max() <= INT16_MAX, "int16 overflow"
    return total


@operation
def centred(sums: I32xN, offset: I32xN) -> I32xN:
    """What `dot_i8` or `dot_i6` came to; offset is 128 or 32 times the sum of all activations that went in.

    Some processors can multiply w only as it is, without a sign; there the offset is subtracted. Elsewhere it is not used.
    """
    return sums


@operation
def quad_sums(sums: QuadSums) -> I32x8:
    """The eight sums of `dot_u8`, in int32."""
    return sums
