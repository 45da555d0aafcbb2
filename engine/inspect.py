"""python -m engine.inspect FILE: what is in a model file, and the memory that it will take. Reads no weights.

    memory = weights + KV cache + scratch
    KV cache: 2 * L * context * G * D numbers, float16, or float32 if no matrix of the file is quantised
    scratch:  the activations of a chunk of the prompt (up to CHUNK tokens) and one row of logits

A static INT8 form runs in integers alone: its cache is INT8, its activations int32 and INT8.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from engine import options
from engine.errors import EngineError
from engine.escape import escape
from engine.gguf import GGUFFile, Value
from engine.gguf_config import read_config
from engine.open_model import is_static, open_model
from models import integer_state
from models.config import LIMITS, ModelConfig
from models.state import Shapes, cache_shapes, plan, scratch_shapes, shapes_bytes
from models.weights import weight_bytes

if TYPE_CHECKING:
    from engine.static_int8 import StaticFile

SHOWN = 6  # elements of an array that are shown


def memory(file: GGUFFile, config: ModelConfig, context: int) -> dict[str, int]:
    """Returns the bytes that a model takes in memory: `weights`, `kv_cache`, `scratch` and their `total`.

    context: positions in the KV cache.  What Python and its libraries take comes on top.
    """
    types = {name: info.type for name, info in file.tensors.items()}
    limits = plan(config, types, context, workers=1)
    return _sizes(weight_bytes(config, types), cache_shapes(config, limits), scratch_shapes(config, limits))


def static_memory(file: StaticFile, context: int) -> dict[str, int]:
    """Returns the same of a static INT8 form."""
    config = file.config
    limits = integer_state.integer_plan(config, context, workers=1)
    output = config.tied_embeddings * config.vocab_size * config.hidden_size  # made from the embedding
    cache, scratch = integer_state.cache_shapes(config, limits), integer_state.scratch_shapes(config, limits)
    return _sizes(file.nbytes + output, cache, scratch)


def _sizes(weights: int, cache: Shapes, scratch: Shapes) -> dict[str, int]:
    sizes = {"weights": weights, "kv_cache": shapes_bytes(cache), "scratch": shapes_bytes(scratch)}
    return sizes | {"total": sum(sizes.values())}


def summary(file: GGUFFile, context: int) -> dict[str, Any]:
    """Returns all that the command shows, ready for JSON: keys (arrays cut short), tensors, types, model, memory.

    context: positions to make room for; no more are counted than the model was trained for.
    `model`, `context` and `memory` are None for a model that isn't supported; `refused` then says why.
    """
    form = "Hugging Face folder" if os.path.isdir(file.path) else f"GGUF version {file.version}"
    tensors = [(info.name, info.type, info.shape, info.nbytes) for info in file.tensors.values()]
    found = _contents(form, file.path, file.size, file, tensors)
    try:
        config = read_config(file)
    except EngineError as error:
        return found | {"refused": str(error)}
    return found | _model(config, context, lambda context: memory(file, config, context))


def static_summary(file: StaticFile, context: int) -> dict[str, Any]:
    """Returns the same of a static INT8 form. `metadata` holds the keys of its vocabulary, and no parameter is a scale."""
    found = _contents(f"static INT8 version {file.version}", file.path, file.size, file.vocabulary, file.entries)
    found["parameters"] = file.parameters
    return found | _model(file.config, context, lambda context: static_memory(file, context))


def _model(config: ModelConfig, context: int, memory: Callable[[int], dict[str, int]]) -> dict[str, Any]:
    """What a summary says of a model that is supported; memory: of a context."""
    context = min(context, config.context_length)
    return {"model": asdict(config), "context": context, "memory": memory(context)}


def _contents(
    form: str, path: str, size: int, keys: GGUFFile, tensors: list[tuple[str, str, tuple[int, ...], int]]
) -> dict[str, Any]:
    """What a summary begins with; tensors: name, type, shape, bytes."""
    types: dict[str, dict[str, int]] = {}
    for _, type_, shape, nbytes in tensors:
        count = types.setdefault(type_, {"tensors": 0, "parameters": 0, "bytes": 0})
        count["tensors"] += 1
        count["parameters"] += math.prod(shape)
        count["bytes"] += nbytes
    return {
        "file": path,
        "form": form,
        "version": keys.version,
        "bytes": size,
        "metadata": {key: {"kind": keys.kinds[key]} | _plain(value) for key, value in keys.metadata.items()},
        "tensors": [
            {"name": name, "type": type_, "shape": list(shape), "bytes": nbytes} for name, type_, shape, nbytes in tensors
        ],
        "types": types,
        "parameters": sum(count["parameters"] for count in types.values()),
        "context": None,
        "model": None,
        "memory": None,
        "refused": None,
    }


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    made = options.parser("inspect", "What is in a model file, and the memory that it will take. Reads no weights.")
    made.add_argument("file", metavar="FILE", help="a GGUF file, a Hugging Face folder, or a static INT8 form")
    made.add_argument(
        "--context",
        type=options.whole(1, LIMITS["context_length"][1]),
        default=2048,
        metavar="N",
        help="tokens to make room for (default: %(default)s, at most what the model was trained for)",
    )
    return options.run(_inspect, made, argv)


def _inspect(given: argparse.Namespace) -> None:
    if is_static(given.file):
        from engine.static_int8 import StaticFile  # a look at a GGUF file does without

        with StaticFile.open(given.file) as form:
            found = static_summary(form, given.context)
    else:
        with open_model(given.file) as file:
            found = summary(file, given.context)
    if given.json:
        options.write_json(found)
    else:
        sys.stdout.write(_report(found))


def _plain(value: Value) -> dict[str, Any]:
    """A value as JSON can hold it: `value`, or of an array its `length` and `first` elements."""
    if isinstance(value, list):
        return {"length": len(value), "first": [token.decode("utf-8", "backslashreplace") for token in value[:SHOWN]]}
    if isinstance(value, np.ndarray):
        return {"length": len(value), "first": [_number(v) for v in value[:SHOWN].tolist()]}
    if isinstance(value, bytes):
        return {"value": value.decode("utf-8", "backslashreplace")}
    return {"value": _number(value)}


def _number(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _report(found: Mapping[str, Any]) -> str:
    """The text for people: no control character of the file gets through."""
    lines = [
        f"{escape(os.path.basename(found['file']), 300)}: {found['form']}, {found['bytes']:,} bytes, "
        f"{found['parameters']:,} parameters",
        "",
        f"{len(found['metadata'])} keys",
    ]
    lines += _table([[escape(key), entry["kind"], _shown(entry)] for key, entry in found["metadata"].items()], "<<<")
    lines += ["", f"{len(found['tensors'])} tensors"]
    lines += _table(
        [
            [escape(t["name"]), t["type"], " x ".join(str(n) for n in t["shape"]), f"{t['bytes']:,}"]
            for t in found["tensors"]
        ],
        "<<>>",
    )
    lines += ["", "types"] if found["types"] else []
    lines += _table(
        [
            [name, f"{count['tensors']} tensors", f"{count['parameters']:,} parameters", f"{count['bytes']:,} bytes"]
            for name, count in found["types"].items()
        ],
        "<>>>",
    )
    if found["memory"] is None:
        return "\n".join([*lines, "", f"not supported: {found['refused']}", ""])
    lines += ["", f"memory with a context of {found['context']} tokens, of {found['model']['context_length']} trained"]
    lines += _table([[name, f"{size / 2**20:,.1f} MiB"] for name, size in found["memory"].items()], "<>")
    return "\n".join([*lines, ""])


def _shown(entry: Mapping[str, Any]) -> str:
    """A key's value on a line of the report."""
    if "length" in entry:
        first = ", ".join(escape(str(v), 20) for v in entry["first"])
        return f"[{first}{', ...' if entry['length'] > SHOWN else ''}] ({entry['length']:,})"
    value = entry["value"]
    text = escape(str(value))
    return f"{text} ({len(value):,} characters)" if isinstance(value, str) and text.endswith("...") else text


def _table(rows: list[list[str]], align: str) -> list[str]:
    """Rows of cells as lines with columns of equal width; `align` holds '<' or '>' for each column."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(align))] if rows else []
    return ["  " + "  ".join(f"{cell:{a}{w}}" for cell, a, w in zip(row, align, widths)).rstrip() for row in rows]


if __name__ == "__main__":
    sys.exit(main())
