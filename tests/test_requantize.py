"""Requantisation: the kernel against its reference and Python's whole numbers, at the bounds, and rounding once."""

from collections.abc import Callable
from fractions import Fraction
from functools import partial

import numpy as np
import pytest

from kernels.compiler import call
from kernels.requantize import multiplier_and_shift, requantize, requantize_exact, requantize_truth
from kernels.run import run_block

RATIOS = [0.75, 1.0, 0.1, 1 / 3, 2.0**-31, 2.0**-32, 5e-10, 3.7e-8, 123.456, 2.0**30 - 1, 2.0**-33, 0.0]


def arrays() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values (9, 12), with each column's multiplier and shift."""
    generator = np.random.default_rng(3)
    pairs = np.array([multiplier_and_shift(r) for r in RATIOS])
    values = generator.integers(-(2**31), 2**31, (9, len(RATIOS)))
    near = np.array([2.0**k / max(r, 2.0**-40) for k, r in zip(range(-1, 11), RATIOS)])
    values[3:7] = np.clip(near * generator.uniform(-1, 1, (4, len(RATIOS))), -(2**31), 2**31 - 1)
    values[0], values[1], values[2] = -(2**31), 2**31 - 1, np.arange(-6, 6)
    return values.astype(np.int32), pairs[:, 0].astype(np.int32), pairs[:, 1].astype(np.int32)


def run_with(rows: int) -> np.ndarray:
    run = run_block(rows)
    run[0] = rows
    return run


def requantized(invoke: Callable[..., None]) -> np.ndarray:
    values, multipliers, shifts = arrays()
    rows, columns = values.shape
    out = np.full(rows * columns, 99, np.int8)
    given = {"out": out, "values": values.ravel(), "multipliers": multipliers, "shifts": shifts}
    invoke(run_with(rows), **given, columns=columns, stride=columns, count=0)
    return out.reshape(rows, columns)


def results() -> dict[str, np.ndarray]:
    """What compiled code gives: compared between processors."""
    return {"requantize": requantized(partial(call, requantize))}


def test_kernel_equals_exact_and_its_twin() -> None:
    expected = requantize_exact(*arrays())
    np.testing.assert_array_equal(results()["requantize"], expected)
    np.testing.assert_array_equal(requantized(partial(requantize, 0, 1)), expected)


def test_workers_share_the_columns() -> None:
    def three(run: np.ndarray, **operands: np.ndarray | int) -> None:
        for rank in range(3):
            call(requantize, run, rank, 3, **operands)

    np.testing.assert_array_equal(requantized(three), requantize_exact(*arrays()))


def test_exact_is_python_whole_numbers_rounded_once() -> None:
    values, multipliers, shifts = arrays()
    got = requantize_exact(values, multipliers, shifts)
    for (t, n), value in np.ndenumerate(values):
        exact = Fraction(int(value)) * int(multipliers[n]) / 2 ** int(shifts[n])
        nearest = (exact + Fraction(1, 2)).__floor__()  # a tie goes up
        assert got[t, n] == min(max(nearest, -128), 127)


def test_truth_is_within_half_a_step_and_what_the_multiplier_lacks() -> None:
    values, multipliers, shifts = arrays()
    ratios = np.array(RATIOS)
    difference = np.abs(requantize_exact(values, multipliers, shifts) - requantize_truth(values, ratios))
    # the multiplier is off by at most 2^-31 of the product, which matters only where the product is below 128
    assert (difference <= 0.5 + 129 * 2.0**-31).all()


def test_one_rounding_not_two() -> None:
    """(1 * 3 + 4) >> 3 is 0: 3/8. Rounded first to 2 bits after the point (0.5) and then again it would be 1."""
    out = requantize_exact(np.array([[1]], np.int32), np.array([3 << 28], np.int32), np.array([31], np.int32))
    assert out.item() == 0


@pytest.mark.parametrize("ratio", RATIOS[:-2])
def test_multiplier_is_exact_to_31_bits(ratio: float) -> None:
    multiplier, shift = multiplier_and_shift(ratio)
    assert 2**30 <= multiplier < 2**31 and 1 <= shift <= 62
    assert abs(Fraction(multiplier, 2**shift) / Fraction(ratio) - 1) <= Fraction(1, 2**31)


@pytest.mark.parametrize("ratio", [-1.0, 2.0**30, float("nan"), float("inf")])
def test_impossible_ratios_are_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="ratio of scales"):
        multiplier_and_shift(ratio)
