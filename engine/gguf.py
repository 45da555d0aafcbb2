"""GGUF files, versions 2 and 3: the open file, with typed access to its keys and views of its weights.

    with GGUFFile.open("model.gguf") as file:
        layers = file.u32("llama.block_count", low=1, high=512)
        weight = file.data("token_embd.weight")      # uint8, a view of the mapped file; see gguf_types for its meaning
        ...
        file.release("token_embd.weight")            # repacked: the system may have the pages back

The header is checked in full by `gguf_header` before `open` returns; no weight has been touched by then. A file mustn't
be cut while it is open: reading past the end of a mapped file ends the process.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Any, NoReturn, Self

import numpy as np

from engine.errors import FileError
from engine.escape import escape
from engine.gguf_header import Header, TensorInfo, Value
from engine.mapped_file import map_file, release

__all__ = ["GGUFFile", "TensorInfo", "Value"]

_MISSING: Any = object()


@dataclass(frozen=True, slots=True, eq=False)
class GGUFFile:
    """An open model file: its checked header, and its weights as views of the mapped file."""

    path: str
    size: int
    version: int
    alignment: int
    data_start: int
    metadata: Mapping[str, Value]
    kinds: Mapping[str, str]  # key -> "u32", "string", "array of f32", ...
    tensors: Mapping[str, TensorInfo]
    _map: mmap.mmap

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Maps a file and checks all of its header; raises FileError, one line, for whatever is wrong with it."""
        name = os.fspath(path)
        return cls._checked(name, map_file(name, "is a directory; name the .gguf file in it"))

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> Self:
        """The same for a file that lies inside of another; `name` is what errors call it. At least one byte."""
        mapped = mmap.mmap(-1, len(data))
        mapped[:] = data
        return cls._checked(name, mapped)

    @classmethod
    def _checked(cls, name: str, mapped: mmap.mmap) -> Self:
        try:
            header = Header(name, mapped)
            header.read()
        except BaseException:
            mapped.close()
            raise
        return cls(
            path=name,
            size=len(mapped),
            version=header.version,
            alignment=header.alignment,
            data_start=header.data_start,
            metadata=MappingProxyType(header.metadata),
            kinds=MappingProxyType(header.kinds),
            tensors=MappingProxyType(header.tensors),
            _map=mapped,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Unmaps the file. Views that `data` gave stay valid: while there are any, the mapping goes with the last."""
        with contextlib.suppress(BufferError):
            self._map.close()

    def data(self, name: str) -> np.ndarray:
        """Returns the tensor's bytes, uint8 (nbytes,), a read-only view of the mapped file."""
        info = self.tensor(name)
        return np.frombuffer(self._map, np.uint8, info.nbytes, info.offset)

    def release(self, name: str) -> None:
        """Lets the system take back the memory of a tensor's pages, which are read again if used again (Linux)."""
        info = self.tensor(name)
        release(self._map, info.offset, info.nbytes)

    def tensor(self, name: str) -> TensorInfo:
        """Returns what the header says of a tensor; raises FileError if it isn't there."""
        try:
            return self.tensors[name]
        except KeyError:
            raise FileError(f"{escape(self.path, 300)}: tensor '{escape(name)}': missing") from None

    def u32(self, key: str, default: int = _MISSING, low: int = 0, high: int = 2**32 - 1) -> int:
        """Returns an integer of low..high that is stored in any integer type."""
        value = self._get(key, default)
        if type(value) is not int:
            self.fail_key(key, f"is {self.kinds[key]}, a whole number is expected")
        if not low <= value <= high:
            self.fail_key(key, f"is {value}, expected {low} to {high}")
        return value

    def f32(self, key: str, default: float = _MISSING) -> float:
        """Returns a finite float that is stored in any number type."""
        value = self._get(key, default)
        if type(value) is not float and type(value) is not int:
            self.fail_key(key, f"is {self.kinds[key]}, a number is expected")
        if not math.isfinite(value):
            self.fail_key(key, f"is {value}, a finite number is expected")
        return float(value)

    def boolean(self, key: str, default: bool = _MISSING) -> bool:
        """Returns a bool."""
        value = self._get(key, default)
        if type(value) is not bool:
            self.fail_key(key, f"is {self.kinds[key]}, a bool is expected")
        return value

    def string(self, key: str, default: str = _MISSING) -> str:
        """Returns a string that is valid UTF-8."""
        value = self._get(key, default)
        if type(value) is not str:
            found = "is not UTF-8" if isinstance(value, bytes) else f"is {self.kinds[key]}, a string is expected"
            self.fail_key(key, found)
        return value

    def strings(self, key: str, default: list[bytes] = _MISSING) -> list[bytes]:
        """Returns an array of strings, as bytes: tokens need not be UTF-8. Don't change the list."""
        value = self._get(key, default)
        if type(value) is not list:
            self.fail_key(key, f"is {self.kinds[key]}, an array of strings is expected")
        return value

    def array(self, key: str, default: np.ndarray = _MISSING) -> np.ndarray:
        """Returns an array of numbers or bools, in the type in which it is stored, read-only."""
        value = self._get(key, default)
        if not isinstance(value, np.ndarray):
            self.fail_key(key, f"is {self.kinds[key]}, an array of numbers is expected")
        return value

    def fail_key(self, key: str, text: str) -> NoReturn:
        """Raises FileError about a key: `text` says what it is and what it should be."""
        raise FileError(f"{escape(self.path, 300)}: key '{escape(key)}': {text}")

    def _get(self, key: str, default: Any) -> Any:
        value = self.metadata.get(key, default)
        if value is _MISSING:
            self.fail_key(key, "missing")
        return value
