"""The table of steps: wrong operands are refused by name, and the table does what its kernels do in plain Python."""

from typing import Any

import numpy as np
import pytest
from small_kernels import add_from_left, copy_scaled, divide, scale_rows

from engine.threads import Team
from kernels.loop import MEET, STEP_WIDTH
from kernels.run import ROWS, run_block
from models.steps import Steps

F32 = np.zeros(8, np.float32)


def good() -> dict[str, Any]:
    return {"out": F32.copy(), "x": F32.copy(), "count": 8, "factor": 2.0}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dtype": ({"x": np.zeros(8)}, "x: expected an array of float32, found float64"),
    "sign": ({"out": np.zeros(8, np.int32)}, "out: expected an array of float32, found int32"),
    "byte order": ({"x": np.zeros(8, ">f4")}, "x: expected an array of float32, found >f4"),
    "stride": (
        {"x": np.zeros(16, np.float32)[::2]},
        r"x: expected a C-contiguous, aligned array, found strides \(8,\)",
    ),
    "transposed": ({"x": np.zeros((3, 5), np.float32).T}, "x: expected a C-contiguous, aligned array"),
    "unaligned": ({"x": np.zeros(33, np.uint8)[1:].view(np.float32)}, "x: expected a C-contiguous, aligned array"),
    "list": ({"x": [1.0]}, "x: expected an array of float32, found list"),
    "number for an array": ({"x": 1.0}, "x: expected an array of float32, found float"),
    "none": ({"x": None}, "x: expected an array of float32, found NoneType"),
    "array for a number": ({"count": np.array([8])}, "count: expected a number of int64, found ndarray"),
    "float for an integer": ({"count": 8.0}, "count: expected a number of int64, found float 8.0"),
    "text for a number": ({"factor": "2.0"}, "factor: expected a number of float32, found str '2.0'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_wrong_operands_are_refused(what: str) -> None:
    change, message = REFUSED[what]
    steps = Steps()
    with pytest.raises(TypeError, match=f"^copy_scaled: {message}"):
        steps.add(copy_scaled, **(good() | change))
    assert len(steps.table()) == 0
    steps.add(copy_scaled, **(good() | {"count": np.int32(8), "factor": np.float32(2)}))


@pytest.mark.parametrize("change", ("missing", "unknown", "misspelt"))
def test_operands_go_by_their_names(change: str) -> None:
    values = good()
    if change != "unknown":
        del values["count"]
    if change != "missing":
        values["counts"] = 8
    with pytest.raises(
        TypeError, match=r"^copy_scaled: operands \[.*\] given, \['count', 'factor', 'out', 'x'\] expected"
    ):
        Steps().add(copy_scaled, **values)


def test_rows_of_the_table() -> None:
    a, b = np.zeros(8, np.int64), np.zeros(8, np.int64)
    steps = Steps()
    steps.add(copy_scaled, **good())
    with steps.together():
        steps.add(add_from_left, out=a, x=b, count=5)
        steps.add(copy_scaled, **(good() | {"factor": -0.5}))
        steps.add(add_from_left, x=b, out=a, count=7)
    with steps.together():
        pass
    steps.add(add_from_left, out=b, x=a, count=8)
    table = steps.table()
    assert table.shape == (5, STEP_WIDTH) and table.dtype == np.int64 and not table.flags.writeable
    assert table[:, MEET].tolist() == [1, 0, 0, 1, 1]
    assert table[1, 0] == table[3, 0] == table[4, 0] != table[0, 0] == table[2, 0]
    assert table[3, 1:4].tolist() == [a.ctypes.data, b.ctypes.data, 7]
    assert table[2, 4].astype(np.int32).view(np.float32) == -0.5
    assert [kernel.name for kernel in steps.kernels] == ["copy_scaled", "add_from_left"]


def test_together_is_over_after_an_error() -> None:
    steps = Steps()
    with pytest.raises(TypeError), steps.together():
        steps.add(copy_scaled, **good())
        steps.add(copy_scaled, **(good() | {"x": None}))
    steps.add(copy_scaled, **good())
    assert steps.table()[:, MEET].tolist() == [1, 1]
    with pytest.raises(AssertionError, match="nested"), steps.together(), steps.together():
        pass


def test_the_table_keeps_its_arrays_alive() -> None:
    steps = Steps()
    steps.add(copy_scaled, out=(out := np.zeros(8, np.float32)), x=np.arange(8, dtype=np.float32), count=8, factor=3)
    table = steps.table()
    churn = [np.full(8, np.nan, np.float32) for _ in range(1000)]
    team = Team(1, run_block(1))
    assert team.run(table) and len(churn) == 1000
    assert out.tolist() == [0, 3, 6, 9, 12, 15, 18, 21]


@pytest.mark.parametrize("rows", (1, 3))
@pytest.mark.parametrize("size", (1, 2, 3))
def test_replay_equals_the_machine_code(rows: int, size: int) -> None:
    rng = np.random.default_rng(rows)
    x = rng.normal(size=(4, 11)).astype(np.float32)
    arrays = {name: np.zeros((4, 11), np.float32) for name in ("scaled", "ratio", "copied")}
    run = run_block(4)
    run[ROWS] = rows
    steps = Steps()
    steps.add(scale_rows, out=arrays["scaled"], x=x, width=11, factor=0.1, count=ROWS)
    with steps.together():
        steps.add(divide, out=arrays["ratio"], x=arrays["scaled"], y=x, count=44)
        steps.add(copy_scaled, out=arrays["copied"], x=arrays["scaled"], count=44, factor=1 / 3)
    with np.errstate(invalid="ignore"):
        steps.replay(run)
    expected = {name: array.copy() for name, array in arrays.items()}
    assert expected["scaled"][:rows].all() and not expected["scaled"][rows:].any()
    for array in arrays.values():
        array[:rows] = np.nan
    team = Team(size, run)
    assert team.run(steps.table())
    team.close()
    for name, array in arrays.items():
        assert array.tobytes() == expected[name].tobytes(), name


def test_replay_checks_bounds() -> None:
    steps = Steps()
    steps.add(copy_scaled, **(good() | {"count": 9}))
    with pytest.raises(IndexError):
        steps.replay(run_block(1))
