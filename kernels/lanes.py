"""Eight outputs side by side in vectors of 32 bytes, or sixteen in 64: what differs between the two, by name.

Sixteen are two groups of the packed weights, one behind the other in memory and joined in registers:

    codes of block b, group g      32 bytes | 32 bytes | ...     `across` bytes further: those of group g + 1
    a vector                       the first of each, joined
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args, get_origin

import numpy as np

from kernels.dot import zero_pair_sums
from kernels.epilogue import finish
from kernels.registry import subroutine, typed, wide_subroutine
from kernels.simd import broadcast_i8x4, load_u8x32, splat_f32, splat_i32
from kernels.types import F16, F32, U8, F32x8, F32x16, I32x8, I32x16, Int, U8x32, U8x64, sized
from kernels.wide import (
    broadcast_i8x4_wide,
    high_half,
    join_f32,
    join_i32,
    join_u8,
    low_half,
    zero_pair_sums_wide,
)

Subroutine = Callable[..., Any]
ZERO = np.float32(0.0)


@dataclass(frozen=True, slots=True)
class Lanes:
    """So many outputs in a vector.

    Attributes:
        outputs: 8 or 16.
        subroutine: Registers a subroutine that works on such vectors.
        load_codes: (codes, i, across) -> 32 packed bytes of each group, from codes[i] and from `across` bytes further.
        broadcast: (x, k) -> four activations for each output.
        zero_pairs, zero_sums, zero_floats: () -> empty sums.
        load: (a format's `load`, what it returns) -> (codes, scales, n, blocks) -> the same of each group, joined.
        finish: As in `kernels/epilogue.py`.
    """

    outputs: int
    subroutine: Callable[[Any], Any]
    load_codes: Subroutine
    broadcast: Subroutine
    zero_pairs: Subroutine
    zero_sums: Subroutine
    zero_floats: Subroutine
    load: Callable[[Subroutine, Any], Subroutine]
    finish: Subroutine


# ---- eight ----


@subroutine
def load_codes8(codes: U8, i: Int, across: Int) -> U8x32:
    """32 packed bytes."""
    return load_u8x32(codes, i)


@subroutine
def zero_sums8() -> I32x8:
    """Empty sums in int32."""
    return splat_i32(np.int32(0))


@subroutine
def zero_floats8() -> F32x8:
    """Empty sums in float32."""
    return splat_f32(ZERO)


def load8(load: Subroutine, Weights: Any) -> Subroutine:
    """One group's weights, as the format loads them."""

    @subroutine
    @typed(result=sized(Weights, 8))
    def weights(codes: U8, scales: F16, n: Int, blocks: Int) -> Any:
        return load(codes, scales, n)

    return weights


OUTPUTS8 = Lanes(8, subroutine, load_codes8, broadcast_i8x4, zero_pair_sums, zero_sums8, zero_floats8, load8, finish)


# ---- sixteen ----


@wide_subroutine
def load_codes16(codes: U8, i: Int, across: Int) -> U8x64:
    """32 packed bytes of each group."""
    return join_u8(load_u8x32(codes, i), load_u8x32(codes, i + across))


@wide_subroutine
def zero_sums16() -> I32x16:
    """Empty sums in int32."""
    return join_i32(splat_i32(np.int32(0)), splat_i32(np.int32(0)))


@wide_subroutine
def zero_floats16() -> F32x16:
    """Empty sums in float32."""
    return join_f32(splat_f32(ZERO), splat_f32(ZERO))


def load16(load: Subroutine, Weights: Any) -> Subroutine:
    """The weights of two groups, `blocks` blocks apart, joined part by part."""
    joins = {F32x8: join_f32, I32x8: join_i32}
    parts = get_args(sized(Weights, 8)) if get_origin(Weights) is tuple else ()

    def alone(codes: U8, scales: F16, n: Int, blocks: Int) -> Any:
        return join_f32(load(codes, scales, n), load(codes, scales, n + blocks))

    def two(codes: U8, scales: F16, n: Int, blocks: Int) -> Any:
        (a, b), (c, d) = load(codes, scales, n), load(codes, scales, n + blocks)
        return join0(a, c), join1(b, d)

    def three(codes: U8, scales: F16, n: Int, blocks: Int) -> Any:
        (a, b, c), (d, e, f) = load(codes, scales, n), load(codes, scales, n + blocks)
        return join0(a, d), join1(b, e), join2(c, f)

    join0, join1, join2 = [*(joins[part] for part in parts), join_f32, join_f32, join_f32][:3]
    weights = {0: alone, 2: two, 3: three}[len(parts)]
    return wide_subroutine(typed(result=sized(Weights, 16))(weights))


@wide_subroutine
def finish16(out: F32, i: Int, acc: F32x16, bias: F32, n: Int, add: Int) -> None:
    """`finish` for both halves."""
    finish(out, i, low_half(acc), bias, n, add)
    finish(out, i + 8, high_half(acc), bias, n + 8, add)


OUTPUTS16 = Lanes(
    16,
    wide_subroutine,
    load_codes16,
    broadcast_i8x4_wide,
    zero_pair_sums_wide,
    zero_sums16,
    zero_floats16,
    load16,
    finish16,
)
