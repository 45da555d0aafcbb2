"""The table of steps: a forward pass written down once, which the workers then replay without Python.

row = | address of the kernel | its operands, addresses and numbers | ... | 1: all workers meet after this step |
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from kernels.compiler import Compiler, compiler, operands
from kernels.loop import MEET, STEP_WIDTH
from kernels.registry import Kernel
from kernels.types import Pointer, Scalar


class Steps:
    """A table being written. `table` freezes it; this keeps every array that it points to alive."""

    def __init__(self) -> None:
        self._rows: list[tuple[Kernel, list[int], bool]] = []
        self._values: list[dict[str, Any]] = []
        self._apart = True

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, kernel: Kernel, **values: Any) -> None:
        """Append a step; the operands go by the kernel's own names and are checked against its types."""
        numbers = operands(kernel, values)
        assert len(numbers) < MEET, f"{kernel.name}: too many operands for a step"
        self._values.append(values)
        self._rows.append((kernel, numbers, self._apart))

    @contextmanager
    def together(self) -> Iterator[None]:
        """Steps inside read nothing that the others inside write: the workers meet only after the last."""
        assert self._apart, "together can't be nested"
        self._apart = False
        before = len(self._rows)
        try:
            yield
        finally:
            self._apart = True
            if len(self._rows) > before:
                kernel, numbers, _ = self._rows[-1]
                self._rows[-1] = (kernel, numbers, True)

    @property
    def kernels(self) -> list[Kernel]:
        """The kernels that the table needs, each once."""
        return list({kernel.name: kernel for kernel, _, _ in self._rows}.values())

    def table(self, using: Compiler = compiler) -> np.ndarray:
        """The finished table, (steps, STEP_WIDTH) int64, read-only; compiles what it needs."""
        addresses = using.addresses(self.kernels)
        table = np.zeros((len(self._rows), STEP_WIDTH), np.int64)
        for row, (kernel, numbers, meet) in zip(table, self._rows):
            row[0] = addresses[kernel.name]
            row[1 : 1 + len(numbers)] = numbers
            row[MEET] = meet
        table.flags.writeable = False
        return table

    def replay(self, run: np.ndarray) -> None:
        """Run the steps as plain Python on the same arrays, in one thread: slow, and checks every bound."""
        for (kernel, _, _), values in zip(self._rows, self._values):
            kernel(0, 1, run, **{name: _twin(mark, values[name]) for name, mark in kernel.operands.items()})


def _twin(mark: Scalar | Pointer, value: Any) -> Any:
    """What a kernel's Python body gets for an operand: a flat view, or a number of the operand's own type."""
    if isinstance(mark, Pointer):
        return value.reshape(-1)
    return np.float32(value) if mark.dtype == "float32" else int(value)
