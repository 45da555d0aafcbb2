"""Rope: the tables against exact angles, the kernels against their references, both styles, both caches."""

from decimal import Context, Decimal, localcontext

import numpy as np
import pytest
from kernel_runs import assert_same_bits, rows_block, run_both

from kernels.registry import Kernel
from kernels.rope import rope_exact, rope_pairs, rope_store_f16, rope_store_f32, rope_truth, store_exact
from kernels.rope_table import rope_tables

PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899")


def exact_cos(angle: Decimal) -> float:
    """cos by the Taylor series, after whole turns are taken away."""
    r = angle.remainder_near(2 * PI)
    term = total = Decimal(1)
    for n in range(1, 40):
        term = -term * r * r / ((2 * n - 1) * 2 * n)
        total += term
    return float(total)


def test_tables_are_exact_rounded_once_at_far_positions_too() -> None:
    base, dims, divisors = 500000.0, 6, np.array([1.0, 0.3, 8.0], np.float32)
    context = 1 << 14
    cos, sin = rope_tables(context, dims, base, divisors, 1.5)
    with localcontext(Context(prec=60)):
        for p in [0, 1, 7, 512, 513, 4095, 16383]:
            for i in range(3):
                frequency = Decimal(base) ** (Decimal(-2 * i) / Decimal(dims))
                angle = p * frequency / (Decimal(float(divisors[i])) * Decimal("1.5"))
                assert cos[p, i] == np.float32(exact_cos(angle))
                assert sin[p, i] == np.float32(exact_cos(angle - PI / 2))


def test_tables_of_a_part_are_the_same() -> None:
    whole, part = rope_tables(700, 10, 10000.0), rope_tables(3, 10, 10000.0)
    for a, b in zip(whole, part, strict=True):
        assert_same_bits(a[:3], b)
    assert (part[0][0] == 1).all() and (part[1][0] == 0).all()


@pytest.mark.parametrize("bad", [0.0, -1.0, np.inf, np.nan])
def test_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="positive, finite"):
        rope_tables(4, 4, 10000.0, np.array([1.0, bad], np.float32))
    with pytest.raises(ValueError, match="1 rope divisors, expected 2"):
        rope_tables(4, 4, 10000.0, np.ones(1, np.float32))
    with pytest.raises(ValueError, match="context"):
        rope_tables((1 << 24) + 1, 4, 10000.0)


CASES = [  # kernel, style, rows, H, G, D, rope_dims
    (rope_store_f16, "interleaved", 1, 3, 1, 6, 6),
    (rope_store_f16, "halves", 5, 4, 2, 48, 32),
    (rope_store_f16, "halves", 11, 1, 1, 16, 16),
    (rope_store_f32, "interleaved", 5, 4, 2, 48, 32),
    (rope_store_f32, "halves", 1, 6, 3, 10, 4),
]


@pytest.mark.parametrize(("kernel", "style", "T", "H", "G", "D", "dims"), CASES)
def test_kernels(kernel: Kernel, style: str, T: int, H: int, G: int, D: int, dims: int) -> None:
    rng = np.random.default_rng(T)
    context, base = 40, 10000.0
    half = kernel is rope_store_f16
    cos, sin = rope_tables(context, dims, base)
    q_stride, kv_stride = H * D + 5, G * D + 3
    q = rng.normal(0, 2, (T, q_stride)).astype(np.float32)
    k, v = (rng.normal(0, 2, (T, kv_stride)).astype(np.float32) for _ in range(2))
    v[0, 0] = 1e6  # too large for a half float
    positions = [9 + t if t < 3 else t - 3 for t in range(T)]
    slot_blocks = 5
    places = [1, 0]
    row_slots = [0 if t < 3 else 1 for t in range(T)]
    cache = rng.normal(0, 1, (2, G, slot_blocks, D, 8)).astype(np.float16 if half else np.float32)
    flat = cache.view(np.uint16).ravel() if half else cache.ravel()
    pairs, spacing, distance = rope_pairs(style, dims)
    found = run_both(
        kernel,
        rows_block(T, positions, row_slots),
        ("q", "k", "keys", "values"),
        q=q.ravel(),
        k=k.ravel(),
        v=v.ravel(),
        keys=flat,
        values=flat,
        cos=cos.ravel(),
        sin=sin.ravel(),
        slots=np.array(places, np.int64) * slot_blocks,
        slot_blocks=slot_blocks,
        heads=H,
        kv_heads=G,
        head_size=D,
        pairs=pairs,
        spacing=spacing,
        distance=distance,
        q_stride=q_stride,
        kv_stride=kv_stride,
    )
    expected_q, expected_k = q.copy(), k.copy()
    for x, heads in ((expected_q, H), (expected_k, G)):
        turned = rope_exact(x[:, : heads * D].reshape(T, heads, D), cos[positions], sin[positions], style)
        x[:, : heads * D] = turned.reshape(T, -1)
    stored = [places[s] for s in row_slots]
    keys, values = cache.copy(), cache.copy()
    with np.errstate(over="ignore"):
        store_exact(keys, expected_k[:, : G * D].reshape(T, G, D), positions, stored)
        store_exact(values, v[:, : G * D].reshape(T, G, D), positions, stored)
    for result, expected in zip(found, (expected_q, expected_k, keys, values), strict=True):
        assert_same_bits(result, expected.view(np.uint16).ravel() if expected.dtype == np.float16 else expected.ravel())


@pytest.mark.parametrize("style", ["interleaved", "halves"])
def test_near_the_truth(style: str) -> None:
    T, H, D, dims, base = 50, 2, 24, 20, 10000.0
    x = np.random.default_rng(4).normal(0, 1, (T, H, D)).astype(np.float32)
    cos, sin = rope_tables(T, dims, base)
    truth = rope_truth(x, np.arange(T), base, dims, style)
    # both factors, both products and the sum are rounded: at most 3 half units of |a| + |b| each, which is at most 2 max|x|
    bound = 3 * 2.0**-24 * 2 * np.abs(x).max()
    assert np.abs(rope_exact(x, cos, sin, style) - truth).max() <= bound
