"""IntEngine: a CPU inference engine for quantised language models, in Python alone.

    import engine
    llm = engine.load("model.gguf", threads=2, context=2048)
    for piece in llm.stream("Once upon a time"):
        print(piece.text, end="")

Importing this is cheap; the machinery comes with the first use of `load`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from engine.errors import ContextError, EngineError, FileError, KernelError, OptionError

if TYPE_CHECKING:
    from engine.llm import LLM, load
    from engine.results import Generation, Piece, Score, Timings

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "ContextError",
    "EngineError",
    "FileError",
    "Generation",
    "KernelError",
    "OptionError",
    "Piece",
    "Score",
    "Timings",
    "load",
]
_HOMES = {"LLM": "llm", "load": "llm", "Generation": "results", "Piece": "results", "Score": "results", "Timings": "results"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'engine' has no attribute {name!r}")
    return getattr(import_module(f"engine.{_HOMES[name]}"), name)
