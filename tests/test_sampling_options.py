"""Options that make no sense are refused in one line; those that do come out as plain Python numbers."""

import math
from typing import Any

import numpy as np
import pytest

from engine.errors import EngineError, OptionError
from engine.sampling_options import GenerationOptions, SamplingOptions, generation_options

NAN, INF = math.nan, math.inf
BAD_SAMPLING = [
    ("temperature", [NAN, INF, -INF, -0.1, -1, "0.8", None, True, 1 + 0j, np.float32(NAN), 10**400]),
    ("top_k", [-1, 1.0, 2**31, "40", None, True, np.float64(40), 10**5000]),
    ("top_p", [2, 1.0001, 0, 0.0, -0.5, NAN, INF, "0.9", None, False]),
    ("min_p", [-0.01, 1.01, NAN, "0", None, True]),
    ("repetition_penalty", [0, -1.0, NAN, INF, "1.1", None, True]),
    ("seed", [-1, 2**64, 1.0, NAN, "1", None, True, np.bool_(True)]),
]
BAD_GENERATION = [
    ("max_tokens", [-1, 2**31, 1.5, NAN, "10", None, True]),
    ("stop", ["", [""], ["a", ""], [1], 5, None, b"a", ["a"] * 65, "a" * 1025]),
    ("ignore_eos", [1, 0, None, "yes"]),
]


def cases(table: list[tuple[str, list[Any]]]) -> list[Any]:
    return [pytest.param(name, value, id=f"{name}-{i}") for name, values in table for i, value in enumerate(values)]


def assert_refused(options: type, name: str, value: Any) -> None:
    with pytest.raises(OptionError) as caught:
        options(**{name: value})
    message = str(caught.value)
    assert message.startswith(f"option '{name}': ")
    assert "\n" not in message
    assert len(message) < 300


@pytest.mark.parametrize(("name", "value"), cases(BAD_SAMPLING))
def test_sampling_is_refused(name: str, value: Any) -> None:
    assert_refused(SamplingOptions, name, value)


@pytest.mark.parametrize(("name", "value"), cases(BAD_GENERATION))
def test_generation_is_refused(name: str, value: Any) -> None:
    assert_refused(GenerationOptions, name, value)


def test_an_unknown_option_is_refused_with_the_known_ones() -> None:
    with pytest.raises(OptionError, match=r"option 'temperatur': is not known; known: max_tokens, .*seed$"):
        generation_options({"temperatur": 0.8})
    with pytest.raises(EngineError, match=r"known: max_tokens, stop, ignore_eos, temperature, top_k"):
        generation_options({"max_token": 1})


def test_both_kinds_come_out_of_one_set_of_names() -> None:
    length, sampling = generation_options({"max_tokens": 3, "seed": 7})
    assert length == GenerationOptions(3) and sampling == SamplingOptions(seed=7)


def test_defaults_are_greedy() -> None:
    assert SamplingOptions() == SamplingOptions(0.0, 0, 1.0, 0.0, 1.0, 0)
    assert GenerationOptions() == GenerationOptions(128, (), False)


def test_the_ends_of_the_ranges() -> None:
    options = SamplingOptions(0, 2**31 - 1, 1, 1, 1e-3, 2**64 - 1)
    assert (options.top_k, options.top_p, options.min_p, options.seed) == (2**31 - 1, 1.0, 1.0, 2**64 - 1)
    assert SamplingOptions(top_p=1e-6, temperature=100.0).top_p == 1e-6
    assert GenerationOptions(max_tokens=0).max_tokens == 0


def test_numbers_become_plain_ones() -> None:
    options = SamplingOptions(np.float32(0.5), np.int64(40), 1, np.float64(0.25), 2, np.uint64(7))  # type: ignore[arg-type]
    assert repr(options) == (
        "SamplingOptions(temperature=0.5, top_k=40, top_p=1.0, min_p=0.25, repetition_penalty=2.0, seed=7)"
    )
    assert math.copysign(1, SamplingOptions(temperature=-0.0).temperature) == 1


def test_stop_is_one_string_or_several() -> None:
    assert GenerationOptions(stop="end").stop == ("end",)
    assert GenerationOptions(stop=["a", "b"]).stop == ("a", "b")


def test_options_are_frozen() -> None:
    with pytest.raises(AttributeError):
        SamplingOptions().seed = 1  # type: ignore[misc]
