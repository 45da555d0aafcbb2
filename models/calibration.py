"""What a float model's activations range over: its own table of steps, stopped after each step that matters.

    ObservedForward   writes the usual forward pass, and marks where which rows of the scratch are complete
    Ranges            the largest size of each channel at each mark, over all rows of the calibration text

Maxima don't depend on an order of adding, so these are the same numbers on every machine. Observers that want more than them
(`quantizers/observers.py`) watch a second run.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from kernels.loop import MEET
from kernels.run import LOGIT_ROWS, ROWS
from models.forward import Forward, Rows
from models.weights import Matrix


@dataclass(frozen=True, slots=True)
class Mark:
    """After `steps` steps, the scratch rows `values` hold `width` channels of what `name` names; `count`: of which rows."""

    steps: int
    name: str
    values: np.ndarray
    width: int
    count: int


class ObservedForward(Forward):
    """A forward pass whose steps are marked.

    Names: `x` (the residual stream, wherever it is), `output_in`, `logits`; of layer I, behind `blk.I.`: `attn_in`, `q` and
    `k` (both turned), `v`, `attn_out`, `ffn_in`, `up`, `product`.
    """

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.marks: list[Mark] = []
        self._layer = 0
        self._norms = 0

    def _mark(self, name: str, rows: Rows) -> None:
        assert rows.values is not None
        self.marks.append(Mark(len(self.steps), name, rows.values, rows.width, rows.count))

    def embed(self, table: Matrix, out: str) -> Rows:
        """As written, and marked."""
        made = super().embed(table, out)
        self._mark("x", made)
        return made

    def rms_norm(self, x: Rows, weight: np.ndarray, readers: list[Matrix], out: str, count: int = ROWS) -> Rows:
        """As written, and marked."""
        made = super().rms_norm(x, weight, readers, out, count)
        layer, second = divmod(self._norms, 2)
        self._norms += 1
        self._mark("output_in" if count == LOGIT_ROWS else f"blk.{layer}.{'ffn_in' if second else 'attn_in'}", made)
        return made

    def linear(
        self, x: Rows, weight: Matrix, out: str, bias: np.ndarray | None = None, add_to: Rows | None = None
    ) -> Rows:
        """As written; the residual stream and the logits are marked."""
        made = super().linear(x, weight, out, bias, add_to)
        if add_to is not None or out == "logits":
            self._mark("x" if add_to is not None else "logits", made)
        return made

    def rope_and_store(self, q: Rows, k: Rows, v: Rows, layer: int) -> None:
        """As written, and marked: q and k have turned."""
        super().rope_and_store(q, k, v, layer)
        for name, rows in (("q", q), ("k", k), ("v", v)):
            self._mark(f"blk.{layer}.{name}", rows)

    def attention(self, q: Rows, layer: int, readers: list[Matrix], out: str) -> Rows:
        """As written, and marked."""
        self._layer = layer
        made = super().attention(q, layer, readers, out)
        self._mark(f"blk.{layer}.attn_out", made)
        return made

    def silu_gate(self, gate: Rows, up: Rows, readers: list[Matrix], out: str) -> Rows:
        """As written; up is marked before, the product after."""
        self._mark(f"blk.{self._layer}.up", up)
        made = super().silu_gate(gate, up, readers, out)
        self._mark(f"blk.{self._layer}.product", made)
        return made

    def _rows(self, name: str, width: int, count: int, readers: list[Matrix]) -> Rows:
        """In floats too, for whoever reads the rows."""
        return replace(super()._rows(name, width, count, readers), values=self._scratch[name])


Watch = Callable[[str, np.ndarray], None]  # a name and its rows, (rows, width) float32, to be read at once
Ranges = dict[str, np.ndarray]  # name -> (width,) float32, the largest sizes


def observe(
    table: np.ndarray, marks: list[Mark], run: np.ndarray, go: Callable[[np.ndarray], bool], watch: Watch
) -> None:
    """Run a table once, piece by piece, and show `watch` what lies at the marks; `go` runs a table."""
    done = 0
    for end in [*sorted({mark.steps for mark in marks}), len(table)]:
        if end > done:
            part = table[done:end].copy()
            part[-1, MEET] = 1
            go(part)
            done = end
        for mark in marks:
            if mark.steps == end:
                watch(mark.name, mark.values[: run[mark.count], : mark.width])


def widening(ranges: Ranges) -> Watch:
    """A watch that widens `ranges` to the largest sizes of each channel."""

    def watch(name: str, rows: np.ndarray) -> None:
        ranges[name] = np.maximum(ranges.get(name, np.float32(0.0)), np.abs(rows).max(0, initial=0.0))

    return watch
