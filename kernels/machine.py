"""What a worker needs of the machine besides arithmetic: atomics, sleep, the clock, the float mode, a call by address.

These have no meaning in plain Python: their twins refuse to run.
"""

from typing import NoReturn

from kernels.registry import operation
from kernels.types import I64, Int


def _native_only() -> NoReturn:
    raise NotImplementedError("this operation exists only in compiled code")


@operation
def atomic_load(p: I64, i: Int) -> Int:
    """p[i], acquired."""
    _native_only()


@operation
def atomic_store(p: I64, i: Int, value: Int) -> None:
    """p[i] = value, released."""
    _native_only()


@operation
def atomic_add(p: I64, i: Int, value: Int) -> Int:
    """Add to p[i]; what it held before."""
    _native_only()


@operation
def pause() -> None:
    """Tell the processor that this is a spin."""
    _native_only()


@operation
def yield_processor() -> None:
    """Let another thread run (`sched_yield`)."""
    _native_only()


@operation
def lock(p: I64, i: Int) -> None:
    """Take the mutex at p[i] (`pthread_mutex_lock`)."""
    _native_only()


@operation
def unlock(p: I64, i: Int) -> None:
    """Give it back."""
    _native_only()


@operation
def wait(p: I64, condition: Int, mutex: Int) -> None:
    """Sleep until p[condition] is signalled, without the mutex p[mutex] meanwhile (`pthread_cond_wait`)."""
    _native_only()


@operation
def wake_all(p: I64, condition: Int) -> None:
    """Signal p[condition] to all that wait (`pthread_cond_broadcast`)."""
    _native_only()


@operation
def nanoseconds() -> Int:
    """A clock that only goes forward (`clock_gettime`)."""
    _native_only()


@operation
def set_float_mode(mode: Int) -> Int:
    """Set the processor's rounding and subnormal mode (-1: round to nearest, keep subnormals); what it was before."""
    _native_only()


@operation
def call_kernel(address: Int, step: I64, i: Int, rank: Int, size: Int, run: I64) -> None:
    """Call the kernel at `address` with its operands at step[i]."""
    _native_only()


@operation
def pointer_to(address: Int) -> I64:
    """The int64 at this address."""
    _native_only()
