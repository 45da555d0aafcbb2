"""RMSNorm: twin, machine code and NumPy reference to the bit, and the reference against float64."""

import numpy as np
import pytest
from kernel_runs import assert_quantized, assert_same_bits, rows_block, run_both

from kernels.norm import rms_norm, rms_norm_exact, rms_norm_quantize, rms_norm_quantize_exact, rms_norm_truth
from kernels.quantize import empty_quantized
from kernels.run import LOGIT_ROWS, ROWS

EPS = 1e-5


def data(rows: int, n: int, stride: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """x (rows, stride) and weight (stride,), padded with zeros behind n."""
    rng = np.random.default_rng(seed)
    x = np.zeros((rows, stride), np.float32)
    x[:, :n] = rng.normal(0, 3, (rows, n))
    weight = np.zeros(stride, np.float32)
    weight[:n] = rng.normal(1, 0.5, n)
    return x, weight


@pytest.mark.parametrize(("rows", "n", "stride"), [(1, 1, 32), (3, 37, 96), (5, 64, 64), (1, 160, 192)])
def test_rms_norm(rows: int, n: int, stride: int) -> None:
    x, weight = data(rows, n, stride, n)
    blocks = -(-n // 32)
    values = {"x": x.ravel(), "weight": weight, "n": n, "blocks": blocks, "stride": stride, "eps": EPS, "count": ROWS}
    (out,) = run_both(rms_norm, rows_block(rows), ("out",), out=np.zeros(rows * stride, np.float32), **values)
    out = out.reshape(rows, stride)
    assert_same_bits(out[:, :n], rms_norm_exact(x[:, :n], weight[:n], EPS))
    assert not out[:, n:].any()


@pytest.mark.parametrize(("rows", "n", "stride"), [(1, 96, 128), (3, 32, 32), (6, 96, 96)])
def test_rms_norm_quantize(rows: int, n: int, stride: int) -> None:
    x, weight = data(rows, n, stride, n + rows)
    blocks = n // 32
    codes, scales, sums = run_both(
        rms_norm_quantize,
        rows_block(rows),
        ("codes", "scales", "sums"),
        **empty_quantized(rows, blocks),
        x=x.ravel(),
        weight=weight,
        n=n,
        blocks=blocks,
        stride=stride,
        eps=EPS,
        count=ROWS,
    )
    assert_quantized(codes, scales, sums, rms_norm_quantize_exact(x[:, :n], weight[:n], EPS))


def test_only_rows_that_want_logits() -> None:
    x, weight = data(5, 40, 64, 3)
    run = rows_block(5, logit_rows=[1, 4])
    values = {"x": x.ravel(), "weight": weight, "n": 40, "blocks": 2, "stride": 64, "eps": EPS, "count": LOGIT_ROWS}
    (out,) = run_both(rms_norm, run, ("out",), out=np.zeros(2 * 64, np.float32), **values)
    assert_same_bits(out.reshape(2, 64)[:, :40], rms_norm_exact(x[[1, 4], :40], weight[:40], EPS))


@pytest.mark.parametrize("n", [1, 37, 896])
def test_near_the_truth(n: int) -> None:
    x, weight = data(7, n, n, n)
    truth = rms_norm_truth(x, weight, EPS)
    # n / 8 roundings in a lane and 3 in the tree, halved by the root; then 5 more: /n, +eps, root, 1/, two products
    bound = np.abs(truth) * 2.0**-24 * ((n / 8 + 3) / 2 + 6)
    assert (np.abs(rms_norm_exact(x, weight, EPS) - truth) <= bound).all()
