"""safetensors files: the open file, its header checked in full, its tensors as views of the mapped file.

    u64 length of the header; the header, JSON: {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, ...};
    the tensors' bytes, from where offsets count: without holes, without overlap, up to the end of the file

Nothing in a file is believed: the header is limited, a name may be there once, and offsets are compared with shapes, with
each other and with the file's length, in Python integers, before a byte of a tensor is read. Source: the README and
`safetensors/src/tensor.rs` of huggingface/safetensors.
"""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from engine.errors import FileError
from engine.escape import escape, listed
from engine.file_kind import HEAD_BYTES, describe
from engine.mapped_file import map_file, regular_file, release

MAX_HEADER = 16 << 20  # bytes; a header takes some 100 for each tensor
MAX_TENSORS = 1 << 16
MAX_AXES = 8
ITEM_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2,
              "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor as the header lists it: dtype, shape, first byte in the file, length in bytes."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class SafetensorsFile:
    """An open safetensors file.

    Attributes:
        tensors: Name -> Entry, in the order of the header.
        size: Of the file, in bytes.
    """

    def __init__(self, path: str) -> None:
        """Maps a file and checks its header; raises FileError, one line, for whatever is wrong with it."""
        self.path = path
        self._map = map_file(path)
        self.size = len(self._map)
        try:
            self.tensors = self._read()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Unmaps the file; while there are views of it, the mapping goes with the last."""
        with contextlib.suppress(BufferError):
            self._map.close()

    def data(self, name: str) -> np.ndarray:
        """A tensor's bytes, uint8 (nbytes,), a read-only view of the mapped file."""
        entry = self.tensors[name]
        return np.frombuffer(self._map, np.uint8, entry.nbytes, entry.offset)

    def release(self, name: str) -> None:
        """Lets the system take back the memory of a tensor's pages (Linux)."""
        entry = self.tensors[name]
        release(self._map, entry.offset, entry.nbytes)

    def _fail(self, text: str) -> NoReturn:
        raise FileError(f"{escape(self.path, 300)}: {text}")

    def _read(self) -> dict[str, Entry]:
        head = self._map[:HEAD_BYTES]
        if head[8:9] != b"{":
            kind = describe(head)
            self._fail(
                "is cut short" if kind.startswith("is not a GGUF") and self.size < 9 else _as_safetensors(kind, head)
            )
        length = int.from_bytes(head[:8], "little")
        if length > MAX_HEADER:
            self._fail(f"header: claims {length} bytes, at most {MAX_HEADER} are allowed; the file is damaged")
        if 8 + length > self.size:
            self._fail(
                f"header: have {self.size} of at least {8 + length} bytes; the file is cut short, download it again"
            )
        found = parse_json(self._map[8 : 8 + length], f"{escape(self.path, 300)}: header")
        found.pop("__metadata__", None)
        if len(found) > MAX_TENSORS:
            self._fail(f"header: lists {len(found)} tensors, at most {MAX_TENSORS} are allowed")
        entries = {name: self._entry(name, value, 8 + length) for name, value in found.items()}
        self._check_layout(entries, 8 + length)
        return entries

    def _entry(self, name: str, value: Any, start: int) -> Entry:
        """A tensor's entry, checked by itself."""
        what = f"tensor '{escape(name)}'"
        if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
            self._fail(f"{what}: expected dtype, shape and data_offsets, nothing else; the file is damaged")
        dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
        if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
            self._fail(f"{what}: dtype {escape(repr(dtype), 40)} is not known; known: {', '.join(ITEM_BYTES)}")
        if not _whole_numbers(shape) or len(shape) > MAX_AXES:
            self._fail(f"{what}: shape {escape(repr(shape), 60)}, expected at most {MAX_AXES} whole numbers")
        if not _whole_numbers(offsets) or len(offsets) != 2:
            self._fail(f"{what}: data_offsets {escape(repr(offsets), 60)}, expected two whole numbers")
        begin, end = offsets
        nbytes = math.prod(shape) * ITEM_BYTES[dtype]
        if end - begin != nbytes:
            self._fail(f"{what}: data_offsets {begin} to {end}, but {dtype} {shape} takes {nbytes} bytes")
        if start + end > self.size:
            self._fail(f"{what}: have {self.size} of {start + end} bytes; the file is cut short, download it again")
        return Entry(dtype, tuple(shape), start + begin, nbytes)

    def _check_layout(self, entries: dict[str, Entry], start: int) -> None:
        """Tensors follow each other without hole or overlap, from the header to the end of the file."""
        at = start
        for name, entry in sorted(entries.items(), key=lambda pair: (pair[1].offset, pair[1].nbytes)):
            if entry.offset != at:
                what = "overlaps another" if entry.offset < at else "is preceded by a hole"
                self._fail(f"tensor '{escape(name)}': {what}, at byte {entry.offset}; the file is damaged")
            at += entry.nbytes
        if at != self.size:
            self._fail(f"{self.size - at} bytes follow the last tensor; the file is damaged, download it again")


def parse_json(raw: bytes, what: str) -> dict[str, Any]:
    """An object that JSON holds, every name once; raises FileError, beginning with `what`, for anything else."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            seen: set[str] = set()
            twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise FileError(f"{what}: '{escape(twice)}' is there twice")
        return made

    def no_number(text: str) -> NoReturn:
        raise ValueError(f"{text} is no JSON number")

    try:
        found = json.loads(raw.decode(), object_pairs_hook=once, parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{what}: is not valid JSON ({escape(str(error), 100)}); download it again") from None
    if not isinstance(found, dict):
        raise FileError(f"{what}: is not a JSON object; download it again")
    return found


def read_json(path: str, limit: int) -> dict[str, Any]:
    """The object in a JSON file of at most `limit` bytes; raises FileError, one line."""
    name = escape(path, 300)
    with regular_file(path) as file:
        raw = file.read(limit + 1)
    if len(raw) > limit:
        raise FileError(f"{name}: is larger than {limit >> 20} MiB, more than any model needs")
    if raw.startswith(b"version https://git-lfs"):
        raise FileError(f"{name}: {describe(raw[:HEAD_BYTES])}")
    return parse_json(raw, name)


def named_files(found: dict[str, Any], path: str) -> dict[str, str]:
    """`weight_map` of an index: tensor -> file, a plain name in the index's own folder."""
    name = escape(path, 300)
    places = found.get("weight_map")
    if not isinstance(places, dict) or not places or len(places) > MAX_TENSORS:
        raise FileError(f"{name}: weight_map: expected the file of each of 1 to {MAX_TENSORS} tensors")
    wrong = [str(file) for file in places.values() if not _plain_name(file)]
    if wrong:
        raise FileError(
            f"{name}: weight_map: names {listed(wrong, 2)}; expected names in this folder, NAME.safetensors"
        )
    return places


def _plain_name(file: Any) -> bool:
    """Whether it can only name a safetensors file of the same folder."""
    return (
        isinstance(file, str)
        and file.endswith(".safetensors")
        and not file.startswith(".")
        and not set(file) & set("/\\:\0")
        and len(file) < 256
    )


def _as_safetensors(kind: str, head: bytes) -> str:
    """What `describe` says, in the words of one who expects a safetensors file."""
    if kind.startswith("is not a GGUF") or head[:4] == b"GGUF":
        what = "is a GGUF file" if head[:4] == b"GGUF" else "is not a safetensors file"
        return f"{what}: it begins with '{escape(head[:8])}', expected the length of a JSON header"
    return kind.replace("name a GGUF file", "download it again")


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 62 for n in value)
