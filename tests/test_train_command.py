"""models/train.py from a tiny corpus to the GGUF files, and after a stop. Needs the extra `train`."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra `train`)")
pytest.importorskip("gguf")
pytest.importorskip("matplotlib")

import engine  # noqa: E402
from models.train import main  # noqa: E402
from models.training import loop  # noqa: E402
from models.training.export import read_gguf  # noqa: E402

HEROES = ("Peter Rabbit", "Old Mr. Toad", "Jimmy Skunk", "Betty", "The king", "A fox")
ACTS = ("went into the wood", "saw two mice by the brook", "was glad to be at home", "said nothing, and sat down")
SIZES = "--vocab 300 --hidden 64 --feed-forward 64 --layers 2 --first-layers 1 --heads 2 --kv-heads 1 --context 32"
TOKENS = "--stable-tokens 4e3 --cool-tokens 50e3 --deep-tokens 10e3 --decay-tokens 6e3 --int4-tokens 6e3"


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
    (folder / "written").mkdir()
    for name, other in (("deep", "mice"), ("tales", "foxes")):
        tale = f"@ who=Peter|Betty\nOnce upon a time {{who}} met {{girl}}. [{other.capitalize()}|They] went home.\n"
        (folder / "written" / f"{name}.txt").write_text(tale * 20)
    pair = {"better": "Once upon a time Betty went home.", "worse": "Once upon a time Betty met Betty."}
    with gzip.open(folder / "pairs.jsonl.gz", "wt") as file:
        file.write((json.dumps(pair) + "\n") * 40)


def train(corpus: Path, folder: Path) -> int:
    folders = ["--corpus", str(corpus), "--out", str(folder), "--work", str(folder / "work")]
    data = ["--tales", str(corpus / "written"), "--preferences", str(corpus / "pairs.jsonl.gz")]
    return main([*folders, *data, "--workers", "1", *SIZES.split(), *TOKENS.split()])


def test_the_command_trains_a_model_that_the_engine_runs_and_goes_on_after_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, straight, stopped = (tmp_path / name for name in ("corpus", "straight", "stopped"))
    corpus.mkdir()
    write_corpus(corpus)
    assert train(corpus, straight) == 0
    measured = json.loads((straight / "work" / "measured.json").read_text())
    assert measured["tokens"] == 3968 + 49920 + 9984 + 5888 + 512  # whole steps of 4 and of 8 windows
    llm, model = engine.load(straight / "story.gguf"), read_gguf(straight / "story.gguf")
    ids = llm.tokenize("Once upon a time Peter Rabbit")
    with torch.no_grad():
        np.testing.assert_array_equal(model(torch.tensor([ids]), "engine")[0].numpy(), llm.logits(ids))

    train_step, steps = loop.train_step, []

    def interrupted(*arguments: object) -> list[float]:
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


def test_bad_pairs_are_refused_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    write_corpus(corpus)
    (corpus / "pairs.jsonl.gz").write_bytes(b"no gzip")
    assert train(corpus, tmp_path / "out") == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not list((tmp_path / "out" / "work").iterdir())
