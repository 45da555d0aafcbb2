"""How the integer sum of a block becomes a float term, which is added to an output's running sum.

    scaled       acc + (S - zero_point * sum) * (scale * x_scale)
    minimum      acc + S * (scale * x_scale), then + minimum * (x_scale * sum)
    sub-scaled   acc + (sub_scale * S) * (scale * x_scale), then + (minimum * sub_minimum) * (x_scale * sum)

S is the sum of products of codes and activations in a block of 32, `sum` that of the activations alone. The `*` outermost in
each line is one fma. What is beside it is exact (integers, and minimum * sub_minimum: 11 and 6 bits), or a product of floats
rounded once. With each kind of term its references: `exact` takes the same integers and the same float32 steps, `truth` is
float64 without rounding.
"""

import numpy as np

from kernels.codes import Coding, byte, put_half
from kernels.dot import centred
from kernels.matmul_blocks import Format, Subroutine, block_format, block_terms
from kernels.quantize import SCALES, SUMS
from kernels.registry import subroutine
from kernels.simd import (
    broadcast_times,
    fma,
    load_f16x8,
    load_u8x8,
    mul_f32,
    mul_i32,
    spread_f32,
    sub_i32,
    to_f32,
    widen_f16,
)
from kernels.types import F16, F32, I32, U8, F32x8, F32xN, Float, I32x8, I32xN, Int


@subroutine
def add_scaled(acc: F32xN, s: I32xN, scale: F32xN, x_scales: F32, at: Int) -> F32xN:
    """acc plus a block's term, with one scale; s is without the zero point."""
    return fma(to_f32(s), mul_f32(scale, spread_f32(x_scales[SCALES * at], acc)), acc)


@subroutine
def add_with_minimum(acc: F32xN, s: I32xN, scale: F32xN, minimum: F32xN, x_scales: F32, at: Int) -> F32xN:
    """acc plus a block's two terms, with a scale and a minimum."""
    return fma(minimum, spread_f32(x_scales[SCALES * at + 1], acc), add_scaled(acc, s, scale, x_scales, at))


def _start(size: int) -> Subroutine:
    """Blocks of codes lie one behind the other."""

    @subroutine
    def start(n: Int) -> Int:
        return size * n

    return start


def scaled_format(name: str, file_bytes: int, coding: Coding, zero: int, put: Subroutine) -> Format:
    """A format with one scale for 32 weights and the constant zero point `zero`; `put` as in `kernels/matmul_blocks.py`."""
    code, size = coding.code, coding.bytes
    assert zero == 128 or not coding.signed

    @subroutine
    def load(codes: U8, scales: F16, n: Int) -> F32x8:
        return load_f16x8(scales, 8 * n)

    @subroutine
    def add(acc: F32xN, s: I32xN, scale: F32xN, x_scales: F32, x_sums: I32, at: Int) -> F32xN:
        return add_scaled(acc, sub_i32(s, broadcast_times(x_sums, SUMS * at, zero, s)), scale, x_scales, at)

    @subroutine
    def add_signed(acc: F32xN, s: I32xN, scale: F32xN, x_scales: F32, x_sums: I32, at: Int) -> F32xN:
        return add_scaled(acc, centred(s, broadcast_times(x_sums, SUMS * at, 128, s)), scale, x_scales, at)

    @subroutine
    def element(codes: U8, scales: F16, n: Int, r: Int, k: Int) -> Float:
        return np.float32(code(codes, size * n, r, k) - zero) * widen_f16(scales[8 * n + r])

    kind = add_signed if coding.signed else add
    return block_format(
        name, 32, file_bytes, size, 8, block_terms(coding.products, _start(size), load, kind), put, element
    )


def minimum_format(name: str, file_bytes: int, coding: Coding, put: Subroutine) -> Format:
    """A format with a scale and a minimum for 32 weights: 8 scales, then 8 minima, lie together."""
    Weights = tuple[F32xN, F32xN]
    code, size = coding.code, coding.bytes

    @subroutine
    def load(codes: U8, scales: F16, n: Int) -> tuple[F32x8, F32x8]:
        return load_f16x8(scales, 16 * n), load_f16x8(scales, 16 * n + 8)

    @subroutine
    def add(acc: F32xN, s: I32xN, weights: Weights, x_scales: F32, x_sums: I32, at: Int) -> F32xN:
        scale, minimum = weights
        return add_with_minimum(acc, s, scale, minimum, x_scales, at)

    @subroutine
    def element(codes: U8, scales: F16, n: Int, r: Int, k: Int) -> Float:
        product = np.float32(code(codes, size * n, r, k)) * widen_f16(scales[16 * n + r])
        return product + widen_f16(scales[16 * n + 8 + r])

    return block_format(
        name, 32, file_bytes, size, 16, block_terms(coding.products, _start(size), load, add), put, element
    )


def sub_scaled_format(name: str, file_bytes: int, coding: Coding, put: Subroutine) -> Format:
    """A format with a scale and a minimum for 256 weights, and a sub-scale and sub-minimum for 32.

    Of `scales`, 8 scales and 8 minima (signs flipped, so that both terms are added) lie together; of `codes`, eight blocks,
    then for each of them 8 sub-scales and 8 sub-minima.
    Bound: sub_scale * S is at most 63 * 32 * 31 * 127 = 7936992, exact in float32 too.
    """
    Weights = tuple[I32xN, F32xN, F32xN]
    code, size = coding.code, coding.bytes
    record = 8 * (size + 16)

    @subroutine
    def load(codes: U8, scales: F16, n: Int) -> tuple[I32x8, F32x8, F32x8]:
        i, j = n // 8, n % 8
        subs = record * i + 8 * size + 16 * j
        minimum = mul_f32(load_f16x8(scales, 16 * i + 8), to_f32(load_u8x8(codes, subs + 8)))
        return load_u8x8(codes, subs), load_f16x8(scales, 16 * i), minimum

    @subroutine
    def start(n: Int) -> Int:
        return record * (n // 8) + size * (n % 8)

    @subroutine
    def add(acc: F32xN, s: I32xN, weights: Weights, x_scales: F32, x_sums: I32, at: Int) -> F32xN:
        sub_scale, scale, minimum = weights
        return add_with_minimum(acc, mul_i32(s, sub_scale), scale, minimum, x_scales, at)

    @subroutine
    def element(codes: U8, scales: F16, n: Int, r: Int, k: Int) -> Float:
        i, j = n // 8, n % 8
        subs = record * i + 8 * size + 16 * j + r
        product = np.float32(byte(codes, subs) * code(codes, record * i + size * j, r, k))
        minimum = np.float32(codes[subs + 8]) * widen_f16(scales[16 * i + 8 + r])
        return product * widen_f16(scales[16 * i + r]) + minimum

    return block_format(
        name, 256, file_bytes, size + 16, 2, block_terms(coding.products, start, load, add), put, element
    )


@subroutine
def put_k_scales(codes: U8, subs: Int, scales: F16, i: Int, source: U8, block: Int, j: Int) -> None:
    """Of a Q4_K or Q5_K block of the file: sub-scale and sub-minimum j to codes[subs], d and -dmin to scales[i]."""
    put_half(scales, i, source, block)
    put_half(scales, i + 8, source, block + 2)
    scales[i + 8] = scales[i + 8] ^ 0x8000
    low, high = byte(source, block + 4 + j % 4), byte(source, block + 8 + j % 4)
    both = byte(source, block + 12 + j % 4)
    codes[subs] = low & 63 if j < 4 else both & 15 | low >> 6 << 4
    codes[subs + 8] = high & 63 if j < 4 else both >> 4 | high >> 6 << 4


def k_scales(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 12 bytes of each Q4_K or Q5_K block: (rows, blocks of 256, 12) -> sub-scales, sub-minima (rows, blocks of 32)."""
    low, high, both = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    sub_scale = np.concatenate([low & 63, both & 15 | low >> 6 << 4], -1)
    sub_minimum = np.concatenate([high & 63, both >> 4 | high >> 6 << 4], -1)
    rows = len(packed)
    return sub_scale.reshape(rows, -1).astype(np.int32), sub_minimum.reshape(rows, -1).astype(np.int32)


def low_and_fifth(nibbles: np.ndarray, fifth: np.ndarray) -> np.ndarray:
    """The codes of Q5_0 and Q5_1 blocks: (rows, blocks, 16) and (rows, blocks, 4) bytes -> (rows, K) int32."""
    low = np.concatenate([nibbles & 15, nibbles >> 4], -1)
    high = np.unpackbits(fifth, axis=-1, bitorder="little")
    return (low | high << 4).reshape(len(nibbles), -1).astype(np.int32)


def halves(block: np.ndarray, at: int) -> np.ndarray:
    """The half floats at byte `at` of each block, widened: (..., bytes) uint8 -> (...) float32."""
    return block[..., at : at + 2].copy().view(np.float16)[..., 0].astype(np.float32)


def _blocks(x: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The integer sums of products (B, T, N) and of activations (B, T), in blocks of 32."""
    xb = x.reshape(len(x), -1, 32).astype(np.int32).transpose(1, 0, 2)
    wb = codes.reshape(len(codes), -1, 32).astype(np.int32).transpose(1, 2, 0)
    return xb @ wb, xb.sum(2, dtype=np.int32)


def scaled_exact(x: np.ndarray, x_scale: np.ndarray, codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """A product of scaled blocks, bit for bit.

    Args:
        x: (T, K) int8 codes; x_scale: (T, B) float32.
        codes: (N, K) int32, without the zero point; scale: (N, B) float32.

    Returns:
        (T, N) float32.
    """
    acc = np.zeros((len(x), len(codes)), np.float32)
    for b, s in enumerate(_blocks(x, codes)[0]):
        acc = fma(s.astype(np.float32), scale[None, :, b] * x_scale[:, None, b], acc)
    return acc


def scaled_truth(x: np.ndarray, codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """x (T, K) float64 times the exactly dequantised weights, in float64: (T, N)."""
    return x.astype(np.float64) @ (codes * np.repeat(scale.astype(np.float64), 32, axis=1)).T


def minimum_exact(
    x: np.ndarray, x_scale: np.ndarray, codes: np.ndarray, scale: np.ndarray, minimum: np.ndarray
) -> np.ndarray:
    """A product of blocks with minima, bit for bit: as `scaled_exact`, minimum (N, B) float32."""
    acc = np.zeros((len(x), len(codes)), np.float32)
    for b, (s, sums) in enumerate(zip(*_blocks(x, codes))):
        acc = fma(s.astype(np.float32), scale[None, :, b] * x_scale[:, None, b], acc)
        acc = fma(minimum[None, :, b], (x_scale[:, b] * sums.astype(np.float32))[:, None], acc)
    return acc


def minimum_truth(x: np.ndarray, codes: np.ndarray, scale: np.ndarray, minimum: np.ndarray) -> np.ndarray:
    """x (T, K) float64 times the exactly dequantised weights, in float64: (T, N)."""
    scale, minimum = (np.repeat(v.astype(np.float64), 32, axis=1) for v in (scale, minimum))
    return x.astype(np.float64) @ (codes * scale + minimum).T


def sub_scaled_exact(
    x: np.ndarray,
    x_scale: np.ndarray,
    codes: np.ndarray,
    sub_scale: np.ndarray,
    sub_minimum: np.ndarray,
    scale: np.ndarray,
    minimum: np.ndarray,
) -> np.ndarray:
    """A product of sub-scaled blocks, bit for bit.

    Args:
        x: (T, K) int8 codes; x_scale: (T, B) float32.
        codes: (N, K) int32; sub_scale, sub_minimum: (N, B) int32; scale, minimum: (N, B / 8) float32.

    Returns:
        (T, N) float32.
    """
    acc = np.zeros((len(x), len(codes)), np.float32)
    for b, (s, sums) in enumerate(zip(*_blocks(x, codes))):
        s, least = s * sub_scale[None, :, b], minimum[:, b // 8] * sub_minimum[:, b].astype(np.float32)
        acc = fma(s.astype(np.float32), scale[None, :, b // 8] * x_scale[:, None, b], acc)
        acc = fma(least[None], (x_scale[:, b] * sums.astype(np.float32))[:, None], acc)
    return acc


def sub_scaled_truth(
    x: np.ndarray,
    codes: np.ndarray,
    sub_scale: np.ndarray,
    sub_minimum: np.ndarray,
    scale: np.ndarray,
    minimum: np.ndarray,
) -> np.ndarray:
    """x (T, K) float64 times the exactly dequantised weights, in float64: (T, N)."""
    scale, minimum = (np.repeat(v.astype(np.float64), 8, axis=1) for v in (scale, minimum))
    return minimum_truth(x, codes, scale * sub_scale, minimum * sub_minimum)
