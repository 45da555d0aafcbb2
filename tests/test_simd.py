"""Every operation of the vocabulary: compiled code gives its NumPy twin's bits, on random and on awkward values.

Four kernels apply the operations to whole arrays. Run as plain Python they are the twins; compiled, the machine's own
instructions. `tests/test_levels.py` runs this file for other processors too and compares the digests of `compiled()`.
"""

import inspect
from fractions import Fraction

import numpy as np
import pytest

from kernels import dot, machine, simd, wide
from kernels.compiler import call
from kernels.dot import (
    centred,
    dot_i6,
    dot_i8,
    dot_u4,
    dot_u8,
    flip_sign_bits,
    high_nibbles,
    high_pairs,
    low_nibbles,
    low_six,
    or_u8,
    pair_sums,
    quad_sums,
    single_bits,
    zero_pair_sums,
    zero_quad_sums,
)
from kernels.registry import Kernel, marks, operations
from kernels.simd import (
    abs_f32,
    add_f32,
    add_i32,
    broadcast_i8x4,
    broadcast_i32,
    broadcast_times,
    div_f32,
    fma,
    keep_below,
    load_bf16x8,
    load_f16x8,
    load_f32x8,
    load_i8x8,
    load_i8x32,
    load_i32x8,
    load_u8x8,
    load_u8x32,
    max_f32,
    max_lane,
    min_f32,
    mul_f32,
    mul_i32,
    power_of_two,
    prefetch,
    prefetch_f16,
    prefetch_f32,
    rint_f32,
    splat_f32,
    splat_i32,
    spread_f32,
    sqrt_f32,
    store_f16,
    store_f16x8,
    store_f32x8,
    store_i8x8,
    store_i32x8,
    store_u8x32,
    sub_f32,
    sub_i32,
    sum_each,
    sum_f32,
    sum_i32,
    to_f32,
    to_i32,
    widen_bf16,
    widen_f16,
)
from kernels.types import F16, F32, I8, I32, I64, U8, Int

RESULTS = 16  # vectors that a kernel may write for each vector that it reads


def floats(rank: Int, size: Int, run: I64, out: F32, a: F32, b: F32, c: F32, n: Int) -> None:
    for i in range(0, n, 8):
        o = i * RESULTS
        x, y, z = load_f32x8(a, i), load_f32x8(b, i), load_f32x8(c, i)
        store_f32x8(out, o, add_f32(x, y))
        store_f32x8(out, o + 8, sub_f32(x, y))
        store_f32x8(out, o + 16, mul_f32(x, y))
        store_f32x8(out, o + 24, div_f32(x, y))
        store_f32x8(out, o + 32, fma(x, y, z))
        store_f32x8(out, o + 40, sqrt_f32(x))
        store_f32x8(out, o + 48, rint_f32(x))
        store_f32x8(out, o + 56, abs_f32(x))
        store_f32x8(out, o + 64, max_f32(x, y))
        store_f32x8(out, o + 72, min_f32(x, y))
        store_f32x8(out, o + 80, spread_f32(a[i + 3], x))
        store_f32x8(out, o + 88, splat_f32(sum_f32(x)))
        store_f32x8(out, o + 96, splat_f32(max_lane(x)))
        store_f32x8(out, o + 104, keep_below(x, np.int32(i), np.int32(n - 5), y))
        s, d, p, q = add_f32(x, y), sub_f32(x, y), mul_f32(x, y), fma(x, y, z)
        store_f32x8(out, o + 112, sum_each(x, y, z, s, d, p, q, abs_f32(x)))


def halves(rank: Int, size: Int, run: I64, out: F32, narrow: F16, h: F16, a: F32, n: Int, m: Int) -> None:
    for i in range(0, n, 8):
        prefetch_f16(h, i + 100000)
        prefetch_f32(a, i + 100000)
        store_f32x8(out, 4 * i, load_f16x8(h, i))
        store_f32x8(out, 4 * i + 8, load_bf16x8(h, i))
        for r in range(8):
            out[4 * i + 16 + r] = widen_f16(h[i + r])
            out[4 * i + 24 + r] = widen_bf16(h[i + r])
    for i in range(0, m, 8):
        store_f16x8(narrow, 2 * i, load_f32x8(a, i))
        for r in range(8):
            store_f16(narrow, 2 * i + 8 + r, a[i + r])


def integers(rank: Int, size: Int, run: I64, out: I32, real: F32, a: I32, b: I32, f: F32, e: I32, n: Int) -> None:
    for i in range(0, n, 8):
        o = i * RESULTS
        x, y = load_i32x8(a, i), load_i32x8(b, i)
        store_i32x8(out, o, add_i32(x, y))
        store_i32x8(out, o + 8, sub_i32(x, y))
        store_i32x8(out, o + 16, mul_i32(splat_i32(a[i] % 46341), splat_i32(b[i] % 46341)))
        store_i32x8(out, o + 24, splat_i32(sum_i32(splat_i32(a[i] // 8))))
        store_i32x8(out, o + 32, to_i32(load_f32x8(f, i)))
        store_i32x8(out, o + 40, broadcast_times(e, i, 128, x))
        store_i32x8(out, o + 48, broadcast_times(e, i + 5, 1, x))
        store_i32x8(out, o + 56, broadcast_i32(e, i + 3, x))
        store_f32x8(real, 2 * i, to_f32(x))
        store_f32x8(real, 2 * i + 8, power_of_two(load_i32x8(e, i)))


def octets(
    rank: Int,
    size: Int,
    run: I64,
    out: U8,
    sums: I32,
    signed6: I32,
    signed8: I32,
    signed: I8,
    u: U8,
    s: I8,
    totals: I32,
    n: Int,
) -> None:
    for i in range(0, n, 32):
        o = i * RESULTS
        v, w = load_u8x32(u, i), load_i8x32(s, i)
        prefetch(u, i + 100000)
        store_u8x32(out, o, low_nibbles(v))
        store_u8x32(out, o + 32, high_nibbles(v))
        store_u8x32(out, o + 64, low_six(v))
        store_u8x32(out, o + 96, high_pairs(v, flip_sign_bits(w), high_nibbles(v)))
        store_u8x32(out, o + 128, high_pairs(low_nibbles(v), v, v))
        store_u8x32(out, o + 192, single_bits(v, 0))
        store_u8x32(out, o + 224, single_bits(v, 3))
        store_u8x32(out, o + 256, single_bits(v, 7))
        store_u8x32(out, o + 288, or_u8(v, low_nibbles(high_nibbles(v))))
        store_u8x32(out, o + 320, flip_sign_bits(w))
        store_u8x32(out, o + 352, flip_sign_bits(broadcast_i8x4(s, i + 5)))
        store_i32x8(sums, i, load_u8x8(u, i))
        store_i32x8(sums, i + 8, load_i8x8(s, i))
        four, six, eight = zero_pair_sums(), zero_pair_sums(), zero_quad_sums()
        for _ in range(2):
            six = dot_u4(six, low_six(v), w)
        for _ in range(8):
            four = dot_u4(four, low_nibbles(v), w)
            eight = dot_u8(eight, v, w)
        store_i32x8(sums, i + 16, add_i32(pair_sums(four), pair_sums(six)))
        store_i32x8(sums, i + 24, quad_sums(eight))
        store_i8x8(signed, i // 4, load_i8x8(s, i + 8))
        six, eight_each = zero_pair_sums(), splat_i32(np.int32(0))
        for _ in range(4):
            six = dot_i6(six, low_six(v), broadcast_i8x4(s, i))
            eight_each = dot_i8(dot_i8(eight_each, v, broadcast_i8x4(s, i)), v, broadcast_i8x4(s, i))
        store_i32x8(signed6, i // 4, centred(pair_sums(six), broadcast_times(totals, i // 32, 16, eight_each)))
        store_i32x8(signed8, i // 4, centred(eight_each, broadcast_times(totals, i // 32, 128, eight_each)))


KERNELS = {
    body.__name__: Kernel(
        f"test_{body.__name__}",
        body,
        {k: v for k, v in marks(body).items() if k not in ("rank", "size", "run", "return")},
    )
    for body in (floats, halves, integers, octets)
}


def awkward_floats() -> np.ndarray:
    """Zeros, subnormals, the ends of the range, ties, infinities and NaN."""
    some = [0.0, 1.0, 0.5, 1.5, 2.5, 3.5, 2.0**-126, 2.0**-149, 2.0**-127, 3e38, np.finfo(np.float32).max, np.inf]
    some += [2.0**23 + 0.5, 2.0**24 - 1, 2.0**22 + 0.5, 0.49999997, 1e-20, 127.5, 8388607.5]
    return np.array(some + [-v for v in some] + [np.nan, 3.14159], np.float32)


def float_inputs() -> dict[str, np.ndarray]:
    """All pairs of the awkward floats, then random bits, then random numbers; n a multiple of 8."""
    generator = np.random.default_rng(11)
    x = awkward_floats()
    a, b = (v.ravel() for v in np.meshgrid(x, x))
    c = generator.choice(x, len(a))
    bits = generator.integers(0, 2**32, (3, 4096), dtype=np.uint32).view(np.float32)
    near = generator.standard_normal((3, 4096)).astype(np.float32)
    near[2] = -(near[0].astype(np.float64) * near[1]).astype(np.float32)  # a * b + c cancels
    a, b, c = (np.concatenate([v, bits[k], near[k]]) for k, v in enumerate((a, b, c)))
    length = len(a) // 8 * 8
    return {"a": a[:length], "b": b[:length], "c": c[:length]}


def narrowing_inputs() -> np.ndarray:
    """Every half float, the floats half way between two of them and next to that, too large, too small, NaN."""
    finite = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middle = (finite[1:] + finite[:-1]) / 2
    values = [finite, middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(1e9))]
    values += [
        np.array([65519.996, 65520, 65536, 1e9, np.inf, np.nan, 2.0**-25, 2.0**-24, 2.0**-26, 1e-40], np.float32)
    ]
    a = np.concatenate(values)
    a = np.concatenate([a, -a])
    return np.concatenate([a, np.zeros(-len(a) % 8, np.float32)])


def operands(name: str) -> dict[str, np.ndarray | int]:
    """A kernel's inputs and empty outputs."""
    generator = np.random.default_rng(12)
    if name == "floats":
        given = float_inputs()
        n = len(given["a"])
        return {"out": np.zeros(n * RESULTS, np.float32), **given, "n": n}
    if name == "halves":
        a, h = narrowing_inputs(), np.arange(65536, dtype=np.uint16)
        out, narrow = np.zeros(4 * 65536, np.float32), np.zeros(2 * len(a), np.uint16)
        return {"out": out, "narrow": narrow, "h": h, "a": a, "n": 65536, "m": len(a)}
    if name == "integers":
        n = 2048
        a, b = generator.integers(-(2**30), 2**30, (2, n), dtype=np.int32)
        f = np.rint(generator.uniform(-(2.0**31) + 128, 2.0**31 - 128, n)).astype(np.float32)
        e = np.resize(np.arange(-126, 128, dtype=np.int32), n)
        out, real = np.zeros(n * RESULTS, np.int32), np.zeros(2 * n, np.float32)
        return {"out": out, "real": real, "a": a, "b": b, "f": f, "e": e, "n": n}
    n = 4096
    u = generator.integers(0, 256, n, dtype=np.uint8)
    s = generator.integers(-127, 128, n, dtype=np.int8)
    u[:128], s[:64], s[64:128], u[128:192], s[128:160], s[160:192] = 255, 127, -127, 0, 127, -127
    totals = 8 * s.reshape(-1, 32)[:, :4].sum(1, dtype=np.int32)
    out, sums, signed = np.zeros(n * RESULTS, np.uint8), np.zeros(n, np.int32), np.zeros(n // 4, np.int8)
    return {
        "out": out,
        "sums": sums,
        "signed6": np.zeros(n // 4, np.int32),
        "signed8": np.zeros(n // 4, np.int32),
        "signed": signed,
        "u": u,
        "s": s,
        "totals": totals,
        "n": n,
    }


OUTPUTS = {
    "floats": ["out"],
    "halves": ["out", "narrow"],
    "integers": ["out", "real"],
    "octets": ["out", "sums", "signed6", "signed8", "signed"],
}


def canonical(array: np.ndarray) -> np.ndarray:
    """The bits, with every NaN the same: which NaN comes out is not defined."""
    if array.dtype == np.float32:
        return np.where(np.isnan(array), np.uint32(0x7FC00000), array.view(np.uint32))
    return array


def compiled(name: str) -> dict[str, np.ndarray]:
    """What compiled code makes of a kernel's inputs."""
    given = operands(name)
    call(KERNELS[name], **given)
    return {f"{name}.{key}": canonical(given[key]) for key in OUTPUTS[name]}


@pytest.mark.parametrize("name", KERNELS)
@np.errstate(all="ignore")
def test_compiled_equals_twin(name: str) -> None:
    given = operands(name)
    KERNELS[name](0, 1, np.zeros(8, np.int64), **given)
    for key, got in compiled(name).items():
        twin = canonical(given[key.split(".")[1]])
        np.testing.assert_array_equal(got, twin, err_msg=key)


def test_every_operation_is_tested() -> None:
    used = set().union(*(body.body.__code__.co_names for body in KERNELS.values()))
    here = {name for name, f in operations.items() if inspect.getmodule(f) in (simd, dot)}
    assert here - used == set()
    assert {inspect.getmodule(f) for f in operations.values()} <= {simd, dot, machine, wide}  # `tests/test_wide.py`


def test_fma_rounds_once() -> None:
    """Against whole numbers: Python's fractions, for cases where a double rounding goes wrong."""
    generator = np.random.default_rng(5)
    a, b = generator.standard_normal((2, 400)).astype(np.float32)
    c = (generator.standard_normal(400) * np.exp2(generator.integers(-30, 30, 400))).astype(np.float32)
    a[:4], b[:4] = [1 + 2.0**-12, 1 + 2.0**-23, 1.0, 3.0], [1 + 2.0**-12, 1 + 2.0**-23, 2.0**-25, 2.0**-26]
    c[:4] = [2.0**-60, 2.0**-70, 1.0, 1 + 2.0**-23]
    got = fma(a, b, c)
    for x, y, z, r in zip(a, b, c, got):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        around = [np.nextafter(r, np.float32(-np.inf)), r, np.nextafter(r, np.float32(np.inf))]
        errors = [abs(Fraction(float(v)) - exact) for v in around]
        assert errors[1] == min(errors)


@pytest.mark.parametrize(("code", "calls"), [(15, 8), (31, 4), (63, 2)])
@pytest.mark.parametrize("activation", [127, -127])
def test_sums_in_int16_reach_their_bound_and_no_further(code: int, calls: int, activation: int) -> None:
    w, a = np.full(32, code, np.uint8), np.full(32, activation, np.int8)
    sums = zero_pair_sums()
    for _ in range(calls):
        sums = dot_u4(sums, w, a)
    assert np.abs(sums).max() == calls * 2 * code * 127
    with pytest.raises(AssertionError, match="int16 overflow"):
        dot_u4(dot_u4(sums, w, a), w, a)


def test_what_is_out_of_range_is_caught() -> None:
    a = np.full(32, 127, np.int8)
    with pytest.raises(AssertionError):
        dot_u4(zero_pair_sums(), np.full(32, 64, np.uint8), a)
    for product in (dot_u4, dot_u8):
        with pytest.raises(AssertionError):
            product(
                np.zeros(16 if product is dot_u4 else 8, np.int32), np.zeros(32, np.uint8), np.full(32, -128, np.int8)
            )
    large = np.full(8, 2**31 - 1, np.int32)
    for overflow in (
        lambda: add_i32(large, splat_i32(1)),
        lambda: mul_i32(large, splat_i32(2)),
        lambda: sum_i32(large),
    ):
        with pytest.raises(AssertionError, match="int32 overflow"):
            overflow()
    assert (add_i32(large, splat_i32(0)) == large).all()
    for beyond in (lambda: load_f32x8(np.zeros(15, np.float32), 8), lambda: load_u8x32(np.zeros(64, np.uint8), -1)):
        with pytest.raises(AssertionError, match="elements"):
            beyond()
