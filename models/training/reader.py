"""What a reader thinks of a told scene, learned from scenes that were read: for choosing between two of them.

    readings.jsonl.gz  scenes that this model told at several stages, each with the score that its reader gave (a language
                       model far larger than this one, asked to read for the meaning)
    Reader             the score of other scenes: ridge regression (Hoerl and Kennard 1970) on what the model itself
                       makes of the words: its hidden states, how likely it finds them, and the faults that rules count

Rules see who meets himself; they do not see that "a patch of barking" means nothing, and that is what most readings speak
of. A model of seven million parameters knows it: how it would go on after such words differs. So little is learned here,
and learned from so few scenes, that a tale can please the regression more than a reader, above all by saying what has
pleased before ("he came to a place where ..."): `worth` takes back what comes with saying what all tales say.

Preferences by a learned score of what readers like are those of Stiennon et al. 2020 (Learning to summarize from human
feedback, section 3.4).
"""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn import functional as F

from models.training.data import END_OF_TEXT_ID
from models.training.faults import WEIGHTS, count_faults, faults
from models.training.model import Llama

READINGS = Path(__file__).with_name("readings.jsonl.gz")
RIDGE = 1000.0
FURTHEST = 4.0
"""Standard deviations from the mean beyond which a feature counts no more: nobody has read such a scene."""
UNLIKELY = -2.0
"""The natural logarithm of the probability of a token that is."""
BATCH = 16
RUN = 4
"""Words in a row that two tales have in common."""
MOST_FAULTS = 40.0
FAULT = 0.05
"""What one fault takes from the score."""
GAP = 1.0
"""Standard deviations of `worth` by which two scenes must differ for one of them to be preferred."""
ORDINARY = 0.35
"""Standard deviations of what is left that a tale loses for one of saying what all say."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A scene that was read."""

    text: str
    score: float
    """The digit given, 0 to 9, less its reader's mean, over 1.5; 0 is the mean of tales told after two rounds by rules."""


def read_readings(path: Path) -> list[Reading]:
    """Read what a reader thought of many scenes: JSON lines with `text` and `score`, gzip."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [Reading(**json.loads(line)) for line in file]


class Reader:
    """Scores scenes as their readers would.

    model: float, of the stage after which the tales are told; it is only looked at.
    prompt: what every scene begins with; it doesn't count.
    workers: threads, each of which computes some texts at once.
    """

    def __init__(
        self, model: Llama, tokenizer: Tokenizer, prompt: str, readings: list[Reading], workers: int
    ) -> None:
        self._model, self._tokenizer, self._workers = model, tokenizer, workers
        self._given = len(tokenizer.encode(prompt).ids)
        features = self._features([reading.text for reading in readings])
        scores = np.array([reading.score for reading in readings])
        self._mean, self._deviation = features.mean(0), features.std(0) + 1e-6
        self._score = scores.mean()
        seen = self._standardised(features)
        square = seen.T @ seen + RIDGE * np.eye(seen.shape[1])
        self._weights = np.linalg.solve(square, seen.T @ (scores - self._score))

    def scores(self, texts: list[str]) -> np.ndarray:
        """The score of each scene, float64, on the scale of Reading.score."""
        return self._standardised(self._features(texts)) @ self._weights + self._score

    def _standardised(self, features: np.ndarray) -> np.ndarray:
        return np.clip((features - self._mean) / self._deviation, -FURTHEST, FURTHEST)

    def _features(self, texts: list[str]) -> np.ndarray:
        """Float64, (texts, features). Texts of a like length are computed together."""
        longest = self._model.shape.context
        ids = [[END_OF_TEXT_ID, *found.ids][:longest] for found in self._tokenizer.encode_batch_fast(texts)]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        parts = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
        with ThreadPoolExecutor(self._workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            held = list(pool.map(lambda part: self._held([ids[i] for i in part]), parts))
        rows = np.empty((len(texts), held[0].shape[1]))
        for part, found in zip(parts, held):
            rows[part] = found
        counted = [count_faults(text) for text in texts]
        return np.hstack([rows, [[count.get(fault, 0) for fault in WEIGHTS] for count in counted]])

    @torch.no_grad()
    def _held(self, ids: list[list[int]]) -> np.ndarray:
        """What the model holds while it reads: means of three functions of how likely each token is, and of hidden states
        after three layers."""
        model, given = self._model, self._given
        padded = torch.full((len(ids), max(map(len, ids))), END_OF_TEXT_ID)
        for row, found in zip(padded, ids):
            row[: len(found)] = torch.tensor(found)
        states = model.states(padded, "bfloat16")
        likely = model.head(states[-1], "bfloat16").float().log_softmax(-1)
        likely = likely[:, :-1].gather(2, padded[:, 1:, None])[..., 0]
        rows = []
        for i, found in enumerate(ids):
            nats = likely[i, given : len(found) - 1]
            of_tokens = torch.stack([nats, (nats < UNLIKELY).float(), nats.square()]).mean(1)
            depth = len(states)
            means = [
                F.rms_norm(states[k - 1][i, given + 1 : len(found)], (model.shape.hidden,)).mean(0)
                for k in (max(1, depth // 2), max(1, depth * 3 // 4), depth)
            ]
            rows.append(torch.cat([of_tokens, *means]).double().numpy())
        return np.array(rows)


def commonness(texts: list[str]) -> np.ndarray:
    """How much each text says what all say, float64: the share of texts with a run of RUN words, summed over its runs."""
    runs = []
    for text in texts:
        words = re.findall(r"[a-z']+", text.lower())[RUN:]
        runs.append(set(zip(*(words[i:] for i in range(RUN)))))
    texts_with = Counter(run for found in runs for run in found)
    return np.array([sum(texts_with[run] for run in found) / len(texts) for found in runs])


def worth(texts: list[str], scores: np.ndarray) -> np.ndarray:
    """Which of two tales is to be preferred: by their scores, less their faults, less what comes with saying what all say.

    Float64, in standard deviations.
    """
    whole = scores - FAULT * np.minimum([faults(text) for text in texts], MOST_FAULTS)
    common = _standard(commonness(texts))
    rare = whole - (whole * common).mean() * common
    return _standard(_standard(rare) - ORDINARY * common)


def _standard(values: np.ndarray) -> np.ndarray:
    """With the mean 0 and the standard deviation 1."""
    return (values - values.mean()) / (values.std() + 1e-9)
