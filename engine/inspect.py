"""python -m engine.inspect FILE: what is in a model file, and the memory that it will take. Reads no weights.

    memory = weights + KV cache + scratch
    KV cache: 2 * L * context * G * D numbers, float16, or float32 if no matrix of the file is quantised
    scratch:  the activations of a chunk of the prompt (up to CHUNK tokens) and one row of logits
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from engine import options
from engine.errors import EngineError
from engine.escape import escape
from engine.gguf import GGUFFile, Value
from engine.gguf_config import read_config
from engine.open_model import open_model
from models.config import LIMITS, ModelConfig
from models.state import cache_shapes, plan, scratch_shapes, shapes_bytes
from models.weights import weight_bytes

SHOWN = 6  # elements of an array that are shown


def memory(file: GGUFFile, config: ModelConfig, context: int) -> dict[str, int]:
    """Returns the bytes that a model takes in memory: `weights`, `kv_cache`, `scratch` and their `total`.

    context: positions in the KV cache.  What Python and its libraries take comes on top.
    """
    types = {name: info.type for name, info in file.tensors.items()}
    limits = plan(config, types, context, workers=1)
    sizes = {
        "weights": weight_bytes(config, types),
        "kv_cache": shapes_bytes(cache_shapes(config, limits)),
        "scratch": shapes_bytes(scratch_shapes(config, limits)),
    }
    return sizes | {"total": sum(sizes.values())}


def summary(file: GGUFFile, context: int) -> dict[str, Any]:
    """Returns all that the command shows, ready for JSON: keys (arrays cut short), tensors, types, model, memory.

    context: positions to make room for; no more are counted than the model was trained for.
    `model`, `context` and `memory` are None for a model that isn't supported; `refused` then says why.
    """
    types: dict[str, dict[str, int]] = {}
    for info in file.tensors.values():
        count = types.setdefault(info.type, {"tensors": 0, "parameters": 0, "bytes": 0})
        count["tensors"] += 1
        count["parameters"] += math.prod(info.shape)
        count["bytes"] += info.nbytes
    found: dict[str, Any] = {
        "file": file.path,
        "version": file.version,
        "bytes": file.size,
        "metadata": {key: {"kind": file.kinds[key]} | _plain(value) for key, value in file.metadata.items()},
        "tensors": [
            {"name": info.name, "type": info.type, "shape": list(info.shape), "bytes": info.nbytes}
            for info in file.tensors.values()
        ],
        "types": types,
        "parameters": sum(count["parameters"] for count in types.values()),
        "context": None,
        "model": None,
        "memory": None,
        "refused": None,
    }
    try:
        config = read_config(file)
    except EngineError as error:
        found["refused"] = str(error)
    else:
        found["model"] = asdict(config)
        found["context"] = min(context, config.context_length)
        found["memory"] = memory(file, config, found["context"])
    return found


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    made = options.parser("inspect", "What is in a model file, and the memory that it will take. Reads no weights.")
    made.add_argument("file", metavar="FILE", help="a GGUF file, or a Hugging Face folder")
    made.add_argument(
        "--context",
        type=options.whole(1, LIMITS["context_length"][1]),
        default=2048,
        metavar="N",
        help="tokens to make room for (default: %(default)s, at most what the model was trained for)",
    )
    return options.run(_inspect, made, argv)


def _inspect(given: argparse.Namespace) -> None:
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
        f"{escape(os.path.basename(found['file']), 300)}: {_form(found)}, {found['bytes']:,} bytes, "
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


def _form(found: Mapping[str, Any]) -> str:
    return "Hugging Face folder" if os.path.isdir(found["file"]) else f"GGUF version {found['version']}"


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
