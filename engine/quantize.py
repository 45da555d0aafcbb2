"""python -m engine.quantize IN OUT --type Q4_0 --method gptq --text FILE: a float model to a quantised one.

    IN    a float GGUF file, or a Hugging Face folder (F32, F16, BF16)
    OUT   a GGUF file in one of the block types, or in a float type (`--type F16`); or, with `--activations static`, our
          INT8 form: NAME.safetensors, NAME.json

    --method round       each block's scale by a search for the least squared error; needs no text
    --method gptq        rounding with feedback (models/quantizers/gptq.py), on the inputs that a text gives
    --method awq-scale   columns that meet large inputs are scaled up before rounding, folded into what comes before them
    --bits 4.5           each matrix gets the type that its measured sensitivity asks for, so many bits a weight in all

Tensors are read, quantised and written one after the other; a run that is interrupted leaves no file behind. Activations
that a calibration needs again lie in temporary files beside OUT, some 40 KB for each token of a model 896 wide.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from engine import options
from engine.calibration_text import read_text, windows
from engine.errors import FileError, OptionError
from engine.escape import escape
from engine.float_source import FloatSource, float_source
from engine.gguf_writer import GGUFWriter, Key, NewTensor
from engine.spill import Spill
from engine.static_int8 import stem_of, write_form
from models.config import expected_tensors
from models.quantizers.calibrate import Emit, Model, awq_layers, gptq_layers, round_tensor
from models.quantizers.choice import FILE_TYPES, FLOATS, TYPES, choose_types
from models.quantizers.observers import OBSERVERS
from models.quantizers.sensitivity import Judge, choices, measure, needs_ternary
from models.quantizers.static import SMOOTH, from_floats
from models.state import CHUNK

METHODS = ("round", "gptq", "awq-scale")
TOKENS, WINDOW = 16384, 512  # of the calibration
MEASURED_WINDOWS, MEASURED_LENGTH = 4, 256  # for sensitivities, and as many to compare what they suggest
Item = TypeVar("Item")
Layers = Callable[[Model, Mapping[str, str], list[np.ndarray], Emit], Iterator[str]]


def quantize_file(
    source: FloatSource,
    out: str,
    types: Mapping[str, str],
    label: str,
    layers: Layers | None = None,
    texts: list[np.ndarray] | None = None,
) -> None:
    """Writes a GGUF file with the given type for each tensor.

    label: the type's name for `general.file_type`.  layers: what quantises the layers on `texts` (None: plain rounding,
    as for all that it leaves).
    """
    shapes = expected_tensors(source.config)
    tensors = [NewTensor(name, types[name], shape) for name, shape in shapes.items()]
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    with GGUFWriter(out, _keys(source, label), tensors) as writer, _bar(total) as bar:
        done: set[str] = set()
        if layers is not None and texts is not None:
            model = dataclasses.replace(source.model, keep=Spill(os.path.dirname(out)))
            try:
                for name in layers(model, types, texts, writer.write):
                    done.add(name)
                    bar.update(int(np.prod(shapes[name])))
            except ValueError as error:
                raise FileError(f"{escape(source.path, 300)}: {error}") from None
        for name, shape in shapes.items():
            if name not in done:
                try:
                    round_tensor(source.model, name, types[name], writer.write)
                except ValueError as error:
                    raise FileError(f"{escape(source.path, 300)}: tensor '{name}': {error}") from None
                bar.update(int(np.prod(shape)))


def mixed_types(source: FloatSource, texts: list[np.ndarray], bits: float, folder: str) -> dict[str, str]:
    """The type of each tensor by measured sensitivity, for `bits` a weight; says on stderr what came out.

    texts: every other one is measured on, the rest compares what was found.  folder: for temporary files.
    """
    shapes = expected_tensors(source.config)
    matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2}
    model = dataclasses.replace(source.model, keep=Spill(folder))
    losses = {}
    try:
        ternary = needs_ternary(matrices, bits)
        judge = Judge.of(model, texts[::2])
        for name, loss in _progress(measure(judge, ternary), len(matrices), "sensitivity"):
            losses[name] = loss
        found = choices(losses, matrices, bits)
    except ValueError as error:
        raise OptionError(f"--bits: {error}") from None
    judge = Judge.of(model, texts[1::2] or texts)
    divergence = {label: judge.of_types(types) for label, types in _progress(found.items(), len(found), "comparing")}
    best = min(divergence, key=lambda label: divergence[label])
    counts = {t: list(found[best].values()).count(t) for t in dict.fromkeys(found[best].values())}
    sys.stderr.write("KL: " + ", ".join(f"{label} {kl:.5f}" for label, kl in divergence.items()) + "\n")
    sys.stderr.write("types: " + ", ".join(f"{count} {t}" for t, count in counts.items()) + "\n")
    return {name: found[best].get(name, "F32") for name in shapes}


def write_static(
    source: FloatSource, out: str, texts: list[np.ndarray], observer: str, smooth: float, threads: int | None = None
) -> None:
    """Writes our static INT8 form, NAME.safetensors and NAME.json, by what the float model shows when it runs the texts."""
    from engine.integer_calibration import calibrated_scales
    from engine.loader import load_gguf
    from engine.threads import default_threads

    stem_of(out)
    config, read = source.config, source.model.read
    sys.stderr.write(f"{source.path}: running the calibration text\n")
    loaded = load_gguf(source.path, threads or default_threads(), None, CHUNK, [])
    try:
        scales = calibrated_scales(loaded, [ids.tolist() for ids in texts], read, observer, smooth)
    finally:
        loaded.team.close()
    del loaded  # the float model's memory, before the integers are made
    calibration = {"observer": observer, "smooth": smooth, "tokens": sum(map(len, texts))}
    with _bar(sum(int(np.prod(shape)) for shape in expected_tensors(config).values())) as bar:
        write_form(out, from_floats(config, read, scales), source.keys, calibration, bar.update)


def _keys(source: FloatSource, label: str) -> dict[str, Key]:
    """The source's keys, with what has changed."""
    keys = dict(source.keys)
    keys["general.quantization_version"] = ("u32", 2)
    if label in FILE_TYPES:
        keys["general.file_type"] = ("u32", FILE_TYPES[label])
    else:
        keys.pop("general.file_type", None)
    return keys


def _bar(total: int) -> tqdm:
    """Progress on stderr, in weights; a line now and then where that is no terminal."""
    return tqdm(total=total, unit=" weights", unit_scale=True, file=sys.stderr, mininterval=_interval())


def _progress(items: Iterable[Item], count: int, what: str) -> Iterator[Item]:
    """The items, counted on stderr."""
    bar: Iterator[Item] = tqdm(items, total=count, desc=what, file=sys.stderr, mininterval=_interval())
    return bar


def _interval() -> float:
    return 0.1 if sys.stderr.isatty() else 5.0


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = options.parser("quantize", "Quantise a float model.")
    made.add_argument("source", metavar="IN", help="a float GGUF file, or a Hugging Face folder")
    made.add_argument("out", metavar="OUT", help="the file to write")
    made.add_argument("--type", choices=(*TYPES, *FLOATS), help="of the matrices (default: Q4_0)")
    made.add_argument("--output-type", choices=(*TYPES, *FLOATS), help="of the output matrix (default: Q6_K or better)")
    made.add_argument("--method", choices=METHODS, default="round", help="default: round")
    made.add_argument(
        "--bits", type=options.number(1, 16), metavar="B", help="mixed precision: this many bits a weight in all"
    )
    made.add_argument("--activations", choices=("dynamic", "static"), default="dynamic", help="static: INT8 form")
    made.add_argument("--observer", choices=OBSERVERS, default="mse", help="of static inputs (default: mse)")
    made.add_argument(
        "--smooth", type=options.number(0, 1), metavar="A", help="SmoothQuant's power for static inputs (default: 0.5)"
    )
    made.add_argument("--text", metavar="FILE", help="calibration text, UTF-8")
    made.add_argument(
        "--tokens", type=options.whole(64, 1 << 22), default=TOKENS, help="of the text to use (default: %(default)s)"
    )
    return made


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return options.run(_quantize, parser(), argv)


def _quantize(given: argparse.Namespace) -> None:
    static = given.activations == "static"
    _check(given, static)
    with float_source(given.source) as source:
        texts, few = _calibration(given, source)
        if static:
            assert texts is not None
            smooth = SMOOTH if given.smooth is None else given.smooth
            write_static(source, given.out, texts, given.observer, smooth, given.threads)
            return
        label = given.type or "Q4_0"
        if given.bits is None:
            types = choose_types(source.config, label, given.output_type)
        else:
            types, label = mixed_types(source, few, given.bits, os.path.dirname(given.out)), "mixed"
        layers: dict[str, Layers] = {"gptq": gptq_layers, "awq-scale": awq_layers}
        quantize_file(source, given.out, types, label, layers.get(given.method), texts)


def _calibration(given: argparse.Namespace, source: FloatSource) -> tuple[list[np.ndarray] | None, list[np.ndarray]]:
    """Windows of the text to calibrate on (None without one), and those to measure sensitivities on."""
    if not given.text:
        return None, []
    text, context = read_text(given.text), source.config.context_length
    length = min(MEASURED_LENGTH, context)
    return (
        windows(source.tokenizer, text, min(WINDOW, context), given.tokens, given.text),
        windows(source.tokenizer, text, length, 2 * MEASURED_WINDOWS * length, given.text) if given.bits else [],
    )


def _check(given: argparse.Namespace, static: bool) -> None:
    """Options that don't go together, and names that won't do."""
    needs = f"--method {given.method}" if given.method != "round" else "--bits" if given.bits else ""
    needs = "--activations static" if static else needs
    if needs and not given.text:
        raise OptionError(f"{needs}: needs a calibration text; give one with --text FILE")
    if given.bits is not None and (given.type or given.output_type):
        raise OptionError("--bits: chooses all types itself; leave --type and --output-type away")
    if static:
        stem_of(given.out)
        if given.type or given.output_type or given.bits is not None or given.method != "round":
            raise OptionError(
                "--activations static: the form is INT8 throughout; leave --type, --bits and --method away"
            )
    elif given.smooth is not None:
        raise OptionError("--smooth: is for --activations static; for block types there is --method awq-scale")
    elif os.path.splitext(given.out)[1] != ".gguf":
        raise OptionError(f"{given.out}: expected a name that ends in .gguf")


if __name__ == "__main__":
    sys.exit(main())
