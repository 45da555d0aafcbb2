"""Kernels and the subroutines that they share, as plain functions that the compiler finds here.

A kernel is a function `kernel(rank, size, run, *operands)`: worker `rank` of `size` computes its share of the outputs; `run`
points to the block of numbers that vary from run to run (`kernels/loop.py`). Its annotations say what each operand is.
Nothing is compiled when a kernel is defined; `kernels/compiler.py` does that on demand.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from kernels.types import Pointer, Scalar

Function = TypeVar("Function", bound=Callable[..., Any])

COMMON = ("rank", "size", "run")
subroutines: list[Callable[..., Any]] = []
wide_subroutines: set[Callable[..., Any]] = set()
operations: dict[str, Callable[..., Any]] = {}
kernels: dict[str, "Kernel"] = {}


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel: its name, its Python body, and what each operand behind `rank, size, run` is."""

    name: str
    body: Callable[..., None]
    operands: dict[str, Scalar | Pointer]

    def __call__(self, *args: Any, **operands: Any) -> None:
        """Run the body as plain Python on NumPy arrays."""
        self.body(*args, **operands)


def marks(function: Callable[..., Any]) -> dict[str, Any]:
    """The marks of `kernels/types.py` on a function's parameters and its `return`; a tuple of types gives a tuple."""
    return {name: _mark(function, hint) for name, hint in get_type_hints(function, include_extras=True).items()}


def _mark(function: Callable[..., Any], hint: Any) -> Any:
    if hint is type(None):
        return None
    if get_origin(hint) is tuple:
        return tuple(_mark(function, part) for part in get_args(hint))
    metadata = getattr(hint, "__metadata__", None)
    assert metadata, f"{function.__name__}: {hint} is not a type of kernels/types.py"
    return metadata[0]


def kernel(function: Callable[..., None]) -> Kernel:
    """Register a function as a kernel under its own name."""
    names = list(inspect.signature(function).parameters)
    assert tuple(names[:3]) == COMMON, f"{function.__name__}: a kernel begins with {COMMON}"
    found = marks(function)
    entry = Kernel(function.__name__, function, {name: found[name] for name in names[3:]})
    assert entry.name not in kernels, f"two kernels are named {entry.name}"
    kernels[entry.name] = entry
    return entry


def subroutine(function: Function) -> Function:
    """Register a plain function that kernels call; the compiler always inlines it."""
    subroutines.append(function)
    return function


def wide_subroutine(function: Function) -> Function:
    """Register a subroutine that is called, and compiled, only where `kernels/wide.py` has `wide()` 1."""
    wide_subroutines.add(function)
    return subroutine(function)


def typed(**types: Any) -> Callable[[Function], Function]:
    """Say what `Any` stands for in a function's annotations, where one source serves several types; `result`: its return."""

    def annotate(function: Function) -> Function:
        function.__annotations__.update({"return" if name == "result" else name: t for name, t in types.items()})
        return function

    return annotate


def operation(function: Function) -> Function:
    """Register a function of the vocabulary: its body is the twin in NumPy, `kernels/lower_*.py` hold its machine forms."""
    operations[function.__name__] = function
    return function
