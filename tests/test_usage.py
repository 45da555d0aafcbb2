"""The sampling that a model's file recommends (engine/usage.py): who follows it, and what it may not say."""

from __future__ import annotations

import json
from pathlib import Path

import hf_folder
import pytest
import tiny
from test_generate import run

import engine
from engine.generate import main as generate
from engine.quantize import main as quantize

RECOMMENDED = {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.2, "repetition_penalty": 1.05}
KEYS = {
    "general.sampling.temp": 0.7,
    "general.sampling.top_k": 20,
    "general.sampling.top_p": 0.8,
    "general.sampling.min_p": 0.2,
    "general.sampling.penalty_repeat": 1.05,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("usage") / "tiny.gguf"
    tiny.write(path, type="Q8_0", metadata=KEYS)
    return path


def test_the_commands_follow_the_file_where_nothing_else_is_asked(model: Path) -> None:
    cases = {
        (): RECOMMENDED,
        ("--min-p", "0", "--top-k", "0"): RECOMMENDED | {"min_p": 0, "top_k": 0},
        ("--temperature", "0"): {},  # greedy, without a penalty
        ("--temperature", "0", "--repetition-penalty", "1.5"): {"repetition_penalty": 1.5},
    }
    texts = []
    with engine.load(model, threads=1) as llm:
        assert llm.sampling == RECOMMENDED
        for asked, expected in cases.items():
            common = ("--model", str(model), "--max-tokens", "30", *asked)
            alone = json.loads(run("engine.generate", "hello", "--seed", "5", "--ignore-eos", "--json", *common).stdout)
            texts.append(llm.generate("hello", max_tokens=30, ignore_eos=True, seed=5, **expected).text)
            assert alone["text"] == texts[-1]
            told = run("engine.samples", "hello", "--first-seed", "5", "--count", "1", *common)
            assert json.loads(told.stdout)["text"] == llm.generate("hello", max_tokens=30, seed=5, **expected).text
    assert len(set(texts)) == 4


def test_a_file_that_recommends_nothing(tmp_path: Path) -> None:
    tiny.write(tmp_path / "tiny.gguf", type="Q8_0")
    with engine.load(tmp_path / "tiny.gguf", threads=1) as llm:
        assert llm.sampling == {}


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("temp", -1.0, "from 0 up"),
        ("temp", float("nan"), "a finite number"),
        ("top_p", 0.0, "above 0"),
        ("min_p", 2.0, "from 0 to 1"),
        ("penalty_repeat", 0.0, "above 0"),
        ("top_k", "many", "a number is expected"),
    ],
)
def test_what_can_not_be_followed_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: float | str, expected: str
) -> None:
    path = tmp_path / "tiny.gguf"
    tiny.write(path, type="Q8_0", metadata={f"general.sampling.{key}": value})
    assert generate(["hello", "--model", str(path), "--threads", "1"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"tiny.gguf: key 'general.sampling.{key}': is " in error and expected in error


def test_a_negative_top_k_is_all(tmp_path: Path) -> None:
    tiny.write(tmp_path / "tiny.gguf", type="Q8_0", metadata={"general.sampling.top_k": -1.0})
    with engine.load(tmp_path / "tiny.gguf", threads=1) as llm:
        assert llm.sampling == {"top_k": 0}


def test_a_folder_recommends_in_generation_config_and_so_does_what_is_made_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    hf_folder.write(folder, "qwen2", "F16")
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings | RECOMMENDED | {"typical_p": 1.0}))
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat " * 60)
    static = ("--activations", "static", "--text", str(text), "--tokens", "256")
    for made, how in (("q8.gguf", ("--type", "Q8_0")), ("static.safetensors", static)):
        assert quantize([str(folder), str(tmp_path / made), *how]) == 0
    for path in (folder, tmp_path / "q8.gguf", tmp_path / "static.safetensors"):
        with engine.load(path, threads=1) as llm:
            assert llm.sampling == RECOMMENDED
