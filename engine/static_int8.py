"""Our static INT8 form on disk, and a model in it as the evaluation sees it.

    NAME.json           what it is: format, version, the model's sizes, how it was calibrated, and the names of the other two
    NAME.safetensors    codes and scales; see models/quantizers/static.py
    NAME-vocab.gguf     the vocabulary: a GGUF file without tensors

The JSON file is written last: where it is, the others are complete.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np

from engine.atomic_file import atomic_file
from engine.errors import FileError, OptionError
from engine.escape import escape, listed
from engine.gguf import GGUFFile
from engine.gguf_writer import GGUFWriter, Key
from engine.tokenizer import Tokenizer
from models.config import ModelConfig
from models.quantizers.static import Static, stored_shapes

FORMAT, VERSION = "intengine-static-int8", 1
SAFETENSORS = {"int8": "I8", "float32": "F32"}
Shapes = Mapping[str, tuple[str, tuple[int, ...]]]


def stem_of(path: str) -> str:
    """NAME of NAME.json or NAME.safetensors; raises OptionError for other names."""
    stem, end = os.path.splitext(path)
    if end not in (".json", ".safetensors"):
        raise OptionError(f"{escape(path, 300)}: expected a name that ends in .safetensors")
    return stem


@contextmanager
def tensor_writer(path: str, shapes: Shapes) -> Iterator[Callable[[str, np.ndarray], None]]:
    """A safetensors file being written: gives a function that takes a tensor's next rows, in any order of tensors."""
    entries, places, offset = {}, {}, 0
    for name, (dtype, shape) in shapes.items():
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        entries[name] = {"dtype": SAFETENSORS[dtype], "shape": list(shape), "data_offsets": [offset, offset + nbytes]}
        places[name] = [offset, offset + nbytes]
        offset += nbytes
    header = json.dumps({"__metadata__": {"format": FORMAT}, **entries}).encode()
    header += b" " * (-len(header) % 8)
    with atomic_file(path) as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + offset)

        def write(name: str, data: np.ndarray) -> None:
            at, end = places[name]
            assert data.dtype == shapes[name][0] and at + data.nbytes <= end, name
            file.seek(8 + len(header) + at)
            file.write(np.ascontiguousarray(data).tobytes())
            places[name][0] += data.nbytes

        yield write
        assert all(at == end for at, end in places.values()), "a tensor wasn't written in full"


def write_description(path: str, config: ModelConfig, keys: Mapping[str, Key], calibration: Mapping[str, Any]) -> None:
    """Writes the vocabulary, and last the JSON file that makes the form complete."""
    stem = stem_of(path)
    kept = {
        k: v for k, v in keys.items() if k.startswith("tokenizer.") or k in ("general.architecture", "general.name")
    }
    with GGUFWriter(f"{stem}-vocab.gguf", kept, []):
        pass
    found = {
        "format": FORMAT,
        "version": VERSION,
        "weights": os.path.basename(stem) + ".safetensors",
        "vocabulary": os.path.basename(stem) + "-vocab.gguf",
        "model": asdict(config),
        "calibration": dict(calibration),
    }
    with atomic_file(f"{stem}.json") as file:
        file.write(json.dumps(found, indent=2).encode() + b"\n")


def read_static(path: str) -> tuple[Static, Tokenizer]:
    """Reads NAME.json (or NAME.safetensors) and what it names; raises FileError, one line, for whatever is wrong."""
    stem = stem_of(path)
    shown = escape(f"{stem}.json", 300)
    try:
        with open(f"{stem}.json", encoding="utf-8") as file:
            found = json.loads(file.read(1 << 20))
        if found["format"] != FORMAT or found["version"] != VERSION:
            raise FileError(
                f"{shown}: is {escape(str(found['format']))} {found['version']}, expected {FORMAT} {VERSION}"
            )
        config = ModelConfig(**found["model"])
        names = [str(found[key]) for key in ("weights", "vocabulary")]
    except OSError as error:
        raise FileError(f"{shown}: can't be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FileError(f"{shown}: is not a description of a static INT8 model: {escape(str(error))}") from None
    if any(os.path.basename(name) != name or not name for name in names):
        raise FileError(f"{shown}: names files outside of its folder; expected names without a path")
    folder = os.path.dirname(stem)
    tensors = _tensors(os.path.join(folder, names[0]), stored_shapes(config))
    vocabulary = os.path.join(folder, names[1])
    with GGUFFile.open(vocabulary) as file:
        tokenizer = Tokenizer.from_gguf(file.metadata, config.vocab_size, vocabulary)
    return Static(config, tensors), tokenizer


def _tensors(path: str, shapes: Shapes) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file, which must be those of `shapes`, no more and no less."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    shown = escape(path, 300)
    try:
        found = load_file(path)
    except FileNotFoundError:
        raise FileError(f"{shown}: is missing; the .json file names it") from None
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise FileError(f"{shown}: can't be read as safetensors: {escape(str(error))}") from None
    wrong = [name for name in shapes if name not in found] + [name for name in found if name not in shapes]
    wrong += [n for n, (d, s) in shapes.items() if n in found and (str(found[n].dtype) != d or found[n].shape != s)]
    wrong += [n for n, values in found.items() if values.dtype == np.float32 and not np.isfinite(values).all()]
    if wrong:
        raise FileError(f"{shown}: tensors missing, not expected, of another shape, or not finite: {listed(wrong, 8)}")
    return found


def stored_size(path: str) -> tuple[int, float]:
    """Bytes of the three files, and bits a weight, scales included."""
    stem = stem_of(path)
    static, _ = read_static(path)
    nbytes = sum(values.nbytes for values in static.tensors.values())
    weights = sum(values.size for name, values in static.tensors.items() if not name.endswith("_scale"))
    files = (f"{stem}.json", f"{stem}.safetensors", f"{stem}-vocab.gguf")
    return sum(os.path.getsize(name) for name in files), 8 * nbytes / weights


class StaticModel:
    """A static INT8 model, computed in NumPy: for measuring, not for speed."""

    def __init__(self, path: str) -> None:
        self._static, self.tokenizer = read_static(path)
        self.context = self._static.config.context_length

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """The logits after each of the ids, (T, V) float32."""
        return self._static.forward(np.asarray(ids))

    def close(self) -> None:
        """Nothing to end."""
