"""The command `python -m engine.inspect`, and what `engine.options` gives to every command."""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file
from test_static_int8 import quantized

import engine
from engine import inspect, options
from engine.errors import OptionError


def report(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> str:
    assert inspect.main([str(arg) for arg in argv]) == 0
    return capsys.readouterr().out


def test_json_says_what_was_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.gguf"
    weights = tiny.write(path, type="Q4_0", types={"output.weight": "Q8_0"}, metadata={"general.x": float("nan")})
    out = report(capsys, path, "--json", "--context", "100")
    found = json.loads(out)
    assert out.count("\n") == 1 and found["refused"] is None
    assert {t["name"]: tuple(t["shape"]) for t in found["tensors"]} == {k: v.shape for k, v in weights.items()}
    assert found["metadata"]["llama.block_count"] == {"kind": "u32", "value": 3}
    assert found["metadata"]["general.x"] == {"kind": "f32", "value": "nan"}
    tokens = found["metadata"]["tokenizer.ggml.tokens"]
    assert tokens["length"] == 310 and tokens["first"][:4] == ["<unk>", "<s>", "</s>", "<0x00>"]
    assert found["types"]["Q8_0"] == {"tensors": 1, "parameters": 310 * 64, "bytes": 310 * 68}
    assert found["model"]["heads"] == 4 and found["context"] == 100
    assert found["parameters"] == sum(v.size for v in weights.values())


@pytest.mark.parametrize("type, width", [("Q4_0", 2), ("F16", 4), ("F32", 4)])
def test_kv_cache_is_half_only_if_a_matrix_is_quantised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], type: str, width: int
) -> None:
    tiny.write(tmp_path / "m.gguf", type=type)
    found = json.loads(report(capsys, tmp_path / "m.gguf", "--json", "--context", "100"))
    assert found["memory"]["kv_cache"] == 2 * 3 * 104 * (2 * 16) * width + 64
    assert found["memory"]["total"] == sum(found["memory"][key] for key in ("weights", "kv_cache", "scratch"))


def test_no_more_context_is_counted_than_the_model_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write(tmp_path / "m.gguf")
    assert "memory with a context of 160 tokens, of 160 trained" in report(capsys, tmp_path / "m.gguf")
    assert json.loads(report(capsys, tmp_path / "m.gguf", "--json"))["context"] == 160


def test_text_is_cut_short_and_has_no_control_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    template = "{{ x }}\n\x1b[31m" * 50
    tiny.write(tmp_path / "m.gguf", metadata={"tokenizer.chat_template": template})
    out = report(capsys, tmp_path / "m.gguf")
    assert all(line.isprintable() for line in out.splitlines())
    assert r"{{ x }}\n\x1b[31m" in out and "... (650 characters)" in out
    assert "[<unk>, <s>, </s>, <0x00>, <0x01>, <0x02>, ...] (310)" in out
    assert ["blk.0.ffn_down.weight", "F32", "64", "x", "96", "24,576"] in [line.split() for line in out.splitlines()]


def test_a_model_that_is_not_supported_is_shown_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.write(tmp_path / "m.gguf", metadata={"general.architecture": "mamba"})
    out = report(capsys, tmp_path / "m.gguf")
    assert "not supported: " in out and "'mamba' is not supported; supported: llama, qwen2" in out
    found = json.loads(report(capsys, tmp_path / "m.gguf", "--json"))
    assert found["model"] is None and found["memory"] is None and "mamba" in found["refused"]


def arrays(part: object) -> Iterator[np.ndarray]:
    """All arrays in dataclasses, tuples and dictionaries."""
    if isinstance(part, np.ndarray):
        yield part
    elif isinstance(part, tuple | dict):
        for each in part.values() if isinstance(part, dict) else part:
            yield from arrays(each)
    elif is_dataclass(part):
        for each in fields(part):
            yield from arrays(getattr(part, each.name))


@pytest.mark.parametrize("tied", [False, True])
def test_a_static_form_with_the_memory_that_it_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tied: bool
) -> None:
    tiny.write(tmp_path / "m.gguf", type="F32", hidden=96, ff=160, tied=tied)
    form = quantized(tmp_path / "m.gguf", tmp_path / "m.safetensors")
    found = json.loads(report(capsys, form, "--json", "--context", "64"))
    expected = load_file(form)
    del expected["vocabulary"]
    assert {t["name"]: tuple(t["shape"]) for t in found["tensors"]} == {n: v.shape for n, v in expected.items()}
    assert found["parameters"] == sum(v.size for n, v in expected.items() if not n.endswith("scale"))
    with engine.load(form, threads=1, context=64) as llm:
        weights, cache = (sum(a.nbytes for a in arrays(part)) for part in (llm._loaded.weights, llm._loaded.state.cache))
    assert weights == pytest.approx(found["memory"]["weights"], rel=0.1)
    assert found["memory"]["kv_cache"] == pytest.approx(cache, abs=256)  # room between arrays
    out = report(capsys, tmp_path / "m.json")
    assert out.startswith("m.safetensors: static INT8 version 2, ") and "memory with a context of 160 tokens" in out


def test_an_error_is_one_line_and_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect.main([str(tmp_path / "none.gguf")]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.endswith("none.gguf: can't be read: No such file or directory\n")


@pytest.mark.parametrize(
    "argv", [[], ["a", "b"], ["--unknown", "f"], ["--cont", "3", "f"], ["--context", "0", "f"],
             ["--context", "2147483648", "f"], ["--threads", "0", "f"], ["--threads", "many", "f"]],
)  # fmt: skip
def test_usage_errors_are_exit_code_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        inspect.main(argv)
    assert caught.value.code == 2 and capsys.readouterr().err.startswith("usage: python -m engine.inspect")


def raises(error: BaseException | type[BaseException]) -> int:
    def work(given: argparse.Namespace) -> None:
        raise error

    return options.run(work, options.parser("x", "..."), [])


def test_how_a_command_ends(capsys: pytest.CaptureFixture[str]) -> None:
    assert options.run(lambda given: None, options.parser("x", "..."), []) == 0
    assert raises(OptionError("top_p is 2,\nexpected 0 to 1")) == 1
    assert capsys.readouterr().err == "python -m engine.x: top_p is 2, expected 0 to 1\n"
    assert raises(MemoryError) == 1
    assert capsys.readouterr().err == "python -m engine.x: out of memory\n"
    assert raises(KeyboardInterrupt) == 130
    with pytest.raises(ZeroDivisionError):  # ours: it shows where
        raises(ZeroDivisionError)


def test_shared_options() -> None:
    given = options.parser("x", "...").parse_args([])
    assert given.threads is None and given.json is False
    given = options.parser("x", "...").parse_args(["--threads", "3", "--json"])
    assert given.threads == 3 and given.json is True


@pytest.mark.parametrize("value", ["nan", "-0.1", "1.1", "inf", "x", ""])
def test_numbers_outside_their_range(value: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        options.number(0, 1)(value)
    assert options.number(0, 1)("0.5") == 0.5


def test_neither_numba_nor_a_pipe_that_closes_gets_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    tiny.write(path)
    heavy = ("numba", "llvmlite", "tokenizers", "jinja2")
    code = f"import sys, engine.inspect; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    child = subprocess.Popen(
        [sys.executable, "-m", "engine.inspect", path], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout and child.stderr
    child.stdout.close()
    assert child.stderr.read() == b"" and child.wait() == 0
    child.stderr.close()
