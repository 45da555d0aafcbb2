"""What every worker runs: the steps of a table, one after another, meeting the others at a barrier.

    table   (steps, STEP_WIDTH) int64     | address of the kernel | its operands ... | 1: all meet after this step |

    sync    int64, one cache line (LINE words) for each value that several workers write

Work inside a step is split by `rank` and `size`; a step whose last word is 0 does not wait for the others, since the next
one does not read what it writes. The barrier is two atomics: a count of arrivals and a generation. The last to arrive
decides whether all leave, and publishes that with the generation, so that all leave at the same step. They leave when the
run's STOP is set, or when the slice of time is over: the main thread then lets Python handle signals and begins a new
slice at NEXT.

A worker that has nothing to do spins for `patience` nanoseconds, then sleeps until the next job, all in compiled code: a
lock and a condition of the operating system see to it that no job is missed, and an exception in the caller's Python finds
the team idle, never in the middle of a job.
"""

import ctypes

import numpy as np

from kernels.machine import (
    atomic_add,
    atomic_load,
    atomic_store,
    call_kernel,
    lock,
    nanoseconds,
    pause,
    pointer_to,
    set_float_mode,
    unlock,
    wait,
    wake_all,
    yield_processor,
)
from kernels.registry import kernel, subroutine
from kernels.run import STOP
from kernels.types import I64, Int

STEP_WIDTH = 32
MEET = STEP_WIDTH - 1  # the word of a step that says whether all meet after it
LINE = 16  # int64 words between values that different workers write: two cache lines

# Words of `sync`, in lines. JOB counts the jobs; negative: no more will come. MUTEX and CONDITION are the system's own.
ARRIVED, GENERATION, LEAVE, OVERDUE, NEXT, JOB, TABLE, STEPS, SIZE, DEADLINE, MUTEX, CONDITION, LINES = range(13)

SPINS = 100  # pauses before a waiting worker begins to yield the processor


def sync_block() -> np.ndarray:
    """The shared words of a team of workers, none of whom has started."""
    sync = np.zeros(LINES * LINE, np.int64)
    system = ctypes.CDLL(None)
    system.pthread_mutex_init(ctypes.c_void_p(sync[MUTEX * LINE :].ctypes.data), None)
    system.pthread_cond_init(ctypes.c_void_p(sync[CONDITION * LINE :].ctypes.data), None)
    return sync


@subroutine
def meet(sync: I64, run: I64, size: Int, next_step: Int) -> Int:
    """Wait until all have arrived; whether to leave."""
    generation = atomic_load(sync, GENERATION * LINE)
    if atomic_add(sync, ARRIVED * LINE, 1) == size - 1:
        leave = 0
        if atomic_load(run, STOP) != 0 or atomic_load(sync, OVERDUE * LINE) != 0:
            leave = 1
        sync[LEAVE * LINE] = leave
        sync[NEXT * LINE] = next_step
        atomic_store(sync, ARRIVED * LINE, 0)
        atomic_store(sync, GENERATION * LINE, generation + 1)
    else:
        spins = 0
        while atomic_load(sync, GENERATION * LINE) == generation:
            spins += 1
            if spins < SPINS:
                pause()
            else:
                yield_processor()
    return sync[LEAVE * LINE]


@subroutine
def run_table(sync: I64, run: I64, rank: Int) -> Int:
    """Run the job's steps from NEXT on as worker `rank`; the step that comes next."""
    size = sync[SIZE * LINE]
    steps = sync[STEPS * LINE]
    deadline = sync[DEADLINE * LINE]
    table = pointer_to(sync[TABLE * LINE])
    mode = set_float_mode(-1)
    i = sync[NEXT * LINE]
    leave = 0
    while i < steps and leave == 0:
        at = i * STEP_WIDTH
        call_kernel(table[at], table, at, rank, size, run)
        i += 1
        if table[at + MEET] != 0:
            if rank == 0 and nanoseconds() > deadline:
                atomic_store(sync, OVERDUE * LINE, 1)
            leave = meet(sync, run, size, i)
    set_float_mode(mode)
    return i


@subroutine
def post(sync: I64, job: Int) -> None:
    """Set JOB, and wake the workers that sleep."""
    lock(sync, MUTEX * LINE)
    atomic_store(sync, JOB * LINE, job)
    wake_all(sync, CONDITION * LINE)
    unlock(sync, MUTEX * LINE)


@subroutine
def sleep(sync: I64, seen: Int) -> None:
    """Sleep until JOB is no longer `seen`."""
    lock(sync, MUTEX * LINE)
    while atomic_load(sync, JOB * LINE) == seen:
        wait(sync, CONDITION * LINE, MUTEX * LINE)
    unlock(sync, MUTEX * LINE)


@kernel
def lead(rank: Int, size: Int, run: I64, sync: I64, table: Int, steps: Int, first: Int, slice_ns: Int) -> None:
    """Give all `size` workers a job, steps first..steps of the table, and do it with them as worker 0, for about `slice_ns`;
    NEXT then says how far they got. A team's size stays the same, and the last step meets.
    """
    sync[TABLE * LINE] = table
    sync[STEPS * LINE] = steps
    sync[NEXT * LINE] = first
    sync[SIZE * LINE] = size
    sync[DEADLINE * LINE] = nanoseconds() + slice_ns
    sync[OVERDUE * LINE] = 0
    if size > 1:
        post(sync, sync[JOB * LINE] + 1)
    run_table(sync, run, 0)


@kernel
def work(rank: Int, size: Int, run: I64, sync: I64, patience: Int) -> None:
    """Worker `rank`: run jobs as they come, and sleep when none came for `patience` nanoseconds; return when dismissed."""
    seen = 0
    while seen >= 0:
        since = nanoseconds()
        spins = 0
        job = atomic_load(sync, JOB * LINE)
        while job == seen:
            spins += 1
            if spins < SPINS:
                pause()
            else:
                yield_processor()
                if nanoseconds() - since > patience:
                    sleep(sync, seen)
            job = atomic_load(sync, JOB * LINE)
        seen = job
        if job > 0:
            run_table(sync, run, rank)


@kernel
def dismiss(rank: Int, size: Int, run: I64, sync: I64) -> None:
    """Let all workers return; the team must be idle."""
    post(sync, -1)
