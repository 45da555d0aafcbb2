"""Calibration texts: windows of token ids cut from a text file, and a short text that comes along."""

from __future__ import annotations

import os

import numpy as np

from engine.errors import FileError, OptionError
from engine.escape import escape
from engine.tokenizer import Tokenizer

LARGEST_FILE = 1 << 30
END_OF_TEXT = "<|endoftext|>"


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a UTF-8 file; raises FileError, one line."""
    name = escape(os.fspath(path), 300)
    try:
        if os.path.getsize(path) > LARGEST_FILE:
            raise FileError(f"{name}: is larger than {LARGEST_FILE >> 20} MiB; give a part of it")
        with open(path, encoding="utf-8") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise FileError(f"{name}: is not UTF-8 text (byte {error.start}); give a text file") from None
    except OSError as error:
        raise FileError(f"{name}: can't be read: {error.strerror}") from None


def token_stream(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text; its documents, parted by lines `<|endoftext|>`, each begin with the vocabulary's start token."""
    bos = None if tokenizer.bos_id is not None else False
    parts = [part.strip("\n") for part in text.split(END_OF_TEXT)]
    return [id_ for part in parts if part for id_ in tokenizer.encode(part, bos=bos)]


def windows(tokenizer: Tokenizer, text: str, length: int, tokens: int, name: str) -> list[np.ndarray]:
    """Windows of `length` ids, `tokens` in all at most, spread evenly over the text.

    Raises OptionError for a text of fewer tokens than one window has.
    """
    piece = 16 * tokens  # characters; no vocabulary has tokens that long on average
    if len(text) > 4 * piece:  # long: take pieces from all over it, each beginning with a line
        starts = np.linspace(0, len(text) - piece // 8, 32).astype(int)
        text = END_OF_TEXT.join(text[text.find("\n", s) + 1 : s + piece // 8] for s in starts)
    ids = token_stream(tokenizer, text)
    if len(ids) < length:
        raise OptionError(f"{escape(name, 300)}: the text has {len(ids)} tokens, expected at least {length}")
    count = len(ids) // length
    chosen = np.unique(np.linspace(0, count - 1, min(count, max(1, tokens // length))).astype(int))
    return [np.array(ids[i * length : (i + 1) * length]) for i in chosen]
