"""Errors that a file or a caller can cause.

Each message is one line: `file: object: what was found, what was expected, what to do`. A failed `assert`, in contrast,
is a bug of ours.
"""


class EngineError(Exception):
    """Something that a file or a caller got wrong; `str(error)` is one line that says what, and what to do."""


class FileError(EngineError):
    """A model file that can't be read: damaged, cut short, of another kind, or of a type that we don't support."""


class OptionError(EngineError, ValueError):
    """An option or argument outside what it may be."""


class ContextError(EngineError):
    """A prompt, or a prompt and its continuation, that doesn't fit into the context."""


class KernelError(EngineError):
    """Kernels can't be compiled or loaded on this machine as it is set up."""
