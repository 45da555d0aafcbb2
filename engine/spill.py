"""Arrays that are kept in temporary files instead of in memory: activations of a calibration text.

    keep = Spill(folder)
    texts = keep(make(x) for x in ...)      # written one by one, each when it has been made
    for x in texts: ...                     # read one by one, as often as is asked; texts[i] and len(texts) work too

The files have no names (on Linux), so that nothing is left behind however the program ends; their room is given back when
the last reference to `texts` goes.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np

from engine.errors import FileError
from engine.escape import escape


class Spill:
    """Makes such sequences, in files of one folder."""

    def __init__(self, folder: str) -> None:
        self._folder = folder or "."

    def __call__(self, arrays: Iterable[np.ndarray]) -> Spilled:
        """Writes arrays of any shape and dtype; raises FileError where there is no room for them."""
        return Spilled(self._folder, arrays)


class Spilled(Sequence[np.ndarray]):
    """Arrays in a temporary file; each that is taken out is a new one."""

    def __init__(self, folder: str, arrays: Iterable[np.ndarray]) -> None:
        self._places: list[tuple[int, np.dtype[Any], tuple[int, ...]]] = []
        end = 0
        try:
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0, prefix=".intengine-")  # noqa: SIM115
        except OSError as error:
            raise FileError(f"{escape(folder, 300)}: no temporary file can be made: {error.strerror}") from None
        for array in arrays:
            self._places.append((end, array.dtype, array.shape))
            left = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            while left:
                try:
                    done = os.pwrite(self._file.fileno(), left, end)
                except OSError as error:
                    raise FileError(
                        f"{escape(folder, 300)}: activations can't be kept there: {error.strerror}; use fewer --tokens"
                    ) from None
                left, end = left[done:], end + done

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        offset, dtype, shape = self._places[index]
        array = np.empty(shape, dtype)
        raw, done = array.reshape(-1).view(np.uint8), 0
        while done < len(raw):
            part = os.pread(self._file.fileno(), len(raw) - done, offset + done)
            assert part, "a temporary file became shorter"
            raw[done : done + len(part)] = np.frombuffer(part, np.uint8)
            done += len(part)
        return array

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))
