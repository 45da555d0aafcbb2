"""python -m engine.explain "0.1*x + 0.2" --range 0 100: how a product and a sum are computed in integers, with real numbers.

    x   --quantise-->  q_x = round(x / s_x) + z_x                       INT8, over the range of x
    w   --quantise-->  q_w = round(w / s_w)                             INT8, symmetric: no zero point
    b   --quantise-->  q_b = round(b / (s_x s_w))                       int32, at the scale that the products have
    sum = (q_x - z_x) q_w + q_b                                         int32, exact
    q_y = clamp(((sum * multiplier + 2^(shift - 1)) >> shift) + z_y)    INT8;  multiplier / 2^shift = s_x s_w / s_y
    y   = s_y (q_y - z_y)

What bounds the error: x is off by at most s_x / 2, which makes |w| s_x / 2 of y; the bias by at most s_x s_w / 2; and y is
rounded by at most s_y / 2. The output's range is that of the expression over all of the input's codes, so that
|w| s_x <= s_y; where need be it is widened until s_y >= |w| s_x + twice what the constants are off by. All together is then
at most one output step, s_y.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from engine import options
from engine.errors import EngineError, OptionError
from engine.expression import LARGEST, SMALLEST, linear
from kernels.affine import Affine, fit, signed
from kernels.requantize import multiplier_and_shift

MOST_BIAS = 1 << 30  # what is left of an int32 is room for the products
SHOWN = 5
WRONG_SCALE = (
    "Wrong, though it circulates: scale = (qmax - qmin) / (max - min), the inverse. Dividing by it gives {w:g} / "
    "{inverse:g}, rounded 0, plus zero point {low}: every coefficient collapses to {low}. A scale is real units per step."
)


@dataclass(frozen=True, slots=True)
class Worked:
    """One expression w * x + b in integers: the maps of x, w and y, and the integers made from them."""

    text: str
    bits: int
    low: float
    high: float
    w: float
    b: float
    x_map: Affine
    w_map: Affine
    y_map: Affine
    w_code: int
    b_code: int
    multiplier: int
    shift: int
    widened: bool

    @property
    def product_scale(self) -> float:
        """s_x s_w, what 1 stands for in the int32 sum."""
        return float(self.x_map.scale * self.w_map.scale)

    @property
    def step(self) -> float:
        """One output step, s_y."""
        return float(self.y_map.scale)

    def sums(self, x_codes: np.ndarray) -> np.ndarray:
        """The int32 sums of input codes, computed in int64 and within int32."""
        found = (np.asarray(x_codes, np.int64) - int(self.x_map.zero_point)) * self.w_code + self.b_code
        assert (np.abs(found) < 2**31).all()
        return found

    def outputs(self, x_codes: np.ndarray) -> np.ndarray:
        """The output codes of input codes: one int64 product, one rounding."""
        rounded = (self.sums(x_codes) * self.multiplier + (1 << self.shift - 1)) >> self.shift
        codes = self.y_map.codes
        return np.clip(rounded + int(self.y_map.zero_point), codes.low, codes.high)

    def quantized(self, x: np.ndarray) -> np.ndarray:
        """y in integers, from real x to real y."""
        return self.y_map.dequantize(self.outputs(self.x_map.quantize(x)))

    def errors(self) -> tuple[np.ndarray, np.ndarray]:
        """Where |error| can be largest, and the error there: both ends of each input code's cell, the range's own included.

        Within a cell the integers stay the same and w x + b is a line, so nothing lies beyond its ends: the largest of
        these is the largest over the whole range, not over a sample.
        """
        codes, zero = self.x_map.codes, int(self.x_map.zero_point)
        all_codes = np.arange(codes.low, codes.high + 1)
        edges = (all_codes[1:] - 0.5 - zero) * float(self.x_map.scale)
        edges = np.concatenate([[-np.inf], edges, [np.inf]])
        left, right = np.clip(edges[:-1], self.low, self.high), np.clip(edges[1:], self.low, self.high)
        used = (edges[:-1] <= self.high) & (edges[1:] >= self.low)
        y = self.y_map.dequantize(self.outputs(all_codes))
        x = np.concatenate([left[used], right[used]])
        return x, np.concatenate([y[used], y[used]]) - (self.w * x + self.b)


def work_out(text: str, low: float, high: float, bits: int = 8) -> Worked:
    """Quantise an expression over low <= x <= high; raises OptionError for an expression or a range that won't do."""
    for limit in (low, high):
        if not abs(limit) <= LARGEST or (limit and abs(limit) < SMALLEST):
            raise OptionError(f"range: {limit:g}; expected 0 or a number of {float(SMALLEST):g} to {LARGEST:g}")
    if low > high:
        raise OptionError(f"range: {low:g} to {high:g} is empty; give the smaller number first")
    exact_w, exact_b = linear(text)
    w, b, codes = float(exact_w), float(exact_b), signed(bits)
    x_map = fit(low, high, codes)
    s_x, zero = float(x_map.scale), int(x_map.zero_point)
    reach = max(abs(w), codes.half * abs(b) / s_x / MOST_BIAS)  # so that the bias, at s_x s_w, stays an int32
    w_map = fit(-reach, reach, codes, symmetric=True)
    s_w = float(w_map.scale)
    w_code, b_code = int(w_map.quantize(np.array(w))), round(Fraction(b) / (Fraction(s_x) * Fraction(s_w)))
    ends = [w * s_x * (code - zero) + b for code in (codes.low, codes.high)]
    y_low, y_high = min(*ends, 0.0), max(*ends, 0.0)
    constants = abs(b_code * s_x * s_w - b) + abs(w_code * s_w - w) * max(abs(low), abs(high))  # what they are off by
    least = (abs(w) * s_x + 2 * constants) * codes.steps
    widened = y_high - y_low < least
    if widened and y_high >= -y_low:
        y_high = y_low + least
    elif widened:
        y_low = y_high - least
    y_map = fit(y_low, y_high, codes)
    multiplier, shift = multiplier_and_shift(Fraction(s_x) * Fraction(s_w) / Fraction(float(y_map.scale)))
    return Worked(text, bits, low, high, w, b, x_map, w_map, y_map, w_code, b_code, multiplier, shift, widened)


def report(found: Worked) -> str:
    """The example, step by step, as text."""
    f, codes = found, found.x_map.codes
    x, error = f.errors()
    worst = int(np.argmax(np.abs(error)))
    inverse = codes.steps / (abs(f.w) if f.w else 1.0)
    lines = [
        f"{f.text}   =   {f.w:g} * x + {f.b:g},   x from {f.low:g} to {f.high:g},   {codes.name} {codes.low}..{codes.high}",
        "",
        "1. Ranges that contain 0: scale = (max - min) / (qmax - qmin), zero point = clamp(round(qmin - min / scale))",
        _map_line("x", f.x_map),
        f"{_map_line('w', f.w_map)}   symmetric: scale = max |w| / {codes.half}",
        f"{_map_line('y', f.y_map)}{'   widened: no finer than its input' if f.widened else ''}",
        "",
        "2. The constants in integers",
        f"   coefficient  {f.w:g} / {f.w_map.scale:.9g} = {f.w_code}   ({codes.name})",
        f"   bias         {f.b:g} / (s_x s_w = {f.product_scale:.9g}) = {f.b_code}   (int32)",
        f"   s_x s_w / s_y = {f.product_scale / f.step:.9g} = {f.multiplier} / 2^{f.shift}   (multiplier and shift)",
        "",
        f"3. x to y in integers: sum = (q_x{-int(f.x_map.zero_point):+d}) * {f.w_code}{f.b_code:+d},",
        f"   q_y = clamp(((sum * {f.multiplier} + 2^{f.shift - 1}) >> {f.shift}){int(f.y_map.zero_point):+d})",
        f"   {'x':>12}  {'q_x':>6}  {'sum':>10}  {'q_y':>6}  {'y':>12}  {'float':>12}  {'error':>11}",
    ]
    for value in np.linspace(f.low, f.high, SHOWN if f.high > f.low else 1):
        q = f.x_map.quantize(np.array([value]))
        q_y = f.outputs(q)
        y, true = float(f.y_map.dequantize(q_y)[0]), f.w * value + f.b
        lines.append(
            f"   {value:12.6g}  {q[0]:6d}  {f.sums(q)[0]:10d}  {q_y[0]:6d}  {y:12.6g}  {true:12.6g}  {y - true:+11.4g}"
        )
    lines += [
        "",
        f"Largest error over the whole range: {abs(error[worst]):.6g} at x = {x[worst]:g}, "
        f"{abs(error[worst]) / f.step:.3f} of one output step ({f.step:.6g}).",
        WRONG_SCALE.format(w=f.w, inverse=inverse, low=codes.low),
    ]
    return "\n".join(lines) + "\n"


def plot(found: Worked, path: str) -> None:
    """Draws both curves and the error into a PNG file; raises EngineError where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise EngineError(
            "--plot: package 'matplotlib' is missing; install the extra: pip install 'intengine[plot]'"
        ) from None
    span = found.high - found.low
    x = np.linspace(found.low, found.high, 4001) if span else np.array([found.low])
    y, true = found.quantized(x), found.w * x + found.b
    figure = Figure(figsize=(8, 6), layout="constrained")
    curves, errors = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    curves.plot(x, true, label="float", color="black", linewidth=1)
    curves.plot(x, y, label=found.x_map.codes.name, color="tab:blue", linewidth=1)
    curves.set(title=f"{found.text}, {found.low:g} to {found.high:g}, {found.x_map.codes.name}", ylabel="y")
    curves.legend()
    errors.plot(x, (y - true) / found.step, color="tab:red", linewidth=0.8)
    errors.axhline(1, color="gray", linewidth=0.5)
    errors.axhline(-1, color="gray", linewidth=0.5)
    errors.set(xlabel="x", ylabel="error, output steps")
    save_figure(figure, path)


def save_figure(figure: Any, path: str) -> None:
    """Writes a matplotlib figure as PNG; raises OptionError where the file can't be written."""
    if os.path.splitext(path)[1].lower() != ".png":
        raise OptionError(f"--plot: '{path}'; expected a name that ends in .png")
    try:
        figure.savefig(path, dpi=120, format="png")
    except OSError as error:
        raise OptionError(f"--plot: '{path}' can't be written: {error.strerror}") from None


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    made = options.parser("explain", "How w * x + b is computed in small integers, step by step, with real numbers.")
    made.add_argument("expression", help="linear in x, such as '0.1*x + 0.2'")
    made.add_argument(
        "--range", nargs=2, type=float, default=(0.0, 100.0), metavar=("LOW", "HIGH"), help="of x (default: 0 100)"
    )
    made.add_argument("--bits", type=options.whole(2, 16), default=8, metavar="N", help="of the codes (default: 8)")
    made.add_argument("--plot", metavar="FILE.png", help="draw both curves and the error")
    return options.run(_explain, made, argv)


def _explain(given: argparse.Namespace) -> None:
    found = work_out(given.expression, given.range[0], given.range[1], given.bits)
    if given.plot:
        plot(found, given.plot)
    if given.json:
        options.write_json(_plain(found))
    else:
        sys.stdout.write(report(found))


def _plain(f: Worked) -> dict[str, Any]:
    """All numbers of the example, ready for JSON."""
    maps = {
        name: {"scale": float(m.scale), "zero_point": int(m.zero_point)}
        for name, m in (("x", f.x_map), ("w", f.w_map), ("y", f.y_map))
    }
    largest = float(np.abs(f.errors()[1]).max())
    return {
        "expression": f.text, "w": f.w, "b": f.b, "range": [f.low, f.high], "bits": f.bits, **maps, "w_code": f.w_code,
        "b_code": f.b_code, "multiplier": f.multiplier, "shift": f.shift,
        "largest_error": largest, "largest_error_steps": largest / f.step,
    }  # fmt: skip


def _map_line(name: str, m: Affine) -> str:
    low, high = (float(v) for v in m.dequantize(np.array([m.codes.low, m.codes.high])))
    return f"   {name}: scale {float(m.scale):.9g}, zero point {int(m.zero_point)}: codes reach {low:.6g} .. {high:.6g}"


if __name__ == "__main__":
    sys.exit(main())
