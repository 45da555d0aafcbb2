"""Our static INT8 form on disk: all that a model needs to run in integers alone, in two files.

    NAME.safetensors    codes and scales, see `models/quantizers/static.py`; the vocabulary, as the bytes of a GGUF file that
                        has keys and no tensors (uint8, `vocabulary`)
    NAME.json           what it is: format, version, the model's sizes, how it was calibrated

The JSON file is written last: where it is, the other is complete. A form is opened by the name of either.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, ClassVar, NoReturn, Self

import numpy as np

from engine.atomic_file import atomic_file
from engine.errors import FileError, OptionError
from engine.escape import escape, listed
from engine.gguf import GGUFFile
from engine.gguf_writer import Key, header_bytes
from engine.open_model import is_static
from engine.safetensors_file import MAX_HEADER, SafetensorsFile, read_json
from engine.tokenizer import Tokenizer
from models.config import ModelConfig
from models.quantizers.static import Shapes, Static, layer_shapes, outer_shapes, stored_shapes

FORMAT, VERSION = "intengine-static-int8", 2
DTYPES = {"int8": "I8", "uint8": "U8", "float32": "F32"}
NUMPY = {"I8": "<i1", "F32": "<f4"}
MOST_DESCRIPTION = 1 << 20  # bytes; ours are below 1000
MOST_VOCABULARY = 256 << 20
ENTRY = 512  # bytes of a safetensors header for each tensor, at most; ours are about 100
VOCABULARY = "vocabulary"
KEPT = ("tokenizer.", "general.sampling.")


def stem_of(path: str | os.PathLike[str]) -> str:
    """NAME of NAME.json or NAME.safetensors; raises OptionError for other names."""
    if not is_static(path):
        raise OptionError(f"{escape(os.fspath(path), 300)}: expected a name that ends in .safetensors")
    return os.path.splitext(os.fspath(path))[0]


# ---- writing ----


def write_form(
    path: str, static: Static, keys: Mapping[str, Key], calibration: Mapping[str, Any], done: Callable[[int], object]
) -> None:
    """Writes a form, a layer at a time.

    Args:
        path: NAME.safetensors or NAME.json.
        keys: Of the float model's file; those of the vocabulary and of its use are kept.
        calibration: How its scales were found, for whoever reads the description.
        done: Is told how many weights have been written since it was last told.
    """
    stem, config = stem_of(path), static.config
    kept = {k: v for k, v in keys.items() if k.startswith(KEPT) or k in ("general.architecture", "general.name")}
    vocabulary = np.frombuffer(header_bytes(kept), np.uint8)
    shapes = {VOCABULARY: ("uint8", vocabulary.shape)} | stored_shapes(config)
    with _tensor_writer(f"{stem}.safetensors", shapes) as write:
        write(VOCABULARY, vocabulary)
        for i in (None, *range(config.layers)):
            part, prefix = (static.outer, "") if i is None else (static.layer(i), f"blk.{i}.")
            for name, values in part.items():
                write(prefix + name, values)
                done(0 if name.endswith("scale") else values.size)
    description = {"format": FORMAT, "version": VERSION, "model": asdict(config), "calibration": dict(calibration)}
    with atomic_file(f"{stem}.json") as file:
        file.write(json.dumps(description, indent=2).encode() + b"\n")


@contextmanager
def _tensor_writer(path: str, shapes: Shapes) -> Iterator[Callable[[str, np.ndarray], None]]:
    """A safetensors file being written: gives a function that takes a tensor, in any order."""
    entries, places, offset = {}, {}, 0
    for name, (dtype, shape) in shapes.items():
        end = offset + _nbytes(dtype, shape)
        entries[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        places[name], offset = offset, end
    header = json.dumps({"__metadata__": {"format": FORMAT}, **entries}).encode()
    header += b" " * (-len(header) % 8)
    with atomic_file(path) as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + offset)

        def write(name: str, data: np.ndarray) -> None:
            assert (str(data.dtype), data.shape) == shapes[name], name
            file.seek(8 + len(header) + places.pop(name))
            file.write(np.ascontiguousarray(data).data)

        yield write
        assert not places, "tensors were not written"


def _nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize


# ---- reading ----


@dataclass(frozen=True, slots=True, eq=False)
class StaticFile:
    """An open static form: checked in full but for the tensors' values, which are checked as they are read.

    Attributes:
        version: Of the form: the one that is read.
        path: Of the safetensors file.
        size: Bytes of both files.
        vocabulary: The keys of the vocabulary, and of the chat template.
    """

    version: ClassVar[int] = VERSION
    path: str
    size: int
    config: ModelConfig
    vocabulary: GGUFFile
    tokenizer: Tokenizer
    _file: SafetensorsFile

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Opens a form; raises FileError, one line, for whatever is wrong with it."""
        stem = stem_of(path)
        name, description = f"{stem}.safetensors", f"{stem}.json"
        size = _regular(name, "is missing; the .json file belongs to it")
        size += _regular(description, f"is missing; {escape(name, 300)} alone is not a model of our static INT8 form")
        config = _description(description)
        file = _checked(name, stored_shapes(config))
        try:
            vocabulary = GGUFFile.from_bytes(file.data(VOCABULARY).tobytes(), f"{name}: {VOCABULARY}")
            tokenizer = Tokenizer.from_gguf(vocabulary.metadata, config.vocab_size, f"{name}: {VOCABULARY}")
        except BaseException:
            file.close()
            raise
        return cls(name, size, config, vocabulary, tokenizer, file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    @property
    def entries(self) -> list[tuple[str, str, tuple[int, ...], int]]:
        """Name, dtype, shape and bytes of each tensor of the model."""
        found = self._file.tensors.items()
        return [(name, entry.dtype, entry.shape, entry.nbytes) for name, entry in found if name != VOCABULARY]

    @property
    def parameters(self) -> int:
        """Numbers of the model but for scales."""
        return sum(math.prod(shape) for name, _, shape, _ in self.entries if not name.endswith("scale"))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors of the model, scales included."""
        return sum(nbytes for *_, nbytes in self.entries)

    @property
    def bits_per_weight(self) -> float:
        """Of the tensors as they are stored, scales included."""
        return 8 * self.nbytes / self.parameters

    @property
    def static(self) -> Static:
        """The model. Its layers are read when they are asked for, until the file is closed."""
        layer = layer_shapes(self.config)
        return Static(self.config, self._part(outer_shapes(self.config), ""), lambda i: self._part(layer, f"blk.{i}."))

    def _part(self, shapes: Shapes, prefix: str) -> dict[str, np.ndarray]:
        return {name: self._tensor(prefix + name) for name in shapes}

    def _tensor(self, name: str) -> np.ndarray:
        """A tensor whose values can be computed with."""
        entry = self._file.tensors[name]
        values = self._file.data(name).view(NUMPY[entry.dtype]).reshape(entry.shape).copy()
        self._file.release(name)
        if values.dtype == np.int8:
            if values.min() < -127:
                _fail(
                    self.path, f"tensor '{name}': holds the code -128, expected -127 to 127; quantise the model again"
                )
        elif not np.isfinite(values).all():
            _fail(
                self.path, f"tensor '{name}': holds NaN or infinity, expected finite numbers; quantise the model again"
            )
        elif name.endswith("scale") and not (values > 0).all():
            _fail(self.path, f"tensor '{name}': a scale is {values.min()}, expected above 0; quantise the model again")
        return values


def _fail(path: str, text: str) -> NoReturn:
    raise FileError(f"{escape(path, 300)}: {text}")


def _regular(path: str, missing: str) -> int:
    """The size of a regular file."""
    if not os.path.exists(path):
        _fail(path, missing)
    if not os.path.isfile(path):
        _fail(path, "is not a regular file; name a file of our static INT8 form")
    return os.path.getsize(path)


def _description(path: str) -> ModelConfig:
    """The model's sizes, of a form and a version that we know."""
    found = read_json(path, MOST_DESCRIPTION)
    try:
        kind = found["format"], found["version"]
        if kind != (FORMAT, VERSION):
            shown = " ".join(escape(str(part)) for part in kind)
            _fail(path, f"is {shown}, expected {FORMAT} {VERSION}; quantise the model again")
        return ModelConfig(**found["model"])
    except (ValueError, KeyError, TypeError) as error:
        _fail(path, f"is not a description of a static INT8 model: {escape(str(error))}; quantise the model again")


def _checked(path: str, shapes: Shapes) -> SafetensorsFile:
    """The open safetensors file, which has the tensors of `shapes` and a vocabulary, no more and no less."""
    with open(path, "rb") as raw:
        length, most = int.from_bytes(raw.read(8), "little"), 4096 + ENTRY * len(shapes)
    if most < length <= MAX_HEADER:  # before anything parses it
        _fail(path, f"its header has {length} bytes, expected at most {most}; it is not of our static INT8 form")
    file = SafetensorsFile(path)
    try:
        _check_tensors(path, {name: (entry.dtype, entry.shape) for name, entry in file.tensors.items()}, shapes)
    except BaseException:
        file.close()
        raise
    return file


def _check_tensors(path: str, found: dict[str, tuple[str, tuple[int, ...]]], shapes: Shapes) -> None:
    dtype, shape = found.pop(VOCABULARY, ("none", (0,)))
    if dtype != "U8" or len(shape) != 1 or not 0 < shape[0] <= MOST_VOCABULARY:
        _fail(path, f"tensor '{VOCABULARY}': is {dtype} {shape}, expected U8, the bytes of a GGUF file without tensors")
    expected = {name: (DTYPES[dtype], shape) for name, (dtype, shape) in shapes.items()}
    missing = [name for name in expected if name not in found]
    beyond = [name for name in found if name not in expected]
    other = [
        f"{name} {found[name][0]} {found[name][1]}, expected {kind[0]} {kind[1]}"
        for name, kind in expected.items()
        if name in found and found[name] != kind
    ]
    parts = ((missing, "missing"), (beyond, "not expected"), (other, "of another type or shape"))
    wrong = [f"{len(names)} {text}: {listed(names, 8)}" for names, text in parts if names]
    if wrong:
        _fail(path, f"tensors: {'; '.join(wrong)}")
