"""The machine forms of `kernels/machine.py`, for Linux and macOS on x86-64 and 64-bit Arm."""

import sys

from llvmlite import ir

from kernels.lower_generic import Lowering, i32, i64
from kernels.target import Target

MXCSR_DEFAULT = 0x1F80  # all exceptions masked, round to nearest, subnormals kept
CLOCK_MONOTONIC = 6 if sys.platform == "darwin" else 1


def _function(b: ir.IRBuilder, name: str, result: ir.Type, *args: ir.Type) -> ir.Function:
    return b.module.globals.get(name) or ir.Function(b.module, ir.FunctionType(result, args), name)


def _slot(b: ir.IRBuilder, type_: ir.Type) -> ir.Value:
    with b.goto_entry_block():
        return b.alloca(type_)


def _atomic_load(b: ir.IRBuilder, p: ir.Value, i: ir.Value) -> ir.Value:
    return b.load_atomic(b.gep(p, [i]), "acquire", 8)


def _atomic_store(b: ir.IRBuilder, p: ir.Value, i: ir.Value, value: ir.Value) -> None:
    b.store_atomic(value, b.gep(p, [i]), "release", 8)


def _atomic_add(b: ir.IRBuilder, p: ir.Value, i: ir.Value, value: ir.Value) -> ir.Value:
    return b.atomic_rmw("add", b.gep(p, [i]), value, "seq_cst")


def _system(name: str) -> Lowering:
    """A call of the system's function `name` on the addresses of p[i], p[j], ...; what it returns is dropped."""

    def lowering(b: ir.IRBuilder, *values: ir.Value) -> None:
        pointers = [b.gep(values[0], [i]) for i in values[1:]]
        b.call(_function(b, name, i32, *(p.type for p in pointers)), pointers)

    return lowering


def _nanoseconds(b: ir.IRBuilder) -> ir.Value:
    time = _slot(b, ir.ArrayType(i64, 2))
    pointer = b.bitcast(time, i64.as_pointer())
    b.call(_function(b, "clock_gettime", i32, i32, i64.as_pointer()), [ir.Constant(i32, CLOCK_MONOTONIC), pointer])
    seconds, rest = (b.load(b.gep(pointer, [ir.Constant(i64, n)])) for n in (0, 1))
    return b.add(b.mul(seconds, ir.Constant(i64, 1_000_000_000)), rest)


def _call_kernel(
    b: ir.IRBuilder, address: ir.Value, step: ir.Value, i: ir.Value, rank: ir.Value, size: ir.Value, run: ir.Value
) -> None:
    type_ = ir.FunctionType(ir.VoidType(), [step.type, i64, i64, run.type])
    b.call(b.inttoptr(address, type_.as_pointer()), [b.gep(step, [i]), rank, size, run])


def _x86_pause(b: ir.IRBuilder) -> None:
    b.call(_function(b, "llvm.x86.sse2.pause", ir.VoidType()), [])


def _x86_set_float_mode(b: ir.IRBuilder, mode: ir.Value) -> ir.Value:
    old, new = _slot(b, i32), _slot(b, i32)
    pointer = ir.IntType(8).as_pointer()
    b.call(_function(b, "llvm.x86.sse.stmxcsr", ir.VoidType(), pointer), [b.bitcast(old, pointer)])
    default = b.icmp_signed("<", mode, ir.Constant(i64, 0))
    b.store(b.select(default, ir.Constant(i32, MXCSR_DEFAULT), b.trunc(mode, i32)), new)
    b.call(_function(b, "llvm.x86.sse.ldmxcsr", ir.VoidType(), pointer), [b.bitcast(new, pointer)])
    return b.zext(b.load(old), i64)


def _arm_pause(b: ir.IRBuilder) -> None:
    b.call(_function(b, "llvm.aarch64.hint", ir.VoidType(), i32), [ir.Constant(i32, 1)])


def _arm_set_float_mode(b: ir.IRBuilder, mode: ir.Value) -> ir.Value:
    old = b.call(_function(b, "llvm.aarch64.get.fpcr", i64), [])
    default = b.icmp_signed("<", mode, ir.Constant(i64, 0))
    new = b.select(default, ir.Constant(i64, 0), mode)
    b.call(_function(b, "llvm.aarch64.set.fpcr", ir.VoidType(), i64), [new])
    return old


def lowerings(target: Target) -> dict[str, Lowering]:
    """The forms for a target."""
    x86 = target.x86
    return {
        "atomic_load": _atomic_load,
        "atomic_store": _atomic_store,
        "atomic_add": _atomic_add,
        "lock": _system("pthread_mutex_lock"),
        "unlock": _system("pthread_mutex_unlock"),
        "wait": _system("pthread_cond_wait"),
        "wake_all": _system("pthread_cond_broadcast"),
        "yield_processor": _system("sched_yield"),
        "nanoseconds": _nanoseconds,
        "call_kernel": _call_kernel,
        "pointer_to": lambda b, address: b.inttoptr(address, i64.as_pointer()),
        "pause": _x86_pause if x86 else _arm_pause,
        "set_float_mode": _x86_set_float_mode if x86 else _arm_set_float_mode,
    }
