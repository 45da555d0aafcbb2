"""What the model learns from its own tales: pairs and their loss (models/training/tales.py). Needs the extra `train`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_faults import SOUND

from models.training.faults import Scene, faults

torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra `train`)")

from models.training import tales  # noqa: E402
from models.training.model import Llama, Shape  # noqa: E402
from models.training.tales import Pair, Preference, Tale, pair  # noqa: E402

BAD = SOUND.replace("Jimmy", "Peter").replace("Skunk", "Rabbit")
KING = "Once upon a time there was a king who had three sons, and he said to them that they should go."


def tale(text: str, number: int) -> Tale:
    return Tale(text, [0, 5, 6, *np.random.default_rng(number).integers(7, 90, 20).tolist()], [-1.0] * 20)


def test_pairs_have_one_hero_and_differ() -> None:
    told = [
        tale(text.replace("Peter", name), i) for i, text in enumerate([SOUND, BAD] * 20) for name in ("Peter", "Sammy")
    ]
    told += [tale(KING, i) for i in range(10)]
    worth = -np.array([faults(tale.text) for tale in told])
    pairs = pair(told, worth, gap=6, seed=1)
    assert pairs == pair(told, worth, gap=6, seed=1) != pair(told, worth, gap=6, seed=2)
    assert not [p for p in pair(told, worth, gap=1e9, seed=1) if p.skipped]
    assert all(faults(p.worse.text) > faults(p.better.text) + 6 for p in pairs)
    heroes = [(Scene(p.better.text).hero_name, Scene(p.worse.text).hero_name) for p in pairs]
    assert heroes.count(("Peter", None)) + heroes.count(("Sammy", None)) == 10
    assert {better for better, worse in heroes if worse is not None and better != worse} == set()
    assert min(heroes.count(("Peter", "Peter")), heroes.count(("Sammy", "Sammy"))) > 5
    assert {p.skipped for p in pairs if Scene(p.worse.text).hero is None} == {0}
    assert {p.skipped for p in pairs if Scene(p.worse.text).hero is not None} == {tales.HERO}


def test_the_loss_is_that_of_the_paper() -> None:
    torch.manual_seed(3)
    model = Llama(Shape(vocab=96, hidden=32, feed_forward=64, layers=1, heads=2, kv_heads=1, context=32))
    rng = np.random.default_rng(4)
    pairs = []
    for skipped in (0, 3, 0, 5) * 4:
        both = [
            Tale("", [0, 1, *rng.integers(2, 96, n).tolist()], (-rng.random(n) * 6).tolist())
            for n in rng.integers(9, 25, 2)
        ]
        pairs.append(Pair(both[0], both[1], skipped))
    preference = Preference(pairs)
    assert preference.steps == 1
    assert preference.tokens(0) == sum(len(t.logprobs) + 1 for p in pairs for t in (p.better, p.worse))

    lost = []
    for p in pairs:
        gained = []
        for t in (p.better, p.worse):
            with torch.no_grad():
                logits = model(torch.tensor([t.ids[:-1]]), "float32")[0].double().numpy()
            logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            chosen = logp[np.arange(len(t.ids) - 1), t.ids[1:]][1:]  # the first is the prompt's second id
            gained.append((chosen - t.logprobs)[p.skipped :].sum())
        lost.append(np.log1p(np.exp(-tales.BETA * (gained[0] - gained[1]))))
    found = [loss(model, "float32").item() for loss in preference.losses(0)]
    np.testing.assert_allclose(found, np.reshape(lost, (4, 4)).mean(1), rtol=1e-5)


def test_tales_are_read_as_they_were_written(tmp_path: Path) -> None:
    told = [tale(SOUND, 1), tale(KING, 2)]
    tales.save(told, tmp_path / "tales.jsonl")
    assert tales.read(tmp_path / "tales.jsonl") == told


def test_a_model_that_can_not_be_read_tells_no_tales(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no tales: "):
        tales.tell(tmp_path / "none.gguf", 3, workers=2)
