"""What a caller may ask of a generation, checked before any work begins.

`SamplingOptions` says how the next token is drawn, `GenerationOptions` how long to go on. Values that make no sense are
errors, never corrected in silence; whole numbers are taken where a float is meant, and NumPy's numbers as Python's.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

from engine.errors import OptionError
from engine.escape import escape

SEEDS = 1 << 64
MAX_TOP_K = (1 << 31) - 1
MAX_STOPS = 64
MAX_STOP_CHARACTERS = 1024
SAMPLING_KEYS = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}
"""An option's name -> the key by which a GGUF file recommends it."""
DEFAULTS = {"temperature": 0.8, "top_k": 0, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.1}
"""How the commands sample from a model whose file recommends nothing."""


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How the next token is drawn from the logits. The default is greedy: the largest logit, the lowest id of equals.

    temperature: logits are divided by it; 0 is greedy, and then nothing below but `repetition_penalty` has an effect
    top_k: only the k largest stay; 0 is all
    top_p: only the largest that together have this probability stay, above 0 to 1
    min_p: only those with at least this part of the largest probability stay, 0 to 1
    repetition_penalty: logits of earlier tokens are divided by it if positive, multiplied if negative; 1 is none
    seed: the same seed draws the same tokens, 0 to 2^64 - 1
    Raises OptionError, one line, for anything else.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        _set(self, "temperature", real("temperature", self.temperature, low=0))
        _set(self, "top_k", whole("top_k", self.top_k, 0, MAX_TOP_K))
        _set(self, "top_p", real("top_p", self.top_p, above=0, high=1))
        _set(self, "min_p", real("min_p", self.min_p, low=0, high=1))
        _set(self, "repetition_penalty", real("repetition_penalty", self.repetition_penalty, above=0))
        _set(self, "seed", whole("seed", self.seed, 0, SEEDS - 1))


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """When a generation ends.

    max_tokens: after so many tokens, 0 or more
    stop: where one of these strings comes; a string, or up to 64 of them of up to 1024 characters, none empty
    ignore_eos: whether to go on after a token that ends the text
    Raises OptionError, one line, for anything else.
    """

    max_tokens: int = 128
    stop: Sequence[str] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        _set(self, "max_tokens", whole("max_tokens", self.max_tokens, 0, (1 << 31) - 1))
        _set(self, "stop", _stops(self.stop))
        if not isinstance(self.ignore_eos, bool):
            raise OptionError(f"option 'ignore_eos': is {_shown(self.ignore_eos)}, True or False is expected")


def generation_options(options: dict[str, Any]) -> tuple[GenerationOptions, SamplingOptions]:
    """Sorts keywords into both kinds of options; raises OptionError, which lists the names, for one that isn't known."""
    kinds = (GenerationOptions, SamplingOptions)
    names = [[field.name for field in fields(kind)] for kind in kinds]
    for name in options:
        if name not in names[0] + names[1]:
            raise OptionError(f"option '{escape(name)}': is not known; known: {', '.join(names[0] + names[1])}")
    length, sampling = ({name: options[name] for name in known if name in options} for known in names)
    return GenerationOptions(**length), SamplingOptions(**sampling)


def command_sampling(asked: Mapping[str, Any], recommended: Mapping[str, float]) -> dict[str, Any]:
    """How a command samples: as asked, else as recommended, else by DEFAULTS.

    Greedy is the largest logit: no penalty then, unless it was asked for.

    asked: the command's options by name; None for what was not asked. Others than those of DEFAULTS may be among them.
    """
    given = {name: asked[name] for name in DEFAULTS if asked[name] is not None}
    chosen = DEFAULTS | dict(recommended) | given
    if chosen["temperature"] == 0 and "repetition_penalty" not in given:
        chosen["repetition_penalty"] = 1.0
    return chosen


def whole(name: str, value: Any, low: int, high: int) -> int:
    """Returns an option that must be a whole number from `low` to `high`; raises OptionError."""
    expected = f"a whole number from {low} to {high} is expected"
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise OptionError(f"option '{name}': is {_shown(value)}, {expected}")
    if not low <= number <= high:
        raise OptionError(f"option '{name}': is {_shown(number)}, {expected}")
    return number


def real(
    name: str, value: Any, *, low: float | None = None, above: float | None = None, high: float | None = None
) -> float:
    """Returns an option that must be a finite number, at least `low` or greater than `above`; raises OptionError."""
    least = f"above {above}" if low is None else f"from {low} up" if high is None else f"from {low}"
    expected = f"a number {least}{'' if high is None else f' to {high}'} is expected"
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.inf
    small = number < low if low is not None else above is not None and number <= above
    if not math.isfinite(number) or small or (high is not None and number > high):
        raise OptionError(f"option '{name}': is {_shown(value)}, {expected}")
    return number + 0.0  # -0.0 becomes 0.0


def _set(options: Any, name: str, value: Any) -> None:
    object.__setattr__(options, name, value)


def _stops(given: Any) -> tuple[str, ...]:
    stops = (
        (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Sequence | set | frozenset) else None
    )
    if stops is None or not all(isinstance(stop, str) for stop in stops):
        raise OptionError(f"option 'stop': is {_shown(given)}, a string or several are expected")
    if len(stops) > MAX_STOPS:
        raise OptionError(f"option 'stop': has {len(stops)} strings, at most {MAX_STOPS} are allowed")
    for stop in stops:
        if not stop:
            raise OptionError("option 'stop': has an empty string, which would stop at once; leave it out")
        if len(stop) > MAX_STOP_CHARACTERS:
            raise OptionError(
                f"option 'stop': a string of {len(stop)} characters, at most {MAX_STOP_CHARACTERS} are allowed"
            )
    return stops


def _shown(value: Any) -> str:
    """A value in an error: on one line, short; numbers of thousands of digits can't even be printed."""
    if isinstance(value, int) and abs(value) >= 1 << 128:
        return "a number of more than 38 digits"
    return escape(repr(value))
