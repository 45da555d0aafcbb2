"""A team of threads that runs tables of steps: the caller's own thread and workers that it keeps.

The workers stay in the compiled loop of `kernels/loop.py`, without the interpreter's lock. Between jobs they spin for at
most a millisecond and then sleep. The caller works too, in slices of 50 ms, between which Python can raise
KeyboardInterrupt: the workers are idle then, so the team stays usable.
"""

import os
import threading
import weakref
from dataclasses import dataclass, field

import numpy as np

from engine.errors import OptionError
from kernels.compiler import ENTRY, Compiler, compiler
from kernels.loop import LINE, MEET, NEXT, STEP_WIDTH, dismiss, lead, sync_block, work
from kernels.registry import Kernel
from kernels.run import STOP

SLICE_NS = 50_000_000
PATIENCE_NS = 1_000_000
LOOP_KERNELS = (lead, work, dismiss)


def default_threads() -> int:
    """The least of physical cores that this process may use, and the control group's quota."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = _physical_cores(_read("/proc/cpuinfo"), allowed) or len(allowed)
    return max(1, min(cores, _quota(_read("/sys/fs/cgroup/cpu.max")) or cores))


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def _physical_cores(cpuinfo: str, allowed: set[int]) -> int | None:
    """How many cores the allowed processors are; None where that isn't told. Two hardware threads of a core are one."""
    cores = set()
    for block in cpuinfo.split("\n\n"):
        found = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in block.splitlines())}
        if "core id" in found and int(found["processor"]) in allowed:
            cores.add((found.get("physical id"), found["core id"]))
    return len(cores) or None


def _quota(cpu_max: str) -> int | None:
    """Whole processors that `QUOTA PERIOD` gives, at least one; None for `max PERIOD`."""
    quota, _, period = cpu_max.partition(" ")
    return max(1, int(quota) // int(period)) if quota.isdigit() else None


@dataclass(slots=True)
class _Shared:
    """What the threads of a team share; they hold no reference to the team, so that it can end."""

    size: int
    run: np.ndarray
    kernels: Compiler  # it keeps the machine code in memory
    addresses: dict[str, int]
    sync: np.ndarray = field(default_factory=sync_block)
    workers: list[threading.Thread] = field(default_factory=list)

    def enter(self, kernel: Kernel, rank: int, step: np.ndarray) -> None:
        """Run one of the loop's kernels in the calling thread; step[1] becomes the address of `sync`."""
        step[1] = self.sync.ctypes.data
        ENTRY(self.addresses[kernel.name])(step.ctypes.data, rank, self.size, self.run.ctypes.data)

    def begin(self) -> None:
        """Start the workers."""
        for rank in range(1, self.size):
            step = np.array([0, 0, PATIENCE_NS], np.int64)
            name = f"intengine-{rank}"
            thread = threading.Thread(target=self.enter, args=(work, rank, step), daemon=True, name=name)
            try:
                thread.start()
            except RuntimeError as error:
                self.end()
                raise OptionError(f"threads: {self.size}: worker {rank} can't start ({error}); use fewer") from None
            self.workers.append(thread)

    def end(self) -> None:
        """Let the workers end."""
        self.enter(dismiss, 0, np.zeros(2, np.int64))
        for thread in self.workers:
            if thread is not threading.current_thread():
                thread.join(timeout=1)


class Team:
    """`size` threads, the caller's included, that run one job at a time; `run` is the run block that kernels read.

    Not to be used from two threads at once: who owns a team queues its callers.

    Raises:
        OptionError: if the system doesn't let this process have so many threads.
    """

    def __init__(self, size: int, run: np.ndarray, kernels: Compiler = compiler) -> None:
        self.size = size
        self.run_block = run
        self._kernels = kernels
        self._addresses = kernels.addresses(LOOP_KERNELS)
        self._lead = ENTRY(self._addresses[lead.name])
        self._begin()
        _teams.add(self)

    def _begin(self) -> None:
        shared = _Shared(self.size, self.run_block, self._kernels, self._addresses)
        self._end = weakref.finalize(self, shared.end)
        shared.begin()
        self._step = np.array([0, shared.sync.ctypes.data, 0, 0, 0, SLICE_NS], np.int64)
        self._arguments = (self._step.ctypes.data, 0, self.size, self.run_block.ctypes.data)
        self._shared: _Shared | None = shared
        self._table: np.ndarray | None = None  # whose address `_step` holds

    def run(self, table: np.ndarray) -> bool:
        """Run all steps of a table, (steps, STEP_WIDTH) int64; whether it got to the end before STOP was set.

        Raises:
            KeyboardInterrupt: between two slices of time; the steps done until then stay done.
        """
        if self._shared is None:
            self._begin()
        assert self._shared and self._end.alive, "this team is closed"
        if table is not self._table:
            assert table.shape[1] == STEP_WIDTH and table[-1, MEET], "the last step of a table must meet"
            self._step[2:4] = table.ctypes.data, len(table)
            self._table = table
        done, steps = 0, len(table)
        while done < steps and not (done and self.run_block[STOP]):
            self._step[4] = done
            self._lead(*self._arguments)
            done = int(self._shared.sync[NEXT * LINE])
        return done == steps

    def close(self) -> None:
        """End the workers; the team can't run any more."""
        self._end()

    def after_fork(self) -> None:
        """In a child process the workers are gone: the next job starts new ones."""
        if self._end.detach():
            self._shared = None


_teams: "weakref.WeakSet[Team]" = weakref.WeakSet()


def _after_fork() -> None:
    for team in list(_teams):
        team.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
