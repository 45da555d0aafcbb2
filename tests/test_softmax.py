"""Softmax weights: twin, machine code and NumPy reference to the bit, and the reference against float64."""

import numpy as np
import pytest
from kernel_runs import assert_same_bits, run_both

from kernels.registry import kernel
from kernels.simd import load_f32x8, sum_f32
from kernels.softmax import softmax_truth, softmax_weights, softmax_weights_exact
from kernels.types import F32, I64, Int


@kernel
def softmax_row(rank: Int, size: Int, run: I64, x: F32, totals: F32, start: Int, length: Int) -> None:
    """The weights of `length` numbers from x[start], and totals[8] = their sum."""
    softmax_weights(x, start, length, totals, 0)
    totals[8] = sum_f32(load_f32x8(totals, 0))


@pytest.mark.parametrize("length", [1, 7, 8, 21])
def test_forms_agree(length: int) -> None:
    row = np.random.default_rng(length).normal(0, 5, length).astype(np.float32)
    x = np.full(3 + -(-length // 8) * 8 + 2, np.nan, np.float32)
    x[3 : 3 + length] = row
    totals = np.zeros(9, np.float32)
    values = {"x": x, "totals": totals, "start": 3, "length": length}
    found, total = run_both(softmax_row, np.zeros(8, np.int64), ("x", "totals"), (1,), **values)
    weights, sums = softmax_weights_exact(row[None])
    assert_same_bits(found[3:-2], weights[0])
    assert_same_bits(total[8:], sums)
    assert np.isnan(found[:3]).all() and np.isnan(found[-2:]).all() and found[3:-2].max() == 1


def test_near_the_truth() -> None:
    x = np.random.default_rng(1).normal(0, 5, (6, 300)).astype(np.float32)
    weights, total = softmax_weights_exact(x)
    truth = softmax_truth(x)
    # the difference, scaled by exp; exp to one unit; 300 / 8 additions in a lane and 3 in the tree
    bound = 2.0**-24 * (np.abs(x).max() * 2 + 4 + 300 / 8 + 3)
    assert (np.abs(weights[:, :300] / total[:, None].astype(np.float64) - truth) <= bound * truth + 2.0**-125).all()
