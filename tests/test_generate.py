"""The commands `engine.generate`, `engine.samples` and `engine.warmup`, as a user runs them."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

import engine

STORIES = Path(__file__).parents[2] / "shared" / "models" / "stories260K-F32.gguf"


def run(*args: str, stdin: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", *args], input=stdin, capture_output=True, text=True, timeout=120, env=os.environ | env
    )
    done.stderr = re.sub(r"compiling \d+ kernels .* s\n", "", done.stderr)  # of the first run
    return done


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("generate") / "tiny.gguf"
    tiny.write(path, type="Q4_0")
    return str(path)


def test_the_published_story_streams_to_stdout() -> None:
    if not STORIES.exists():
        pytest.skip(f"{STORIES} is not there")
    done = run("engine.generate", "--model", str(STORIES), "--temperature", "0", "Once upon a time")
    assert done.returncode == 0
    assert done.stdout.startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
        "big, red ball. She wanted to play with it, but it was too high.\nLily's mom said, "
    )
    assert "tokens" in done.stderr and "first text after" in done.stderr


def test_same_seed_same_text_and_a_new_seed_is_told(model: str) -> None:
    command = ("engine.generate", "--model", model, "--max-tokens", "12", "--ignore-eos", "hello")
    first = run(*command)
    assert first.returncode == 0 and first.stderr.startswith("seed ")
    seed = first.stderr.split()[1]
    assert run(*command, "--seed", seed).stdout == first.stdout
    assert run(*command, "--seed", seed, "--threads", "1").stdout == first.stdout


def test_the_command_draws_as_its_help_says(model: str) -> None:
    """Its defaults, and none of them but the temperature where that is 0: greedy is the largest logit."""
    drawn = {"temperature": 0.8, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.1, "seed": 3}
    greedy = {"temperature": 0.0, "repetition_penalty": 1.0}
    with engine.load(model, threads=1) as llm:
        for options, sampling in ((("--seed", "3"), drawn), (("--temperature", "0"), greedy)):
            command = ("engine.generate", "--model", model, "--max-tokens", "40", "--ignore-eos", "--json", "hello")
            expected = llm.generate("hello", max_tokens=40, ignore_eos=True, **sampling).text
            assert json.loads(run(*command, *options).stdout)["text"] == expected


def test_json_comes_last_and_alone(model: str) -> None:
    done = run(
        "engine.generate", "--model", model, "--max-tokens", "5", "--ignore-eos", "--seed", "1", "--json", "hello"
    )
    found = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1 and found["finish_reason"] == "length"
    assert found["timings"]["generated_tokens"] == 5 and found["seed"] == 1 and found["first_token_s"] > 0


def test_integers_alone_from_the_command_line(model: str) -> None:
    command = (
        "engine.generate",
        "--model",
        model,
        "--max-tokens",
        "6",
        "--ignore-eos",
        "--seed",
        "4",
        "--integer-only",
        "hello",
    )
    first = run(*command)
    assert first.returncode == 0 and first.stdout.startswith("hello") and "calibrat" in first.stderr
    assert run(*command, "--threads", "1").stdout == first.stdout


def test_prompt_from_stdin_and_from_a_file(model: str, tmp_path: Path) -> None:
    text = tmp_path / "prompt.txt"
    text.write_text("hello there")
    common = ("engine.generate", "--model", model, "--temperature", "0", "--max-tokens", "6", "--ignore-eos")
    direct = run(*common, "hello there").stdout
    assert run(*common, "-", stdin="hello there").stdout == direct
    assert run(*common, "--file", str(text)).stdout == direct


@pytest.mark.parametrize(
    "args, code, message",
    [
        (["--temperature", "nan", "x"], 1, "temperature"),
        (["--temperature", "-1", "x"], 1, "temperature"),
        (["--top-p", "2", "x"], 1, "top_p"),
        (["--max-tokens", "-1", "x"], 2, "-1"),
        (["--unknown", "x"], 2, "unrecognized arguments"),
        ([], 1, "give a text"),
        (["--file", "/nonexistent/file"], 1, "can't be read"),
        (["word " * 3000], 1, "the context holds"),
        (["--threads", "0", "x"], 2, "threads"),
        (["--context", str(2**31), "x"], 2, "context"),
    ],
)
def test_errors_are_one_line(model: str, args: list[str], code: int, message: str) -> None:
    done = run("engine.generate", "--model", model, *args)
    assert done.returncode == code and message in done.stderr and "Traceback" not in done.stderr
    if code == 1:
        assert done.stderr.count("\n") == 1 and done.stdout == ""


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    done = run("engine.generate", "--model", str(bad), "x", PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 1 and "Git LFS" in done.stderr
    assert "| numba\n" not in done.stderr


def test_numba_told_not_to_compile(model: str) -> None:
    done = run("engine.generate", "--model", model, "x", NUMBA_DISABLE_JIT="1")
    assert done.returncode == 1 and "NUMBA_DISABLE_JIT" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.usefixtures("interrupts")
def test_ctrl_c_ends_with_130(model: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "engine.generate", "--model", model, "--max-tokens", "100000", "--ignore-eos", "hello"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    process.stdout.read(6)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) in (0, 130)  # 0 where the context was full before the signal came


def test_help_needs_no_numba() -> None:
    for command in ("generate", "samples", "warmup", "inspect"):
        done = run(f"engine.{command}", "--help", PYTHONPROFILEIMPORTTIME="1")
        assert done.returncode == 0 and "numba" not in done.stderr and "llvmlite" not in done.stderr


def test_samples_are_the_texts_that_generate_gives_with_these_seeds(model: str) -> None:
    done = run("engine.samples", "a b", "--model", model, "--count", "3", "--first-seed", "7", "--max-tokens", "9")
    assert done.returncode == 0, done.stderr
    samples = [json.loads(line) for line in done.stdout.splitlines()]
    assert [sample["seed"] for sample in samples] == [7, 8, 9]
    with engine.load(model, threads=1) as llm:
        for sample in samples:
            alone = run(
                "engine.generate", "a b", "--model", model, "--seed", str(sample["seed"]), "--max-tokens", "9", "--json"
            )
            assert sample["text"] == json.loads(alone.stdout)["text"]
            ids = sample["prompt_ids"] + sample["ids"]
            assert sample["prompt_ids"] == llm.tokenize("a b")
            scored = llm.score(ids).logprobs[-len(sample["ids"]) :]
            assert sample["logprobs"] == pytest.approx(scored, abs=1e-5)
