"""A float model to be quantised: its configuration, its keys, and its tensors, read one at a time or row by row."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from engine.errors import FileError
from engine.escape import escape, listed
from engine.gguf_config import read_config
from engine.gguf_types import SUPPORTED
from engine.gguf_writer import Key
from engine.open_model import open_model
from engine.tokenizer import Tokenizer
from models.config import ModelConfig
from models.quantizers.calibrate import Model

CODES_OF_EXPONENTS = {"F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}


@dataclass(frozen=True, slots=True)
class FloatSource:
    """An open float model.

    Attributes:
        keys: The file's keys, in order, as `GGUFWriter` takes them.
    """

    path: str
    model: Model
    tokenizer: Tokenizer
    keys: dict[str, Key]

    @property
    def config(self) -> ModelConfig:
        """The model's sizes."""
        return self.model.config


@contextmanager
def float_source(path: str | os.PathLike[str]) -> Iterator[FloatSource]:
    """Opens a float GGUF file, or a Hugging Face folder.

    Raises FileError where it can't be read, where a matrix is quantised already, or a weight is NaN or infinite.
    """
    name = os.fspath(path)
    with open_model(name) as file:
        config = read_config(file)
        coded = [f"{t.name} {t.type}" for t in file.tensors.values() if SUPPORTED[t.type].quantised]
        if coded:
            raise FileError(
                f"{escape(name, 300)}: tensors: {len(coded)} quantised already: {listed(coded, 3)}; "
                "quantise from the float model (F32, F16 or BF16)"
            )
        tokenizer = Tokenizer.from_gguf(file.metadata, config.vocab_size, name)
        keys: dict[str, Key] = {key: (file.kinds[key], value) for key, value in file.metadata.items()}

        def rows(tensor: str, index: np.ndarray | slice) -> np.ndarray:
            info = file.tensor(tensor)
            raw = file.data(tensor).reshape(info.shape[0], -1)[index]
            code, exponent = CODES_OF_EXPONENTS[info.type]
            raw = np.ascontiguousarray(raw)
            if ((raw.reshape(-1).view(code) & exponent) == exponent).any():
                raise FileError(
                    f"{escape(name, 300)}: tensor '{escape(tensor)}': holds NaN or infinity; convert it again"
                )
            values = SUPPORTED[info.type].dequantize(raw.reshape(-1))
            file.release(tensor)
            return values.reshape(len(raw), *info.shape[1:])

        def read(tensor: str) -> np.ndarray:
            return rows(tensor, slice(None))

        yield FloatSource(name, Model(config, read, rows), tokenizer, keys)
