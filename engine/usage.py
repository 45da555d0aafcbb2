"""How a model's file says that it is to be used: its chat template, and the sampling that its makers recommend.

    general.sampling.temp, .top_k, .top_p, .min_p, .penalty_repeat     numbers; each may be missing
    tokenizer.chat_template                                            the program that makes a prompt of messages

The commands follow the recommendation where nothing else is asked of them. Source of the keys: gguf-py, constants.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.errors import OptionError
from engine.gguf import GGUFFile
from engine.sampling_options import SAMPLING_KEYS, SamplingOptions


@dataclass(frozen=True, slots=True)
class Usage:
    """What a file says of its use.

    Attributes:
        chat_template: The file's own program for prompts, where it has one.
        sampling: Recommended options of `SamplingOptions`; empty where the file recommends none.
    """

    chat_template: str | None
    sampling: Mapping[str, float]

    @classmethod
    def of(cls, file: GGUFFile) -> Usage:
        """Reads it; raises FileError, which names the key, for a recommendation that can't be followed."""
        sampling = {name: _number(file, name, key) for name, key in SAMPLING_KEYS.items() if key in file.metadata}
        return cls(file.string("tokenizer.chat_template", "") or None, sampling)


def _number(file: GGUFFile, name: str, key: str) -> float:
    value = float(str(np.float32(file.f32(key))))  # 0.8, not 0.800000011920929
    if name == "top_k":
        value = max(0, int(value))  # other programs write -1 for all
    given: dict[str, Any] = {name: value}
    try:
        SamplingOptions(**given)
    except OptionError as error:
        file.fail_key(key, str(error).partition(": ")[2])
    return value
