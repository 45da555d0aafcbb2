"""Tables of cosines and sines for rotary position embedding, the same bits on every machine.

    angle(p, i) = p * base^(-2 i / dims) / divisor[i] / scale          i = 0 .. dims / 2 - 1

The frequencies are computed in 50 decimal digits, as turns (angle / 2 pi). A position times the leading 29 bits of a
frequency is exact in float64, so whole turns fall away without error; the rest of the angle, at most an eighth of a turn
from a multiple of a quarter, goes through Taylor polynomials. Only +, -, * and rint are used, which are exact or rounded
by IEEE 754 in one way.

Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021, section 3.2.2.
"""

import math
from decimal import Context, Decimal

import numpy as np

EXACT = Context(prec=50)
TWO_PI = Decimal("6.28318530717958647692528676655900576839433879875021164194988918")
LEADING_BITS = 29  # 24 more for the position make 53
MOST_POSITIONS = 1 << 24
QUARTER_TURN = math.pi / 2
SIN = [(-1.0) ** n / math.factorial(2 * n + 1) for n in range(9)]  # powers of r^2, times r; the next term is 4e-19
COS = [(-1.0) ** n / math.factorial(2 * n) for n in range(10)]  # the next term is 4e-21
ROWS_AT_ONCE = 512


def rope_tables(
    context: int, rope_dims: int, base: float, divisors: np.ndarray | None = None, scale: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of all angles.

    Args:
        context: positions 0 .. context - 1.
        rope_dims: elements of a head that turn; even.
        base: the first pair turns by 1 radian a position, the last by almost 1 / base.
        divisors: (rope_dims / 2,) float32, positive, or None for ones.
        scale: linear scaling: positions are divided by it.

    Returns:
        cos and sin, each (context, rope_dims / 2) float32.

    Raises:
        ValueError: the context is longer than 2^24, or a divisor or the scale is not a positive, finite number.
    """
    if context > MOST_POSITIONS:
        raise ValueError(f"context is {context}, expected at most {MOST_POSITIONS}")
    high, low = _turns(rope_dims, base, divisors, scale)
    cos = np.empty((context, rope_dims // 2), np.float32)
    sin = np.empty_like(cos)
    for start in range(0, context, ROWS_AT_ONCE):
        rows = slice(start, min(start + ROWS_AT_ONCE, context))
        cos[rows], sin[rows] = _cos_sin(np.arange(rows.start, rows.stop, dtype=np.float64)[:, None], high, low)
    return cos, sin


def _turns(rope_dims: int, base: float, divisors: np.ndarray | None, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Turns a position for each pair: the leading bits and the rest, both float64."""
    pairs = rope_dims // 2
    factors = [1.0] * pairs if divisors is None else [float(d) for d in divisors]
    if len(factors) != pairs:
        raise ValueError(f"{len(factors)} rope divisors, expected {pairs}")
    for factor in [scale, *factors]:
        if not (math.isfinite(factor) and factor > 0):
            raise ValueError(f"a rope divisor or scale is {factor}, expected a positive, finite number")
    high, low = [], []
    for i, factor in enumerate(factors):
        exponent = EXACT.divide(Decimal(-2 * i), Decimal(rope_dims))
        turns = EXACT.divide(EXACT.power(Decimal(base), exponent), TWO_PI)
        turns = EXACT.divide(turns, EXACT.multiply(Decimal(factor), Decimal(scale)))
        mantissa, power = math.frexp(float(turns))
        leading = math.ldexp(round(math.ldexp(mantissa, LEADING_BITS)), power - LEADING_BITS)
        high.append(leading)
        low.append(float(EXACT.subtract(turns, Decimal(leading))))
    return np.array(high), np.array(low)


def _cos_sin(position: np.ndarray, high: np.ndarray, low: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    turns = position * high
    quarters = 4.0 * ((turns - np.rint(turns)) + position * low)
    quadrant = np.rint(quarters)
    r = (quarters - quadrant) * QUARTER_TURN
    square = r * r
    s, c = _horner(SIN, square) * r, _horner(COS, square)
    odd = np.rint(quadrant * 0.5) * 2.0 != quadrant
    by_cos, by_sin = np.where(odd, -s, c), np.where(odd, c, s)  # turned by no or one quarter, up to the sign
    sign = np.where((quadrant == 0.0) | (quadrant == 1.0), 1.0, -1.0)
    return (by_cos * sign).astype(np.float32), (by_sin * sign).astype(np.float32)


def _horner(coefficients: list[float], x: np.ndarray) -> np.ndarray:
    value = np.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        value = value * x + c
    return value
