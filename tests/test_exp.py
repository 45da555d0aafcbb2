"""exp: twin, machine code and NumPy reference to the bit; and how near they are to the truth."""

import numpy as np
from kernel_runs import assert_same_bits, run_both

from kernels.exp import exp, exp_exact, exp_truth
from kernels.registry import kernel
from kernels.simd import load_f32x8, store_f32x8
from kernels.types import F32, I64, Int


@kernel
def exp_array(rank: Int, size: Int, run: I64, out: F32, x: F32, blocks: Int) -> None:
    """out = exp(x) over `blocks` blocks of 8."""
    for b in range(blocks):
        store_f32x8(out, 8 * b, exp(load_f32x8(x, 8 * b)))


def test_forms_agree() -> None:
    ends = [88.72283, 88.72284, 89.5, 3e38, -86.98, -87.0, -87.3, -1e30, 1e-40, -1e-8, 1.0]
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, *ends], np.float32)
    x = np.concatenate([x, np.random.default_rng(1).uniform(-100, 100, 200).astype(np.float32)])
    (found,) = run_both(exp_array, np.zeros(8, np.int64), ("out",), (1,), out=np.zeros_like(x), x=x, blocks=len(x) // 8)
    assert_same_bits(found, exp_exact(x))
    assert found[0] == found[1] == 1.0 and found[2] == np.inf and found[3] == 0.0 and np.isnan(found[4])
    assert np.isfinite(found[5]) and np.isinf(found[6:9]).all() and found[9] > 0 and not found[11:13].any()


def test_error_is_below_one_unit_in_the_last_place() -> None:
    rng = np.random.default_rng(2)
    x = np.concatenate([rng.uniform(-86.5, 88.7, 200_000), rng.normal(0, 1e-3, 10_000)]).astype(np.float32)
    truth = exp_truth(x)
    unit = np.exp2(np.floor(np.log2(truth)) - 23)
    assert (np.abs(exp_exact(x) - truth) / unit).max() < 1.0


def test_flushed_results_are_as_small_as_stated() -> None:
    x = np.linspace(-88, -86, 10_001, dtype=np.float32)
    flushed = exp_exact(x) == 0
    assert exp_truth(x[flushed]).max() < 2.0**-125.4 and not flushed[x > -86.9].any()
