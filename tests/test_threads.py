"""The team: any number of threads gives the same, sleeps without cost, and stays whole whatever happens between its jobs."""

import faulthandler
import gc
import itertools
import os
import platform
import random
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from small_kernels import add_from_left, count_up, divide, float_mode

from engine import threads
from engine.threads import Team
from kernels.compiler import call
from kernels.loop import LINE, NEXT
from kernels.run import STOP, run_block
from models.steps import Steps

SIZES = (1, 2, 3, 5)
COUNT = 37


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """A job that waits for ever would hold up everything, and no signal ends it: leave with a traceback."""
    faulthandler.dump_traceback_later(120, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@contextmanager
def team(size: int, run: np.ndarray | None = None) -> Iterator[Team]:
    made = Team(size, run_block(1) if run is None else run)
    try:
        yield made
    finally:
        made.close()


class Chain:
    """A job whose every step reads what other workers wrote in the step before, and its right result."""

    def __init__(self, steps: int = 20, seed: int = 0) -> None:
        self.start = np.random.default_rng(seed).integers(-50, 50, COUNT)
        self.a, self.b = self.start.copy(), np.zeros(COUNT, np.int64)
        self.steps = Steps()
        for _ in range(steps // 2):
            self.steps.add(add_from_left, out=self.b, x=self.a, count=COUNT)
            self.steps.add(add_from_left, out=self.a, x=self.b, count=COUNT)
        self.steps.replay(run_block(1))
        self.right = self.a.copy()
        self.table = self.steps.table()

    def is_right_on(self, team: Team) -> bool:
        self.a[:], self.b[:] = self.start, -1
        return team.run(self.table) and bool((self.a == self.right).all())


class Slow:
    """A job of many steps, each of about a millisecond or two in each of the workers."""

    def __init__(self, size: int, steps: int = 5000, count: int = 500_000) -> None:
        self.out, self.count = np.zeros(16 * size, np.int64), count
        self.steps = Steps()
        for _ in range(steps):
            self.steps.add(count_up, out=self.out, count=count)
        self.table = self.steps.table()

    def done(self) -> set[int]:
        """How many steps each worker has done, as a set."""
        assert not (self.out[::16] % self.count).any()
        return set((self.out[::16] // self.count).tolist())


@pytest.mark.parametrize("size", SIZES)
def test_any_number_of_threads_gives_the_same(size: int) -> None:
    with team(size) as made:
        assert all(Chain(steps, seed).is_right_on(made) for seed, steps in enumerate((2, 10, 20)))


@pytest.mark.parametrize("size", SIZES)
def test_slices_of_time_do_not_show(size: int) -> None:
    chain = Chain()
    with team(size) as made:
        made._step[5] = 1  # a slice of one nanosecond: the team leaves after each step
        assert all(chain.is_right_on(made) for _ in range(20))


@pytest.mark.parametrize("size", (2, 3, 5))
def test_thousands_of_tiny_jobs_with_pauses(size: int) -> None:
    chain, choose = Chain(2), random.Random(size)
    with team(size) as made:
        for n in range(3000):
            assert chain.is_right_on(made)
            if n % 30 == 0:  # as long as workers are patient, more or less
                time.sleep(choose.uniform(0, 2 * threads.PATIENCE_NS / 1e9))


@pytest.mark.parametrize("size", (2, 4))
def test_no_job_is_missed_by_a_worker_that_falls_asleep(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "PATIENCE_NS", 0)
    chain, choose = Chain(2), random.Random(size)
    with team(size) as made:
        for _ in range(4000):
            until = time.perf_counter() + choose.expovariate(1 / 20e-6)
            while time.perf_counter() < until:
                pass
            assert chain.is_right_on(made)


def test_sleeping_workers_use_no_processor() -> None:
    with team(3) as made:
        assert Chain(2).is_right_on(made)
        time.sleep(0.05)
        begin = time.process_time()
        time.sleep(0.3)
        assert time.process_time() - begin < 0.01
        assert Chain(2).is_right_on(made)


def test_two_teams_in_two_threads() -> None:
    wrong: list[int] = []

    def work(size: int) -> None:
        chain = Chain(10, seed=size)
        with team(size) as made:
            wrong.extend(size for _ in range(400) if not chain.is_right_on(made))
        finished.append(size)

    finished: list[int] = []
    workers = [threading.Thread(target=work, args=(size,)) for size in (2, 3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong and sorted(finished) == [2, 3]


@pytest.mark.usefixtures("interrupts")
def test_interrupt_comes_within_100_ms_and_leaves_the_team_whole() -> None:
    slow, chain, late = Slow(2), Chain(), []
    with team(2) as made:
        for _ in range(3):
            slow.out[:] = 0
            sent: list[float] = []

            def send(times: list[float] = sent) -> None:
                times.append(time.perf_counter())
                os.kill(os.getpid(), signal.SIGINT)

            timer = threading.Timer(0.12, send)
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                made.run(slow.table)
            late.append(time.perf_counter() - sent[0])
            timer.join()
            assert len(slow.done()) == 1, "workers left at different steps"
            assert slow.done() == {int(made._shared.sync[NEXT * LINE])} and slow.done() != {len(slow.table)}
            assert chain.is_right_on(made)
    assert min(late) < 0.1, late  # the least of three: other processes may take the processor


class Disturbance(Exception):
    """Raised by a signal handler, at any point of the caller's Python."""


@pytest.mark.parametrize("size", (1, 3))
def test_an_exception_at_any_point_leaves_the_team_whole(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "PATIENCE_NS", 20_000)  # so that workers often sleep
    chain, choose, caught = Chain(4), random.Random(size), 0

    def disturb(signum: int, frame: object) -> None:
        raise Disturbance

    before = signal.signal(signal.SIGALRM, disturb)
    try:
        with team(size) as made:
            made._step[5] = 1
            for _ in range(300):
                try:
                    signal.setitimer(signal.ITIMER_REAL, choose.uniform(1e-5, 5e-4))
                    while True:
                        made.run(chain.table)
                except Disturbance:
                    caught += 1
                assert chain.is_right_on(made)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert caught == 300


@pytest.mark.parametrize("size", SIZES)
def test_stop_ends_a_job_between_two_steps(size: int) -> None:
    run, slow, chain = run_block(1), Slow(size), Chain()
    with team(size, run) as made:
        timer = threading.Timer(0.05, run.__setitem__, (STOP, 1))
        timer.start()
        assert not made.run(slow.table)
        timer.join()
        (done,) = slow.done()
        assert 0 < done < len(slow.table)
        assert not made.run(slow.table) and slow.done() == {done + 1}, "STOP that was set before: one step"
        run[STOP] = 0
        assert chain.is_right_on(made)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("pause", (0, 0.02))
def test_fork(pause: float) -> None:
    chain = Chain()
    with team(3) as made:
        assert chain.is_right_on(made)
        time.sleep(pause)
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            try:
                os._exit(0 if all(chain.is_right_on(made) for _ in range(100)) else 1)
            except BaseException:
                os._exit(2)
        assert all(chain.is_right_on(made) for _ in range(100))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert chain.is_right_on(made)


@pytest.mark.parametrize("pause", (0, 0.02))
def test_a_forgotten_team_ends_its_threads(pause: float) -> None:
    slow = Slow(3, steps=20, count=1000)
    made = Team(3, run_block(1))
    made.run_block[STOP] = 1
    assert not made.run(slow.table)  # left in the middle: nothing of it may run later
    workers = list(made._shared.workers)
    assert len(workers) == 2 and all(worker.is_alive() for worker in workers)
    time.sleep(pause)
    gone = weakref.ref(made)
    del made
    gc.collect()
    assert gone() is None
    for worker in workers:
        worker.join(timeout=10)
        assert not worker.is_alive()
    assert slow.done() == {1}


def test_a_closed_team_runs_nothing() -> None:
    chain = Chain()
    with team(2) as made:
        pass
    with pytest.raises(AssertionError, match="closed"):
        made.run(chain.table)
    made.close()


# ---- the processor's float mode ----

X86 = platform.machine() in ("x86_64", "AMD64")
FLUSH = 0x9FC0 if X86 else 1 << 24  # subnormals count as zero, in and out
UPWARD = 0x5F80 if X86 else 1 << 22


@contextmanager
def float_mode_of_this_thread(mode: int) -> Iterator[None]:
    """Set it as another library may have, and look whether it is still there in the end."""
    was = np.zeros(1, np.int64)
    call(float_mode, out=was, mode=mode)
    try:
        yield
        found = np.zeros(1, np.int64)
        call(float_mode, out=found, mode=mode)
        sticky = 0x3F if X86 else 0  # flags that say what happened
        assert (found[0] | sticky) == (mode | sticky), f"{found[0]:#x}, not {mode:#x}"
    finally:
        call(float_mode, out=np.zeros(1, np.int64), mode=int(was[0]))


@pytest.mark.parametrize("size", (1, 2, 3))
@pytest.mark.parametrize("mode", (FLUSH, UPWARD))
def test_float_mode_of_others_neither_matters_nor_is_changed(mode: int, size: int) -> None:
    x = np.array([1e-38, 1e-40, 1.0, 2.0, 5.0, 1e-30, 7.0], np.float32)
    y = np.array([1e3, 1.0, 3.0, 7.0, 3.0, 1e12, 9.0], np.float32)
    disturbed, ours = np.zeros_like(x), np.zeros_like(x)
    steps = Steps()
    steps.add(divide, out=ours, x=x, y=y, count=len(x))
    table = steps.table()
    with float_mode_of_this_thread(mode):
        call(divide, out=disturbed, x=x, y=y, count=len(x))
        with team(size) as made:  # new threads begin with the mode of the one that starts them
            made.run(table)
    assert (disturbed.view(np.int32) != (x / y).view(np.int32)).any(), "the mode has no effect: the test sees nothing"
    assert (ours.view(np.int32) == (x / y).view(np.int32)).all()


# ---- how many threads ----


def cpuinfo(cores: list[tuple[int, int]]) -> str:
    return "\n\n".join(
        f"processor\t: {n}\nphysical id\t: {socket}\ncore id\t\t: {core}\nflags\t\t: fpu"
        for n, (socket, core) in enumerate(cores)
    )


def test_threads_are_as_many_as_cores_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    hyper = cpuinfo(list(itertools.product((0, 1), (0, 1, 2, 0, 1, 2))))
    assert threads._physical_cores(hyper, set(range(12))) == 6
    assert threads._physical_cores(hyper, {0, 3}) == 1 and threads._physical_cores(hyper, {0, 1, 6}) == 3
    assert threads._physical_cores("processor\t: 0\nBogoMIPS\t: 50.00\n", {0}) is None
    assert threads._quota("max 100000\n") is None and threads._quota("") is None
    assert threads._quota("250000 100000\n") == 2 and threads._quota("50000 100000\n") == 1

    files = {"/proc/cpuinfo": hyper, "/sys/fs/cgroup/cpu.max": "400000 100000\n"}
    monkeypatch.setattr(threads, "_read", lambda path: files.get(path, ""))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)), raising=False)
    assert threads.default_threads() == 4
    del files["/sys/fs/cgroup/cpu.max"]
    assert threads.default_threads() == 6
    files.clear()
    assert threads.default_threads() == 12
