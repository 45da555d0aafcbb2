"""python -m engine.quantize IN OUT --type Q4_0 --method gptq --text FILE: a float model to a quantised one.

    IN    a float GGUF file (F32, F16, BF16)
    OUT   a GGUF file in one of the block types; or, with `--activations static`, our INT8 form: NAME.safetensors, NAME.json

    --method round       each block's scale by a search for the least squared error; needs no text
    --method gptq        rounding with feedback (models/quantizers/gptq.py), on the inputs that a text gives
    --method awq-scale   columns that meet large inputs are scaled up before rounding, folded into what comes before them
    --bits 4.5           each matrix gets the type that its measured sensitivity asks for, so many bits a weight in all

Tensors are read, quantised and written one after the other; a run that is interrupted leaves no file behind.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping

import numpy as np
from tqdm import tqdm

from engine import options
from engine.calibration_text import read_text, windows
from engine.errors import OptionError
from engine.float_source import FloatSource, float_source
from engine.gguf_writer import GGUFWriter, Key, NewTensor
from models.config import expected_tensors
from models.quantizers.calibrate import gptq_layers, round_tensor
from models.quantizers.choice import FILE_TYPES, TYPES, choose_types

METHODS = ("round", "gptq", "awq-scale")
TOKENS, WINDOW = 16384, 512  # of the calibration


def quantize_file(
    source: FloatSource, out: str, types: Mapping[str, str], label: str, texts: list[np.ndarray] | None = None
) -> None:
    """Writes a GGUF file with the given type for each tensor; with `texts`, layers go through GPTQ.

    label: the type's name for `general.file_type`.
    """
    shapes = expected_tensors(source.config)
    tensors = [NewTensor(name, types[name], shape) for name, shape in shapes.items()]
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    with GGUFWriter(out, _keys(source, label), tensors) as writer, _bar(total) as bar:
        done: set[str] = set()
        if texts is not None:
            for name in gptq_layers(source.model, types, texts, writer.write):
                done.add(name)
                bar.update(int(np.prod(shapes[name])))
        for name, shape in shapes.items():
            if name not in done:
                round_tensor(source.model, name, types[name], writer.write)
                bar.update(int(np.prod(shape)))


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
    interval = 0.1 if sys.stderr.isatty() else 5.0
    return tqdm(total=total, unit=" weights", unit_scale=True, file=sys.stderr, mininterval=interval)


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = options.parser("quantize", "Quantise a float model.")
    made.add_argument("source", metavar="IN", help="a float GGUF file")
    made.add_argument("out", metavar="OUT", help="the file to write")
    made.add_argument("--type", choices=TYPES, help="of the matrices (default: Q4_0)")
    made.add_argument("--output-type", choices=TYPES, help="of the output matrix (default: Q6_K, or Q8_0)")
    made.add_argument("--method", choices=METHODS, default="round", help="default: round")
    made.add_argument("--text", metavar="FILE", help="calibration text, UTF-8")
    made.add_argument(
        "--tokens", type=options.whole(64, 1 << 22), default=TOKENS, help="of the text to use (default: %(default)s)"
    )
    return made


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return options.run(_quantize, parser(), argv)


def _quantize(given: argparse.Namespace) -> None:
    if given.method != "round" and not given.text:
        raise OptionError(f"--method {given.method}: needs a calibration text; give one with --text FILE")
    if os.path.splitext(given.out)[1] != ".gguf":
        raise OptionError(f"{given.out}: expected a name that ends in .gguf")
    text = read_text(given.text) if given.text else None
    with float_source(given.source) as source:
        label = given.type or "Q4_0"
        types = choose_types(source.config, label, given.output_type)
        texts = None
        if given.method == "gptq":
            assert text is not None
            length = min(WINDOW, source.config.context_length)
            texts = windows(source.tokenizer, text, length, given.tokens, given.text)
        quantize_file(source, given.out, types, label, texts)


if __name__ == "__main__":
    sys.exit(main())
