"""Processors of every kind: the same bits from each that can run here, the right instructions for each that can't.

A process compiles for one processor, which Numba's own environment variables choose; the levels are run one after another.
"""

import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import level_results
import numpy as np
import pytest

import kernels
from kernels import registry
from kernels.compiler import assembly, compiler, object_code
from kernels.registry import Kernel, marks
from kernels.target import Target, host
from kernels.types import F32, I64, Int

AVX2 = "+avx,+avx2,+fma,+f16c,+bmi2,+ssse3,+sse4.2,+popcnt"
X86, ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"
TARGETS = {
    "generic": Target(X86, "generic", ""),
    "avx2": Target(X86, "generic", AVX2),
    "avx-vnni": Target(X86, "generic", AVX2 + ",+avxvnni"),
    "vnni": Target(X86, "generic", AVX2 + ",+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx512vnni"),
    "neon": Target(ARM, "neoverse-n1", "+neon,+dotprod,+fullfp16"),
}
PRODUCTS = ("matmul_q4_0", "matmul_q8_0", "matmul_q4_k", "matmul_q6_k")

LEVELS = {"generic": "", "generic with SSE 4.1": "+sse4.1", "avx2": AVX2}


@pytest.fixture(scope="module")
def processes() -> Iterator[dict[str, subprocess.Popen[str]]]:
    """A process for each level, all started at once; SSE 4.1 changes how a vector is rounded, not how it is multiplied."""
    root = Path(kernels.__file__).parents[1]
    started = {}
    for name, features in LEVELS.items() if host().x86 else ():
        environment = os.environ | {
            "NUMBA_CPU_NAME": "generic",
            "NUMBA_CPU_FEATURES": features,
            "PYTHONPATH": str(root),
        }
        if name != "avx2" or host().avx2:
            started[name] = subprocess.Popen(
                [sys.executable, level_results.__file__, *(["vocabulary"] if name.endswith("4.1") else [])],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
    yield started
    for process in started.values():
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def native(processes: dict[str, subprocess.Popen[str]]) -> dict[str, str]:
    """The digests of this process, computed while the others work."""
    return level_results.digests()


@pytest.mark.parametrize("name", LEVELS)
def test_every_level_gives_the_same_bits(
    name: str, processes: dict[str, subprocess.Popen[str]], native: dict[str, str]
) -> None:
    if name not in processes:
        pytest.skip("this processor can't run that")
    output, errors = processes[name].communicate()
    assert processes[name].returncode == 0, errors
    found = json.loads(output)
    assert found.pop("level") == name.split()[0]
    assert found == {key: native[key] for key in found}
    assert len(found) > 40 or name.endswith("4.1")


# ---- instructions ----


@cache
def code(name: str, level: str) -> str:
    assert TARGETS[level].level == level.removeprefix("avx-")
    return assembly(registry.kernels[name], TARGETS[level])


@pytest.mark.parametrize("kernel", PRODUCTS)
@pytest.mark.parametrize(
    ("level", "has", "lacks"),
    [
        ("vnni", r"vpdpbusd.*zmm", r"pmaddubsw"),
        ("avx-vnni", r"{vex}\tvpdpbusd", r"pmaddubsw|zmm|%ymm(1[6-9]|2\d|3\d)"),
        ("avx2", r"vpmaddubsw.*ymm", r"vpdpbusd|zmm|call"),
        ("generic", r"pmul|pmadd", r"ymm|pmaddubsw|vpdpbusd"),
        ("neon", r"\tsdot\t", r"\tbl\t"),
    ],
)
def test_products_use_the_instructions_of_each_level(kernel: str, level: str, has: str, lacks: str) -> None:
    text = code(kernel, level)
    assert re.search(has, text)
    assert not re.search(lacks, text)


@pytest.mark.parametrize("level", ["vnni", "avx-vnni", "avx2", "neon"])
@pytest.mark.parametrize("kernel", PRODUCTS[:2])
def test_inner_loops_keep_their_values_in_registers(kernel: str, level: str) -> None:
    """In the loop with the most products, no vector goes to the stack and back."""
    product = {"vnni": "vpdpbusd", "avx-vnni": "vpdpbusd", "avx2": "vpmaddubsw", "neon": "sdot"}[level]
    loops = re.split(r"^\.LBB\S+:", code(kernel, level), flags=re.M)
    inner = max(loops, key=lambda loop: loop.count(product))
    assert inner.count(product) >= 32
    spills = [
        line for line in inner.splitlines() if re.search(r"\(%rsp\).*%[xyz]mm|%[xyz]mm.*\(%rsp\)|\tq\d+.*\[sp", line)
    ]
    assert not spills


# ---- what a kernel may not do ----


def all_kernels() -> list[Kernel]:
    for module in pkgutil.iter_modules(kernels.__path__):
        importlib.import_module(f"kernels.{module.name}")
    return [k for k in registry.kernels.values() if k.body.__module__.startswith("kernels.")]


def test_every_kernel_compiles() -> None:
    """Which is refused where a kernel can raise, calls into Python, or calls any function that is not on a short list."""
    assert len(compiler.addresses(all_kernels())) >= 40


def raises(rank: Int, size: Int, run: I64, out: F32, n: Int) -> None:
    if n > 3:
        raise ValueError("too large")
    out[0] = np.float32(n)


def calls_what_it_should_not(rank: Int, size: Int, run: I64, out: F32, n: Int) -> None:
    out[0] = np.float32(min(n, 3))


@pytest.mark.parametrize(("body", "why"), [(raises, "can raise"), (calls_what_it_should_not, "it calls")])
def test_kernels_that_raise_or_call_are_refused(body, why: str) -> None:
    operands = {k: v for k, v in marks(body).items() if k not in ("rank", "size", "run", "return")}
    with pytest.raises(TypeError, match=why):
        object_code(Kernel(body.__name__, body, operands))
