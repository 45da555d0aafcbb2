"""models/train.py from a tiny corpus to the GGUF files, and after a stop. Needs the extra `train`."""

from __future__ import annotations

import gzip
import json
from itertools import islice
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra `train`)")
pytest.importorskip("gguf")
pytest.importorskip("matplotlib")

import engine  # noqa: E402
from models.train import main  # noqa: E402
from models.training import loop, reader, tales  # noqa: E402
from models.training.export import read_gguf  # noqa: E402

HEROES = ("Peter Rabbit", "Old Mr. Toad", "Jimmy Skunk", "Betty", "The king", "A fox")
ACTS = ("went into the wood", "saw two mice by the brook", "was glad to be at home", "said nothing, and sat down")
SIZES = "--vocab 300 --hidden 64 --feed-forward 64 --layers 2 --first-layers 1 --heads 2 --kv-heads 1 --context 32"
TOKENS = "--stable-tokens 4e3 --cool-tokens 50e3 --deep-tokens 10e3 --decay-tokens 6e3 --int4-tokens 6e3 --tales 96"


def write_corpus(folder: Path) -> None:
    """Forty stories to train on and four held out, of sentences put together by chance."""
    rng = np.random.default_rng(3)
    rows = ["file\tscore"]
    for name, count in (("train.txt", 40), ("valid.txt", 4)):
        stories = []
        for i in range(count):
            paragraphs = [f"{rng.choice(HEROES)} {rng.choice(ACTS)}. " * 9 for _ in range(4)]
            stories.append("\n\n".join(paragraphs) + "\n<|endoftext|>\n")
            rows.append(f"{name}\t{1.0 + i % 3 * 0.7}")
        (folder / name).write_text("".join(stories))
    (folder / "index.tsv").write_text("\n".join(rows) + "\n")


def few_readings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the reader learn from two hundred of the readings."""
    path = folder / "readings.jsonl.gz"
    with gzip.open(reader.READINGS, "rt") as whole, gzip.open(path, "wt") as some:
        some.writelines(islice(whole, 200))
    monkeypatch.setattr(reader, "READINGS", path)


def train(corpus: Path, folder: Path) -> int:
    folders = ["--corpus", str(corpus), "--out", str(folder), "--work", str(folder / "work"), "--workers", "1"]
    return main([*folders, *SIZES.split(), *TOKENS.split()])


class Remembered(tales.Preference):
    """A preference that can be asked afterwards what was learned from it."""

    made: ClassVar[list[tales.Preference]] = []

    def __init__(self, pairs: list[tales.Pair]) -> None:
        super().__init__(pairs)
        self.made.append(self)

    def read(self, windows: int) -> int:
        """The tokens of all steps, those of the text beside them included."""
        return sum(windows * 32 + self.tokens(step) for step in range(self.steps))


def test_the_command_trains_a_model_that_the_engine_runs_and_goes_on_after_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, straight, stopped = (tmp_path / name for name in ("corpus", "straight", "stopped"))
    corpus.mkdir()
    write_corpus(corpus)
    few_readings(tmp_path, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(tales, "Preference", Remembered)
        assert train(corpus, straight) == 0
    measured = json.loads((straight / "work" / "measured.json").read_text())
    from_tales = [told.read(windows) for told, windows in zip(Remembered.made, (2, 8, 4, 4, 4), strict=True)]
    assert min(from_tales) > 0
    assert measured["tokens"] == 3968 + 49920 + 9984 + 5888 + sum(from_tales)  # whole steps of 4 and of 8 windows
    told = tales.read(straight / "work" / "float-4.tales.jsonl")
    assert len(told) == 96
    teller = read_gguf(straight / "work" / "float-4.gguf")
    for tale in told[:4]:  # the engine's log-probabilities are those of the training forward pass
        with torch.no_grad():
            logits = teller(torch.tensor([tale.ids[:-1]]), "engine")[0].double()
        expected = logits.log_softmax(-1).gather(1, torch.tensor(tale.ids[1:])[:, None])[-len(tale.logprobs) :, 0]
        np.testing.assert_allclose(tale.logprobs, expected.numpy(), atol=1e-5)

    llm, model = engine.load(straight / "story.gguf"), read_gguf(straight / "story.gguf")
    ids = llm.tokenize("Once upon a time Peter Rabbit")
    with torch.no_grad():
        np.testing.assert_array_equal(model(torch.tensor([ids]), "engine")[0].numpy(), llm.logits(ids))

    train_step, steps = loop.train_step, []

    def interrupted(*arguments: object) -> float:
        steps.append(1)
        if len(steps) == 160:  # some steps after the first checkpoint of `cool`
            raise KeyboardInterrupt
        return train_step(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", interrupted)
        assert train(corpus, stopped) == 130
    assert (stopped / "work" / "cool.last.pt").exists() and not (stopped / "work" / "cool.pt").exists()
    assert train(corpus, stopped) == 0
    assert (stopped / "story.gguf").read_bytes() == (straight / "story.gguf").read_bytes()


def test_a_corpus_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "none", tmp_path / "out") == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_more_layers_at_first_than_in_the_end_are_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ["--corpus", str(tmp_path), "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    assert main([*folders, "--layers", "3"]) == 1
    assert capsys.readouterr().err.startswith("models.train: --first-layers 5, but --layers 3:")
    assert not (tmp_path / "work").exists()
