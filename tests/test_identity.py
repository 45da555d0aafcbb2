"""The same answer everywhere: logit bytes and sampled tokens don't depend on how a model is run.

Each way of running is compared with one thread that takes the prompt at once, on tiny models that the test writes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import model_run
import numpy as np
import pytest
import tiny

import engine
from engine.loader import load_gguf
from kernels.run import FIRST, LOGIT_ROW, LOGIT_ROWS, POSITION, ROWS, SLOT, TOKEN, WIDTH

# Each type of product, both caches, both ropes, biases, tied and not; 150 tokens, so that chunks end everywhere.
MODELS: dict[str, dict[str, Any]] = {
    "f32": {},
    "q4_0": {"type": "Q4_0", "types": {"ffn_down.weight": "F16", "output.weight": "Q8_0"}},
    "qwen2": {"arch": "qwen2", "type": "Q8_0", "tied": True},
    "k": {"type": "Q4_K_M", "rope_divisors": True},
}
WAYS = [  # threads, tokens in one run
    (1, 1), (1, 7), (2, 256), (2, 7), (2, 1), (3, 256), (3, 7), (5, 256), (5, 5),
]  # fmt: skip


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A model file, and what it gives with one thread and the prompt at once."""
    path = tmp_path_factory.mktemp("models") / f"{request.param}.gguf"
    tiny.write(path, **MODELS[request.param])
    with engine.load(path, threads=1) as llm:
        return path, model_run.run(llm)


@pytest.mark.parametrize("threads, chunk", WAYS)
def test_threads_and_chunks(model: tuple[Path, dict[str, Any]], threads: int, chunk: int) -> None:
    path, expected = model
    with engine.load(path, threads=threads, chunk=chunk) as llm:
        assert model_run.run(llm) == expected


def test_logits_reach_the_table(model: tuple[Path, dict[str, Any]]) -> None:
    """Rows that are computed together differ from each other, and a prompt's logits don't depend on what follows it."""
    path, _ = model
    with engine.load(path, threads=2) as llm:
        logits = llm.logits(model_run.IDS)
        assert len({row.tobytes() for row in logits}) == len(logits)
        assert llm.logits(model_run.IDS[:20]).tobytes() == logits[:20].tobytes()


def test_prefix_is_reused(model: tuple[Path, dict[str, Any]]) -> None:
    """A prompt that begins like the last one gives the same bytes, and less is computed."""
    path, expected = model
    with engine.load(path, threads=2) as llm:
        for cut in (1, 8, 13, 60):
            llm.generate([*model_run.IDS[:cut], 5, 6, 7], max_tokens=9, ignore_eos=True)
            made = llm.generate(model_run.IDS, **model_run.SAMPLING)
            assert made.ids == expected["ids"]
            assert made.timings.reused_tokens == cut
        assert llm.generate(model_run.IDS, **model_run.SAMPLING).timings.reused_tokens == len(model_run.IDS) - 1
        assert model_run.run(llm) == expected


def test_stale_cache_leaves_no_trace(model: tuple[Path, dict[str, Any]]) -> None:
    """What an earlier, longer text left in the cache is not seen."""
    path, expected = model
    with engine.load(path, threads=2) as llm:
        llm.logits([*reversed(model_run.IDS), *model_run.IDS])
        assert model_run.run(llm) == expected


def test_batch_of_two(model: tuple[Path, dict[str, Any]]) -> None:
    """Two sequences whose rows share their runs, at different positions, get the bytes that each gets alone."""
    path, _ = model
    first, second = model_run.IDS[:23], model_run.IDS[23:54]
    with engine.load(path, threads=2) as llm:
        alone = {0: llm.logits(second), 1: llm.logits(first)}
    found: dict[int, list[np.ndarray]] = {0: [], 1: []}
    loaded = load_gguf(path, 2, None, 16, [], slots=2)
    run = loaded.team.run_block
    rows = run[FIRST:].reshape(-1, WIDTH)
    waiting = {1: list(enumerate(first)), 0: list(enumerate(second))}
    for take in ((1, 3), (5, 0), (4, 4), (1, 1), (7, 2), (1, 9), (9, 7), (0, 9), (9, 9), (9, 9)):
        batch = [(slot, *waiting[slot].pop(0)) for slot in (0, 1) for _ in range(take[slot]) if waiting[slot]]
        for i, (slot, position, token) in enumerate(batch):
            rows[i, [TOKEN, POSITION, SLOT, LOGIT_ROW]] = token, position, slot, i
        run[ROWS] = run[LOGIT_ROWS] = len(batch)
        if batch:
            loaded.team.run(loaded.table)
        for i, (slot, _, _) in enumerate(batch):
            found[slot].append(loaded.state.scratch["logits"][i, : loaded.config.vocab_size].copy())
    loaded.team.close()
    assert not waiting[0] and not waiting[1]
    for slot in (0, 1):
        assert np.array(found[slot]).tobytes() == alone[slot].tobytes()


@pytest.mark.parametrize(
    "environment",
    [{}, {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}],
    ids=["after a restart", "generic code"],
)
def test_other_processes(
    model: tuple[Path, dict[str, Any]], environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The same bytes from kernels compiled afresh, in a process of its own, for this processor and for any other."""
    path, expected = model
    base = tmp_path_factory.getbasetemp()
    environment = environment | {"INTENGINE_CACHE": str(base / "cache")} if environment else environment
    command = [sys.executable, "-m", "tests.model_run", str(path), "2", "16"]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected
