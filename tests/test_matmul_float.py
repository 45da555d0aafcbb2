"""Matrix products of float weights: bit for bit, near the truth, whatever rows and workers there are."""

from collections.abc import Callable

import numpy as np
import pytest
from test_matmul import EPS, run_of, same_bits, twin

from kernels import matmul_float
from kernels.compiler import call
from kernels.run import ROWS

FLOATS = {"f32": np.float32, "f16": np.uint16, "bf16": np.uint16}
FLOAT_SHAPES = [(20, 172, 1), (77, 33, 7), (9, 1, 4), (67, 12, 9)]  # N, K, T


def results() -> dict[str, np.ndarray]:
    """What compiled code gives for one row and for several: compared between processors."""
    found = {}
    for kind in FLOATS:
        for shape in FLOAT_SHAPES[:2]:
            found[f"{kind} {shape}"] = float_product(kind, *float_case(kind, shape))
    return found


def float_case(kind: str, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The file's weights, activations with three floats of something else behind each row, and a bias."""
    outputs, columns, rows = shape
    generator = np.random.default_rng(shape)
    weights = generator.standard_normal((outputs, columns)).astype(np.float32)
    if kind == "f16":
        weights = weights.astype(np.float16).view(np.uint16)
    elif kind == "bf16":
        weights = (weights.view(np.uint32) >> 16).astype(np.uint16)
    x = generator.standard_normal((rows, columns + 3)).astype(np.float32)
    return weights, x, generator.standard_normal(outputs).astype(np.float32)


def widened(kind: str, weights: np.ndarray) -> np.ndarray:
    if kind == "f16":
        return weights.view(np.float16).astype(np.float32)
    return (weights.astype(np.uint32) << 16).view(np.float32) if kind == "bf16" else weights


def float_packed(weights: np.ndarray, invoke: Callable = call) -> np.ndarray:
    outputs, columns = weights.shape
    array = np.full(-(-outputs // 8) * 8 * columns, 3, weights.dtype)
    kernel = matmul_float.pack_f32 if weights.dtype == np.float32 else matmul_float.pack_f16
    invoke(kernel, weights=array, source=weights.reshape(-1), rows=outputs, columns=columns)
    return array


def float_product(
    kind: str,
    weights: np.ndarray,
    x: np.ndarray,
    bias: np.ndarray,
    threads: int = 1,
    invoke: Callable = call,
    add: int = 0,
) -> np.ndarray:
    (outputs, columns), rows = weights.shape, len(x)
    groups = -(-outputs // 8)
    out = np.full((rows, 8 * groups + 8), np.float32(5))
    padded = np.zeros(8 * groups, np.float32)
    padded[:outputs] = bias
    for rank in range(threads):
        invoke(
            getattr(matmul_float, f"matmul_{kind}"), run_of(rows), rank, threads, out=out.reshape(-1), x=x.reshape(-1),
            weights=float_packed(weights), bias=padded, groups=groups, columns=columns, x_stride=columns + 3,
            stride=out.shape[1], add=add, count=ROWS,
        )  # fmt: skip
    assert (out[:, 8 * groups :] == 5).all() and (out[:, outputs : 8 * groups] == 5 * add).all()
    return out[:, :outputs]


@pytest.mark.parametrize("shape", FLOAT_SHAPES)
@pytest.mark.parametrize("kind", FLOATS)
def test_float_product_equals_exact_and_is_near_truth(kind: str, shape: tuple[int, int, int]) -> None:
    weights, x, bias = float_case(kind, shape)
    used, wide = x[:, : shape[1]], widened(kind, weights)
    expected = matmul_float.matmul_float_exact(used, wide)
    same_bits(float_product(kind, weights, x, bias), expected + bias)
    same_bits(float_product(kind, weights, x, bias, add=1), np.float32(5) + (expected + bias))
    tolerance = shape[1] * 1.01 * EPS * matmul_float.matmul_float_truth(np.abs(used), np.abs(wide))
    assert (np.abs(expected - matmul_float.matmul_float_truth(used, wide)) <= tolerance).all()


@pytest.mark.parametrize("kind", FLOATS)
def test_float_rows_alone_split_among_workers_and_in_plain_python(kind: str) -> None:
    weights, x, bias = float_case(kind, (77, 33, 7))
    together = float_product(kind, weights, x, bias)
    for t in range(len(x)):
        same_bits(float_product(kind, weights, x[t : t + 1], bias), together[t : t + 1])
    for threads in (2, 3, 11):
        same_bits(float_product(kind, weights, x, bias, threads), together)
    weights, x, bias = float_case(kind, (45, 3, 5))
    same_bits(float_product(kind, weights, x, bias, invoke=twin), float_product(kind, weights, x, bias))


@pytest.mark.parametrize("kind", FLOATS)
def test_float_packing_and_lookup(kind: str) -> None:
    weights, _, _ = float_case(kind, (20, 172, 1))
    array = float_packed(weights)
    np.testing.assert_array_equal(float_packed(weights, twin), array)
    out = np.zeros((20, 172), np.float32)
    run = run_of(20, tokens=range(19, -1, -1))
    call(getattr(matmul_float, f"embed_{kind}"), run, out=out.reshape(-1), weights=array, columns=172, stride=172)
    np.testing.assert_array_equal(out[::-1], widened(kind, weights))
