"""Choosing the next token and scoring given ones in integers: what `sampling.py` does, behind an integer-only forward pass.

Log-probabilities leave the steps in units of 2^-24 and become floats here, for whoever reads them.
"""

from collections.abc import Sequence

import numpy as np

from engine.sampling import REMEMBERED
from engine.sampling_options import SamplingOptions
from engine.tokenizer import Tokenizer
from kernels.integer_logits import LOG_BITS, integer_log_probabilities, octave_ratio
from kernels.integer_rescale import multipliers_and_shifts
from kernels.integer_sample import (
    BANNED,
    CHOSEN,
    LOG_PROBABILITY,
    RANDOM,
    RECENT,
    integer_adjust,
    integer_choose,
    integer_weigh,
    sampling_integers,
    set_integer_options,
)
from kernels.random_bits import random_bits
from models.steps import Steps

INTEGER_SAMPLING_KERNELS = (integer_adjust, integer_weigh, integer_choose, integer_log_probabilities)


class IntegerSampling:
    """The sampling steps of one integer-only engine; `logits` (rows, padded V) int32, in units of 2^-bits."""

    def __init__(self, tokenizer: Tokenizer, logits: np.ndarray, vocab: int, bits: int) -> None:
        banned = sorted(tokenizer.banned_ids)
        self._arrays = sampling_integers(vocab, REMEMBERED, len(banned))
        self._arrays["banned"][: len(banned)] = banned
        self._options = self._arrays["options"]
        self._options[BANNED] = len(banned)
        self._octaves = octave_ratio(bits)
        multipliers, shifts = multipliers_and_shifts(np.array([self._octaves]))
        octaves = {"multiplier": int(multipliers[0]), "shift": int(shifts[0])}
        known = self._arrays | octaves | {"logits": logits, "vocab": vocab, "bits": bits}
        self.steps = Steps()
        for kernel in (integer_adjust, integer_weigh, integer_choose):
            self.steps.add(kernel, **{name: known[name] for name in kernel.operands})
        self._wanted = np.zeros(len(logits), np.int64)
        self._found = np.zeros(len(logits), np.int64)
        self.scoring = Steps()
        self.scoring.add(
            integer_log_probabilities,
            out=self._found,
            logits=logits,
            ids=self._wanted,
            vocab=vocab,
            stride=logits.shape[1],
            bits=bits,
            **octaves,
        )

    def begin(self, options: SamplingOptions) -> None:
        """Sample by these options from now on."""
        o = options
        self._seed, self._drawn = o.seed, 0
        self._penalised = o.repetition_penalty != 1
        set_integer_options(
            self._options, self._octaves, o.temperature, o.top_k, o.top_p, o.min_p, o.repetition_penalty
        )

    def prepare(self, ids: Sequence[int]) -> None:
        """Set what changes with each token: the ids so far, for the penalty, and a new random number."""
        self._options[RANDOM] = random_bits(self._seed, self._drawn)
        self._drawn += 1
        recent = ids[-REMEMBERED:] if self._penalised else []
        self._arrays["recent"][: len(recent)] = recent
        self._options[RECENT] = len(recent)

    @property
    def chosen(self) -> tuple[int, float]:
        """The id that the last run chose, and its log-probability under the unmodified softmax."""
        return int(self._options[CHOSEN]), float(self._options[LOG_PROBABILITY]) * 2.0**-LOG_BITS

    def want(self, ids: Sequence[int]) -> None:
        """Score ids[i] in row i of the logits in the next run."""
        self._wanted[: len(ids)] = ids

    def scores(self, count: int) -> list[float]:
        """The log-probabilities that the last run found."""
        return [float(value) * 2.0**-LOG_BITS for value in self._found[:count]]
