"""The affine map between real numbers and small integers, the root of all integer inference.

    real = scale * (code - zero_point)            code = clamp(round(real / scale) + zero_point, low, high)

The range [minimum, maximum] that the codes must cover is first widened to contain 0, so that 0 has a code of its own and
padding, a ReLU's floor or a bias of nothing cost no error:

    asymmetric   scale = (maximum - minimum) / (high - low)      zero_point = clamp(round(low - minimum / scale), low, high)
    symmetric    scale = max(-minimum, maximum) / half           zero_point = the middle code, which no range moves

    real   minimum ......... 0 ............... maximum
             |               |                    |
    code    low  ....... zero_point ............ high

Rounding is to nearest, ties to even. An error inside of the range is at most scale / 2, also at its ends.

Ternary (-1, 0, 1) and binary (-1, 1) codes are fitted by least squares, not by the range: `fit_ternary`, `fit_binary`.

What is defined beside numbers: a range of a single point other than 0 is widened like any other; of 0 alone (or narrower
than float32 can tell from 0) it gets scale 1 and the code of 0. Limits that are NaN or infinite are an error, a ValueError.
Values that are NaN or infinite don't count when a range is observed; quantised, NaN becomes the code of 0 and an infinity
the last code on its side.

Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2018,
sections 2.1 and 3; binary: Rastegari et al., "XNOR-Net", 2016, section 3.1; ternary: Li et al., "Ternary Weight
Networks", 2016.
"""

from dataclasses import dataclass

import numpy as np

SMALLEST_SPAN = 2.0**-126  # of a range, per step: what is narrower counts as 0


@dataclass(frozen=True, slots=True)
class Codes:
    """Which integers codes may be: `low` .. `high`; `middle`: the code of 0 in a symmetric map."""

    name: str
    low: int
    high: int

    @property
    def middle(self) -> int:
        """The code of 0 of a symmetric map: as many codes above as below, the lowest left over."""
        return (self.low + self.high + 1) // 2

    @property
    def half(self) -> int:
        """Codes above the middle."""
        return self.high - self.middle

    @property
    def steps(self) -> int:
        """Steps between the first and the last code."""
        return self.high - self.low


INT8, UINT8 = Codes("INT8", -128, 127), Codes("UINT8", 0, 255)
INT4, UINT4 = Codes("INT4", -8, 7), Codes("UINT4", 0, 15)


def signed(bits: int) -> Codes:
    """The signed codes of 2 to 16 bits."""
    if not 2 <= bits <= 16:
        raise ValueError(f"codes of {bits} bits; expected 2 to 16 (one bit: fit_binary)")
    return Codes(f"INT{bits}", -(1 << bits - 1), (1 << bits - 1) - 1)


@dataclass(frozen=True, slots=True)
class Affine:
    """A map, or one for each channel or group.

    Attributes:
        codes: Which integers.
        scale: float64, positive; the real size of one step.
        zero_point: int64 of scale's shape; the code of 0.
    """

    codes: Codes
    scale: np.ndarray
    zero_point: np.ndarray

    def quantize(self, x: np.ndarray) -> np.ndarray:
        """Real numbers, of a shape that scale broadcasts to, to codes (int32)."""
        low, high = self.codes.low, self.codes.high
        with np.errstate(invalid="ignore", over="ignore"):
            code = np.rint(np.asarray(x, np.float64) / self.scale) + self.zero_point
        return np.where(np.isnan(code), self.zero_point, np.clip(code, low, high)).astype(np.int32)

    def dequantize(self, codes: np.ndarray) -> np.ndarray:
        """Codes to real numbers (float64)."""
        return self.scale * (np.asarray(codes, np.int64) - self.zero_point)


def observe(x: np.ndarray, axis: int | tuple[int, ...] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and largest finite value of x, over `axis` (None: all), kept for broadcasting; 0 and 0 where none is."""
    finite = np.isfinite(x)
    low = np.min(x, axis, keepdims=True, initial=np.inf, where=finite)
    high = np.max(x, axis, keepdims=True, initial=-np.inf, where=finite)
    none = low > high
    return np.where(none, 0.0, low).astype(np.float64), np.where(none, 0.0, high).astype(np.float64)


def fit(
    minimum: float | np.ndarray, maximum: float | np.ndarray, codes: Codes = INT8, symmetric: bool = False
) -> Affine:
    """The map that covers minimum .. maximum.

    Args:
        minimum, maximum: The range, or arrays of ranges, one for each channel or group.
        codes: Which integers.
        symmetric: Whether 0 is the middle code.

    Raises:
        ValueError: A limit is NaN or infinite, or a minimum is above its maximum.
    """
    low, high = np.asarray(minimum, np.float64), np.asarray(maximum, np.float64)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError("the limits of a range must be finite; values that are not don't count when one is observed")
    if (low > high).any():
        raise ValueError("the minimum of a range is above its maximum")
    low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    if symmetric:
        scale = np.maximum(-low, high) / codes.half
    else:
        scale = high / codes.steps - low / codes.steps  # divided first: the difference may overflow
    empty = scale < SMALLEST_SPAN
    scale = np.where(empty, 1.0, scale)
    if symmetric:
        zero = np.full(scale.shape, codes.middle)
    else:
        zero = np.clip(np.rint(codes.low - low / scale), codes.low, codes.high)
    zero = np.where(empty, min(max(0, codes.low), codes.high), zero)
    return Affine(codes, scale, zero.astype(np.int64))


def fit_tensor(x: np.ndarray, codes: Codes = INT8, symmetric: bool = False) -> Affine:
    """One map for all of x."""
    return fit(*observe(x), codes, symmetric)


def fit_channels(x: np.ndarray, axis: int = 0, codes: Codes = INT8, symmetric: bool = True) -> Affine:
    """One map for each index along `axis`: of weights (N, K) and axis 0, one for each output."""
    others = tuple(i for i in range(x.ndim) if i != axis % x.ndim)
    return fit(*observe(x, others), codes, symmetric)


def groups(x: np.ndarray, size: int) -> np.ndarray:
    """x (..., K) as (..., K / size, size); raises ValueError where K is no multiple."""
    if size < 1 or x.shape[-1] % size:
        raise ValueError(f"rows of {x.shape[-1]} can't be cut into groups of {size}")
    return x.reshape(*x.shape[:-1], -1, size)


def fit_groups(x: np.ndarray, size: int, codes: Codes = INT4, symmetric: bool = True) -> Affine:
    """One map for each `size` values along the last axis; it takes and gives x cut by `groups(x, size)`."""
    return fit(*observe(groups(x, size), -1), codes, symmetric)


def fit_binary(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes -1 and 1, and the scale, of the rows x (..., K) with the least squared error: scale = mean |x|, code = sign.

    Returns codes int8 (..., K) and scales float64 (..., 1). There is no code of 0: 0 gets 1.
    """
    x = _finite(x)
    return np.where(x < 0, -1, 1).astype(np.int8), np.mean(np.abs(x), -1, keepdims=True)


def fit_ternary(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes -1, 0, 1, and the scale, of the rows x (..., K) with the least squared error.

    With the k largest |x| coded as 1 and the best scale for them, their mean, the error is sum x^2 - (their sum)^2 / k: so
    the k with the largest (their sum)^2 / k is best, and all k are tried. Returns as `fit_binary` does.
    """
    x = _finite(x)
    order = np.argsort(-np.abs(x), axis=-1, kind="stable")
    total = np.cumsum(np.take_along_axis(np.abs(x), order, -1), axis=-1)
    count = np.arange(1, x.shape[-1] + 1)
    best = np.argmax(total * total / count, axis=-1)[..., None]
    scale = np.take_along_axis(total, best, -1) / (best + 1)
    rank = np.argsort(order, axis=-1, kind="stable")
    return np.where(rank <= best, np.sign(x), 0).astype(np.int8), scale


def _finite(x: np.ndarray) -> np.ndarray:
    """x in float64, with 0 for NaN and infinities."""
    return np.where(np.isfinite(x), x, 0.0).astype(np.float64)
