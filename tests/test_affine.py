"""The affine map: against exact fractions, at every kind of range, and what is defined for values that are no numbers."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from kernels.affine import (
    INT4,
    INT8,
    UINT4,
    UINT8,
    Affine,
    Codes,
    fit,
    fit_binary,
    fit_channels,
    fit_groups,
    fit_tensor,
    fit_ternary,
    groups,
    observe,
    signed,
)

ALL = [INT8, UINT8, INT4, UINT4, signed(2), signed(16)]
RANGES = [(0, 100), (-1, 1), (-3, 0.5), (5, 5), (-7, -7), (2, 9), (-9, -2), (1e-30, 3e-30), (-1e30, 1e29)]


@pytest.mark.parametrize("codes", ALL, ids=lambda c: c.name)
@pytest.mark.parametrize("limits", RANGES, ids=str)
def test_asymmetric_map_is_the_formula_in_fractions(codes: Codes, limits: tuple[float, float]) -> None:
    low, high = min(Fraction(limits[0]), 0), max(Fraction(limits[1]), 0)
    scale = (high - low) / (codes.high - codes.low)
    zero = round(codes.low - low / scale)  # Python rounds halves to even, as rint does
    made = fit(*limits, codes)
    assert abs(Fraction(float(made.scale)) / scale - 1) < Fraction(1, 2**51)
    assert made.zero_point == min(max(zero, codes.low), codes.high)


@pytest.mark.parametrize("codes, symmetric", list(product(ALL, [False, True])), ids=str)
def test_error_is_half_a_step_and_zero_has_a_code(codes: Codes, symmetric: bool) -> None:
    for low, high in RANGES:
        made = fit(low, high, codes, symmetric)
        x = np.linspace(min(low, 0), max(high, 0), 1001)
        error = np.abs(made.dequantize(made.quantize(x)) - x).max()
        assert error <= float(made.scale) * 0.5 * (1 + 2**-36)  # x / scale has an error of up to 2^16 * 2^-53
        assert made.dequantize(made.quantize(np.zeros(1))) == 0
        if symmetric:
            assert made.zero_point == (codes.low + codes.high + 1) // 2
            assert (made.quantize(x) > codes.low).all()
            assert (made.quantize(-x) + made.quantize(x) == 2 * made.zero_point).all()


def test_known_values() -> None:
    made = fit(0, 100)
    assert float(made.scale) == 100 / 255 and made.zero_point == -128
    made = fit(-1, 1, UINT8)
    assert float(made.scale) == 2 / 255 and made.zero_point == 128  # 127.5 to even
    made = fit(-2, 1, INT4, symmetric=True)
    assert float(made.scale) == 2 / 7 and made.zero_point == 0


@pytest.mark.parametrize("codes", ALL, ids=lambda c: c.name)
def test_a_range_of_nothing(codes: Codes) -> None:
    for limits in ((0, 0), (-1e-200, 1e-200)):
        for symmetric in (False, True):
            made = fit(*limits, codes, symmetric)
            assert made.scale == 1 and made.zero_point == 0
            assert made.dequantize(made.quantize(np.array([0.0]))) == 0


@pytest.mark.parametrize("limits", [(np.nan, 1), (0, np.inf), (-np.inf, 0), (2, 1)])
def test_limits_that_are_no_range(limits: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="range"):
        fit(*limits)


def test_values_that_are_no_numbers() -> None:
    x = np.array([[1.0, np.nan, -2.0], [np.inf, np.nan, -np.inf], [np.inf, 3.0, 0.5]])
    low, high = observe(x, 1)
    assert low.ravel().tolist() == [-2, 0, 0.5] and high.ravel().tolist() == [1, 0, 3]
    made = fit(-1, 3, INT8)
    assert made.quantize(np.array([np.nan, np.inf, -np.inf])).tolist() == [int(made.zero_point), 127, -128]
    codes, scale = fit_ternary(x)
    assert codes[1].tolist() == [0, 0, 0] and scale[1] == 0


def test_channels_and_groups() -> None:
    x = np.random.default_rng(1).standard_normal((3, 10)) * np.array([[1.0], [10.0], [0.1]])
    per_row, whole = fit_channels(x), fit_tensor(x)
    assert per_row.scale.shape == (3, 1) and whole.scale.shape == (1, 1)
    np.testing.assert_array_equal(per_row.scale[:, 0], np.abs(x).max(1) / 127)
    per_column = fit_channels(x, axis=1, symmetric=False)
    assert per_column.scale.shape == (1, 10)
    made = fit_groups(x, 5)
    assert made.scale.shape == (3, 2, 1)
    back = made.dequantize(made.quantize(groups(x, 5)))
    assert (np.abs(back - groups(x, 5)) <= made.scale / 2 * (1 + 1e-12)).all()
    with pytest.raises(ValueError, match="groups of 3"):
        fit_groups(x, 3)


def test_huge_range_does_not_overflow() -> None:
    made = fit(-1.7e308, 1.7e308)
    assert np.isfinite(made.scale) and made.zero_point in (-1, 0)


def test_ternary_and_binary_are_the_least_squares() -> None:
    x = np.random.default_rng(2).standard_normal((4, 7))
    for fitted, values in ((fit_ternary, (-1, 0, 1)), (fit_binary, (-1, 1))):
        codes, scale = fitted(x)
        error = ((codes * scale - x) ** 2).sum(1)
        for row in range(len(x)):
            tried = np.array(list(product(values, repeat=7)), np.float64)
            norm = (tried**2).sum(1)
            best = (x[row] ** 2).sum() - (tried @ x[row]) ** 2 / np.maximum(norm, 1)
            assert error[row] <= best.min() + 1e-12


def test_is_frozen() -> None:
    with pytest.raises(AttributeError):
        fit(0, 1).scale = np.ones(1)  # type: ignore[misc]
    assert isinstance(fit(0, 1), Affine)
    with pytest.raises(ValueError, match="1 bits"):
        signed(1)
