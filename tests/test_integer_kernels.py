"""The kernels of the integer-only forward pass: machine code, plain Python and reference give the same integers.

Sizes differ from each other; plain Python runs with integer overflow as an error. Against float64 the rounding of the last
step, and what the docstrings say of the ones before it, is all that may differ.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from kernel_runs import rows_block, run_both

from kernels import integer_exp, integer_norm
from kernels.compiler import call
from kernels.integer_attention import integer_attention, integer_attention_exact, integer_attention_truth
from kernels.integer_gate import integer_silu_gate, integer_silu_gate_exact, integer_silu_gate_truth
from kernels.integer_logits import (
    integer_log_probabilities,
    integer_log_probability_exact,
    integer_log_probability_truth,
    integer_logits,
    integer_logits_exact,
    octave_ratio,
)
from kernels.integer_matmul import integer_matmul, integer_matmul_exact, pack_integer
from kernels.integer_norm import integer_rms_norm, integer_rms_norm_exact, integer_rms_norm_truth
from kernels.integer_rescale import multipliers_and_shifts
from kernels.integer_residual import integer_add, integer_add_exact, integer_embed, integer_embed_exact
from kernels.integer_rope import integer_rope_exact, integer_rope_store, integer_tables, q_limit
from kernels.registry import Kernel
from kernels.requantize import multiplier_and_shift
from kernels.rope import rope_pairs, rope_truth
from kernels.rope_table import rope_tables
from kernels.run import LOGIT_ROWS, ROWS

INT32 = 2**31 - 1


@dataclass
class Case:
    """A run of a kernel: `expected` are the integers that the operands `changes` must hold afterwards, flat."""

    kernel: Kernel
    run: np.ndarray
    values: dict[str, Any]
    expected: dict[str, np.ndarray]


def fixed(ratios: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return multipliers_and_shifts(ratios)


def widened(x: np.ndarray, width: int) -> np.ndarray:
    """Zeros behind each row, up to `width`."""
    out = np.zeros((*x.shape[:-1], width), x.dtype)
    out[..., : x.shape[-1]] = x
    return out


# ---- cases: each function makes one from a seed ----


def matmul(T: int, N: int, K: int) -> Case:
    rng = np.random.default_rng(T + N + K)
    x, codes = rng.integers(-127, 128, (T, K)).astype(np.int8), rng.integers(-127, 128, (N, K)).astype(np.int8)
    x[0], codes[0] = 127, -127
    bias = rng.integers(-(10**6), 10**6, N)
    packed, corrected = pack_integer(codes, bias)
    wide, stride = -(-K // 32) * 32, -(-N // 8) * 8 + 8
    out = np.full((T, stride), 77, np.int32)
    given = np.full((T, wide), -3, np.int8)
    given[:, :K] = x
    expected = out.copy()
    expected[:, : stride - 8] = 0
    expected[:, :N] = integer_matmul_exact(x, codes, bias)
    values = {"out": out.ravel(), "x": given.ravel(), "codes": packed, "bias": corrected, "groups": stride // 8 - 1}
    values |= {"blocks": wide // 32, "stride": stride, "count": ROWS}
    return Case(integer_matmul, rows_block(T), values, {"out": expected})


def norm_rows(T: int, n: int) -> np.ndarray:
    rng = np.random.default_rng(T * n)
    x = rng.standard_normal((T, n)) * np.logspace(0.5, 9, T)[:, None]
    x[0], x[1, 1:], x[2] = 0, 0, rng.choice([-(2**30), 2**30], n)
    return np.clip(x, -(2**30), 2**30).astype(np.int32)


def rms_norm(T: int, n: int, count: int = ROWS) -> Case:
    rng = np.random.default_rng(n)
    x, width = norm_rows(T, n), -(-n // 32) * 32
    ratios = rng.standard_normal(n) * np.sqrt(n) * 30 * 2.0**-integer_norm.UNIT_BITS
    multipliers, shifts = fixed(widened(ratios, width))
    picked = [T - 1, 0] if count == LOGIT_ROWS else list(range(T))
    codes = integer_rms_norm_exact(x[picked], multipliers[:n], shifts[:n], 12345)
    values = {"out": np.zeros(len(picked) * width, np.int8), "x": widened(x, width).ravel(), "multipliers": multipliers}
    values |= {"shifts": shifts, "n": n, "blocks": width // 32, "eps": 12345, "count": count}
    return Case(integer_rms_norm, rows_block(T, logit_rows=picked), values, {"out": widened(codes, width)})


def rope_store(style: str, H: int, G: int, D: int, dims: int) -> Case:
    rng = np.random.default_rng(H + D)
    positions, slots, blocks = [0, 21, 5, 22], [1, 0, 1, 0], 3
    T, stride, kv_stride = len(positions), H * D + 3, G * D + 5
    sums = [(rng.integers(-INT32, INT32, (T, n, D)) >> rng.integers(0, 20)).astype(np.int32) for n in (H, G, G)]
    q, k, v = sums
    unit = 2.0**8 / (2.0**31 / 127)
    ratios = [np.full((H, D), unit * 100), rng.uniform(0.5, 2, (G, D)) * unit * 2**12, rng.uniform(0, 2, (G, D)) * 1e-7]
    fixed_ratios = [fixed(r) for r in ratios]
    cos, sin = integer_tables(*rope_tables(24, dims, 1000.0))
    pairs, spacing, distance = rope_pairs(style, dims)
    keys, values = (np.full((2, G, blocks, D, 8), 99, np.int8) for _ in range(2))
    at = cos[positions], sin[positions]
    turned_q = integer_rope_exact(q, *fixed_ratios[0], *at, style, q_limit(D))
    turned_k = integer_rope_exact(k, *fixed_ratios[1], *at, style, 127)
    expected = {"keys": keys.copy(), "values": values.copy(), "q": widened(turned_q.reshape(T, -1), stride)}
    expected["k"] = widened(turned_k.reshape(T, -1), kv_stride)
    (m, s), wide = fixed_ratios[2], v.astype(np.int64)
    codes = np.clip((wide * m + (1 << (s.astype(np.int64) - 1))) >> s, -127, 127)
    for t, (p, slot) in enumerate(zip(positions, slots)):
        expected["keys"][slot, :, p // 8, :, p % 8] = turned_k[t]
        expected["values"][slot, :, p // 8, :, p % 8] = codes[t]
    given: dict[str, Any] = {"q": widened(q.reshape(T, -1), stride).ravel()}
    given |= {name: widened(x.reshape(T, -1), kv_stride).ravel() for name, x in (("k", k), ("v", v))}
    given["multipliers"], given["shifts"] = (np.concatenate([f[i].ravel() for f in fixed_ratios]) for i in (0, 1))
    given |= {"keys": keys.ravel(), "values": values.ravel(), "cos": cos.ravel(), "sin": sin.ravel()}
    given |= {"slots": np.array([0, blocks]), "slot_blocks": blocks, "heads": H, "kv_heads": G, "head_size": D}
    given |= {"pairs": pairs, "spacing": spacing, "distance": distance, "q_stride": stride, "kv_stride": kv_stride}
    return Case(integer_rope_store, rows_block(T, positions, slots), given | {"q_limit": q_limit(D)}, expected)


def attention_arrays(T: int, H: int, G: int, D: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(T + H)
    limit = q_limit(D)
    q = rng.integers(-limit, limit + 1, (T, H, D))
    k, v = (rng.integers(-127, 128, (T, G, D)) for _ in range(2))
    q[T - 1], k[0], k[T // 2], v[0] = limit, -127, 127, 127
    ratios = 10.0 ** rng.uniform(-8, -5.5, H), rng.uniform(-2, 2, (H, D))
    return q, k, v, *ratios


def attention(T: int, H: int, G: int, D: int) -> Case:
    q, k, v, of_head, of_channel = attention_arrays(T, H, G, D)
    blocks = -(-T // 8) + 1
    caches = []
    for x in (k, v):
        cache = np.full((2, G, blocks, D, 8), -127, np.int8)  # what is not written must not matter
        for p in range(T):
            cache[1, :, p // 8, :, p % 8] = x[p]
        caches.append(cache.ravel())
    heads, channels = fixed(of_head * 2.0**24), fixed(of_channel * 2.0**-16)
    expected = integer_attention_exact(q, k, v, heads, channels)
    stride, q_stride, score_stride = H * D + 3, H * D + 1, 8 * blocks
    values = {"out": np.zeros(T * stride, np.int8), "q": widened(q.reshape(T, -1).astype(np.int32), q_stride).ravel()}
    values |= {"keys": caches[0], "values": caches[1], "scores": np.zeros(5 * score_stride, np.int32)}
    values |= {"head_multipliers": heads[0], "head_shifts": heads[1]}
    values |= {"multipliers": channels[0].ravel(), "shifts": channels[1].ravel(), "slots": np.array([0, blocks])}
    values |= {"slot_blocks": blocks, "heads": H, "kv_heads": G, "head_size": D}
    values |= {"q_stride": q_stride, "stride": stride, "score_stride": score_stride}
    run = rows_block(T, list(range(T)), [1] * T)
    return Case(integer_attention, run, values, {"out": widened(expected.reshape(T, -1), stride)})


def gate_arrays(T: int, K: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(K)
    gate, up = ((rng.integers(-INT32, INT32, (T, K)) >> rng.integers(0, 24, (T, K))).astype(np.int32) for _ in range(2))
    gate[0, :3], up[0, :3] = (-INT32 - 1, INT32, 0), (INT32, -INT32 - 1, 1)
    ratios = rng.uniform(1e-9, 1e-7, K), rng.uniform(1e-9, 1e-8, K), rng.uniform(-1, 1, K) * 40
    return gate, up, *ratios


def silu_gate(T: int, K: int) -> Case:
    gate, up, of_gate, of_up, of_product = gate_arrays(T, K)
    width = -(-K // 32) * 32
    shifts = np.full(width, 14, np.int32)
    shifts[1:3] = 1, 40
    all_fixed = [fixed(widened(r, width)) for r in (of_gate * 2.0**20, of_up * 2.0**20, of_product * 2.0**-26)]
    wide = [widened(x, width) for x in (gate, up)]
    expected = integer_silu_gate_exact(*wide, *all_fixed[:2], shifts, all_fixed[2])
    values = {"out": np.zeros(T * width, np.int8), "gate": wide[0].ravel(), "up": wide[1].ravel()}
    for prefix, (m, s) in zip(("gate_", "up_", ""), all_fixed):
        values |= {f"{prefix}multipliers": m, f"{prefix}shifts": s}
    values |= {"product_shifts": shifts, "blocks": width // 32}
    return Case(integer_silu_gate, rows_block(T), values, {"out": expected})


def embed() -> Case:
    rng = np.random.default_rng(1)
    codes, tokens = widened(rng.integers(-127, 128, (7, 41)).astype(np.int8), 64), [6, 0, 3, 3, 1]
    m, s = fixed(np.array([1e6, 3.7, 2.0**29, 0.0, 1e-9, 12345.6, 2.0**23]))
    values = {"out": np.zeros(5 * 64, np.int32), "codes": codes.ravel(), "multipliers": m, "shifts": s, "blocks": 2}
    expected = integer_embed_exact(codes, m, s, np.array(tokens))
    return Case(integer_embed, rows_block(5, tokens=tokens), values, {"out": expected})


def add() -> Case:
    rng = np.random.default_rng(2)
    x = rng.integers(-(2**30), 2**30, (5, 96)).astype(np.int32)
    sums = rng.integers(-(2**31), 2**31, (5, 96)).astype(np.int32)
    m, s = fixed(rng.uniform(-1, 1, 96) * 10.0 ** rng.integers(-8, 1, 96))
    values = {"x": x.ravel(), "sums": sums.ravel(), "multipliers": m, "shifts": s, "blocks": 3}
    return Case(integer_add, rows_block(5), values, {"x": integer_add_exact(x, sums, m, s)})


def logits() -> Case:
    rng = np.random.default_rng(3)
    sums = rng.integers(-(2**31), 2**31, (3, 96)).astype(np.int32)
    m, s = fixed(rng.uniform(0, 1, 96))
    expected = sums.astype(np.int64)
    expected[:2, :83] = integer_logits_exact(sums[:2, :83], m[:83], s[:83])
    values = {"logits": sums.ravel(), "multipliers": m, "shifts": s, "vocab": 83, "stride": 96}
    return Case(integer_logits, rows_block(3, logit_rows=[0, 2]), values, {"logits": expected})


def probability_rows() -> np.ndarray:
    rows = np.random.default_rng(4).standard_normal((4, 3000)) * np.array([[1.0], [8.0], [400.0], [0.0]]) * 2**20
    rows[2, 7] = 2**30
    return np.clip(rows, -(2**30), 2**30).astype(np.int32)


def log_probabilities(bits: int) -> Case:
    x, ids = probability_rows(), np.array([5, 2999, 7, 0])
    m, s = (int(y[0]) for y in fixed(np.array([octave_ratio(bits)])))
    expected = np.array([integer_log_probability_exact(row, id_, m, s, bits) for row, id_ in zip(x, ids)])
    values = {"out": np.zeros(4, np.int64), "logits": x.ravel(), "ids": ids, "vocab": 3000, "stride": 3000}
    values |= {"multiplier": m, "shift": s, "bits": bits}
    return Case(integer_log_probabilities, rows_block(4, logit_rows=[0, 1, 2, 3]), values, {"out": expected})


CASES: dict[str, Callable[[], Case]] = {
    "matmul, 1 row": lambda: matmul(1, 11, 33),
    "matmul, 7 rows": lambda: matmul(7, 24, 96),
    "norm": lambda: rms_norm(6, 67),
    "norm, 1 channel": lambda: rms_norm(4, 1),
    "norm of logit rows": lambda: rms_norm(5, 64, LOGIT_ROWS),
    "rope, interleaved": lambda: rope_store("interleaved", 4, 2, 10, 10),
    "rope, halves, not all turn": lambda: rope_store("halves", 3, 1, 7, 4),
    "attention": lambda: attention(19, 4, 2, 6),
    "attention, odd": lambda: attention(9, 3, 1, 5),
    "gate": lambda: silu_gate(3, 45),
    "embed": embed,
    "add": add,
    "logits": logits,
    "log-probabilities": lambda: log_probabilities(20),
    "log-probabilities, fewer bits": lambda: log_probabilities(15),
    "log-probabilities, more bits": lambda: log_probabilities(25),
}


def results() -> dict[str, np.ndarray]:
    """What compiled code gives: compared between processors."""
    found = {}
    for name, make in CASES.items():
        case = make()
        call(case.kernel, case.run, **case.values)
        found |= {f"integer {name}, {operand}": case.values[operand] for operand in case.expected}
    return found


@pytest.mark.parametrize("name", CASES)
def test_machine_code_python_and_reference_agree(name: str) -> None:
    case = CASES[name]()
    changes = tuple(case.expected)
    found = run_both(case.kernel, case.run, changes, **case.values)
    for operand, values in zip(changes, found):
        np.testing.assert_array_equal(values, case.expected[operand].ravel(), operand)


@pytest.mark.parametrize("name", CASES)
def test_nothing_overflows(name: str) -> None:
    case = CASES[name]()
    with np.errstate(over="raise"):
        case.kernel(0, 1, case.run, **case.values)


# ---- against float64 ----


def test_multipliers_are_those_of_requantisation() -> None:
    ratios = np.array([0.75, 1 / 3, 2.0**-31, 5e-10, 123.456, 2.0**30 - 1, 2.0**-33, 0.0, 1 - 2.0**-40])
    multipliers, shifts = multipliers_and_shifts(ratios)
    assert [(int(m), int(s)) for m, s in zip(multipliers, shifts)] == [multiplier_and_shift(r) for r in ratios]
    opposite, same = multipliers_and_shifts(-ratios)
    assert (opposite == -multipliers).all() and (same == shifts).all()
    for wrong in (2.0**30, -(2.0**30), np.nan, np.inf):
        with pytest.raises(ValueError, match="ratio of scales"):
            multipliers_and_shifts(np.array([wrong]))


def test_exponential_and_logarithm() -> None:
    t = np.concatenate([np.arange(0, 2**25, 997), np.random.default_rng(5).integers(0, 2**40, 999)])
    found = integer_exp.exp2_negative_exact(t)
    error = found / 2.0**30 - integer_exp.exp2_negative_truth(t)
    assert (np.abs(error) <= 9e-8 * integer_exp.exp2_negative_truth(t) + 6 * 2.0**-30).all()
    assert [integer_exp.exp2_negative(int(v)) for v in t[::37]] == found[::37].tolist()
    for n in (1, 2, 3, 10, 2**30 - 1, 2**30, 2**30 + 1, 3 * 2**40 + 7, 2**62):
        assert abs(integer_exp.natural_log(n) / 2**30 - np.log(float(n))) < 64 * 2.0**-30


def test_square_root_is_exact() -> None:
    for n in (0, 1, 2, 3, 4, 8, 9, 2**60, 2**62 - 1, (2**31 - 1) ** 2, (2**31 - 1) ** 2 - 1, 10**17):
        root = integer_norm.integer_sqrt(n)
        assert root * root <= n < (root + 1) ** 2


def test_norm_is_within_its_rounding() -> None:
    x = norm_rows(6, 67)
    ratios = np.random.default_rng(6).uniform(0.1, 30, 67) * 2.0**-integer_norm.UNIT_BITS * np.sqrt(67)
    found = integer_rms_norm_exact(x, *multipliers_and_shifts(ratios), 12345)
    assert (np.abs(found - integer_rms_norm_truth(x, ratios, 12345)) <= 0.5 + 128 * 2.0**-19).all()


def test_rope_is_within_its_rounding() -> None:
    rng = np.random.default_rng(7)
    positions, D = np.array([0, 3, 17]), 8
    x = rng.integers(-(2**20), 2**20, (3, 2, D)).astype(np.int32)
    ratio = 100 / 2.0**20
    cos, sin = integer_tables(*rope_tables(18, D, 1000.0))
    for style in ("interleaved", "halves"):
        fixed_ratio = multipliers_and_shifts(np.full((2, D), ratio * 2.0**8))
        found = integer_rope_exact(x, *fixed_ratio, cos[positions], sin[positions], style, 127)
        truth = np.clip(rope_truth(x * ratio, positions, 1000.0, D, style), -127, 127)
        assert (np.abs(found - truth) <= 0.5 + 2.0**-8).all()


def test_attention_is_within_its_rounding() -> None:
    q, k, v, of_head, of_channel = attention_arrays(19, 4, 2, 6)
    fixed_ratios = multipliers_and_shifts(of_head * 2.0**24), multipliers_and_shifts(of_channel * 2.0**-16)
    found = integer_attention_exact(q, k, v, *fixed_ratios)
    truth = integer_attention_truth(q, k, v, of_head, of_channel)
    # each weight is off by 2^-16 at most, and they sum to 1 at least; v * ratio is at most 254
    assert (np.abs(found - truth) <= 0.5 + 2 * 254 * 19 * 2.0**-16).all()


def test_gate_is_within_its_rounding() -> None:
    gate, up, of_gate, of_up, of_product = gate_arrays(3, 45)
    up = np.clip(up, -(2**30), 2**30)
    fixed_ratios = [multipliers_and_shifts(r) for r in (of_gate * 2.0**20, of_up * 2.0**20, of_product * 2.0**-26)]
    found = integer_silu_gate_exact(gate, up, *fixed_ratios[:2], np.full(45, 14, np.int32), fixed_ratios[2])
    truth = integer_silu_gate_truth(gate, up, of_gate, of_up, of_product)
    assert np.abs(truth).max() == 127 and (np.abs(found - truth) <= 0.5 + 0.02).all()


def test_log_probability_is_close_to_the_truth() -> None:
    m, s = (int(y[0]) for y in multipliers_and_shifts(np.array([octave_ratio(20)])))
    for row, id_ in zip(probability_rows(), (5, 2999, 7, 0)):
        found = integer_log_probability_exact(row, id_, m, s, 20) / 2.0**24
        assert abs(found - integer_log_probability_truth(row, id_, 20)) < 1e-5


def test_sums_that_may_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="int32"):
        pack_integer(np.full((1, 66400), 127, np.int8), np.zeros(1, np.int64))
