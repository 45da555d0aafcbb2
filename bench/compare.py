"""Us and llama.cpp on the same files, in one run, turn by turn: medians and their ratio.

    python -m bench.compare --peer /path/to/python          # a Python that has llama-cpp-python; without it, we run alone
    python -m bench.compare --peer ... --models qwen2.5-0.5b llama-3.2-1b --types Q4_0 Q4_K_M --repeats 7
    python -m bench.compare --peer ... --file model.gguf    # any file

Both sides load the same file, each in a process of its own, and answer one after the other, never at once, `--repeats`
times; the order is turned round each time. Measured are prompts of 256 and 512 tokens, and 128 tokens generated after 128,
all of random ids. `memory` is what a token reads: packed weights, in the types of the file, and the cache at the middle of
the generation; as GB/s, and as a share of what `bench.roof` reads, measured again in each turn: on shared machines that
changes from minute to minute. What is over in less than 0.3 s is repeated, and its median counts as the turn. A turn begins
with a prompt that doesn't count: processors that slept while the other side worked are slow at first.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from gguf import GGUFReader

from bench import models, roof
from engine.threads import default_threads

PROMPTS = (256, 512)
PROMPT, TOKENS = 128, 128
PAUSE = 0.05  # seconds after a turn, until the other side's threads sleep
LEAST = 0.3  # seconds that a turn lasts
IN_CACHE = 64e6  # bytes below which a model isn't read from memory for each token


class Process:
    """One side: a process that answers commands."""

    def __init__(self, command: list[str], folder: Path) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": folder}
        self._process = subprocess.Popen(command, **pipes)  # type: ignore[call-overload]
        self.hello = self._answer()

    def ask(self, **command: Any) -> dict[str, Any]:
        """The answer to one command."""
        return self.ask_line(json.dumps(command))

    def ask_line(self, line: str) -> dict[str, Any]:
        """The answer to a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args}: ended with exit code {self._process.wait()}")
        return dict(json.loads(line))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@dataclass(slots=True)
class Result:
    """What was measured on one file: tokens a second of each turn, by side and by kind of work."""

    file: str
    bytes_per_token: int
    speeds: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    read_gb: list[float] = field(default_factory=list)
    hello: dict[str, dict[str, Any]] = field(default_factory=dict)
    peak_mb: float = 0.0

    def add(self, side: str, work: str, speed: float) -> None:
        """Keep one turn."""
        self.speeds.setdefault(work, {}).setdefault(side, []).append(speed)


def bytes_per_token(path: Path) -> int:
    """Bytes that a token reads: all weights but an untied embedding, and a float16 cache of PROMPT + TOKENS / 2 tokens."""
    reader = GGUFReader(path)
    tensors = {tensor.name: int(tensor.n_bytes) for tensor in reader.tensors}
    if "output.weight" in tensors:
        tensors.pop("token_embd.weight")
    arch = str(reader.fields["general.architecture"].contents())

    def size(name: str, default: Any = None) -> Any:
        field_ = reader.fields.get(f"{arch}.{name}")
        return default if field_ is None else field_.contents()

    head_size = size("attention.key_length", size("embedding_length") // size("attention.head_count"))
    kv_heads = size("attention.head_count_kv", size("attention.head_count"))
    return sum(tensors.values()) + 2 * 2 * size("block_count") * kv_heads * head_size * (PROMPT + TOKENS // 2)


def compare(path: Path, peer: str | None, threads: int, repeats: int) -> Result:
    """Measure one file on both sides, turn by turn."""
    here = Path(__file__).parent
    reader = GGUFReader(path)
    vocab = next(int(tensor.shape[1]) for tensor in reader.tensors if tensor.name == "token_embd.weight")
    arch = str(reader.fields["general.architecture"].contents())
    context = min(1024, int(reader.fields[f"{arch}.context_length"].contents()))
    options = [str(path.resolve()), "--threads", str(threads), "--context", str(context)]
    sides = {"intengine": Process([sys.executable, "-m", "bench.own_side", *options], here.parent)}
    if peer:
        sides["llama.cpp"] = Process([peer, str(here / "llama_cpp_side.py"), *options], here.parent)
    result = Result(path.name, bytes_per_token(path), hello={name: side.hello for name, side in sides.items()})
    draw = random.Random(0)
    order = list(sides)
    with roof.Reading(threads) as reading:
        for turn in range(-1, repeats):  # the first turn warms up
            for work in [f"prompt {n}" for n in PROMPTS if n <= context] + ["decode"]:
                for name in order:
                    time.sleep(PAUSE)
                    speed = _turn(sides[name], work, vocab, draw, result)
                    if turn >= 0:
                        result.add(name, work, speed)
            if turn >= 0:
                result.read_gb.append(reading.gb())
            order.reverse()
    for side in sides.values():
        side.close()
    return result


def _turn(side: Process, work: str, vocab: int, draw: random.Random, result: Result) -> float:
    """Tokens a second of one side in one turn."""
    count = PROMPT if work == "decode" else int(work.split()[1])
    command = {"do": "decode", "tokens": TOKENS} if work == "decode" else {"do": "prefill"}
    times: list[float] = []

    def ids() -> list[int]:
        return [draw.randrange(3, vocab - 400 if vocab > 1000 else vocab) for _ in range(count)]

    if work != "decode":  # which has its prompt before it
        side.ask(do="prefill", ids=ids())
    while sum(times) < LEAST:
        answer = side.ask(ids=ids(), **command)
        result.peak_mb = max(result.peak_mb, answer.get("peak_mb", 0.0))
        times.append(answer["seconds"])
    return (TOKENS if work == "decode" else count) / median(times)


def lines(result: Result) -> list[str]:
    """The rows of the table for one file."""
    rows = []
    for work, sides in result.speeds.items():
        ours, theirs = sides["intengine"], sides.get("llama.cpp")
        cells = [result.file.removesuffix(".gguf"), work, f"{median(ours):.1f}", _spread(ours)]
        if theirs:
            ratios = [a / b for a, b in zip(ours, theirs)]
            cells += [f"{median(theirs):.1f}", _spread(theirs), f"{median(ours) / median(theirs):.2f}", _spread(ratios, 2)]
        else:
            cells += ["", "", "", ""]
        if work == "decode" and result.bytes_per_token > IN_CACHE:
            gb = [speed * result.bytes_per_token / 1e9 for speed in ours]
            share = median(100 * used / all_ for used, all_ in zip(gb, result.read_gb))
            cells += [f"{median(gb):.1f} of {median(result.read_gb):.1f} GB/s, {share:.0f} %"]
        else:
            cells += [""]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def _spread(values: list[float], digits: int = 1) -> str:
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def processor() -> str:
    """The processor's name and the machine's kind."""
    try:
        text = Path("/proc/cpuinfo").read_text()
        name = next(line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor()
    return f"{name}, {platform.machine()}, {os.cpu_count()} processors"


def commit() -> str:
    """The commit of this checkout, or nothing where it isn't one."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", metavar="PYTHON", help="a Python that can import llama_cpp")
    parser.add_argument("--models", nargs="+", choices=models.SHAPES, default=["qwen2.5-0.5b"])
    parser.add_argument("--types", nargs="+", choices=models.TYPES, default=["Q4_0", "Q8_0"])
    parser.add_argument("--file", action="append", type=Path, help="measure this file; may be repeated")
    parser.add_argument("--folder", help="where the models are kept")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured to this file as well")
    options = parser.parse_args()
    files = options.file or [models.model_file(m, t, options.folder) for m in options.models for t in options.types]
    peaks = roof.measure(options.threads)
    sys.stdout.write(
        f"{processor()}; {peaks.threads} threads, {peaks.level}; roof: {peaks.read_gb:.1f} GB/s, int4 {peaks.int4_g:.0f} and"
        f" int8 {peaks.int8_g:.0f} G multiply-adds a second; NumPy {np.__version__}\n\n"
        "| file | work | ours, tokens/s | spread | llama.cpp | spread | ratio | spread | memory |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
    )
    measured = []
    for path in files:
        result = compare(path, options.peer, options.threads, options.repeats)
        sys.stdout.write("\n".join(lines(result)) + "\n")
        sys.stdout.flush()
        measured.append({"file": result.file, "bytes_per_token": result.bytes_per_token, "speeds": result.speeds,
                         "read_gb": result.read_gb, "sides": result.hello, "peak_mb": result.peak_mb})  # fmt: skip
    if options.json:
        roof_values = {name: getattr(peaks, name) for name in peaks.__slots__}
        report = {"machine": processor(), "commit": commit(), "numba": version("numba"), "numpy": np.__version__,
                  "roof": roof_values, "repeats": options.repeats, "files": measured}  # fmt: skip
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
