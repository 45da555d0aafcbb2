"""python -m engine.evaluate MODEL... --text FILE [--against OTHER]: how good models are on a text, and what they cost.

    perplexity       exp(mean of -ln p) over the text's tokens, each predicted once
    bits per byte    sum of -log2 p, over the bytes of these tokens: comparable between vocabularies
    KL               sum p ln(p / q) of OTHER's prediction p and the model's q at a token, in nats; mean and 99th percentile
    top-1            how often both hold the same token to be the most likely
    arithmetic       integers (our static INT8 form, and any model with --integer-only), or floats
    bits per weight  of the tensors as they are stored
    read, write      tokens a second: of this text, and generated one by one

The text is one stream, cut into windows that overlap by one token; documents in it are parted by lines `<|endoftext|>`.
OTHER is usually the float model that the others were made from.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from engine import options
from engine.calibration_text import read_text, token_stream
from engine.errors import EngineError, OptionError
from engine.escape import escape
from engine.explain import save_figure
from engine.open_model import is_static, open_model
from engine.static_int8 import StaticFile

if TYPE_CHECKING:
    from engine.llm import LLM

WINDOW, DECODED, ROWS_AT_ONCE = 512, 64, 64


@dataclass(frozen=True, slots=True)
class Figures:
    """What was found of one model; None for what was not asked for, or can't be measured."""

    model: str
    arithmetic: str
    size: int
    bits_per_weight: float
    tokens: int
    perplexity: float
    bits_per_byte: float
    kl: float | None
    kl_99: float | None
    top_1: float | None
    read: float
    write: float | None


def evaluate(
    path: str, text: str, against: str | None, tokens: int, threads: int | None, integer_only: bool = False
) -> Figures:
    """Evaluates a model on a text, against another, which runs as its file says whatever `integer_only` is.

    Raises EngineError for models that can't be read, texts that are too short, and models of different vocabularies.
    """
    from engine.llm import load

    model = load(path, threads=threads, integer_only=integer_only)
    other = None
    try:
        other = load(against, threads=threads) if against else None
        return _figures(path, model, other, text, tokens)
    finally:
        model.close()
        if other:
            other.close()


def _figures(path: str, model: LLM, other: LLM | None, text: str, tokens: int) -> Figures:
    stream = token_stream(model.tokenizer, text)[: tokens + 1]
    if other and token_stream(other.tokenizer, text[:10000]) != token_stream(model.tokenizer, text[:10000]):
        raise OptionError(f"{escape(path, 300)}: its vocabulary is not that of the model it is to be compared with")
    length = min(WINDOW, model.context, other.context if other else WINDOW)
    if len(stream) < 2:
        raise OptionError("--text: has fewer than two tokens; give a longer text")
    nats: list[np.ndarray] = []
    kl: list[np.ndarray] = []
    same = 0
    seconds = 0.0
    starts = range(0, len(stream) - 1, length)
    model.logits(stream[:1])  # not measured: first use
    for start in tqdm(
        starts, unit="window", file=sys.stderr, disable=not sys.stderr.isatty(), desc=os.path.basename(path)
    ):
        ids = stream[start : start + length + 1]
        begin = time.perf_counter()
        found = model.logits(ids[:-1])
        seconds += time.perf_counter() - begin
        truth = other.logits(ids[:-1]) if other else None
        for rows in _slices(len(found)):
            q = log_softmax(found[rows])
            nats.append(-q[np.arange(len(q)), ids[1:][rows]])
            if truth is not None:
                p = log_softmax(truth[rows])
                kl.append(np.sum(np.exp(p) * (p - q), axis=1))
                same += int(np.sum(p.argmax(1) == q.argmax(1)))
    loss, divergence = np.concatenate(nats), np.concatenate(kl) if kl else None
    text_bytes = sum(len(model.tokenizer.piece(id_)) for id_ in stream[1:])
    size, bits = sizes(path)
    return Figures(
        model=path,
        arithmetic="integers" if model.integer_only else "floats",
        size=size,
        bits_per_weight=bits,
        tokens=len(loss),
        perplexity=math.exp(loss.mean()),
        bits_per_byte=float(loss.sum() / math.log(2) / max(text_bytes, 1)),
        kl=None if divergence is None else float(divergence.mean()),
        kl_99=None if divergence is None else float(np.percentile(divergence, 99)),
        top_1=None if divergence is None else same / len(loss),
        read=len(loss) / seconds,
        write=_decoding_speed(model, stream),
    )


def _slices(count: int) -> Iterator[slice]:
    return (slice(start, min(start + ROWS_AT_ONCE, count)) for start in range(0, count, ROWS_AT_ONCE))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities (T, V) float64."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=1, keepdims=True))


def _decoding_speed(model: LLM, stream: list[int]) -> float | None:
    """Tokens a second when they are generated one by one; None for a model whose context is too short for that."""
    if model.context < 2 * DECODED:
        return None
    timings = model.generate(stream[:DECODED], max_tokens=DECODED, ignore_eos=True).timings
    return float(timings.generated_tokens / timings.decode_s) if timings.decode_s else None


def sizes(path: str) -> tuple[int, float]:
    """The file's size in bytes, and the bits that a weight takes in it on average, scales included."""
    if is_static(path):
        with StaticFile.open(path) as form:
            return form.size, form.bits_per_weight
    with open_model(path) as file:
        weights = sum(math.prod(t.shape) for t in file.tensors.values())
        return file.size, 8 * sum(t.nbytes for t in file.tensors.values()) / weights


COLUMNS = {
    "model": "", "arithmetic": "arithmetic", "size": "MB", "bits_per_weight": "bits/weight", "perplexity": "perplexity",
    "bits_per_byte": "bits/byte", "kl": "KL", "kl_99": "KL 99 %", "top_1": "top-1", "read": "read tok/s",
    "write": "write tok/s",
}  # fmt: skip


def table(found: list[Figures]) -> str:
    """The figures as a Markdown table."""
    formats = {
        "model": lambda v: escape(os.path.basename(v), 60), "arithmetic": lambda v: v, "size": lambda v: f"{v / 1e6:.2f}",
        "bits_per_weight": lambda v: f"{v:.2f}", "perplexity": lambda v: f"{v:.4f}", "bits_per_byte": lambda v: f"{v:.4f}",
        "kl": lambda v: f"{v:.5f}", "kl_99": lambda v: f"{v:.4f}", "top_1": lambda v: f"{v:.2%}",
        "read": lambda v: f"{v:.0f}", "write": lambda v: f"{v:.0f}",
    }  # fmt: skip
    rows = [list(COLUMNS.values())]
    for figures in found:
        values = asdict(figures)
        rows.append(["" if values[key] is None else formats[key](values[key]) for key in COLUMNS])
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    rule = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    aligned = [
        [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))] for row in [*rows[:1], *rows[1:]]
    ]
    aligned.insert(1, rule)
    return "\n".join("| " + " | ".join(row) + " |" for row in aligned) + "\n"


def plot(found: list[Figures], path: str) -> None:
    """Draws size against loss: KL divergence where it was measured, else perplexity."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise EngineError(
            "--plot: package 'matplotlib' is missing; install the extra: pip install 'intengine[plot]'"
        ) from None
    measured = all(f.kl is not None for f in found)
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for f in found:
        loss = f.kl if measured and f.kl is not None else f.perplexity
        axes.plot(f.size / 1e6, loss, "o")
        axes.annotate(
            os.path.basename(f.model), (f.size / 1e6, loss), textcoords="offset points", xytext=(5, 4), fontsize=8
        )
    axes.set(xlabel="size, MB", ylabel="KL divergence, nats" if measured else "perplexity")
    axes.grid(alpha=0.3)
    save_figure(figure, path)


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = options.parser("evaluate", "How good models are on a text, and what they cost.")
    made.add_argument("models", nargs="+", metavar="MODEL", help="GGUF files, or files of our static INT8 form")
    made.add_argument("--text", required=True, metavar="FILE", help="held-out text, UTF-8")
    made.add_argument("--against", metavar="OTHER", help="the model to compare predictions with")
    made.add_argument(
        "--integer-only", action="store_true", help="compute the models in integers alone, GGUF files too; not OTHER"
    )
    made.add_argument(
        "--tokens", type=options.whole(2, 1 << 30), default=1 << 15, help="of the text to use (default: %(default)s)"
    )
    made.add_argument("--plot", metavar="FILE.png", help="draw size against loss")
    return made


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return options.run(_evaluate, parser(), argv)


def _evaluate(given: argparse.Namespace) -> None:
    text = read_text(given.text)
    found = [
        evaluate(path, text, given.against, given.tokens, given.threads, given.integer_only) for path in given.models
    ]
    sys.stdout.write(table(found))
    if given.plot:
        plot(found, given.plot)
    if given.json:
        options.write_json([asdict(f) for f in found])


if __name__ == "__main__":
    sys.exit(main())
