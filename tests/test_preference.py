"""Pairs of tales, and what the model learns from them (models/training/preference.py). Needs the extra `train`."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra `train`)")

import truth  # noqa: E402
from test_train import SHAPE, tiny_model  # noqa: E402

from models.train import PREFERENCES  # noqa: E402
from models.training import data, preference  # noqa: E402
from models.training.model import Llama  # noqa: E402
from models.training.preference import Pair, Preference, read_pairs  # noqa: E402

TOKENIZER = data.train_tokenizer([], 257)
"""An entry for each byte, and the end of text."""


def log_probability(llama: Llama, ids: list[int]) -> float:
    """In nats, of all ids but the first, float64 from the logits on."""
    with torch.no_grad():
        logits = llama(torch.tensor([ids[:-1]]), "float32")[0].numpy()
    return float(truth.log_softmax(logits)[np.arange(len(ids) - 1), ids[1:]].sum())


def test_the_loss_is_that_of_the_paper() -> None:
    """Tales of other lengths, longer ones than the context too, beside each other."""
    rng = np.random.default_rng(4)
    texts = ["".join(chr(97 + c) for c in rng.integers(0, 26, n)) for n in rng.integers(3, 40, 64)]
    pairs = [Pair(a, b) for a, b in zip(texts[::2], texts[1::2])]
    now, before = tiny_model(3), tiny_model(5)
    read = Preference(TOKENIZER, pairs, before, seed=1)
    assert read.steps == 2
    wanted = []
    for pair in pairs:
        gained = []
        for text in (pair.better, pair.worse):
            ids = [0, *TOKENIZER.encode(text).ids, 0][: SHAPE.context + 1]
            gained.append(log_probability(now, ids) - log_probability(before, ids))
        wanted.append(np.log1p(np.exp(-preference.BETA * (gained[0] - gained[1]))))
    found = [loss(now, "float32").item() for step in range(2) for loss in read.losses(step)]
    order = np.random.default_rng(1).permutation(32)
    np.testing.assert_allclose(found, np.reshape(np.array(wanted)[order], (8, 4)).mean(1), rtol=1e-5)


def test_what_two_tales_begin_with_does_not_count() -> None:
    now, before = tiny_model(3), tiny_model(5)
    one = Preference(TOKENIZER, [Pair("abcx", "abcy")] * 16, before, seed=1).losses(0)[0](now, "float32")
    both = [[0, *TOKENIZER.encode(text).ids, 0] for text in ("abcx", "abcy")]
    ends = [log_probability(m, ids) - log_probability(m, ids[:4]) for ids in both for m in (now, before)]
    wanted = np.log1p(np.exp(-preference.BETA * (ends[0] - ends[1] - ends[2] + ends[3])))
    assert abs(one.item() - wanted) < 1e-5


def test_the_better_tale_becomes_likelier() -> None:
    now, before = tiny_model(3), tiny_model(3)
    read = Preference(TOKENIZER, [Pair("once", "twice")] * 16, before, seed=1)
    first = read.losses(0)[0](now, "float32")
    assert abs(first.item() - np.log(2)) < 1e-6
    for p, gradient in zip(now.parameters(), torch.autograd.grad(first, list(now.parameters()))):
        p.data -= 0.01 * gradient
    better, worse = ([0, *TOKENIZER.encode(text).ids, 0] for text in ("once", "twice"))
    gained = [log_probability(now, ids) - log_probability(before, ids) for ids in (better, worse)]
    assert gained[0] > gained[1]


def test_the_pairs_that_come_along() -> None:
    pairs = read_pairs(PREFERENCES)
    assert len(pairs) > 1000
    for pair in pairs:
        assert pair.better != pair.worse
        same = next(i for i, (a, b) in enumerate(zip(pair.better, pair.worse)) if a != b)
        assert pair.better.startswith("Once upon a time") and same > len("Once upon a time")


@pytest.mark.parametrize(
    "content", [b"no gzip", *(gzip.compress(text) for text in (b"{}\n", b'"a"', b"{", b"\xff"))], ids=repr
)
def test_a_file_without_pairs_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pairs.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"pairs\.jsonl\.gz: .*expected"):
        read_pairs(path)
