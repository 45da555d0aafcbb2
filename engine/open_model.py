"""Opens what a model is kept in: a GGUF file, or a Hugging Face folder, which is then seen as one."""

from __future__ import annotations

import os

from engine.gguf import GGUFFile


def open_model(path: str | os.PathLike[str]) -> GGUFFile:
    """Maps a model's file or files and checks all headers; raises FileError, one line, for whatever is wrong."""
    if os.path.isdir(path):
        from engine.hf_folder import HuggingFaceFolder  # a start from a GGUF file does without

        return HuggingFaceFolder.open(path)
    return GGUFFile.open(path)
