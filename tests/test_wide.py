"""Vectors of 64 bytes: each operation on them is that on their two halves; compiled code equals its NumPy twin.

Processors that have no such vectors compile none of it: there `wide()` is 0, and whole matrix products are compared
(`tests/test_levels.py`).
"""

import inspect
from typing import Any

import numpy as np
import pytest

from kernels import wide as vocabulary
from kernels.compiler import call
from kernels.dot import (
    centred,
    dot_i6,
    dot_i8,
    dot_u4,
    high_nibbles,
    high_pairs,
    low_nibbles,
    low_six,
    or_u8,
    pair_sums,
    single_bits,
    zero_pair_sums,
)
from kernels.registry import Kernel, marks, operations, subroutine, wide_subroutine
from kernels.simd import (
    add_f32,
    add_i32,
    broadcast_i8x4,
    broadcast_times,
    div_f32,
    fma,
    load_f32x8,
    load_i32x8,
    load_u8x32,
    max_f32,
    min_f32,
    mul_f32,
    mul_i32,
    power_of_two,
    rint_f32,
    spread_f32,
    store_f32x8,
    sub_f32,
    sub_i32,
    to_f32,
    to_i32,
)
from kernels.target import host
from kernels.types import F32, I8, I32, I64, U8, F32xN, I8xN, I32xN, Int, PairSumsN, U8xN
from kernels.wide import (
    broadcast_i8x4_wide,
    high_half,
    join_f32,
    join_i32,
    join_u8,
    load_f32x16,
    low_half,
    store_f32x16,
    wide,
    zero_pair_sums_wide,
)


@subroutine
def anything(w: U8xN, a: I8xN, empty: PairSumsN, n: I32xN, f: F32xN, e: I32, i: Int) -> F32xN:
    """All operations that take vectors of either size, in one number for each lane."""
    four = dot_u4(dot_u4(empty, low_nibbles(w), a), high_nibbles(w), a)
    five = dot_u4(empty, or_u8(low_nibbles(w), single_bits(w, 7)), a)
    six = dot_i6(empty, or_u8(low_six(w), high_pairs(w, low_nibbles(w), w)), a)
    eight = dot_i8(sub_i32(n, n), w, a)
    whole = add_i32(pair_sums(four), mul_i32(pair_sums(five), n))
    signed = centred(pair_sums(six), broadcast_times(e, i, 32, n))
    signed = sub_i32(signed, centred(eight, broadcast_times(e, i, 128, n)))
    sums = fma(to_f32(whole), mul_f32(f, spread_f32(np.float32(0.3), f)), to_f32(signed))
    part = power_of_two(to_i32(rint_f32(max_f32(min_f32(f, sums), sub_f32(f, div_f32(f, sums))))))
    return add_f32(sums, part)


@subroutine
def eights(out: F32, u: U8, s: I8, n: I32, f: F32, e: I32, i: Int) -> None:
    """Two vectors of 32 bytes, one after the other."""
    a = broadcast_i8x4(s, i)
    for h in range(2):
        floats, j = load_f32x8(f, i + 8 * h), i + 8 * h
        v = anything(load_u8x32(u, i + 32 * h), a, zero_pair_sums(), load_i32x8(n, j), floats, e, i)
        store_f32x8(out, j, v)


@wide_subroutine
def sixteen(out: F32, u: U8, s: I8, n: I32, f: F32, e: I32, i: Int) -> None:
    """The same as one vector of 64."""
    w = join_u8(load_u8x32(u, i), load_u8x32(u, i + 32))
    floats = load_f32x16(f, i)
    integers = join_i32(load_i32x8(n, i), load_i32x8(n, i + 8))
    v = anything(w, broadcast_i8x4_wide(s, i), zero_pair_sums_wide(), integers, floats, e, i)
    store_f32x16(out, i, join_f32(low_half(v), high_half(v)))


def vectors(
    rank: Int, size: Int, run: I64, out: F32, u: U8, s: I8, n: I32, f: F32, e: I32, count: Int, narrow: Int
) -> None:
    for i in range(0, count, 16):
        if wide() > narrow:
            sixteen(out, u, s, n, f, e, i)
        else:
            eights(out, u, s, n, f, e, i)


KERNEL = Kernel(
    "test_vectors", vectors, {k: v for k, v in marks(vectors).items() if k not in ("rank", "size", "run", "return")}
)


def results(invoke: Any, narrow: int) -> np.ndarray:
    generator = np.random.default_rng(3)
    count = 512
    out, s = np.zeros(count, np.float32), generator.integers(-127, 128, count + 64, dtype=np.int8)
    invoke(
        KERNEL,
        out=out,
        u=generator.integers(0, 256, count + 64, dtype=np.uint8),
        s=s,
        e=np.convolve(s.astype(np.int32), np.ones(4, np.int32))[3:],  # e[i] = s[i] + .. + s[i + 3]
        n=generator.integers(-63, 64, count + 64, dtype=np.int32),
        f=generator.standard_normal(count + 64).astype(np.float32),
        count=count,
        narrow=narrow,
    )
    return out.view(np.uint32)


def twin(kernel: Kernel, **operands: Any) -> None:
    kernel(0, 1, np.zeros(8, np.int64), **operands)


def test_sixteen_are_twice_eight() -> None:
    np.testing.assert_array_equal(results(twin, 0), results(twin, 1))


@pytest.mark.parametrize("narrow", [0, 1])
def test_compiled_equals_twin(narrow: int) -> None:
    if not (narrow or host().wide):
        pytest.skip("this processor has no vectors of 64 bytes")
    np.testing.assert_array_equal(results(call, narrow), results(twin, 1))


def test_every_operation_is_tested() -> None:
    used = set(sixteen.__code__.co_names) | set(vectors.__code__.co_names)
    assert {name for name, f in operations.items() if inspect.getmodule(f) is vocabulary} <= used
