"""Opens what a float or block-quantised model is kept in: a GGUF file, or a Hugging Face folder, which is then seen as one.

Our static INT8 form is told apart by its name; `engine/static_int8.py` reads it.
"""

from __future__ import annotations

import os

from engine.gguf import GGUFFile

STATIC_ENDS = (".safetensors", ".json")


def open_model(path: str | os.PathLike[str]) -> GGUFFile:
    """Maps a model's file or files and checks all headers; raises FileError, one line, for whatever is wrong."""
    if os.path.isdir(path):
        from engine.hf_folder import HuggingFaceFolder  # a start from a GGUF file does without

        return HuggingFaceFolder.open(path)
    return GGUFFile.open(path)


def is_static(path: str | os.PathLike[str]) -> bool:
    """Whether a file's name is that of a static form."""
    return os.path.splitext(os.fspath(path))[1].lower() in STATIC_ENDS
