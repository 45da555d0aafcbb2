"""Teaches Numba the vocabulary: the vector types, each operation's signature and machine form, and the subroutines.

Importing this imports Numba. Only `kernels/compiler.py` does, and only when something must be compiled.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import compiler as numba_compiler
from numba.core import datamodel
from numba.core.compiler_lock import global_compiler_lock
from numba.core.datamodel import register_default
from numba.core.datamodel.models import PrimitiveModel
from numba.core.imputils import lower_builtin
from numba.core.registry import cpu_target
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature

from kernels import lower_generic, lower_machine, lower_native, registry
from kernels.target import Target, target_machine
from kernels.types import Pointer, Scalar, Vector, Vectors


class VectorType(types.Type):
    """A vector register, by its mark."""

    def __init__(self, mark: Vector) -> None:
        self.mark = mark
        super().__init__(name=f"{mark.dtype} x {mark.lanes}")


Form = tuple[Callable[..., Any], tuple[types.Type, ...]]  # a subroutine, and what its arguments are in this form of it


@dataclass(slots=True)
class Lowered:
    """A function in LLVM's language: its name there, its text, and the subroutines that it calls."""

    name: str
    text: str
    calls: set[Form]


class Session:
    """What Numba has been taught so far, for one target; a test may ask for another target and read what it would get."""

    def __init__(self) -> None:
        self.target: Target | None = None
        self.known: set[Callable[..., Any]] = set()

    def begin(self, target: Target) -> None:
        """Lower for `target` from now on; register the operations and subroutines that are new."""
        if target != self.target:
            self.target = target
            self.forms = lower_generic.generic | lower_machine.lowerings(target) | lower_native.lowerings(target)
            self.sums, self.wide = lower_native.sum_types(target), target.wide
            self.subroutines: dict[Form, Lowered] = {}
            cpu_target.target_context.data_model_manager = datamodel.default_manager.copy()
        for function in [*registry.operations.values(), *registry.subroutines]:
            if function not in self.known:
                self.known.add(function)
                _install(function, is_operation=function in registry.operations.values())
        cpu_target.target_context.refresh()
        cpu_target.typing_context.refresh()


_session = Session()
_calls: list[set[Form]] = []  # of the functions being lowered, innermost last
LIBRARY = {"sched_yield", "clock_gettime"} | {
    f"pthread_{name}" for name in ("mutex_lock", "mutex_unlock", "cond_wait", "cond_broadcast")
}  # all that a kernel may call besides what LLVM itself needs (`fmaf`, `rintf`, `memset`)
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
        form = _session.sums.get((mark.dtype, mark.lanes)) or ir.VectorType(_LANES[mark.dtype], mark.lanes)
        super().__init__(dmm, fe_type, form)


def numba_type(mark: Any, outputs: int = 8) -> types.Type:
    """The Numba type of an annotation's mark, for so many outputs in a vector."""
    if mark is None:
        return types.none
    if isinstance(mark, tuple):
        return types.Tuple([numba_type(part, outputs) for part in mark])
    if isinstance(mark, Vectors):
        mark = mark.of(outputs)
    if isinstance(mark, Vector):
        return VectorType(mark)
    dtype = getattr(types, mark.dtype)
    return types.CPointer(dtype) if isinstance(mark, Pointer) else dtype


def _install(function: Callable[..., Any], is_operation: bool) -> None:
    """Tell Numba an operation's or a subroutine's signature, from its annotations, and how to lower a call of it."""
    found = registry.marks(function)
    marks = (found.pop("return"), *found.values())
    forms = dict.fromkeys(tuple(numba_type(mark, outputs) for mark in marks) for outputs in (8, 16))  # often one
    cases = [signature(*form) for form in forms]
    template = type(f"Type_{function.__name__}", (ConcreteTemplate,), {"key": function, "cases": cases})
    infer_global(function, types.Function(template))  # by the function itself: it may live inside another one

    def operation(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        value = _session.forms[function.__name__](builder, *values)
        return context.get_dummy_value() if value is None else value

    def subroutine(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        if function in registry.wide_subroutines and not _session.wide:
            return context.get_constant_undef(sig.return_type)  # it is behind a condition that is never true
        args, result, form = sig.args, sig.return_type, (function, sig.args)
        if form not in _session.subroutines:
            _session.subroutines[form] = _lower(function, args, result)
        _calls[-1].add(form)
        name = _session.subroutines[form].name
        convention = context.call_conv
        known = builder.module.globals.get(name)
        callee = known or ir.Function(builder.module, convention.get_function_type(result, args), name)
        return convention.call_function(builder, callee, result, args, values)[1]

    for case in cases:
        lower_builtin(function, *case.args)(operation if is_operation else subroutine)


def _lower(function: Callable[..., Any], args: list[types.Type], result: types.Type) -> Lowered:
    """Run Numba's front end: one function to unoptimised LLVM, its subroutines as calls."""
    flags = numba_compiler.Flags()
    settings = {"no_compile": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True, "nrt": False}
    for name, value in (settings | {"error_model": "numpy"}).items():
        setattr(flags, name, value)
    _calls.append(set())
    try:
        compiled = numba_compiler.compile_extra(
            cpu_target.typing_context, cpu_target.target_context, function, tuple(args), result, flags, {}
        )
    finally:
        calls = _calls.pop()
    text = str(compiled.library._final_module)
    if "picklebuf" in text:  # where Numba keeps the exception; compiled, it would be a silent return
        raise TypeError(f"{function.__module__}.{function.__qualname__}: it can raise, which a kernel must not")
    return Lowered(compiled.fndesc.llvm_func_name, text, calls)


def module(body: Callable[..., None], marks: list[Scalar | Pointer], entry: str, target: Target) -> llvm.ModuleRef:
    """Compile a kernel's body for `target`: an optimised LLVM module with one visible function, `entry`."""
    arguments = [types.int64, types.int64, types.CPointer(types.int64), *map(numba_type, marks)]
    with global_compiler_lock:
        _session.begin(target)
        main = _lower(body, arguments, types.none)
        parts, waiting = {main.name: main}, list(main.calls)
        while waiting:
            part = _session.subroutines[waiting.pop()]
            if part.name not in parts:
                parts[part.name] = part
                waiting += part.calls
    whole = llvm.parse_assembly(_entry_point(entry, main.name, marks))
    whole.triple = target.triple
    for part in parts.values():
        whole.link_in(llvm.parse_assembly(part.text))
    whole.verify()
    unknown = {f.name for f in whole.functions if f.is_declaration and not f.name.startswith("llvm.")} - LIBRARY
    if unknown:
        raise TypeError(f"{body.__module__}.{body.__qualname__}: it calls {sorted(unknown)}, which a kernel must not")
    for function in whole.functions:
        if not function.is_declaration and function.name != entry:
            function.linkage = "internal"
            function.add_function_attribute("alwaysinline")
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
    types_ = ", ".join(value.rsplit(" ", 1)[0] for value in arguments.split(", "))
    return f"""
declare i32 @{name}({types_})
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
