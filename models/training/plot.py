"""The loss curve as a picture."""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

LABELS = {
    "stable": "float, constant rate",
    "cool": "float, falling rate",
    "deep": "float, more layers, tales beside the stories, falling rate",
    "float": "float, more tales, rate to zero",
    "prefer": "float, pairs of its own tales",
    "int4": "INT4-aware, from the float model",
}


def plot_losses(source: Path, picture: Path) -> None:
    """Draw bits per byte on a few held-out windows against tokens, one line per stage, from `loss.csv`.

    A stage that was resumed wrote some steps twice: the later row counts.
    """
    stages: dict[str, dict[int, float]] = {name: {} for name in LABELS}
    with source.open(newline="") as file:
        for stage, _step, tokens, _loss, bits in csv.reader(file):
            stages[stage][int(tokens)] = float(bits)
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for stage, points in stages.items():
        rows = sorted(points.items())
        axes.plot([count / 1e6 for count, _ in rows], [bits for _, bits in rows], label=LABELS[stage])
    axes.set_xlabel("tokens trained, millions")
    axes.set_ylabel("bits per byte, held-out windows")
    axes.set_ylim(top=2.0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)
