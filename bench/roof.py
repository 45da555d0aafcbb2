"""The roof: what this machine's memory and multipliers can give, measured in our own vocabulary.

    python -m bench.roof --threads 2 [--json]

read      bytes of a large array (huge pages where the system gives them), each thread its own part, summed in registers
int4      `dot_u4`, the product of 4-bit codes and INT8 activations, from registers and the first cache
int8      `dot_u8`, the same for 8-bit codes
float32   `fma`

Peaks are the best of some runs, as a roof should be: nothing that the engine does can be faster. A multiply-add counts once.
The kernels below are compiled afresh each time: the cache on disk knows edits in `kernels/` alone.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from engine.threads import Team, default_threads
from kernels.compiler import Compiler
from kernels.dot import dot_u4, dot_u8, pair_sums, quad_sums, zero_pair_sums, zero_quad_sums
from kernels.lanes import Subroutine
from kernels.quantize import share
from kernels.registry import Kernel, kernel
from kernels.run import run_block
from kernels.simd import (
    add_f32,
    add_i32,
    fma,
    load_f32x8,
    load_i8x32,
    load_i32x8,
    load_u8x32,
    prefetch,
    splat_f32,
    splat_i32,
    store_f32x8,
    store_i32x8,
)
from kernels.target import host
from kernels.types import F32, I8, I32, I64, U8, Int
from models.steps import Steps

MEGABYTE = 1 << 20
VECTORS = 16  # vectors of activations that the multiplying kernels read: 512 bytes
PER_ROUND = VECTORS // 2 * 8  # vector products in one round


@kernel
def roof_read(rank: Int, size: Int, run: I64, out: I32, source: I32, same: U8, lines: Int, ahead: Int) -> None:
    """Add up `lines` times 256 bytes; `same` is the array as bytes, asked for `ahead` bytes ahead if that is not 0."""
    start, end = share(lines, rank, size)
    s0, s1, s2, s3 = splat_i32(np.int32(0)), splat_i32(np.int32(0)), splat_i32(np.int32(0)), splat_i32(np.int32(0))
    for i in range(start, end):
        at = 64 * i
        if ahead > 0:
            prefetch(same, 256 * i + ahead)
            prefetch(same, 256 * i + ahead + 64)
            prefetch(same, 256 * i + ahead + 128)
            prefetch(same, 256 * i + ahead + 192)
        s0 = add_i32(add_i32(s0, load_i32x8(source, at)), load_i32x8(source, at + 32))
        s1 = add_i32(add_i32(s1, load_i32x8(source, at + 8)), load_i32x8(source, at + 40))
        s2 = add_i32(add_i32(s2, load_i32x8(source, at + 16)), load_i32x8(source, at + 48))
        s3 = add_i32(add_i32(s3, load_i32x8(source, at + 24)), load_i32x8(source, at + 56))
    store_i32x8(out, 8 * rank, add_i32(add_i32(s0, s1), add_i32(s2, s3)))


def _roof_integer(name: str, zero: Subroutine, dot: Subroutine, total: Subroutine) -> Kernel:
    """Eight independent sums, four vectors of weights in registers, activations from the first cache."""

    def roof(rank: Int, size: Int, run: I64, out: I32, w: U8, x: I8, rounds: Int) -> None:
        w0, w1, w2, w3 = load_u8x32(w, 0), load_u8x32(w, 32), load_u8x32(w, 64), load_u8x32(w, 96)
        s0, s1, s2, s3, s4, s5, s6, s7 = zero(), zero(), zero(), zero(), zero(), zero(), zero(), zero()
        for _ in range(rounds):
            for k in range(0, VECTORS, 2):
                a, b = load_i8x32(x, 32 * k), load_i8x32(x, 32 * k + 32)
                s0, s1, s2, s3 = dot(s0, w0, a), dot(s1, w1, a), dot(s2, w2, a), dot(s3, w3, a)
                s4, s5, s6, s7 = dot(s4, w0, b), dot(s5, w1, b), dot(s6, w2, b), dot(s7, w3, b)
        t0, t1 = add_i32(total(s0), total(s1)), add_i32(total(s2), total(s3))
        t2, t3 = add_i32(total(s4), total(s5)), add_i32(total(s6), total(s7))
        store_i32x8(out, 8 * rank, add_i32(add_i32(t0, t1), add_i32(t2, t3)))

    roof.__name__ = name
    return kernel(roof)


roof_int4 = _roof_integer("roof_int4", zero_pair_sums, dot_u4, pair_sums)
roof_int8 = _roof_integer("roof_int8", zero_quad_sums, dot_u8, quad_sums)


@kernel
def roof_float32(rank: Int, size: Int, run: I64, out: F32, w: F32, x: F32, rounds: Int) -> None:
    """The same with `fma`, eight floats a vector."""
    w0, w1, w2, w3 = load_f32x8(w, 0), load_f32x8(w, 8), load_f32x8(w, 16), load_f32x8(w, 24)
    zero = splat_f32(np.float32(0.0))
    s0, s1, s2, s3, s4, s5, s6, s7 = zero, zero, zero, zero, zero, zero, zero, zero
    for _ in range(rounds):
        for k in range(0, VECTORS, 2):
            a, b = load_f32x8(x, 8 * k), load_f32x8(x, 8 * k + 8)
            s0, s1, s2, s3 = fma(w0, a, s0), fma(w1, a, s1), fma(w2, a, s2), fma(w3, a, s3)
            s4, s5, s6, s7 = fma(w0, b, s4), fma(w1, b, s5), fma(w2, b, s6), fma(w3, b, s7)
    t0, t1 = add_f32(add_f32(s0, s1), add_f32(s2, s3)), add_f32(add_f32(s4, s5), add_f32(s6, s7))
    store_f32x8(out, 8 * rank, add_f32(t0, t1))


@dataclass(frozen=True, slots=True)
class Roof:
    """The peaks of `threads` threads: bytes, and multiply-adds, in thousands of millions a second."""

    threads: int
    level: str
    read_gb: float
    int4_g: float
    int8_g: float
    float32_g: float


class Meter:
    """A team of threads that times one step at a time, with kernels compiled afresh."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._compiler = Compiler()
        self._team = Team(threads, run_block(1), self._compiler)

    def seconds(self, kernel: Kernel, repeats: int, **operands: Any) -> list[float]:
        """The time of each of `repeats` runs, after one that doesn't count."""
        steps = Steps()
        steps.add(kernel, **operands)
        table = steps.table(self._compiler)
        times = []
        for _ in range(repeats + 1):
            begin = time.perf_counter()
            self._team.run(table)
            times.append(time.perf_counter() - begin)
        return times[1:]

    def close(self) -> None:
        """End the threads."""
        self._team.close()


class Reading:
    """Reads `megabytes` of memory, more than any cache holds, as fast as `threads` threads can: `gb()`, at any time."""

    def __init__(self, threads: int, megabytes: int = 512) -> None:
        self._meter = Meter(threads)
        source = np.ones(megabytes * MEGABYTE // 4, np.int32)
        out = np.zeros(8 * threads, np.int32)
        self._operands = {"out": out, "source": source, "same": source.view(np.uint8), "lines": len(source) // 64}
        self._nbytes = source.nbytes

    def gb(self, repeats: int = 3) -> float:
        """GB/s, the best of some runs with different prefetching."""
        times = [self._meter.seconds(roof_read, repeats, ahead=ahead, **self._operands) for ahead in (0, 1024, 2048, 4096)]
        return float(self._nbytes / min(map(min, times)) / 1e9)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._meter.close()


def integer_operands(threads: int, rounds: int) -> dict[str, Any]:
    """Operands of `roof_int4` and `roof_int8`."""
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, 32 * VECTORS, np.int8)
    return {"out": np.zeros(8 * threads, np.int32), "w": rng.integers(0, 4, 128, np.uint8), "x": x, "rounds": rounds}


def measure(threads: int, repeats: int = 10) -> Roof:
    """The roof of `threads` threads."""
    with Reading(threads) as reading:
        read_gb = reading.gb(repeats)
    meter = Meter(threads)
    rounds = 8_000_000 // PER_ROUND * 20  # some 50 ms: the system has to spread the threads over the processors first
    integers = integer_operands(threads, rounds)
    x = integers["x"].astype(np.float32)
    floats = {"out": np.zeros(8 * threads, np.float32), "w": np.zeros(32, np.float32), "x": x}
    products = threads * rounds * PER_ROUND
    roof = Roof(
        threads,
        host().level,
        read_gb,
        32 * products / min(meter.seconds(roof_int4, repeats, **integers)) / 1e9,
        32 * products / min(meter.seconds(roof_int8, repeats, **integers)) / 1e9,
        8 * products / min(meter.seconds(roof_float32, repeats, rounds=rounds, **floats)) / 1e9,
    )
    meter.close()
    return roof


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench.roof", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    roof = measure(options.threads)
    if options.json:
        sys.stdout.write(json.dumps(asdict(roof)) + "\n")
        return
    sys.stdout.write(
        f"{roof.threads} threads, {roof.level}: read {roof.read_gb:.1f} GB/s;"
        f" thousands of millions of multiply-adds a second: "
        f"int4 {roof.int4_g:.0f}, int8 {roof.int8_g:.0f}, float32 {roof.float32_g:.0f}\n"
    )


if __name__ == "__main__":
    main()
