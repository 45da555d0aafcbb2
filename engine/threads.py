"""A team of threads that runs tables of steps: the caller's own thread and workers that it keeps.

The workers run the compiled loop of `kernels/loop.py` without the interpreter's lock. Between jobs they spin for at most a
millisecond and then sleep. The caller works too, in slices of 50 ms, between which Python can raise KeyboardInterrupt.
"""

import os
import threading
import weakref
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kernels.compiler import ENTRY, Compiler, compiler
from kernels.loop import ASLEEP, EXIT, JOB, LINE, NEXT, STEP_WIDTH, WORKERS, lead, start, sync_block, work
from kernels.run import STOP

SLICE_NS = 50_000_000
PATIENCE_NS = 1_000_000
LOOP_KERNELS = (lead, start, work)


def default_threads() -> int:
    """The least of physical cores, the processors this process may use, and the control group's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, _physical_cores() or allowed, _quota() or allowed))


def _physical_cores() -> int | None:
    try:
        with open("/proc/cpuinfo") as file:
            fields = [line.split(":")[1].strip() for line in file if line.startswith(("physical id", "core id"))]
    except (OSError, IndexError):
        return None
    return len(set(zip(fields[::2], fields[1::2]))) or None


def _quota() -> int | None:
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return None


@dataclass(slots=True)
class _Shared:
    """What the threads of a team share; they hold no reference to the team, so that it can end."""

    size: int
    run: np.ndarray
    sync: np.ndarray
    wake: list[threading.Semaphore]
    workers: list[threading.Thread] = field(default_factory=list)

    def begin(self, addresses: dict[str, int]) -> None:
        """Start the workers."""
        entry = ENTRY(addresses[work.name])
        for rank in range(1, self.size):
            thread = threading.Thread(target=_worker, args=(self, rank, entry), daemon=True, name=f"intengine-{rank}")
            self.workers.append(thread)
            thread.start()

    def stop(self) -> None:
        """End the workers."""
        self.sync[EXIT * LINE] = 1
        self.sync[JOB * LINE] += 1
        for wake in self.wake:
            wake.release()
        for thread in self.workers:
            thread.join(timeout=1)


def _worker(shared: _Shared, rank: int, entry: Any) -> None:
    step = np.array([0, shared.sync.ctypes.data, PATIENCE_NS], np.int64)
    state = (WORKERS + rank) * LINE
    while not shared.sync[EXIT * LINE]:
        entry(step.ctypes.data, rank, shared.size, shared.run.ctypes.data)
        if shared.sync[state]:
            shared.wake[rank].acquire()
            shared.sync[state] = 0


class Team:
    """`size` threads, the caller's included, that run one job at a time; `run` is the run block that kernels read.

    Not to be used from two threads at once: who owns a team queues its callers.
    """

    def __init__(self, size: int, run: np.ndarray, kernels: Compiler = compiler) -> None:
        self.size = size
        self.run_block = run
        self._compiler = kernels
        self._begin()
        _teams.add(self)

    def _begin(self) -> None:
        self._addresses = self._compiler.addresses(LOOP_KERNELS)
        sync = sync_block(self.size)
        wake = [threading.Semaphore(0) for _ in range(self.size)]
        self._shared = _Shared(self.size, self.run_block, sync, wake)
        self._start = ENTRY(self._addresses[start.name])
        self._lead = ENTRY(self._addresses[lead.name])
        self._lead_step = np.array([0, sync.ctypes.data], np.int64)
        self._start_step = np.array([0, sync.ctypes.data, 0, 0, 0, SLICE_NS], np.int64)
        self._end = weakref.finalize(self, self._shared.stop)
        self._shared.begin(self._addresses)

    def run(self, table: np.ndarray) -> bool:
        """Run all steps of a table, (steps, STEP_WIDTH) int64; whether it got to the end before STOP was set.

        Raises:
            KeyboardInterrupt: between two slices of time; the steps done until then stay done.
        """
        assert table.shape[1] == STEP_WIDTH and table[-1, -1], "the last step of a table must meet"
        shared, step, run = self._shared, self._start_step, self.run_block
        step[2:5] = table.ctypes.data, len(table), 0
        while True:
            self._start(step.ctypes.data, 0, self.size, run.ctypes.data)
            if shared.sync[ASLEEP * LINE]:
                for rank in range(1, self.size):
                    if shared.sync[(WORKERS + rank) * LINE]:
                        shared.wake[rank].release()
                self._lead(self._lead_step.ctypes.data, 0, self.size, run.ctypes.data)
            done = int(shared.sync[NEXT * LINE])
            if done == len(table) or run[STOP]:
                return done == len(table)
            step[4] = done

    def close(self) -> None:
        """End the workers; the team can't run any more."""
        self._end()

    def after_fork(self) -> None:
        """In a child process the workers are gone: start new ones."""
        self._end.detach()
        self._begin()


_teams: "weakref.WeakSet[Team]" = weakref.WeakSet()


def _after_fork() -> None:
    for team in list(_teams):
        team.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
