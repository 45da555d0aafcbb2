"""The worked example: its integers recomputed by hand, its error bound over many expressions, and what it refuses."""

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from engine.errors import OptionError
from engine.explain import main, work_out
from engine.expression import linear


def test_the_example_by_hand() -> None:
    found = work_out("0.1*x + 0.2", 0, 100)
    assert float(found.x_map.scale) == 100 / 255 and int(found.x_map.zero_point) == -128
    assert found.w_code == 127 and float(found.w_map.scale) == 0.1 / 127
    assert found.b_code == round(0.2 / (100 / 255 * 0.1 / 127))
    assert found.step == pytest.approx(10.2 / 255, rel=1e-12)
    # x = 25: 25 / (100 / 255) = 63.75, code 64 - 128
    total = 64 * 127 + found.b_code
    ratio = Fraction(found.multiplier, 2**found.shift)
    assert found.outputs(np.array([-64]))[0] == round(total * ratio) - 128
    assert abs(float(ratio) - found.product_scale / found.step) <= 2**-31 * float(ratio)


def test_error_is_at_most_one_step_for_any_line() -> None:
    random = np.random.default_rng(5)
    for _ in range(400):
        low, high = np.sort(random.normal(size=2) * 10.0 ** random.integers(-3, 4))
        w, b = random.normal(size=2) * 10.0 ** random.integers(-3, 4, 2)
        found = work_out(f"{w!r}*x + {b!r}".replace("np.float64", ""), low, high, int(random.integers(2, 9)))
        error = found.errors()[1]
        assert np.abs(error).max() <= found.step * (1 + 1e-6), (w, b, low, high, found.bits)
        inside = random.uniform(low, high, 300)
        sampled = found.quantized(inside) - (found.w * inside + found.b)
        assert np.abs(sampled).max() <= np.abs(error).max() * (1 + 1e-9) + 1e-300


@pytest.mark.parametrize(
    "text, low, high", [("5", 0, 1), ("x", 0, 0), ("x", 3, 3), ("0", -1, 1), ("1e-9*x + 5", 0, 1), ("-x", -2, 1)]
)
def test_corners(text: str, low: float, high: float) -> None:
    found = work_out(text, low, high)
    assert np.abs(found.errors()[1]).max() <= found.step * (1 + 1e-6)


def test_expressions() -> None:
    assert linear("0.1*x + 0.2") == (Fraction(1, 10), Fraction(1, 5))
    assert linear("-(3 - x) / 7 * 2 - 1e-3") == (Fraction(2, 7), Fraction(-6, 7) - Fraction(1, 1000))
    assert linear("1_0*x") == (10, 0)


@pytest.mark.parametrize(
    "text",
    ["", "x*x", "1/x", "x**2", "y", "1/0", "__import__('os')", "x if x else 1", "x;1", "True", "'a'", "1j", "x.real", "f(x)",
     "1e400", "(" * 300, "1" * 300, "x\n", "lambda: 0", "1e31*x", "[x]", "x @ 1", "nan", "x := 1"],
)  # fmt: skip
def test_what_is_no_line(text: str) -> None:
    if text == "x\n":
        assert linear(text) == (1, 0)
        return
    with pytest.raises(OptionError) as caught:
        linear(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("low, high", [(1, 0), (float("nan"), 1), (0, float("inf")), (0, 1e300), (1e-300, 1)])
def test_ranges_that_are_none(low: float, high: float) -> None:
    with pytest.raises(OptionError, match="range"):
        work_out("x", low, high)


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["0.1*x + 0.2", "--range", "0", "100"]) == 0
    text = capsys.readouterr().out
    for part in (
        "Largest error over the whole range: 0.0392157",
        "every coefficient collapses to -128",
        "2121953890 / 2^38",
    ):
        assert part in text
    assert main(["0.1*x + 0.2", "--bits", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["largest_error_steps"] <= 1
    assert main(["x*x"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    assert main(["0.1*x + 0.2", "--plot", str(tmp_path / "a.png")]) == 0
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert main(["0.1*x", "--plot", str(tmp_path / "a.txt")]) == 1
    assert main(["0.1*x", "--plot", str(tmp_path / "none" / "a.png")]) == 1
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["0.1*x", "--plot", str(tmp_path / "b.png")]) == 1
    assert "pip install" in capsys.readouterr().err


def test_nothing_compiled_is_imported() -> None:
    code = "import sys, engine.explain; sys.exit('numba' in sys.modules or 'matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
