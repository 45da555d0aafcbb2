"""Writes GGUF files, version 3, whole or not at all.

    with GGUFWriter(path, keys, tensors) as writer:
        writer.write("blk.0.ffn_up.weight", data)      # in any order, each once; part by part where a tensor is large

The header needs nothing but names, types and shapes, so it is written first and the tensors go to their places as they come:
no more than one of them is ever in memory. Layout and limits: see `gguf_header.py`, which reads these files.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np

from engine.atomic_file import atomic_file
from engine.gguf_header import ARRAY, BOOL, MAX_ALIGNMENT, SCALARS, STRING
from engine.gguf_types import KNOWN, tensor_nbytes

_KINDS = {name: (id, format) for id, (name, format) in SCALARS.items()}
_TYPE_IDS = {name: id for id, (name, _, _) in KNOWN.items()}
Key = tuple[str, Any]  # kind as `GGUFFile.kinds` names it ("u32", "string", "array of f32", ...), and the value


@dataclass(frozen=True, slots=True)
class NewTensor:
    """A tensor to be written: type name, shape in NumPy order."""

    name: str
    type: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its length in the file."""
        return tensor_nbytes(self.type, self.shape)


class GGUFWriter:
    """A GGUF file being written; used in a `with` block, at whose end it takes its name."""

    def __init__(self, path: str | os.PathLike[str], keys: Mapping[str, Key], tensors: Sequence[NewTensor]) -> None:
        """Args: keys: in the order of the file, `general.alignment` among them if it isn't 32; tensors: likewise."""
        alignment = int(keys["general.alignment"][1]) if "general.alignment" in keys else 32
        if not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            raise ValueError(f"general.alignment is {alignment}, expected a power of two up to {MAX_ALIGNMENT}")
        names = [tensor.name for tensor in tensors]
        if len(set(names)) < len(names):
            raise ValueError("two tensors have the same name")
        self._header, offsets = _header(keys, tensors, alignment)
        self._places = {t.name: (offset, t.nbytes) for t, offset in zip(tensors, offsets)}
        self._written = dict.fromkeys(names, 0)
        self.size = (
            -(-max((o + n for o, n in self._places.values()), default=len(self._header)) // alignment) * alignment
        )
        self._context = atomic_file(path)

    def __enter__(self) -> Self:
        self._file = self._context.__enter__()
        try:
            self._file.write(self._header)
            self._file.truncate(self.size)
        except BaseException as error:
            self._leave(error)
            raise
        return self

    def write(self, name: str, data: np.ndarray) -> None:
        """Writes the next bytes of a tensor: all of it, or a part; uint8, C-contiguous."""
        start, nbytes = self._places[name]
        done = self._written[name]
        if data.dtype != np.uint8 or done + data.size > nbytes:
            raise ValueError(f"{name}: {done} + {data.size} bytes of {data.dtype}, expected {nbytes} of uint8")
        self._file.seek(start + done)
        self._file.write(np.ascontiguousarray(data).reshape(-1).data)
        self._written[name] = done + data.size

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            short = [name for name, done in self._written.items() if done < self._places[name][1]]
            if short:
                error = ValueError(f"tensors not written in full: {', '.join(short[:5])}")
                self._leave(error)
                raise error
        self._leave(error)

    def _leave(self, error: BaseException | None) -> None:
        """Ends the file's own block; it passes `error` on."""
        try:
            self._context.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)
        except BaseException as raised:
            if raised is not error:
                raise


def header_bytes(keys: Mapping[str, Key]) -> bytes:
    """A whole file that has keys and no tensors."""
    return _header(keys, [], 32)[0]


def _header(keys: Mapping[str, Key], tensors: Sequence[NewTensor], alignment: int) -> tuple[bytes, list[int]]:
    """All before the data, padded, and where each tensor's bytes begin in the file."""
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(keys))]
    parts += [_string(key) + _value(kind, value) for key, (kind, value) in keys.items()]
    offset, offsets = 0, []
    for tensor in tensors:
        axes = tensor.shape[::-1]
        parts.append(_string(tensor.name) + struct.pack("<I", len(axes)) + struct.pack(f"<{len(axes)}Q", *axes))
        parts.append(struct.pack("<IQ", _TYPE_IDS[tensor.type], offset))
        offsets.append(offset)
        offset += -(-tensor.nbytes // alignment) * alignment
    header = b"".join(parts)
    header += bytes(-len(header) % alignment)
    return header, [len(header) + offset for offset in offsets]


def _string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def _value(kind: str, value: Any) -> bytes:
    """The kind's number, and the value."""
    if kind == "string":
        return struct.pack("<I", STRING) + _string(value)
    if kind == "array of string":
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_string, value))
    if kind.startswith("array of "):
        id, format = _KINDS[kind.removeprefix("array of ")]
        return struct.pack("<IIQ", ARRAY, id, len(value)) + np.asarray(value).astype(np.dtype(format)).tobytes()
    id, format = _KINDS[kind]
    return struct.pack("<I", id) + struct.pack(format, int(value) if id == BOOL else value)
