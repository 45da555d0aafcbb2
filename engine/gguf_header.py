"""Reads and checks the header of a GGUF file: all that comes before the weights.

    "GGUF", u32 version, u64 tensors, u64 keys
    keys:    string key, u32 kind, value               string = u64 length, bytes
    tensors: string name, u32 axes, u64 sizes[axes], u32 type, u64 offset
    padding to general.alignment (32), counted from the start of the file
    data:    tensor i begins at data_start + offset; sizes[0] is the row, so the NumPy shape is the list reversed

Nothing in a file is believed: every count and length is compared with the bytes that are left before it is used, in
Python integers, which don't wrap. That takes time and memory in proportion to the header that is there, not to what it
claims, and touches no weights. Source: docs/gguf.md of ggml-org/ggml.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from engine import file_kind, gguf_types
from engine.errors import FileError
from engine.escape import escape

MAX_HEADER = 256 << 20  # bytes of keys and tensor list; the largest vocabularies take 20 MB
MAX_COUNT = 1 << 16  # keys; tensors
MAX_STRINGS = 1 << 22  # strings in all arrays together; tokens and merges of the largest vocabularies are 800,000
MAX_NAME = 1 << 8  # bytes of a tensor's name; ggml allows 63
MAX_KEY = 1 << 16
MAX_ALIGNMENT = 1 << 20
STRING, ARRAY, BOOL = 8, 9, 7
SCALARS = {0: ("u8", "<B"), 1: ("i8", "<b"), 2: ("u16", "<H"), 3: ("i16", "<h"), 4: ("u32", "<I"), 5: ("i32", "<i"),
           6: ("f32", "<f"), 7: ("bool", "<B"), 10: ("u64", "<Q"), 11: ("i64", "<q"), 12: ("f64", "<d")}  # fmt: skip

# bytes: a string that isn't UTF-8; arrays of strings are list[bytes], others NumPy arrays, read-only
Value = int | float | bool | str | bytes | list[bytes] | np.ndarray


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor as the header lists it: type name, shape in NumPy order, first byte in the file, length in bytes."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class Header:
    """Reads the header front to back; `pos` is the next byte, and nothing past `end` is read."""

    def __init__(self, path: str, mapped: mmap.mmap) -> None:
        self.path, self.map, self.size = path, mapped, len(mapped)
        self.end = min(self.size, MAX_HEADER)
        self.pos = 0
        self.strings_left = MAX_STRINGS
        self.metadata: dict[str, Value] = {}
        self.kinds: dict[str, str] = {}
        self.tensors: dict[str, TensorInfo] = {}

    def fail(self, text: str) -> NoReturn:
        raise FileError(f"{escape(self.path, 300)}: {text}")

    def need(self, count: int, what: str) -> None:
        """Checks that `count` more bytes are there."""
        if count > self.end - self.pos:
            if self.end < self.size and self.pos + count <= self.size:
                self.fail(f"{what}: the header goes beyond {MAX_HEADER >> 20} MiB, more than any model needs")
            self.fail(
                f"{what}: have {self.size} of at least {self.pos + count} bytes; "
                "the file is cut short or damaged, download it again"
            )

    def scalar(self, format: str, what: str) -> Any:
        size = struct.calcsize(format)
        self.need(size, what)
        (value,) = struct.unpack_from(format, self.map, self.pos)
        self.pos += size
        return value

    def string(self, what: str, limit: int = MAX_HEADER) -> bytes:
        length = self.scalar("<Q", what)
        self.need(length, what)
        if length > limit:
            self.fail(f"{what}: {length} bytes long, at most {limit} are allowed")
        self.pos += length
        return self.map[self.pos - length : self.pos]

    def text(self, what: str, limit: int) -> str:
        """A name: a string that is UTF-8 and not empty."""
        raw = self.string(what, limit)
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            self.fail(f"{what}: '{escape(raw)}' is not UTF-8")
        if not name:
            self.fail(f"{what}: has an empty name")
        return name

    def read(self) -> None:
        tensors, keys = self.read_start()
        for i in range(keys):
            self.read_key(f"key {i + 1} of {keys}")
        self.alignment = self.read_alignment()
        self.check_split()
        infos = [self.read_info(f"tensor {i + 1} of {tensors}") for i in range(tensors)]
        self.data_start = -(-self.pos // self.alignment) * self.alignment
        for name, type, shape, offset, nbytes in infos:
            self.tensors[name] = TensorInfo(name, type, shape, self.data_start + offset, nbytes)
        self.check_layout()

    def read_start(self) -> tuple[int, int]:
        """Magic, version and the two counts."""
        head = self.map[: file_kind.HEAD_BYTES]
        if not head.startswith(b"GGUF"[: len(head)]):
            self.fail(file_kind.describe(head))
        self.pos = 4
        self.need(0, "header")
        self.version = self.scalar("<I", "version")
        if self.version & 0xFFFF == 0 and self.version:
            self.fail("is a big-endian GGUF file; only little-endian ones are read")
        if self.version not in (2, 3):
            self.fail(f"is GGUF version {self.version}; versions 2 and 3 are read, convert the model again")
        tensors, keys = self.scalar("<Q", "number of tensors"), self.scalar("<Q", "number of keys")
        for what, count, least in (("tensors", tensors, 32), ("keys", keys, 14)):
            if count > MAX_COUNT:
                self.fail(f"header: claims {count} {what}, at most {MAX_COUNT} are allowed; the file is damaged")
            self.need(count * least, f"header, {count} {what}")
        return tensors, keys

    def read_key(self, what: str) -> None:
        key = self.text(what, MAX_KEY)
        what = f"key '{escape(key)}'"
        if key in self.metadata:
            self.fail(f"{what}: is there twice")
        kind = self.scalar("<I", what)
        if kind == ARRAY:
            self.kinds[key], self.metadata[key] = self.read_array(what)
        elif kind == STRING:
            raw = self.string(what)
            self.kinds[key] = "string"
            try:
                self.metadata[key] = raw.decode()
            except UnicodeDecodeError:
                self.metadata[key] = raw
        elif kind in SCALARS:
            self.kinds[key], format = SCALARS[kind]
            value = self.scalar(format, what)
            if kind == BOOL:
                if value > 1:
                    self.fail(f"{what}: a bool is stored as {value}, expected 0 or 1")
                value = bool(value)
            self.metadata[key] = value
        else:
            self.fail(f"{what}: is of the unknown kind {kind}, expected 0 to 12")

    def read_array(self, what: str) -> tuple[str, Value]:
        kind = self.scalar("<I", what)
        count = self.scalar("<Q", what)
        if kind == STRING:
            return "array of string", self.read_strings(count, what)
        if kind == ARRAY:
            self.fail(f"{what}: is an array of arrays, which is not supported")
        if kind not in SCALARS:
            self.fail(f"{what}: is an array of the unknown kind {kind}, expected 0 to 12")
        name, format = SCALARS[kind]
        dtype = np.dtype(format)
        self.need(count * dtype.itemsize, f"{what}, {count} elements")
        values = np.frombuffer(self.map[self.pos : self.pos + count * dtype.itemsize], dtype)
        self.pos += count * dtype.itemsize
        if kind == BOOL:
            if count and values.max() > 1:
                self.fail(f"{what}: a bool is stored as {values.max()}, expected 0 or 1")
            values = values.view(np.bool_)
        return f"array of {name}", values

    def read_strings(self, count: int, what: str) -> list[bytes]:
        """An array of strings, in one pass: vocabularies have hundreds of thousands."""
        self.need(count * 8, f"{what}, {count} strings")
        if count > self.strings_left:
            self.fail(f"{what}: arrays of more than {MAX_STRINGS} strings together")
        self.strings_left -= count
        found: list[bytes] = []
        append, data, end, pos = found.append, self.map, self.end, self.pos
        unpack = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if pos + 8 > end:
                break
            start = pos + 8
            pos = start + unpack(data, pos)[0]
            if pos > end:
                break
            append(data[start:pos])
        if len(found) < count:
            self.need(pos + 8 - self.pos, f"{what}, string {len(found) + 1} of {count}")
        self.pos = pos
        return found

    def read_alignment(self) -> int:
        key = "general.alignment"
        value = self.metadata.get(key, 32)
        if key in self.metadata and self.kinds[key] != "u32":
            self.fail(f"key '{key}': is {self.kinds[key]}, u32 is expected")
        assert isinstance(value, int)
        if value < 1 or value & (value - 1) or value > MAX_ALIGNMENT:
            self.fail(f"key '{key}': is {value}, expected a power of two up to {MAX_ALIGNMENT}")
        return value

    def check_split(self) -> None:
        count, number = self.metadata.get("split.count", 1), self.metadata.get("split.no", 0)
        if count not in (0, 1) if isinstance(count, int) else True:
            shown = f"part {number + 1} of {count}" if type(count) is type(number) is int else "one part"
            self.fail(
                f"is {shown} of a model in several files, which are not read yet; join them: "
                "`llama-gguf-split --merge FIRST-PART WHOLE.gguf`"
            )

    def read_info(self, what: str) -> tuple[str, str, tuple[int, ...], int, int]:
        """One line of the tensor list: name, type, shape, offset in the data, length in bytes."""
        name = self.text(what, MAX_NAME)
        what = f"tensor '{escape(name)}'"
        if name in self.tensors:
            self.fail(f"{what}: is there twice")
        self.tensors[name] = TensorInfo(name, "", (), 0, 0)
        axes = self.scalar("<I", what)
        if not 1 <= axes <= 4:
            self.fail(f"{what}: has {axes} axes, expected 1 to 4")
        shape = tuple(self.scalar("<Q", what) for _ in range(axes))[::-1]
        if 0 in shape or math.prod(shape) >= 1 << 63:
            self.fail(f"{what}: its shape is {shape}, expected axes of 1 or more and fewer than 2^63 elements")
        id, offset = self.scalar("<I", what), self.scalar("<Q", what)
        if id not in gguf_types.KNOWN:
            old = gguf_types.REMOVED.get(id, "unknown")
            self.fail(f"{what}: type {id} ({old}) is not supported; supported: {', '.join(gguf_types.SUPPORTED)}")
        type = gguf_types.KNOWN[id][0]
        try:
            nbytes = gguf_types.tensor_nbytes(type, shape)
        except ValueError as error:
            self.fail(f"{what}: {error}")
        if offset % self.alignment:
            self.fail(f"{what}: its offset {offset} is not a multiple of the alignment, {self.alignment}")
        return name, type, shape, offset, nbytes

    def check_layout(self) -> None:
        """Tensors lie inside of the file and don't overlap."""
        last, end = None, self.data_start
        for info in sorted(self.tensors.values(), key=lambda info: info.offset):
            if info.offset < end and last:
                self.fail(f"tensor '{escape(info.name)}': its bytes overlap those of tensor '{escape(last.name)}'")
            last, end = info, info.offset + info.nbytes
        if last and end > self.size:
            self.fail(
                f"tensor '{escape(last.name)}': have {self.size} of {end} bytes; "
                "the file is cut short or damaged, download it again"
            )
