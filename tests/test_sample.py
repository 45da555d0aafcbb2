"""Sampling: against a reference that sorts, at the bounds of every filter, and with values that are not numbers."""

from typing import Any

import numpy as np
import pytest
from kernel_runs import assert_same_bits, rows_block, run_both

from kernels.log_probability import PART, log_probabilities, log_probability_exact, log_probability_truth
from kernels.random_bits import BITS, random_bits
from kernels.sample import (
    BANNED,
    CHOSEN,
    FLOATS,
    LARGEST_X,
    LARGEST_Y,
    LOG_PROBABILITY,
    RANDOM,
    RECENT,
    sample_adjust,
    sample_choose,
    sample_exact,
    sample_weigh,
    sampling_arrays,
    set_options,
)

RUN = rows_block(1)
DEFAULTS = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "penalty": 1.0}
CASES: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.0, "penalty": 5.0, "recent": [0, 3, 9, 3], "banned": [7]},
    {},
    {"temperature": 0.3},
    {"top_k": 1},
    {"top_k": 5, "temperature": 2.0},
    {"top_k": 5, "top_p": 0.5},
    {"top_p": 0.9, "temperature": 0.8},
    {"top_p": 1e-9},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"top_k": 40, "top_p": 0.95, "min_p": 0.05, "temperature": 0.7},
    {"penalty": 1.7, "recent": [1, 2, 2, 4], "banned": [0, 5], "top_p": 0.99},
    {"top_k": 1 << 31, "top_p": 0.999999, "temperature": 50.0},
]


def row(vocab: int, seed: int, levels: float = 0.0) -> np.ndarray:
    """A row of logits, and larger numbers behind the vocabulary, which must not count; with `levels` many are equal."""
    x = np.full(-(-vocab // 32) * 32, 99, np.float32)
    x[:vocab] = np.random.default_rng(seed).normal(0, 3, vocab)
    if levels:
        x[:vocab] = np.round(x[:vocab] * levels) / levels
    return x


def sample(x: np.ndarray, vocab: int, random: int, compare: bool = True, **case: Any) -> tuple[int, np.float32]:
    """Run the three steps; with `compare` each in both forms, the next going on from what it left."""
    recent, banned = case.pop("recent", []), case.pop("banned", [])
    arrays = sampling_arrays(vocab, len(recent), len(banned))
    set_options(arrays, **(DEFAULTS | case))
    arrays["options"][[RANDOM, RECENT, BANNED]] = random, len(recent), len(banned)
    arrays["recent"][: len(recent)], arrays["banned"][: len(banned)] = recent, banned
    sizes = (1, 3) if compare else ()
    for kernel in (sample_adjust, sample_weigh, sample_choose):
        names = [name for name in kernel.operands if name in arrays]
        changes = tuple(name for name in names if name not in ("recent", "banned"))
        values = {name: arrays[name] for name in names}
        for name, left in zip(changes, run_both(kernel, RUN, changes, sizes, logits=x, vocab=vocab, **values)):
            arrays[name] = left
    return int(arrays["options"][CHOSEN]), arrays["factors"][LOG_PROBABILITY]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_as_by_sorting(case: dict[str, Any]) -> None:
    vocab = 200
    for seed, levels in ((1, 0.0), (2, 1.0)):
        x = row(vocab, seed, levels)
        for index in range(2):
            random = random_bits(seed, index)
            id_, log_probability = sample(x, vocab, random, compare=index == 0, **case)
            assert id_ == sample_exact(x[:vocab], random, **(DEFAULTS | case))
            assert_same_bits(log_probability, log_probability_exact(x[:vocab], id_))


@pytest.mark.parametrize("case", [{"temperature": 0.0}, {}, {"top_k": 3}, {"top_p": 0.7}], ids=str)
@pytest.mark.parametrize("vocab", [1, 129, PART + 5])
def test_sizes(vocab: int, case: dict[str, Any]) -> None:
    x = row(vocab, vocab)
    for random in (0, (1 << BITS) - 1):
        id_, _ = sample(x, vocab, random, **case)
        assert id_ == sample_exact(x[:vocab], random, **(DEFAULTS | case))


def test_adjusted_logits() -> None:
    vocab = PART + 9
    x = row(vocab, 4)
    x[[1500, PART + 3]], x[[0, 7]], x[3], x[5] = 40, np.nan, -2, 2
    recent, banned = np.array([3, PART + 3, 5, 3, 9], np.int64), np.array([1500, 2], np.int64)
    arrays = sampling_arrays(vocab, 5, 2)
    set_options(arrays, **(DEFAULTS | {"penalty": 3.0}))
    arrays["options"][[RECENT, BANNED]] = len(recent), len(banned)
    arrays |= {"recent": recent, "banned": banned, "logits": x, "vocab": vocab}
    values = {name: arrays[name] for name in sample_adjust.operands}
    weights, floats = run_both(sample_adjust, RUN, ("weights", "floats"), **values)
    expected = x[:vocab].copy()
    expected[[0, 7, *banned]] = -np.inf
    for i in set(recent.tolist()):
        expected[i] = expected[i] / np.float32(3) if expected[i] > 0 else expected[i] * np.float32(3)
    assert_same_bits(weights[:vocab], expected)
    found = floats.reshape(2, FLOATS)
    assert found[:, LARGEST_X].tolist() == [40, 40]
    assert found[:, LARGEST_Y].tolist() == [expected[:PART].max(), expected[PART:].max()]


def test_equal_logits_go_to_the_lowest_id() -> None:
    x = np.zeros(64, np.float32)
    assert sample(x, 50, 0, temperature=0.0)[0] == 0
    drawn = {sample(x, 50, int(u * 2**BITS), compare=False, top_k=3)[0] for u in np.linspace(0, 0.999, 20)}
    assert drawn == {0, 1, 2}
    drawn = {sample(x, 50, int(u * 2**BITS), compare=False, top_p=0.1)[0] for u in np.linspace(0, 0.999, 20)}
    assert drawn == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_values_that_are_not_numbers(temperature: float) -> None:
    x = row(40, 3)
    x[[0, 17]] = np.nan
    best = int(np.nanargmax(x[:40]))
    assert sample(x, 40, 0, temperature=temperature, top_k=1)[0] == best
    x[[9, 30]] = np.inf
    assert sample(x, 40, 5, temperature=temperature)[0] == 9
    assert sample(np.full(64, np.nan, np.float32), 40, 5, temperature=temperature)[0] == 0
    assert sample(np.full(64, -np.inf, np.float32), 40, 5, temperature=temperature)[0] == 0
    assert sample(row(40, 3), 40, 5, temperature=temperature, banned=list(range(40)))[0] == 0
    assert sample(row(40, 3), 40, 5, temperature=temperature, banned=[i for i in range(40) if i != 11])[0] == 11


def test_the_draw_follows_the_probabilities() -> None:
    vocab, count = 12, 2000
    x = row(vocab, 8)
    hits = np.zeros(vocab)
    for index in range(count):
        hits[sample_exact(x[:vocab], random_bits(3, index), 1.0)] += 1
    p = np.exp([log_probability_truth(x[:vocab], id_) for id_ in range(vocab)])
    assert (np.abs(hits / count - p) <= 5 * np.sqrt(p / count)).all()


def test_log_probabilities() -> None:
    vocab, stride = PART + 37, PART + 64
    x = np.stack([row(vocab, seed) for seed in (1, 2, 3)])
    assert x.shape[1] == stride
    x[2, 1] = np.nan  # counts as -infinity
    ids = np.array([5, PART + 36, 0], np.int64)
    scratch = np.zeros(5 * 2, np.float32)
    run = rows_block(3, logit_rows=[0, 1, 2])
    values = {"logits": x.ravel(), "ids": ids, "vocab": vocab, "stride": stride}
    (out,) = run_both(log_probabilities, run, ("out",), out=np.zeros(3, np.float32), totals=scratch, **values)
    x[2, 1] = -np.inf
    assert_same_bits(out, np.array([log_probability_exact(r[:vocab], i) for r, i in zip(x, ids)]))
    truth = [log_probability_truth(r[:vocab], i) for r, i in zip(x, ids)]
    # the sum: exp, 256 additions in a lane, 3 in the tree; the differences from the largest; the result
    bound = 2.0**-24 * (2 + 256 + 3 + 2 * np.abs(x[:2, :vocab]).max() + np.abs(truth))
    assert (np.abs(out - truth) <= bound).all()


def test_random_bits() -> None:
    assert [random_bits(0, index) for index in range(3)] == [random_bits(2**64, index) for index in range(3)]
    seen = {random_bits(seed, index) for seed in range(40) for index in range(40)}
    assert len(seen) == 1600 and max(seen) < 1 << BITS
    ones = np.array([[u >> bit & 1 for bit in range(BITS)] for u in seen]).mean(0)
    assert (np.abs(ones - 0.5) < 0.07).all()
