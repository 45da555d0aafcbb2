"""A model in integers alone: no float in any kernel that runs, the same integers everywhere, close to the float model."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import model_run
import numpy as np
import pytest
import tiny
import truth
from small_kernels import add_from_left
from test_model import STORY, shared

import engine
import models.pretrained
from engine.threads import LOOP_KERNELS
from kernels.compiler import entry_name, llvm_module
from kernels.registry import Kernel, marks
from kernels.run import FIRST, LOGIT_ROW, LOGIT_ROWS, POSITION, ROWS, TOKEN, WIDTH
from kernels.target import host, target_machine
from kernels.types import F32, I32, I64, Int

MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"arch": "qwen2", "type": "Q8_0", "tied": True},
    "k": {"type": "Q4_K_M", "rope_divisors": True},
    "odd": {"heads": 3, "kv_heads": 1, "head_size": 10, "hidden": 50, "ff": 77, "layers": 2},
}
CALIBRATION = "the cat was on the hill and the king saw it there; he was not in the house of the one who said so. " * 4
VALID = Path(__file__).parents[2] / "shared" / "corpus" / "valid.txt"


def load(path: Path, **options: Any) -> engine.LLM:
    return engine.load(path, **{"integer_only": True, "calibration": CALIBRATION} | options)


def kernels_of(llm: engine.LLM) -> list[Kernel]:
    """All that this model runs: the loop, the forward pass, sampling, scoring."""
    steps = (llm._loaded.steps, llm._sampling.steps, llm._sampling.scoring)
    return [*LOOP_KERNELS, *(kernel for table in steps for kernel in table.kernels)]


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A model file, and what it gives with one thread and the prompt at once."""
    path = tmp_path_factory.mktemp("models") / f"{request.param}.gguf"
    tiny.write(path, **MODELS[request.param])
    with load(path, threads=1) as llm:
        return path, model_run.run(llm)


# ---- no floats ----

FLOAT_TYPES = r"\b(half|bfloat|float|double|x86_fp80|fp128|ppc_fp128)\b"
FLOAT_INSTRUCTIONS = (
    r"v?(add|sub|mul|div|sqrt|min|max|addsub|hadd|hsub|round|rndscale|rcp|rcp14|rsqrt|rsqrt14|dp|cmp[a-z_]*|u?comi"
    r"|fn?m(add|sub|addsub|subadd)\d*)[sp][sdh]"  # SSE, AVX, AVX-512
    r"|v?cvt[a-z0-9]+"
    r"|f(add|sub|mul|div|sqrt|abs|chs|com|ucom|tst|prem|rndint|ild|ist|cvt|rint|cmp|ccmp|max|min|neg|n?ml|madd)[a-z0-9]*"
    r"|[su]cvtf"
)


def float_uses(kernel: Kernel) -> list[str]:
    """What of floats is in a kernel that is compiled afresh for this processor: types in its LLVM, instructions."""
    module = llvm_module(kernel, host())
    return uses_in(str(module), target_machine(host()).emit_assembly(module), entry_name(kernel))


def uses_in(text: str, assembly: str, entry: str) -> list[str]:
    """Float types in LLVM's text and float instructions in an assembly listing, neither of which may be a stub."""
    body = re.search(r"define [^\n]*" + re.escape(entry) + r"[^\n]*\{\n(.*?)\n\}", text, re.DOTALL)
    instructions = re.findall(r"^\s+([a-z][a-z0-9_.]*)\s", assembly, re.MULTILINE)
    assert body and len(body[1].splitlines()) > 5, f"{entry}: no LLVM to look at"
    assert entry in assembly and len([i for i in instructions if not i.startswith(".")]) > 5, f"{entry}: no assembly"
    return re.findall(FLOAT_TYPES, text) + [i for i in instructions if re.fullmatch(FLOAT_INSTRUCTIONS, i)]


def test_no_kernel_that_ran_has_a_float(model: tuple[Path, dict[str, Any]]) -> None:
    """Compiled afresh: a cached kernel is machine code without a listing."""
    path, _ = model
    if path.stem != "llama":
        pytest.skip("all models run the same kernels")
    with load(path, threads=2) as llm:
        model_run.run(llm)
        llm.score(model_run.IDS)
        kernels = kernels_of(llm)
    assert {"lead", "integer_matmul", "integer_attention", "integer_choose"} <= {k.name for k in kernels}
    assert len(kernels) >= 15
    assert {kernel.name: float_uses(kernel) for kernel in kernels} == {kernel.name: [] for kernel in kernels}


def test_all_models_run_the_same_kernels(model: tuple[Path, dict[str, Any]]) -> None:
    path, _ = model
    with load(path, threads=1) as llm:
        names = {kernel.name for kernel in kernels_of(llm)} - {kernel.name for kernel in LOOP_KERNELS}
    assert len(names) == 12 and all(name.startswith("integer_") for name in names)


def float_add(rank: Int, size: Int, run: I64, out: F32, x: F32) -> None:
    for i in range(run[0]):
        out[i] = x[i] + x[i + 1]


def float_compare(rank: Int, size: Int, run: I64, out: I32, x: F32) -> None:
    for i in range(run[0]):
        out[i] = 3 if x[i] > x[i + 1] else 5


def float_conversion(rank: Int, size: Int, run: I64, out: F32, x: I32) -> None:
    for i in range(run[0]):
        out[i] = x[i]


def float_between(rank: Int, size: Int, run: I64, out: I32, x: I32) -> None:
    """A float that never touches memory."""
    for i in range(run[0]):
        out[i] = np.int32(np.float32(x[i]) * np.float32(0.3))


@pytest.mark.parametrize("body", [float_add, float_compare, float_conversion, float_between])
def test_planted_floats_are_found(body: Any) -> None:
    operands = {name: mark for name, mark in marks(body).items() if name in ("out", "x")}
    found = float_uses(Kernel(body.__name__, body, operands))
    assert [use for use in found if re.fullmatch(FLOAT_TYPES, use)]
    assert [use for use in found if re.fullmatch(FLOAT_INSTRUCTIONS, use)]


def test_an_empty_listing_is_not_a_proof() -> None:
    module = llvm_module(add_from_left, host())
    text, assembly = str(module), target_machine(host()).emit_assembly(module)
    entry = entry_name(add_from_left)
    assert uses_in(text, assembly, entry) == []
    for empty in [("", ""), (text, ""), ("", assembly), (text, ".text\n"), (text, assembly.replace(entry, "other"))]:
        with pytest.raises(AssertionError, match=r"no LLVM|no assembly"):
            uses_in(*empty, entry)


# ---- the same integers ----


@pytest.mark.parametrize("threads, chunk", [(1, 1), (2, 256), (2, 7), (3, 5), (3, 256)])
def test_threads_and_chunks(model: tuple[Path, dict[str, Any]], threads: int, chunk: int) -> None:
    path, expected = model
    with load(path, threads=threads, chunk=chunk) as llm:
        assert model_run.run(llm) == expected


OTHER = """
import json, sys
import engine, model_run
from test_integer_only import CALIBRATION
with engine.load(sys.argv[1], threads=2, chunk=16, integer_only=True, calibration=CALIBRATION) as llm:
    sys.stdout.write(json.dumps(model_run.run(llm)))
"""


def test_generic_code(model: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> None:
    """The same integers from code for any processor, calibration included."""
    path, expected = model
    base = tmp_path_factory.getbasetemp()
    root = Path(__file__).parents[1]
    environment = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "INTENGINE_CACHE": str(base / "generic")}
    environment |= {"PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}"}
    command = [sys.executable, "-c", OTHER, str(path)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected


def test_python_gives_the_same_integers(model: tuple[Path, dict[str, Any]]) -> None:
    """The whole table as plain Python, where every bound is checked and an overflow is an error."""
    path, _ = model
    with load(path, threads=1, context=32) as llm:
        loaded = llm._loaded
        rows = loaded.team.run_block[FIRST:].reshape(-1, WIDTH)
        rows[:3, TOKEN], rows[:3, POSITION], rows[:2, LOGIT_ROW] = (5, 100, 41), (0, 1, 2), (0, 2)
        loaded.team.run_block[ROWS], loaded.team.run_block[LOGIT_ROWS] = 3, 2
        loaded.team.run(loaded.table)
        logits = loaded.state.scratch["logits"]
        compiled = logits[:2].copy()
        logits[:] = 0
        with np.errstate(over="raise"):
            loaded.steps.replay(loaded.team.run_block)
        np.testing.assert_array_equal(logits[:2], compiled)
        assert len(np.unique(compiled)) > 100


def test_logits_are_integers_with_one_scale(model: tuple[Path, dict[str, Any]]) -> None:
    path, _ = model
    with load(path, threads=2) as llm:
        logits = llm.logits(model_run.IDS[:9])
        held = llm._loaded.state.scratch["logits"][:9, : llm.config.vocab_size]
        assert held.dtype == np.int32
        np.testing.assert_array_equal(logits.astype(np.float64) * 2.0**llm._loaded.logit_bits, held)


# ---- close to the float model ----


def test_tiny_models_are_close_to_the_truth(model: tuple[Path, dict[str, Any]]) -> None:
    """On text like that of the calibration: measured 2e-4 to 5e-4 nats, where a wrong rotation alone costs 0.01."""
    path, _ = model
    scale = 8 if MODELS[path.stem].get("tied") else 1  # as in `test_model.py`
    with load(path, threads=2) as llm:
        ids = llm.tokenize(CALIBRATION)[:90]
        found = llm.logits(ids)
    assert truth.kl(truth.forward(path, ids) / scale, found / scale) < 0.001


def perplexity(llm: engine.LLM, texts: list[list[int]]) -> float:
    logprobs = [value for ids in texts for value in llm.score(ids).logprobs]
    return math.exp(-math.fsum(logprobs) / len(logprobs))


HELD_OUT = {  # the float model that tells the stories, and the file that is run in integers
    "stories260K": ("F32", "F32"),
    "stories260K from Q8_0": ("F32", "Q8_0"),
    "embedded, float": ("story-f16.gguf", "story-f16.gguf"),
    "embedded": ("story.gguf", "story.gguf"),
}


def held_out_path(name: str) -> Path:
    """A shared or an embedded model; the test is skipped where it isn't there."""
    if not name.endswith(".gguf"):
        return shared(name)
    path = Path(models.pretrained.__file__).parent / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path


@pytest.mark.parametrize("name", HELD_OUT)
def test_perplexity_within_three_percent(name: str) -> None:
    """On 12 stories that the float model tells at temperature 1, on other people's prose, and stories260K on its published
    greedy story; all held out, since the calibration is the built-in text.

    Measured (`pytest -s -k perplexity` shows it): stories260K +1.1, +1.3, +0.6 %; the embedded model's float file +1.8 and
    +1.3 %. (That story, of 200 tokens, is too short to measure a model that didn't tell it: +2 to +6 % there.)
    """
    told_by, run = (held_out_path(part) for part in HELD_OUT[name])
    with engine.load(told_by, threads=2) as floats:
        bos, length = floats.tokenizer.bos_id, floats.context - 12
        told = [floats.generate([bos], max_tokens=min(400, length), temperature=1.0, seed=n).ids for n in range(12)]
        texts = {"told": [[bos, *ids] for ids in told]}
        if name.startswith("stories260K"):
            texts["greedy"] = [floats.tokenize(STORY)]
        if VALID.exists():
            ids = floats.tokenize(VALID.read_text(encoding="utf-8")[:16000], bos=False)
            texts["prose"] = [[bos, *ids[i : i + length]] for i in range(0, len(ids) - length, length)][:8]
        expected = {name: perplexity(floats, found) for name, found in texts.items()}
    with engine.load(run, threads=2, integer_only=True) as llm:
        ratios = {name: perplexity(llm, found) / expected[name] for name, found in texts.items()}
    assert all(0.97 < ratio <= 1.03 for ratio in ratios.values()), ratios
    sys.stdout.write(
        f"{name}: " + ", ".join(f"{key} {100 * (ratio - 1):+.2f} %" for key, ratio in ratios.items()) + "\n"
    )


def test_a_story_in_integers() -> None:
    with engine.load(shared("F32"), threads=2, integer_only=True) as llm:
        text = llm.generate("Once upon a time", max_tokens=120).text
    assert text.startswith(", there was a little girl named Lily. She loved to play outside in the park.")


# ---- calibration ----


def test_calibration_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tiny.gguf"
    tiny.write(path)
    with engine.load(path, integer_only=True, threads=1) as llm:
        built_in = llm.logits([5, 6, 7])
        assert f"{path}: no static scales, calibrating on a short built-in text\n" in capsys.readouterr().err
    with load(path, threads=1) as llm:
        own = llm.logits([5, 6, 7])
        assert "calibrating" not in capsys.readouterr().err
    assert not np.array_equal(built_in, own) and np.abs(built_in - own).max() < 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibration": " \n"}, "calibration: the text is empty"),
        ({"integer_only": False}, "calibration: a text is given, but .* integer_only=True"),
        ({"context": 161}, "context: 161 .* trained for 160"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    tiny.write(path)
    with pytest.raises(engine.OptionError, match=message):
        load(path, **options)
