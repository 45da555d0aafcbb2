"""Choosing the next token and scoring given ones, as steps behind the forward pass (`kernels/sample.py`).

The steps read row 0 of the logits. What a generation asks for is written into small arrays before its first run, what
changes with each token (the random number, the recent ids) before each run.
"""

from collections.abc import Sequence

import numpy as np

from engine.sampling_options import SamplingOptions
from engine.tokenizer import Tokenizer
from kernels.log_probability import PART, log_probabilities
from kernels.random_bits import random_bits
from kernels.registry import Kernel
from kernels.sample import (
    BANNED,
    CHOSEN,
    LOG_PROBABILITY,
    RANDOM,
    RECENT,
    sample_adjust,
    sample_choose,
    sample_weigh,
    sampling_arrays,
    set_options,
)
from models.steps import Steps

REMEMBERED = 64  # ids that the repetition penalty looks back at
SAMPLING_KERNELS = (sample_adjust, sample_weigh, sample_choose, log_probabilities)


class Sampling:
    """The sampling steps of one engine and the arrays that they share."""

    def __init__(self, tokenizer: Tokenizer, logits: np.ndarray, vocab: int, workers: int) -> None:
        banned = sorted(tokenizer.banned_ids)
        self._arrays = sampling_arrays(vocab, REMEMBERED, len(banned))
        self._arrays["banned"][: len(banned)] = banned
        self._arrays["options"][BANNED] = len(banned)
        self.steps = Steps()
        for kernel in (sample_adjust, sample_weigh, sample_choose):
            self._add(self.steps, kernel, logits=logits, vocab=vocab)
        rows, parts = len(logits), -(-vocab // PART)
        self._wanted = np.zeros(rows, np.int64)
        self._found = np.zeros(rows, np.float32)
        self.scoring = Steps()
        totals = np.zeros(workers * parts, np.float32)
        stride = logits.shape[1]
        self.scoring.add(
            log_probabilities,
            out=self._found,
            totals=totals,
            logits=logits,
            ids=self._wanted,
            vocab=vocab,
            stride=stride,
        )

    def _add(self, steps: Steps, kernel: Kernel, **more: object) -> None:
        known = self._arrays | more
        steps.add(kernel, **{name: known[name] for name in kernel.operands})

    def begin(self, options: SamplingOptions) -> None:
        """Sample by these options from now on."""
        o = options
        self._seed, self._drawn = o.seed, 0
        self._penalised = o.repetition_penalty != 1
        set_options(self._arrays, o.temperature, o.top_k, o.top_p, o.min_p, o.repetition_penalty)

    def prepare(self, ids: Sequence[int]) -> None:
        """Set what changes with each token: the ids so far, for the penalty, and a new random number."""
        options = self._arrays["options"]
        options[RANDOM] = random_bits(self._seed, self._drawn)
        self._drawn += 1
        if self._penalised:
            recent = ids[-REMEMBERED:]
            self._arrays["recent"][: len(recent)] = recent
            options[RECENT] = len(recent)
        else:
            options[RECENT] = 0

    @property
    def chosen(self) -> tuple[int, float]:
        """The id that the last run chose, and its log-probability under the unmodified softmax."""
        return int(self._arrays["options"][CHOSEN]), float(self._arrays["factors"][LOG_PROBABILITY])

    def want(self, ids: Sequence[int]) -> None:
        """Score ids[i] in row i of the logits in the next run."""
        self._wanted[: len(ids)] = ids

    def scores(self, count: int) -> list[float]:
        """The log-probabilities that the last run found."""
        return [float(value) for value in self._found[:count]]
