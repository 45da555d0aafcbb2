"""Teaches Numba the vocabulary: the vector types, each operation's signature and machine form, and the subroutines.

Importing this imports Numba. Only `kernels/compiler.py` does, and only when something must be compiled.
"""

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import compiler as numba_compiler
from numba.core.compiler_lock import global_compiler_lock
from numba.core.datamodel import register_default
from numba.core.datamodel.models import PrimitiveModel
from numba.core.imputils import lower_builtin
from numba.core.registry import cpu_target
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import overload

from kernels import lower_generic, lower_machine, lower_native, registry
from kernels.target import Target, target_machine
from kernels.types import Pointer, Scalar, Vector


class VectorType(types.Type):
    """A vector register, by its mark."""

    def __init__(self, mark: Vector) -> None:
        self.mark = mark
        super().__init__(name=f"{mark.dtype} x {mark.lanes}")


class Lowerings:
    """The machine forms in use; a test sets another target to read what it would get."""

    def __init__(self, target: Target) -> None:
        self.set_target(target)

    def set_target(self, target: Target) -> None:
        """Lower for `target` from now on."""
        self.forms = lower_generic.generic | lower_machine.lowerings(target) | lower_native.lowerings(target)
        self.sums = lower_native.sum_types(target)


_active: Lowerings | None = None
_LANES: dict[str, ir.Type] = {
    "uint8": ir.IntType(8),
    "int8": ir.IntType(8),
    "int32": ir.IntType(32),
    "float32": ir.FloatType(),
}


@register_default(VectorType)
class _VectorModel(PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: VectorType) -> None:
        mark = fe_type.mark
        assert _active is not None
        form = _active.sums.get(mark.dtype) or ir.VectorType(_LANES[mark.dtype], mark.lanes)
        super().__init__(dmm, fe_type, form)


def numba_type(mark: Any) -> types.Type:
    """The Numba type of an annotation's mark."""
    if mark is None:
        return types.none
    if isinstance(mark, Vector):
        return VectorType(mark)
    dtype = getattr(types, mark.dtype)
    return types.CPointer(dtype) if isinstance(mark, Pointer) else dtype


def install(target: Target) -> Lowerings:
    """Register all operations and subroutines, once, lowered for `target`; further calls only set the target."""
    global _active
    if _active is not None:
        _active.set_target(target)
        return _active
    _active = Lowerings(target)
    for function in registry.operations.values():
        _install_operation(function)
    for function in registry.subroutines:
        _install_subroutine(function)
    return _active


def _install_operation(function: Callable[..., Any]) -> None:
    found = registry.marks(function)
    result = numba_type(found.pop("return"))
    args = [numba_type(mark) for mark in found.values()]
    cases = [signature(result, *args)]
    infer_global(function)(type(f"Type_{function.__name__}", (ConcreteTemplate,), {"cases": cases}))

    @lower_builtin(function, *args)
    def implementation(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        assert _active is not None
        value = _active.forms[function.__name__](builder, *values)
        return context.get_dummy_value() if value is None else value


def _install_subroutine(function: Callable[..., Any]) -> None:
    """Let kernels call a plain function, inlined before it is compiled."""
    overload(function, strict=False, inline="always")(lambda *args, **kw: function)


def module(body: Callable[..., None], marks: list[Scalar | Pointer], entry: str, target: Target) -> llvm.ModuleRef:
    """Compile a kernel's body for `target`: an optimised LLVM module with one visible function, `entry`."""
    flags = numba_compiler.Flags()
    flags.no_compile = True
    flags.no_cpython_wrapper = True
    flags.no_cfunc_wrapper = True
    flags.nrt = False
    flags.error_model = "numpy"
    context = cpu_target.target_context
    arguments = [types.int64, types.int64, types.CPointer(types.int64), *map(numba_type, marks)]
    with global_compiler_lock:
        install(target)
        context.refresh()
        cpu_target.typing_context.refresh()
        result = numba_compiler.compile_extra(
            cpu_target.typing_context, context, body, tuple(arguments), types.none, flags, {}
        )
        library = result.library
        code = str(library._final_module)
    name = result.fndesc.llvm_func_name
    whole = llvm.parse_assembly(code + _entry_point(entry, name, marks))
    whole.verify()
    for function in whole.functions:
        if not function.is_declaration and function.name != entry:
            function.linkage = "internal"
    for variable in whole.global_variables:
        if not variable.is_declaration:
            variable.linkage = "internal"
    _optimise(whole, target)
    return whole


def _entry_point(entry: str, name: str, marks: list[Scalar | Pointer]) -> str:
    """The function that takes a step's operands out of the table and calls the body, which LLVM inlines."""
    lines, values = [], []
    for n, mark in enumerate(marks, start=1):
        is_float = isinstance(mark, Scalar) and mark.dtype == "float32"
        type_ = "ptr" if isinstance(mark, Pointer) else "float" if is_float else "i64"
        lines.append(f"  %a{n} = getelementptr i64, ptr %step, i64 {n}")
        lines.append(f"  %v{n} = load {type_}, ptr %a{n}, align 8")
        values.append(f"{type_} %v{n}")
    arguments = ", ".join(["ptr %result", "ptr %error", "i64 %rank", "i64 %size", "ptr %run", *values])
    return f"""
define void @"{entry}"(ptr %step, i64 %rank, i64 %size, ptr %run) {{
  %result = alloca ptr
  %error = alloca ptr
{chr(10).join(lines)}
  %status = call i32 @{name}({arguments})
  ret void
}}
"""


def _optimise(whole: llvm.ModuleRef, target: Target) -> None:
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = True
    options.slp_vectorization = False
    builder = llvm.create_pass_builder(target_machine(target), options)
    builder.getModulePassManager().run(whole, builder)
