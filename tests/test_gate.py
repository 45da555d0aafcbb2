"""The feed-forward gate: twin, machine code and NumPy reference to the bit, and the reference against float64."""

import numpy as np
import pytest
from kernel_runs import assert_quantized, assert_same_bits, rows_block, run_both

from kernels.gate import silu_gate, silu_gate_exact, silu_gate_quantize, silu_gate_quantize_exact, silu_gate_truth
from kernels.quantize import empty_quantized
from kernels.run import ROWS

SHAPES = [(1, 32, 32), (1, 160, 192), (3, 96, 128), (6, 64, 96)]


def data(rows: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(rows + stride)
    return tuple(rng.normal(0, 4, (rows, stride)).astype(np.float32) for _ in range(2))


@pytest.mark.parametrize(("rows", "width", "stride"), SHAPES)
def test_silu_gate(rows: int, width: int, stride: int) -> None:
    gate, up = data(rows, stride)
    gate[:, -1] = up[:, 0] = gate[:, 1] = 0
    values = {"gate": gate.ravel(), "up": up.ravel(), "blocks": width // 32, "stride": stride, "count": ROWS}
    (out,) = run_both(silu_gate, rows_block(rows), ("out",), out=np.zeros(rows * stride, np.float32), **values)
    out = out.reshape(rows, stride)
    assert_same_bits(out[:, :width], silu_gate_exact(gate, up)[:, :width])
    assert not out[:, width:].any()


@pytest.mark.parametrize(("rows", "width", "stride"), SHAPES)
def test_silu_gate_quantize(rows: int, width: int, stride: int) -> None:
    gate, up = data(rows, stride)
    blocks = width // 32
    codes, scales, sums, _ = run_both(
        silu_gate_quantize,
        rows_block(rows),
        ("codes", "scales", "sums", "gate"),
        **empty_quantized(rows, blocks),
        gate=gate.ravel(),
        up=up.ravel(),
        blocks=blocks,
        stride=stride,
        count=ROWS,
    )
    assert_quantized(codes, scales, sums, silu_gate_quantize_exact(gate[:, :width], up[:, :width]))


def test_far_values() -> None:
    gate = np.array([1e4, -1e4, 100, -100, -88, 1e-30, 0.0], np.float32)
    found = silu_gate_exact(gate, np.ones_like(gate))
    assert np.abs(found - silu_gate_truth(gate, np.ones(7))).max() <= 1e-3 * 2.0**-24 and np.isfinite(found).all()


def test_near_the_truth() -> None:
    gate, up = data(40, 1000)
    truth = silu_gate_truth(gate, up)
    # exp to one unit (two halves); 1 + exp, the quotient and the product to half a unit each
    assert (np.abs(silu_gate_exact(gate, up) - truth) <= 5 * 2.0**-24 * np.abs(truth)).all()
