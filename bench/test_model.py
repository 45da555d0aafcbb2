"""A whole model:  python -m pytest bench/test_model.py --benchmark-only [-k q4]

Random weights in the shape of Qwen2.5-0.5B, made on the spot (`bench/models.py`). `extra_info`: tokens a second, GB/s of
weights and cache read while decoding, the peak of memory, and how it compares with file + cache + 200 MB. The time to the
first token is that of a whole command, `python -m engine.generate`, with an empty kernel cache (cold) and with a full one.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.compare import PROMPT, TOKENS, Process, bytes_per_token
from bench.models import SHAPES, model_file
from engine.threads import default_threads

ROOT = Path(__file__).parents[1]
MODEL = "qwen2.5-0.5b"
CONTEXT = 4096
PROMPT_TEXT = "Once upon a time"


@pytest.fixture(scope="module", params=["Q4_0", "Q8_0"])
def file(request: pytest.FixtureRequest) -> Path:
    return model_file(MODEL, request.param)


@pytest.fixture(scope="module")
def side(file: Path) -> Iterator[Process]:
    """The model in a process of its own, in which nothing else takes memory."""
    options = ["--threads", str(default_threads()), "--context", str(CONTEXT)]
    side = Process([sys.executable, "-m", "bench.own_side", str(file), *options], ROOT)
    yield side
    side.close()


def ids(count: int, draw: np.random.Generator) -> list[int]:
    return draw.integers(3, SHAPES[MODEL].vocab - 400, count).tolist()


def measure(benchmark: BenchmarkFixture, side: Process, command: dict[str, Any], prompt: int, tokens: int) -> float:
    """The median of what the process says it took: seconds; new ids each time, so that nothing is reused."""
    draw = np.random.default_rng(0)
    seconds: list[float] = []
    benchmark.pedantic(
        lambda ids: seconds.append(side.ask(ids=ids, **command)["seconds"]),
        setup=lambda: ((ids(prompt, draw),), {}), rounds=7, warmup_rounds=1,
    )  # fmt: skip
    middle = float(np.median(seconds[1:]))
    benchmark.extra_info.update({"threads": default_threads(), "tokens/s": round(tokens / middle, 2)})
    return middle


@pytest.mark.parametrize("prompt", [256, 512])
def test_prefill(benchmark: BenchmarkFixture, side: Process, prompt: int) -> None:
    measure(benchmark, side, {"do": "prefill"}, prompt, prompt)


def test_decode(benchmark: BenchmarkFixture, side: Process, file: Path) -> None:
    seconds = measure(benchmark, side, {"do": "decode", "tokens": TOKENS}, PROMPT, TOKENS)
    benchmark.extra_info["GB/s"] = round(bytes_per_token(file) * TOKENS / seconds / 1e9, 2)


def test_decode_after_3500(benchmark: BenchmarkFixture, side: Process) -> None:
    """The cost of a token after 3,500 others, beside its cost after 100."""
    near = [side.ask(do="decode", ids=ids(100, np.random.default_rng(i)), tokens=32)["seconds"] for i in range(3)]
    draw = np.random.default_rng(9)
    far: list[float] = []
    benchmark.pedantic(
        lambda: far.append(side.ask(do="decode", ids=ids(3500, draw), tokens=32)["seconds"]), rounds=3, iterations=1
    )
    benchmark.extra_info.update({
        "tokens/s after 100": round(32 / float(np.median(near)), 2),
        "tokens/s after 3500": round(32 / float(np.median(far)), 2),
        "cost": round(float(np.median(far) / np.median(near)), 3),
    })  # fmt: skip


def test_peak_memory(benchmark: BenchmarkFixture, side: Process, file: Path) -> None:
    """After the others: the largest memory that the process ever had."""
    peak = benchmark.pedantic(lambda: side.ask(do="prefill", ids=[3, 4, 5])["peak_mb"], rounds=1)
    shape = SHAPES[MODEL]
    cache = 2 * 2 * shape.layers * shape.kv_heads * shape.head_size * CONTEXT
    allowed = (1.2 * file.stat().st_size + cache) / 2**20 + 200
    benchmark.extra_info.update({"peak MiB": round(peak), "allowed MiB": round(allowed), "load_s": side.hello["load_s"]})


@pytest.mark.parametrize("start", ["cold", "warm"])
def test_first_token(benchmark: BenchmarkFixture, file: Path, start: str, tmp_path: Path) -> None:
    """From the command to its first token, the start of Python included."""
    folders = (tmp_path / f"cache{i}" if start == "cold" else tmp_path / "cache" for i in range(100))

    def run(folder: Path) -> None:
        command = [sys.executable, "-m", "engine.generate", "--model", str(file), "--max-tokens", "1"]
        environment = os.environ | {"INTENGINE_CACHE": str(folder)}
        options = ["--temperature", "0", "--threads", str(default_threads()), PROMPT_TEXT]
        subprocess.run([*command, *options], cwd=ROOT, env=environment, check=True, capture_output=True)

    cold = start == "cold"
    benchmark.pedantic(
        run, setup=lambda: ((next(folders),), {}), rounds=3 if cold else 7, warmup_rounds=0 if cold else 1
    )
