"""Choosing a token in integers: three steps against a reference that sorts everything, for any number of workers."""

from typing import Any

import numpy as np
import pytest
from kernel_runs import rows_block

from kernels.compiler import call
from kernels.integer_logits import LOG_BITS, integer_log_probability_truth, octave_ratio
from kernels.integer_rescale import multipliers_and_shifts
from kernels.integer_sample import (
    BANNED,
    CHOSEN,
    LOG_PROBABILITY,
    RANDOM,
    RECENT,
    integer_adjust,
    integer_choose,
    integer_sample_exact,
    integer_weigh,
    sampling_integers,
    set_integer_options,
)

BITS = 17
KERNELS = (integer_adjust, integer_weigh, integer_choose)
OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "plain": {"temperature": 1.0},
    "cold": {"temperature": 0.01},
    "coldest": {"temperature": 1e-30},
    "hot": {"temperature": 50.0},
    "top k": {"temperature": 0.8, "top_k": 7},
    "top 1": {"temperature": 2.0, "top_k": 1},
    "top p": {"temperature": 1.3, "top_p": 0.7},
    "top p of nothing": {"temperature": 1.3, "top_p": 0.0},
    "min p": {"temperature": 1.0, "min_p": 0.1},
    "all": {"temperature": 0.9, "top_k": 40, "top_p": 0.9, "min_p": 0.02, "penalty": 1.3},
    "repeated": {"temperature": 0.0, "penalty": 1e6},
    "wanted again": {"temperature": 0.7, "penalty": 0.01},
}
RECENT_IDS = [3, 5, 3, 2049, 11]


def logits(vocab: int, seed: int) -> np.ndarray:
    """Steps of 2^-17; odd seeds have many equal logits."""
    x = np.random.default_rng(seed).standard_normal(vocab) * 3
    return np.clip(np.rint(np.rint(x * 2) / 2 * 2**BITS if seed % 2 else x * 2**BITS), -(2**24), 2**24).astype(np.int32)


def arrays(vocab: int, random: int, **options: Any) -> dict[str, np.ndarray]:
    made = sampling_integers(vocab, 64, 2)
    recent = [id_ for id_ in RECENT_IDS if id_ < vocab]
    made["recent"][: len(recent)] = recent
    made["options"][RECENT] = len(recent) if "penalty" in options else 0
    made["banned"][:] = 0, vocab - 1
    made["options"][BANNED] = 2 if vocab > 2 else 0
    made["options"][RANDOM] = random
    whole = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "penalty": 1.0} | options
    set_integer_options(made["options"], octave_ratio(BITS), **whole)
    return made


def run(x: np.ndarray, given: dict[str, np.ndarray], size: int = 0) -> tuple[int, float]:
    """The chosen id and its log-probability, by `size` workers; 0: plain Python."""
    m, s = (int(y[0]) for y in multipliers_and_shifts(np.array([octave_ratio(BITS)])))
    known = given | {"logits": x, "vocab": len(x), "bits": BITS, "multiplier": m, "shift": s}
    for kernel in KERNELS:
        values = {name: known[name] for name in kernel.operands}
        for rank in reversed(range(max(size, 1))):
            if size:
                call(kernel, rows_block(1), rank, size, **values)
            else:
                with np.errstate(over="raise"):
                    kernel(rank, 1, rows_block(1), **values)
    return int(given["options"][CHOSEN]), given["options"][LOG_PROBABILITY] * 2.0**-LOG_BITS


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("vocab", [1, 2, 41, 5003])
def test_same_choice_as_the_reference(name: str, vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    for seed in range(6):
        x, random = logits(vocab, seed), int(rng.integers(0, 2**60))
        expected = integer_sample_exact(x, arrays(vocab, random, **OPTIONS[name]))
        for size in (1, 3) if vocab > 41 else (0, 1, 3):
            chosen, logp = run(x, arrays(vocab, random, **OPTIONS[name]), size)
            assert chosen == expected
            assert abs(logp - integer_log_probability_truth(x, chosen, BITS)) < 2e-5


def test_greedy_takes_the_lowest_of_equals() -> None:
    x = np.zeros(5003, np.int32)
    x[[4000, 77, 3000]] = 9
    assert run(x, arrays(5003, 0, temperature=0.0), 2)[0] == 77


def test_tokens_come_as_often_as_they_should() -> None:
    """64 random numbers spread evenly: each token as often as its probability says, to within one."""
    x = np.rint(np.log([0.5, 0.25, 0.125, 0.125]) * 2**BITS).astype(np.int32)
    found = []
    for n in range(64):
        given = arrays(4, n << 54, temperature=1.0)
        given["options"][BANNED] = 0
        found.append(run(x, given, 1)[0])
    counts = np.bincount(found, minlength=4)
    assert (np.abs(counts - [32, 16, 8, 8]) <= 1).all()
