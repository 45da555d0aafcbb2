"""What readers liked better: of two tales that begin alike the better one becomes likelier (direct preference optimisation).

A text teaches which token comes next; whether the tale still makes sense a paragraph later hardly shows in that loss. So
the model told tales in groups of four that begin with the same sentence, and readers (language models far larger than this
one) chose the best and the worst of each: 1,600 groups after the stage `float`, 1,600 after this stage with those, 1,600
after this stage with both. `preferences.jsonl.gz` has them in this order, a JSON object a line, with the texts "better"
and "worse". The loss is that of Rafailov et al. 2023 (Direct Preference Optimization, equation 7):

    -log sigmoid(BETA * ((log p(better) - log q(better)) - (log p(worse) - log q(worse))))

where q is the model that this stage begins with. What two tales begin with cancels out.
"""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn import functional as F

from models.training.data import END_OF_TEXT_ID, encode_texts
from models.training.model import Llama, Loss

BETA = 0.1
PAIRS = 16
"""Of a step."""
MICRO_BATCH = 4
IGNORED = -100


@dataclass(frozen=True, slots=True)
class Pair:
    """Two tales, of which the better one should become likelier."""

    better: str
    worse: str


def read_pairs(path: Path) -> list[Pair]:
    """The pairs in a file of gzipped JSON lines. Raises OSError and ValueError where it is not one."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return [Pair(**json.loads(line)) for line in file]
    except (EOFError, TypeError, ValueError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: {error}; gzipped JSON lines with the texts better and worse are expected") from None


class Preference:
    """The pairs of a stage in an order that depends only on the seed, PAIRS a step, each read once."""

    def __init__(self, tokenizer: Tokenizer, pairs: list[Pair], reference: Llama, seed: int) -> None:
        """reference: q."""
        order = np.random.default_rng(seed).permutation(len(pairs))
        texts = [text for i in order for text in (pairs[i].better, pairs[i].worse)]
        self._ids = [
            np.append(ids, END_OF_TEXT_ID)[: reference.shape.context + 1] for ids in encode_texts(tokenizer, texts)
        ]
        self._reference = reference
        self.steps = len(pairs) // PAIRS

    def take(self, step: int) -> list[torch.Tensor]:
        """The pairs of a step in parts (2 * MICRO_BATCH, T + 1) int64: better tales, then the worse; IGNORED behind them."""
        parts = []
        for first in range(step * PAIRS, (step + 1) * PAIRS, MICRO_BATCH):
            rows = self._ids[2 * first : 2 * (first + MICRO_BATCH)]
            rows = rows[::2] + rows[1::2]
            part = np.full((len(rows), max(map(len, rows))), IGNORED, np.int64)
            for row, ids in zip(part, rows):
                row[: len(ids)] = ids
            parts.append(torch.from_numpy(part))
        return parts

    def losses(self, step: int) -> list[Loss]:
        """The losses of a step, each of MICRO_BATCH pairs."""

        def loss_of(part: torch.Tensor) -> Loss:
            return lambda model, mode: preference_loss(model, self._reference, part, mode)

        return [loss_of(part) for part in self.take(step)]


def log_probabilities(model: Llama, tales: torch.Tensor, mode: str) -> torch.Tensor:
    """Natural logarithms (B,) of the probabilities of tales (B, T + 1) int64, their first token given."""
    logits = model(tales[:, :-1].clamp(min=0), mode).float()
    nats = F.cross_entropy(logits.flatten(0, 1), tales[:, 1:].flatten(), ignore_index=IGNORED, reduction="none")
    return -nats.view(len(tales), -1).sum(1)


def preference_loss(model: Llama, reference: Llama, tales: torch.Tensor, mode: str) -> torch.Tensor:
    """The mean loss of pairs as `take` gives them; reference: q."""
    with torch.no_grad():
        before = log_probabilities(reference, tales, mode)
    better, worse = (log_probabilities(model, tales, mode) - before).chunk(2)
    return -F.logsigmoid(BETA * (better - worse)).mean()
