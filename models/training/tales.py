"""Tales that the model tells, and what it learns from them: direct preference optimisation.

    the model, rounded to INT4, tells thousands of tales             tell
    of two with the same hero one is better                          pair (models/training/faults.py, reader.py)
    the better one becomes likelier than the worse one               Preference

A text teaches which token comes next; whether the tale still makes sense a paragraph later hardly shows in that loss. Here
whole tales are compared. The loss is that of Rafailov et al. 2023 (Direct Preference Optimization, equation 7):

    -log sigmoid(BETA * ((log p(better) - log q(better)) - (log p(worse) - log q(worse))))

where q is the model that told them; its log-probabilities come from the engine, token by token. The first tokens of two
tales with the same hero do not count, so that this teaches nothing about heroes. Tales without a hero are worse than any.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from models.training.data import END_OF_TEXT_ID
from models.training.faults import Scene
from models.training.model import Llama
from models.training.openings import OPENING

PROMPT = OPENING.rstrip()
TOKENS = 140
MIN_P = 0.1
"""Tales are told somewhat more wildly than the files recommend, so that there is something to choose from."""
FIRST_SEED = 1000
"""Smaller ones are left for samples."""
HERO = 6
"""Tokens after the prompt, the hero's name among them, that don't count where both have the same."""
COMMON = 0.003
"""Share of the tales that are good ones of a hero, at least, for him to be set beside the tales without one."""
BETA = 0.1
PAIRS = 16
"""Of a step."""
MICRO_BATCH = 4
Loss = Callable[[Llama, str], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Tale:
    """A told tale."""

    text: str
    ids: list[int]
    """The prompt's ids (with the one that begins a text) and those that were told."""
    logprobs: list[float]
    """Natural logarithms of the probability of each told id; the teller's, before temperature and penalties."""


def tell(model: Path, count: int, workers: int) -> list[Tale]:
    """Let the model of a GGUF file tell `count` tales, with the seeds FIRST_SEED, FIRST_SEED + 1, ...: `engine.samples`.

    Raises ValueError where that command fails; it says why on stderr.
    """

    workers = min(workers, count)
    bounds = [FIRST_SEED + count * i // workers for i in range(workers + 1)]

    def work(first: int, end: int) -> list[Tale]:
        given = f"--count {end - first} --first-seed {first} --max-tokens {TOKENS} --min-p {MIN_P} --threads 1".split()
        command = [sys.executable, "-m", "engine.samples", PROMPT, "--model", str(model), *given]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", check=False)
        if done.returncode:
            raise ValueError(f"{model}: no tales: engine.samples ended with {done.returncode}")
        told = [json.loads(line) for line in done.stdout.splitlines()]
        return [Tale(PROMPT + t["text"], t["prompt_ids"] + t["ids"], t["logprobs"]) for t in told]

    with ThreadPoolExecutor(workers) as pool:
        return [tale for tales in pool.map(work, bounds[:-1], bounds[1:]) for tale in tales]


def save(tales: list[Tale], path: Path) -> None:
    """Write tales, one JSON object a line; the file appears whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text("".join(json.dumps(asdict(tale)) + "\n" for tale in tales))
    part.replace(path)


def read(path: Path) -> list[Tale]:
    """Read what `save` wrote."""
    return [Tale(**json.loads(line)) for line in path.read_text().splitlines()]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two tales, of which the better one should become likelier."""

    better: Tale
    worse: Tale
    skipped: int
    """Told tokens that do not count."""


def pair(tales: list[Tale], worth: np.ndarray, gap: float, seed: int) -> list[Pair]:
    """Pairs of tales whose worth differs by more than `gap`, in an order by chance.

    Each tale is at most once the first and once the second of its hero's.
    """
    rng = np.random.default_rng(seed)
    heroes: dict[str | None, list[int]] = {}
    for i, tale in enumerate(tales):
        heroes.setdefault(Scene(tale.text).hero_name, []).append(i)
    without = heroes.pop(None, [])
    pairs = []
    for group in heroes.values():
        for a, b in zip(rng.permutation(group), rng.permutation(group)):
            if abs(worth[a] - worth[b]) > gap:
                better, worse = (a, b) if worth[a] > worth[b] else (b, a)
                pairs.append(Pair(tales[better], tales[worse], HERO))
    middle = float(np.median(worth))
    good = [[i for i in group if worth[i] > middle] for group in heroes.values()]
    good = [group for group in good if len(group) >= COMMON * len(tales)]
    shares = np.sqrt([len(group) for group in good])
    for i in without if good else ():
        group = good[rng.choice(len(good), p=shares / shares.sum())]
        pairs.append(Pair(tales[group[rng.integers(len(group))]], tales[i], 0))
    return [pairs[i] for i in rng.permutation(len(pairs))]


class Preference:
    """The losses of pairs of tales, PAIRS a step."""

    def __init__(self, pairs: list[Pair]) -> None:
        self._pairs = pairs
        self.steps = len(pairs) // PAIRS
        """So that every pair is read once."""

    def losses(self, step: int) -> list[Loss]:
        """The losses of a step, each of a few pairs."""
        pairs = self._pairs[step * PAIRS : (step + 1) * PAIRS]
        return [_loss_of(pairs[i : i + MICRO_BATCH]) for i in range(0, PAIRS, MICRO_BATCH)]

    def tokens(self, step: int) -> int:
        """The tokens predicted in a step."""
        return sum(len(p.better.ids) + len(p.worse.ids) - 2 for p in self._pairs[step * PAIRS : (step + 1) * PAIRS])


def _loss_of(pairs: list[Pair]) -> Loss:
    """The mean loss of pairs."""
    told = [(p.better, p.skipped) for p in pairs] + [(p.worse, p.skipped) for p in pairs]
    length = max(len(tale.ids) for tale, _ in told)
    ids = torch.full((len(told), length), END_OF_TEXT_ID)
    counts, teller = torch.zeros(len(told), length - 1), torch.zeros(len(told))
    for row, (tale, skipped) in enumerate(told):
        first = len(tale.ids) - len(tale.logprobs) + skipped
        ids[row, : len(tale.ids)] = torch.tensor(tale.ids)
        counts[row, first - 1 : len(tale.ids) - 1] = 1
        teller[row] = sum(tale.logprobs[skipped:])

    def loss(model: Llama, mode: str) -> torch.Tensor:
        logits = model(ids[:, :-1], mode).float().flatten(0, 1)
        nats = F.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none").view(counts.shape)
        better, worse = (-(nats * counts).sum(1) - teller).chunk(2)
        return -F.logsigmoid(BETA * (better - worse)).mean()

    return loss
