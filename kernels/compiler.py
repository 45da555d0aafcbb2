"""From a kernel to the address of its machine code.

    kernel (Python) --Numba--> LLVM --> object code (bytes) --llvmlite--> address

Object code is all that is kept: a `store` (see `engine/kernel_cache.py`) hands back the bytes of an earlier process, and
loading them needs llvmlite alone, which takes a tenth of the time that Numba takes to start. Fresh code takes the same
way, so that what is tested is what runs later.

Every entry point has the signature `entry(step: int64*, rank: int64, size: int64, run: int64*)`; the operands of the kernel
lie in step[1], step[2], ... (step[0] is the entry's own address).
"""

import ctypes
import threading
from collections.abc import Iterable
from typing import Any, Protocol

import llvmlite.binding as llvm
import numpy as np

from kernels.registry import Kernel
from kernels.target import Target, host, target_machine
from kernels.types import Pointer, Scalar


class Store(Protocol):
    """Where object code is kept between processes."""

    def get(self, name: str) -> bytes | None:
        """The object code kept under this name, or None."""

    def put(self, name: str, code: bytes) -> None:
        """Keep it."""


class Compiler:
    """Compiles kernels on demand and loads them into this process, each once; may be used from any thread."""

    def __init__(self, store: Store | None = None) -> None:
        self.store = store
        self._lock = threading.RLock()
        self._addresses: dict[str, int] = {}
        self._engine: llvm.ExecutionEngine | None = None

    def addresses(self, kernels: Iterable[Kernel]) -> dict[str, int]:
        """The addresses of these kernels' machine code, compiled now where need be."""
        with self._lock:
            return {kernel.name: self._address(kernel) for kernel in kernels}

    def missing(self, kernels: Iterable[Kernel]) -> list[Kernel]:
        """Those of these kernels that neither this process nor the store has."""
        with self._lock:
            return [k for k in kernels if k.name not in self._addresses and self._stored(k) is None]

    def _address(self, kernel: Kernel) -> int:
        if kernel.name not in self._addresses:
            code = self._stored(kernel)
            if code is None:
                code = object_code(kernel)
                if self.store is not None:
                    self.store.put(kernel.name, code)
            self._addresses[kernel.name] = self._load(kernel, code)
        return self._addresses[kernel.name]

    def _stored(self, kernel: Kernel) -> bytes | None:
        return None if self.store is None else self.store.get(kernel.name)

    def _load(self, kernel: Kernel, code: bytes) -> int:
        if self._engine is None:
            machine = target_machine(host())
            self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self._engine.finalize_object()
        return self._engine.get_function_address(entry_name(kernel))


compiler = Compiler()


def entry_name(kernel: Kernel) -> str:
    """The symbol of a kernel's entry point."""
    return f"intengine.{kernel.name}"


def object_code(kernel: Kernel) -> bytes:
    """Compile a kernel afresh for this process's target."""
    return target_machine(host()).emit_object(llvm_module(kernel, host()))


def assembly(kernel: Kernel, target: Target | None = None) -> str:
    """The assembly that a target gets, compiled afresh; any processor that LLVM knows will do."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    return target_machine(target or host()).emit_assembly(llvm_module(kernel, target or host()))


def llvm_module(kernel: Kernel, target: Target) -> llvm.ModuleRef:
    """The optimised LLVM module of a kernel and its entry point."""
    from kernels import numba_lowering

    return numba_lowering.module(kernel.body, list(kernel.operands.values()), entry_name(kernel), target)


WHOLES = (int, np.integer)
REALS = (*WHOLES, float, np.floating)


def operand(mark: Scalar | Pointer, value: Any) -> int:
    """The int64 that stands for an operand in a step: an address, an integer, or a float's bits.

    Raises TypeError for an array of another dtype, a strided one, or a value of another kind: compiled code can't tell.
    """
    if isinstance(mark, Pointer):
        if not isinstance(value, np.ndarray):
            raise TypeError(f"expected an array of {mark.dtype}, found {type(value).__name__} {value!r}")
        if value.dtype != mark.dtype:
            raise TypeError(f"expected an array of {mark.dtype}, found {value.dtype}")
        if not (value.flags.c_contiguous and value.flags.aligned):
            raise TypeError(f"expected a C-contiguous, aligned array, found strides {value.strides} of {value.shape}")
        return int(value.ctypes.data)
    if not isinstance(value, REALS if mark.dtype == "float32" else WHOLES):
        raise TypeError(f"expected a number of {mark.dtype}, found {type(value).__name__} {value!r}")
    return int(np.float32(value).view(np.int32)) if mark.dtype == "float32" else int(value)


def operands(kernel: Kernel, values: dict[str, Any]) -> list[int]:
    """All operands of a step, in order; the names must be the kernel's own."""
    if values.keys() != kernel.operands.keys():
        raise TypeError(f"{kernel.name}: operands {sorted(values)} given, {sorted(kernel.operands)} expected")
    numbers = []
    for name, mark in kernel.operands.items():
        try:
            numbers.append(operand(mark, values[name]))
        except TypeError as error:
            raise TypeError(f"{kernel.name}: {name}: {error}") from None
    return numbers


ENTRY = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)


def call(kernel: Kernel, run: np.ndarray | None = None, rank: int = 0, size: int = 1, **values: Any) -> None:
    """Run one compiled kernel on arrays, in the calling thread; `run` is the run block, where the kernel reads one."""
    step = np.array([0, *operands(kernel, values)], np.int64)
    block = np.zeros(16, np.int64) if run is None else run
    entry = ENTRY(compiler.addresses([kernel])[kernel.name])
    entry(step.ctypes.data, rank, size, block.ctypes.data)
