"""Kernels by themselves:  python -m pytest bench/test_kernels.py --benchmark-only

Products are measured in three ways: our kernel with all threads; NumPy's float32 product, with the threads of its BLAS; and
a plain Numba loop over INT8 codes, parallel over outputs. At one row each multiplies with 16 matrices in turn, which no
cache holds. `extra_info`: GB/s of packed weights (float32 ones for NumPy), and billions of multiply-adds a second.
Compiling isn't measured.
"""

from collections.abc import Callable, Iterator
from typing import Any

import gguf
import numba
import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.products import Products
from engine import kernel_cache
from engine.threads import Team, default_threads
from kernels.attention import attention_f16, score_floats
from kernels.gate import silu_gate_quantize
from kernels.norm import rms_norm_quantize
from kernels.quantize import empty_quantized
from kernels.registry import Kernel
from kernels.run import FIRST, POSITION, ROWS, WIDTH, run_block
from models.steps import Steps

N, K = 4096, 4096
COPIES = {1: 16, 256: 1}
TYPES = ("Q4_0", "Q8_0", "Q5_0", "Q4_K", "Q6_K")


@pytest.fixture(scope="module", autouse=True)
def store() -> None:
    kernel_cache.use()


@numba.njit(parallel=True)
def plain_loop(out: Any, x: Any, x_scales: Any, codes: Any, scales: Any) -> None:
    """What one writes first: a product of INT8 rows, in blocks of 32."""
    T, B = x_scales.shape
    for n in numba.prange(codes.shape[0]):
        for t in range(T):
            total = np.float32(0)
            for b in range(B):
                acc = np.int32(0)
                for k in range(32 * b, 32 * b + 32):
                    acc = np.int32(acc + np.int32(x[t, k]) * np.int32(codes[n, k]))
                total += np.float32(acc) * x_scales[t, b] * scales[n, b]
            out[t, n] = total


def measure(
    benchmark: BenchmarkFixture, work: Callable[[], Any], nbytes: float, multiply_adds: float, **info: Any
) -> None:
    benchmark.pedantic(work, rounds=9, iterations=1, warmup_rounds=2)
    if benchmark.stats:
        seconds = benchmark.stats.stats.median
        info |= {"GB/s": round(nbytes / seconds / 1e9, 2), "G multiply-adds/s": round(multiply_adds / seconds / 1e9, 2)}
    benchmark.extra_info.update(info)


@pytest.mark.parametrize("rows", COPIES)
@pytest.mark.parametrize("type", TYPES)
def test_product(benchmark: BenchmarkFixture, type: str, rows: int) -> None:
    benchmark.group = f"product, {rows} rows of {K} by {N} outputs"
    with Products(type, rows, N, K, COPIES[rows], default_threads()) as products:
        measure(benchmark, products.run, products.nbytes, products.multiply_adds, threads=default_threads())


@pytest.mark.parametrize("rows", COPIES)
def test_product_numpy(benchmark: BenchmarkFixture, rows: int) -> None:
    benchmark.group = f"product, {rows} rows of {K} by {N} outputs"
    copies = COPIES[rows]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, K), np.float32)
    first = rng.standard_normal((N, K), np.float32)
    weights = [first.copy() for _ in range(copies)]
    work = lambda: [x @ w.T for w in weights]  # noqa: E731
    measure(benchmark, work, copies * N * K * 4, copies * rows * N * K)


@pytest.mark.parametrize("rows", COPIES)
def test_product_plain_numba(benchmark: BenchmarkFixture, rows: int) -> None:
    benchmark.group = f"product, {rows} rows of {K} by {N} outputs"
    copies = COPIES[rows]
    rng = np.random.default_rng(0)
    x, x_scales = rng.integers(-127, 128, (rows, K), np.int8), np.ones((rows, K // 32), np.float32)
    weights = [rng.integers(-127, 128, (N, K), np.int8) for _ in range(copies)]
    scales, out = np.ones((N, K // 32), np.float32), np.zeros((rows, N), np.float32)

    def work() -> None:
        for codes in weights:
            plain_loop(out, x, x_scales, codes, scales)

    measure(benchmark, work, copies * N * K, copies * rows * N * K, threads=numba.get_num_threads())


def test_products_agree() -> None:
    """What is measured computes the product."""
    with Products("Q4_0", 5, 24, 96, 2, 2) as products:
        products.run()
        weights = gguf.quants.dequantize(products.source, gguf.GGMLQuantizationType.Q4_0)
        wanted = products.x @ weights.T
        bound = np.linalg.norm(products.x, axis=1)[:, None] * np.linalg.norm(weights, axis=1) / 127
        assert (np.abs(products.out - wanted) < bound).all()


# ---- what stands between the products: the shapes of Qwen2.5-0.5B ----

HIDDEN, FF, HEADS, KV_HEADS, HEAD_SIZE = 896, 4864, 14, 2, 64


@pytest.fixture(params=[1, 256])
def team(request: pytest.FixtureRequest) -> Iterator[Team]:
    run = run_block(request.param)
    run[ROWS] = request.param
    team = Team(default_threads(), run)
    yield team
    team.close()


def step(kernel: Kernel, **operands: Any) -> tuple[Steps, np.ndarray]:
    steps = Steps()
    steps.add(kernel, **operands)
    return steps, steps.table()


def test_norm(benchmark: BenchmarkFixture, team: Team) -> None:
    rows = int(team.run_block[ROWS])
    benchmark.group = f"between products, {rows} rows"
    x = np.random.default_rng(0).standard_normal((rows, HIDDEN), np.float32)
    weight = np.ones(HIDDEN, np.float32)
    keep, table = step(
        rms_norm_quantize, x=x, weight=weight, n=HIDDEN, blocks=HIDDEN // 32, stride=HIDDEN, eps=1e-6, count=ROWS,
        **empty_quantized(rows, HIDDEN // 32),
    )  # fmt: skip
    measure(benchmark, lambda: team.run(table), 5 * x.size, x.size)
    del keep


def test_gate(benchmark: BenchmarkFixture, team: Team) -> None:
    rows = int(team.run_block[ROWS])
    benchmark.group = f"between products, {rows} rows"
    gate, up = np.random.default_rng(0).standard_normal((2, rows, FF), np.float32)
    keep, table = step(
        silu_gate_quantize, gate=gate, up=up, blocks=FF // 32, stride=FF, count=ROWS, **empty_quantized(rows, FF // 32)
    )
    measure(benchmark, lambda: team.run(table), 9 * gate.size, gate.size)
    del keep


@pytest.mark.parametrize("position", [100, 3500])
def test_attention(benchmark: BenchmarkFixture, team: Team, position: int) -> None:
    """One layer; the rows end at `position`."""
    rows = int(team.run_block[ROWS])
    if rows > position:
        pytest.skip("a prompt of 256 does not end at position 100")
    benchmark.group = f"attention, {rows} rows"
    blocks = position // 8 + 1
    floats = score_floats(HEADS, KV_HEADS, HEAD_SIZE, blocks)
    rng = np.random.default_rng(0)
    keys, values = rng.standard_normal((2, blocks, KV_HEADS, HEAD_SIZE, 8)).astype(np.float16).view(np.uint16)
    table_rows = team.run_block[FIRST:].reshape(-1, WIDTH)
    table_rows[:rows, POSITION] = np.arange(position - rows + 1, position + 1)
    q = rng.standard_normal((rows, HEADS * HEAD_SIZE), np.float32)
    operands = {
        "out": np.zeros_like(q), "q": q, "keys": keys, "values": values, "slots": np.zeros(1, np.int64),
        "scores": np.zeros((team.size, floats), np.float32), "heads": HEADS, "kv_heads": KV_HEADS, "head_size": HEAD_SIZE,
        "slot_blocks": blocks, "q_stride": q.shape[1], "stride": q.shape[1], "score_stride": floats,
        "scale": HEAD_SIZE**-0.5,
    }  # fmt: skip
    keep, table = step(attention_f16, **operands)
    work = 2 * HEADS * HEAD_SIZE * float(table_rows[:rows, POSITION].sum() + rows)
    measure(benchmark, lambda: team.run(table), keys.nbytes + values.nbytes, work, position=position)
    del keep
