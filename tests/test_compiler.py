"""The compiler: it aims at the processor that Numba would, compiles once, and the loop has its forms on each."""

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from small_kernels import add_from_left, copy_scaled

import kernels
from engine.threads import LOOP_KERNELS
from kernels import compiler as compiler_module
from kernels.compiler import Compiler, assembly, call, entry_name, object_code
from kernels.registry import Kernel
from kernels.target import Target, host

ROOT = Path(kernels.__file__).parents[1]
AVX2 = "+avx,+avx2,+fma,+f16c,+bmi2,+ssse3,+sse4.2,+popcnt"
TARGETS = """
import json, sys
from kernels.target import host
found = host()
assert "numba" not in sys.modules
from numba.core.registry import cpu_target
theirs = cpu_target.target_context.codegen().magic_tuple()
print(json.dumps([[found.triple, found.cpu, found.features], list(theirs), found.level]))
"""


@pytest.mark.parametrize(
    ("variables", "level"),
    [
        ({}, host().level),
        ({"NUMBA_CPU_NAME": "generic"}, "generic"),
        ({"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": ""}, "generic"),
        ({"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "+sse4.1"}, "generic"),
        ({"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": AVX2}, "avx2" if host().x86 else "generic"),
        ({"NUMBA_ENABLE_AVX": "0"}, "generic" if host().x86 else host().level),
    ],
    ids=str,
)
def test_target_is_numbas_own(variables: dict[str, str], level: str) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_CPU")}
    environment = (clean if variables else dict(os.environ)) | variables | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", TARGETS], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ours, theirs, found = json.loads(done.stdout)
    assert ours == theirs and found == level


def test_two_threads_compile_a_kernel_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []

    def count(kernel: Kernel) -> bytes:
        compiled.append(kernel.name)
        return object_code(kernel)

    monkeypatch.setattr(compiler_module, "object_code", count)
    own, found = Compiler(), []
    needed = [copy_scaled, add_from_left]
    workers = [threading.Thread(target=lambda: found.append(own.addresses(needed))) for _ in range(4)]
    assert own.missing(needed) == needed
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert compiled == ["copy_scaled", "add_from_left"] and not own.missing(needed)
    assert len(found) == 4 and all(addresses == found[0] and all(addresses.values()) for addresses in found)


class Memory(dict[str, bytes]):
    """A store in memory."""

    def put(self, name: str, code: bytes) -> None:
        self[name] = code


def test_object_code_is_all_that_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Memory()
    Compiler(store).addresses([copy_scaled])
    assert list(store) == ["copy_scaled"] and entry_name(copy_scaled).encode() in store["copy_scaled"]
    monkeypatch.setattr(compiler_module, "object_code", lambda kernel: pytest.fail("compiled again"))
    assert Compiler(store).missing([copy_scaled, add_from_left]) == [add_from_left]
    assert Compiler(store).addresses([copy_scaled])["copy_scaled"]


def test_object_code_is_the_same_each_time() -> None:
    assert object_code(add_from_left) == object_code(add_from_left)


@pytest.mark.parametrize("factor", (0.1, -0.0, np.float32(3.5), 2, 1e-45, float("inf")))
def test_float_operands_arrive_as_float32(factor: float) -> None:
    out, x = np.zeros(2, np.float32), np.array([1.0, -3.0], np.float32)
    call(copy_scaled, out=out, x=x, count=2, factor=factor)
    assert out.tobytes() == (np.float32(factor) * x).tobytes()


ARM = Target("aarch64-unknown-linux-gnu", "neoverse-n1", "+neon,+dotprod,+fullfp16")


@pytest.mark.parametrize(
    ("target", "needed"),
    [
        (Target("x86_64-unknown-linux-gnu", "generic", ""), ("lock", "ldmxcsr", "stmxcsr", "pause")),
        (ARM, ("ldadd|ldaxr|__aarch64_ldadd", "stlr", "lda", "mrs.*FPCR", "msr.*FPCR", "yield")),
    ],
    ids=("x86", "arm"),
)
def test_the_loop_has_its_machine_forms(target: Target, needed: tuple[str, ...]) -> None:
    text = "\n".join(assembly(kernel, target) for kernel in LOOP_KERNELS)
    for one in (*needed, "sched_yield", "clock_gettime", "pthread_cond_wait", "pthread_cond_broadcast"):
        assert re.search(one, text), one
