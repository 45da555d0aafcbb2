"""The matrix product of the integer-only forward pass: static INT8 times static INT8, exact sums in int32.

    out[t, n] = bias[n] + sum over k of  (x[t, k] + 128) * code[n, k]

The bias, an int32 in units of (scale of x) * (scale of the output's weights), holds -128 * sum of code[n, k] as well, so
that the sum is that of x itself: x goes in as unsigned bytes, since processors multiply unsigned by signed ones.

    codes    (group of 8 outputs, block of 32, 8 vectors of 4 k, 8 outputs, 4 k) int8 in -127 .. 127
    x        (T, K) int8, K whole blocks of 32; where K is padded the codes are 0, so what x holds there does not matter

Bound: |bias| + 255 * sum of |code| < 2^31 for each output, which `pack_integer` sees to; so no order of adding overflows.
"""

import numpy as np

from kernels.dot import dot_u8, flip_sign_bits, quad_sums, zero_quad_sums
from kernels.quantize import share
from kernels.registry import kernel, subroutine
from kernels.simd import add_i32, broadcast_i8x4, load_i8x32, load_i32x8, store_i32x8
from kernels.types import I8, I32, I64, I32x8, Int

BLOCK = 32
GROUP = 8


@subroutine
def dot_block(codes: I8, n: Int, x: I8, at: Int) -> I32x8:
    """The sums of one row's 32 activations from x[at] with block n of the codes."""
    s = zero_quad_sums()
    for j in range(8):
        s = dot_u8(s, flip_sign_bits(broadcast_i8x4(x, at + 4 * j)), load_i8x32(codes, 256 * n + 32 * j))
    return quad_sums(s)


@subroutine
def dot_block4(codes: I8, n: Int, x: I8, at: Int, stride: Int) -> tuple[I32x8, I32x8, I32x8, I32x8]:
    """`dot_block` for four rows, `stride` apart."""
    a, b, c, d = zero_quad_sums(), zero_quad_sums(), zero_quad_sums(), zero_quad_sums()
    for j in range(8):
        w = load_i8x32(codes, 256 * n + 32 * j)
        a = dot_u8(a, flip_sign_bits(broadcast_i8x4(x, at + 4 * j)), w)
        b = dot_u8(b, flip_sign_bits(broadcast_i8x4(x, at + stride + 4 * j)), w)
        c = dot_u8(c, flip_sign_bits(broadcast_i8x4(x, at + 2 * stride + 4 * j)), w)
        d = dot_u8(d, flip_sign_bits(broadcast_i8x4(x, at + 3 * stride + 4 * j)), w)
    return quad_sums(a), quad_sums(b), quad_sums(c), quad_sums(d)


@kernel
def integer_matmul(
    rank: Int,
    size: Int,
    run: I64,
    out: I32,
    x: I8,
    codes: I8,
    bias: I32,
    groups: Int,
    blocks: Int,
    stride: Int,
    count: Int,
) -> None:
    """out[t, 8 groups] for run[count] rows, `stride` apart in out; rows of x have 32 * blocks codes."""
    rows = run[count]
    start, end = share(groups, rank, size)
    columns = blocks * BLOCK
    whole = rows // 4 * 4
    for group in range(start, end):
        first = load_i32x8(bias, GROUP * group)
        for t in range(0, whole, 4):
            c0, c1, c2, c3 = first, first, first, first
            for b in range(blocks):
                s0, s1, s2, s3 = dot_block4(codes, group * blocks + b, x, t * columns + BLOCK * b, columns)
                c0, c1, c2, c3 = add_i32(c0, s0), add_i32(c1, s1), add_i32(c2, s2), add_i32(c3, s3)
            at = t * stride + GROUP * group
            store_i32x8(out, at, c0)
            store_i32x8(out, at + stride, c1)
            store_i32x8(out, at + 2 * stride, c2)
            store_i32x8(out, at + 3 * stride, c3)
        for t in range(whole, rows):
            c = first
            for b in range(blocks):
                c = add_i32(c, dot_block(codes, group * blocks + b, x, t * columns + BLOCK * b))
            store_i32x8(out, t * stride + GROUP * group, c)


def pack_integer(codes: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The operands `codes` and `bias` of the kernel.

    Args:
        codes: (N, K) int8 in -127 .. 127.
        bias: (N,) int64, in units of the sums.

    Returns:
        The packed codes, flat int8, and the bias with the correction for x + 128, (N padded to 8,) int32.

    Raises:
        ValueError: the sum of an output may not fit into int32.
    """
    N, K = codes.shape
    padded = np.zeros((-(-N // GROUP) * GROUP, -(-K // BLOCK) * BLOCK), np.int8)
    padded[:N, :K] = codes
    whole = np.zeros(len(padded), np.int64)
    whole[:N] = bias - 128 * codes.sum(1, dtype=np.int64)
    largest = np.abs(whole) + 255 * np.abs(padded.astype(np.int16)).sum(1, dtype=np.int64)
    if (largest >= 2**31).any():
        n = int(np.argmax(largest))
        raise ValueError(f"output {n}: its sum may reach {largest[n]}, which is more than int32 holds")
    blocks = padded.reshape(-1, GROUP, padded.shape[1] // BLOCK, 8, 4)
    return np.ascontiguousarray(blocks.transpose(0, 2, 3, 1, 4)).reshape(-1), whole.astype(np.int32)


def integer_matmul_exact(x: np.ndarray, codes: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """The same integers in NumPy: x (T, K) int8, codes (N, K) int8, bias (N,) without the correction -> (T, N) int32."""
    return (x.astype(np.int64) @ codes.astype(np.int64).T + bias).astype(np.int32)
