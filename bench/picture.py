"""A picture of what `bench.compare --json FILE` measured: us as a multiple of llama.cpp, with the spread of the turns.

python -m bench.picture bench/results/compare.json bench/results/compare.png        # needs matplotlib, extra `plot`
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

US, PEER = "intengine", "llama.cpp"
COLOURS = {"prompt 256": "#4878a8", "prompt 512": "#88aed0", "decode": "#d08040"}
LABEL = 0.43
"""The part of the width that a label needs."""


def draw(found: dict[str, Any], to: Path) -> None:
    """One group of bars for each file: medians of the turns' ratios, the speeds written beside them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 0.9 + 1.1 * len(found["files"])))
    places, names, right = [], [], 1.0
    for n, file in enumerate(found["files"]):
        for i, (work, colour) in enumerate(COLOURS.items()):
            us, peer = (file["speeds"][work][side] for side in (US, PEER))
            ratios = sorted(a / b for a, b in zip(us, peer))
            y = n * 4 + i
            axes.barh(y, median(ratios), color=colour, height=0.9)
            axes.plot([ratios[0], ratios[-1]], [y, y], color="black", linewidth=1)
            label = f"{work}: {median(us):,.0f} tokens/s, {PEER} {median(peer):,.0f}"
            axes.text(ratios[-1] + 0.06, y, label, va="center", size=8)
            right = max(right, ratios[-1] / (1 - LABEL))
        places.append(n * 4 + 1)
        names.append(file["file"].removesuffix(".gguf"))
    axes.axvline(1, color="black", linewidth=1, linestyle=":")
    axes.set_yticks(places, names)
    axes.set_xlim(0, right)
    axes.invert_yaxis()
    axes.set_xlabel(f"speed, {PEER} = 1 (median of {found['repeats']} turns; line: least and most)")
    axes.set_title(f"{found['machine']}, {found['roof']['threads']} threads, {found['roof']['level']}", fontsize=10)
    figure.tight_layout()
    figure.savefig(to, dpi=110)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Draw what bench.compare measured.")
    parser.add_argument("results", type=Path)
    parser.add_argument("picture", type=Path)
    given = parser.parse_args()
    draw(json.loads(given.results.read_text()), given.picture)
    sys.stdout.write(f"{given.picture}\n")


if __name__ == "__main__":
    main()
