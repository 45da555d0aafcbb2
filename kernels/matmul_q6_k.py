"""Matrix product with Q6_K weights: INT6 codes in blocks of 256, zero point 32, with an int8 sub-scale for every 16.

    weight = d * sub_scale * (code - 32)
    term   = (d * x_scale) * S
         S = sub_scale[0] * dot[0] + sub_scale[1] * dot[1]         dot[h] = sum over half h of the 32 of (code - 32) * x

all exact in int32. Processors without signed products form the sum of code * x, and subtract 32 times the sum of x.

Packed, for 8 outputs x 256 k: eight blocks of 6-bit codes of `kernels/codes.py`, then for each of them 8 sub-scales of its
first half and 8 of its second, + 128 in one byte each; 8 half floats: d.

Bound: a half's dot is at most 16 * 32 * 127 = 65024 (the sum of code * x 16 * 63 * 127 = 128016), and S
2 * 128 * 65024 = 16646144, still exact in float32.

The Q6_K format: ggml.
"""

from typing import Any

import numpy as np

from kernels.codes import byte, code6, products6, put_code6, put_half
from kernels.dot import centred
from kernels.lanes import Subroutine
from kernels.matmul_blocks import Activations, Packed, block_format
from kernels.quantize import SUMS
from kernels.registry import subroutine, typed
from kernels.rows import Rows
from kernels.simd import (
    add_i32,
    broadcast_i32,
    fma,
    load_f16x8,
    load_u8x8,
    mul_i32,
    splat_i32,
    sub_i32,
    widen_f16,
)
from kernels.terms import add_scaled
from kernels.terms import halves as read_halves
from kernels.types import F16, F32, I32, U8, F32x8, F32xN, Float, I32x8, I32xN, Int

BLOCK_BYTES = 210  # in the file: 128 bytes of nibbles, 64 of bit pairs, 16 sub-scales, d
RECORD = 8 * (192 + 16)
Weights = tuple[I32xN, I32xN, F32xN]
Halves = tuple[I32xN, I32xN]


@subroutine
def load(codes: U8, scales: F16, n: Int) -> tuple[I32x8, I32x8, F32x8]:
    """Of block n: the sub-scales of its halves, and d."""
    i, j = RECORD * (n // 8), n % 8
    subs = i + 8 * 192 + 16 * j
    bias = splat_i32(np.int32(128))
    first, second = sub_i32(load_u8x8(codes, subs), bias), sub_i32(load_u8x8(codes, subs + 8), bias)
    return first, second, load_f16x8(scales, n // 8 * 8)


@subroutine
def start(n: Int) -> Int:
    """Where the codes of block n begin."""
    return RECORD * (n // 8) + 192 * (n % 8)


@subroutine
def first_half(acc: I32xN, s: I32xN, weights: Weights, x_scales: F32, x_sums: I32, at: Int) -> I32xN:
    """The sum of the first half, by its sub-scale."""
    return mul_i32(centred(s, broadcast_i32(x_sums, SUMS * at + 1, s)), weights[0])


@subroutine
def last_half(acc: I32xN, s: I32xN, weights: Weights, x_scales: F32, x_sums: I32, at: Int) -> I32xN:
    """acc plus the same of the last half."""
    return add_i32(acc, mul_i32(centred(s, broadcast_i32(x_sums, SUMS * at + 2, s)), weights[1]))


@subroutine
def term(acc: F32xN, s: I32xN, weights: Weights, x_scales: F32, x_sums: I32, at: Int) -> F32xN:
    """acc plus one block's term."""
    return add_scaled(acc, s, weights[2], x_scales, at)


def block(rows: Rows) -> Subroutine:
    """One block for some rows: the sums of both halves, each by its sub-scale, together by the scale."""
    dot, weights = products6(rows), rows.lanes.load(load, Weights)
    first, last, terms = (rows.terms(add, I32xN, Weights) for add in (first_half, last_half, term))
    Floats = rows.zero.__annotations__["return"]

    @rows.lanes.subroutine
    @typed(acc=Floats, result=Floats)
    def add_block(acc: Any, packed: Packed, n: Int, blocks: Int, activations: Activations, at: Int, apart: Int) -> Any:
        (x, x_scales, x_sums), (codes, scales, _) = activations, packed
        across = start(n + blocks) - start(n)
        s = dot(codes, start(n), across, x, 32 * at, apart)
        t = dot(codes, start(n) + 96, across, x, 32 * at + 16, apart)
        w = weights(codes, scales, n, blocks)
        s = first(s, s, w, x_scales, x_sums, at, apart)
        s = last(s, t, w, x_scales, x_sums, at, apart)
        return terms(acc, s, w, x_scales, x_sums, at, apart)

    return add_block


@subroutine
def put(codes: U8, scales: F16, n: Int, r: Int, source: U8, at: Int) -> None:
    """The 32 weights `at` of the file become lane r of block n."""
    block, j = BLOCK_BYTES * (at // 8), n % 8
    h, g = j // 4, j % 4
    start = RECORD * (n // 8)
    put_half(scales, n // 8 * 8 + r, source, block + 208)
    for half in range(2):
        codes[start + 8 * 192 + 16 * j + 8 * half + r] = source[block + 192 + 2 * j + half] ^ 128
    for k in range(32):
        low = byte(source, block + 64 * h + 32 * (g % 2) + k) >> (g // 2 * 4) & 15
        high = byte(source, block + 128 + 32 * h + k) >> (2 * g) & 3
        put_code6(codes, start + 192 * j, r, k, low | high << 4)


@subroutine
def element(codes: U8, scales: F16, n: Int, r: Int, k: Int) -> Float:
    """Weight k of lane r in block n."""
    i, j = RECORD * (n // 8), n % 8
    sub_scale = byte(codes, i + 8 * 192 + 16 * j + k // 16 * 8 + r) - 128
    return np.float32(sub_scale * (code6(codes, i + 192 * j, r, k) - 32)) * widen_f16(scales[n // 8 * 8 + r])


Q6_K = block_format("Q6_K", 256, BLOCK_BYTES, 192 + 16, 1, block, put, element)
matmul_q6_k, pack_q6_k, embed_q6_k = Q6_K.matmul, Q6_K.pack, Q6_K.embed


def decode(source: np.ndarray, rows: int, blocks: int) -> tuple[np.ndarray, ...]:
    """A file's Q6_K bytes -> codes without the zero point (rows, K), sub-scales (rows, 2 blocks), d (rows, blocks / 8)."""
    block = source.reshape(rows, blocks // 8, BLOCK_BYTES)
    nibbles = block[..., :128].reshape(rows, -1, 2, 1, 64)
    low = np.concatenate([nibbles & 15, nibbles >> 4], 3).reshape(rows, -1, 2, 4, 32)
    high = block[..., 128:192].reshape(rows, -1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    codes = (low | high << 4).reshape(rows, -1).astype(np.int32) - 32
    sub_scale = block[..., 192:208].copy().view(np.int8).reshape(rows, -1).astype(np.int32)
    return codes, sub_scale, read_halves(block, 208)


def matmul_q6_k_exact(
    x: np.ndarray, x_scale: np.ndarray, codes: np.ndarray, sub_scale: np.ndarray, scale: np.ndarray
) -> np.ndarray:
    """The kernel's integers and float32 steps in NumPy, bit for bit: x (T, K) int8, x_scale (T, B); the rest by `decode`."""
    T, B = len(x), scale.shape[1] * 8
    xb = x.reshape(T, B, 2, 16).astype(np.int32)
    wb = codes.reshape(-1, B, 2, 16) * sub_scale.reshape(-1, B, 2, 1)
    acc = np.zeros((T, len(codes)), np.float32)
    for b in range(B):
        s = np.tensordot(xb[:, b], wb[:, b], ((1, 2), (1, 2)))
        acc = fma(s.astype(np.float32), scale[None, :, b // 8] * x_scale[:, None, b], acc)
    return acc


def matmul_q6_k_truth(x: np.ndarray, codes: np.ndarray, sub_scale: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """x (T, K) float64 times the exactly dequantised weights, in float64: (T, N)."""
    scales = np.repeat(scale.astype(np.float64), 256, axis=1) * np.repeat(sub_scale, 16, axis=1)
    return x.astype(np.float64) @ (codes * scales).T
