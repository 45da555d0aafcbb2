"""Scales of a model's activations over a text: the float model runs it, watched, and says what 8-bit codes have to cover.

    windows of ids -> the float model's table of steps, stopping at its marks (`models/calibration.py`)
                        first time: the largest size of each channel        -> units (`models/quantizers/static.py`)
                        again, for observers that want more than maxima     -> limits of |x / unit|
    units, limits  -> a scale for each channel of each activation

The text is cut into windows, each of which begins with the vocabulary's start token, if it has one.
"""

from collections.abc import Sequence

import numpy as np

from engine.kernel_cache import prepare
from engine.loader import Loaded
from kernels.rope_table import rope_tables
from kernels.run import FIRST, LOGIT_ROW, LOGIT_ROWS, POSITION, ROWS, TOKEN, WIDTH
from models.architectures import ARCHITECTURES
from models.calibration import ObservedForward, Ranges, Watch, observe, widening
from models.quantizers.observers import Observer
from models.quantizers.static import SMOOTH, Tensors, activation_scales, channel_units
from models.weights import Weights

WINDOW = 256
MOST_TOKENS = 8192
HEADROOM = 1.1  # times what a short text shows; measured: costs nothing, and a text of 250 tokens loses a third less
TEXT = """\
Once upon a time there was a little girl who lived with her mother and her old grey cat in a small house near the woods. One
day she found a red ball under the big tree. "Look, Mom! I found a ball!" she said. Her mother smiled and said, "That is a
very nice ball, but it is not ours. Let us ask Tom if it is his." Tom was so happy to see his ball again that he gave them
both a hug, and they played together until the sun went down. The end.

The river runs from the hills to the sea, a distance of about 240 miles; in spring, when the snow melts, it rises by as much
as 3.5 metres in a single week. Boats carried coal, timber and wool along it until the railway was built in 1867. Nobody
expected that the old bridge would survive the flood: it did, though two of its seven arches had to be rebuilt.

"Why are you late?" asked the captain. "Because the wind changed, sir," said the boy, "and we had to row." The captain looked
at him for a long time without a word; then he laughed, put away his watch, and poured him a cup of hot tea.

To sort a list, compare each pair of neighbours and swap those that are in the wrong order; repeat until nothing moves. This
is simple, but slow: a list of n items takes about n * n / 2 comparisons. for i in range(n): print(i, x[i] + 1)

The dog ran fast. The frog did not. They were friends, and they liked to jump in the mud, but one rainy morning the frog was
sad. "What is wrong?" said the dog. "I lost my shiny stone," said the frog. So they looked in the grass, under the leaves and
behind the barn, and at last they saw it at the bottom of the pond. The frog jumped in with a big splash! "Thank you, my
friend," he said. From that day on they always shared everything they had.
"""


def calibration_windows(loaded: Loaded, text: str) -> list[list[int]]:
    """The ids of a text, MOST_TOKENS at most, in windows that the loaded model's context holds."""
    length = min(WINDOW, loaded.state.limits.context)
    start = [] if loaded.tokenizer.bos_id is None else [loaded.tokenizer.bos_id]
    ids = loaded.tokenizer.encode(text, bos=False)[:MOST_TOKENS]
    step = max(1, length - len(start))
    return [start + ids[i : i + step] for i in range(0, len(ids), step)] or [start]


def rope_divisors(loaded: Loaded) -> np.ndarray | None:
    """The divisors of a float model's rotary frequencies, where it has them: (rope_dims / 2,) float32."""
    assert isinstance(loaded.weights, Weights)
    found = loaded.weights.rope_divisors
    return None if found is None else found[: loaded.config.rope_dims // 2].copy()


def calibrated_scales(
    loaded: Loaded,
    windows: Sequence[Sequence[int]],
    tensor: Tensors,
    observer: str = "min-max",
    smooth: float = SMOOTH,
    headroom: float = 1.0,
) -> dict[str, np.ndarray]:
    """The static scales of all activations, float32 by name.

    Args:
        loaded: The model with float activations, which runs the text.
        windows: Ids, each window at most as long as its context.
        tensor: Gives the model's tensors in float32.
        observer: One of OBSERVERS.
        smooth: SmoothQuant's power, 0 for none.
        headroom: Times the ranges that the text shows.
    """
    watched = _Watched(loaded)
    seen: Ranges = {}
    watched.run(windows, widening(seen))
    ranges = {name: largest * np.float32(headroom) for name, largest in seen.items()}
    units = channel_units(loaded.config, ranges, tensor, smooth)
    if observer == "min-max":
        return activation_scales(loaded.config, ranges, units)
    observers = {name: Observer(observer) for name in units}

    def watch(name: str, rows: np.ndarray) -> None:
        if name in observers:
            observers[name].watch(rows / units[name])

    watched.run(windows, watch)
    limits = {name: found.limit() * headroom for name, found in observers.items()}
    return activation_scales(loaded.config, ranges, units, limits)


class _Watched:
    """A float model whose table stops at its marks."""

    def __init__(self, loaded: Loaded) -> None:
        config, self._limits = loaded.config, loaded.state.limits
        assert isinstance(loaded.weights, Weights)
        cos, sin = rope_tables(self._limits.context, config.rope_dims, config.rope_base, rope_divisors(loaded))
        forward = ObservedForward(config, loaded.weights, loaded.state, cos, sin)
        ARCHITECTURES[config.architecture](forward)
        prepare(forward.steps.kernels)
        self._steps, self._marks = forward.steps, forward.marks
        self._team = loaded.team

    def run(self, windows: Sequence[Sequence[int]], watch: Watch) -> None:
        """Run all windows, and show what lies at the marks."""
        table, run = self._steps.table(), self._team.run_block
        rows = run[FIRST:].reshape(-1, WIDTH)
        chunk = min(self._limits.rows, self._limits.logit_rows)
        for ids in windows:
            for start in range(0, len(ids), chunk):
                part = ids[start : start + chunk]
                count = len(part)
                rows[:count, TOKEN] = part
                rows[:count, POSITION] = np.arange(start, start + count)
                rows[:count, LOGIT_ROW] = np.arange(count)
                run[ROWS] = run[LOGIT_ROWS] = count
                observe(table, self._marks, run, self._team.run, watch)
