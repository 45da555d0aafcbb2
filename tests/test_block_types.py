"""Float weights to GGUF's block types: bytes read back by the `gguf` package, errors against plain rounding."""

import gguf
import numpy as np
import pytest

from kernels.block_fit import fit_ternary_scale
from kernels.block_types import QUANTIZERS


def read(name: str, data: np.ndarray) -> np.ndarray:
    return gguf.quants.dequantize(data, gguf.GGMLQuantizationType[name])


def weights(seed: int, shape: tuple[int, int]) -> np.ndarray:
    return (0.05 * np.random.default_rng(seed).standard_t(5, shape)).astype(np.float32)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_bytes_mean_what_the_grid_says(name: str) -> None:
    quantizer = QUANTIZERS[name]
    x = weights(1, (3, 5 * quantizer.block_size))
    blocks = x.reshape(-1, quantizer.block_size)
    grid = quantizer.fit(blocks, np.ones((1, quantizer.block_size), np.float32))
    codes = np.random.default_rng(2).integers(quantizer.low, quantizer.high + 1, blocks.shape).astype(np.int32)
    np.testing.assert_array_equal(read(name, quantizer.pack(grid, codes)), grid.values(codes))
    nearest = grid.nearest(blocks)
    assert nearest.min() >= quantizer.low and nearest.max() <= quantizer.high
    np.testing.assert_array_equal(read(name, quantizer.quantize(x)), grid.values(nearest).reshape(x.shape))


@pytest.mark.parametrize("name", [name for name in QUANTIZERS if not name.endswith("K")])
def test_error_is_not_above_plain_rounding(name: str) -> None:
    x = weights(3, (64, 1024))
    plain = read(name, gguf.quants.quantize(x, gguf.GGMLQuantizationType[name]))
    error = np.mean((read(name, QUANTIZERS[name].quantize(x)) - x) ** 2)
    limit = {"Q4_0": 0.95, "Q4_1": 0.85, "Q5_0": 0.95, "Q5_1": 0.85, "Q8_0": 1.0}.get(name, 0.5)
    assert error <= limit * np.mean((plain - x) ** 2)


@pytest.mark.parametrize("name, bits", [("Q4_K", 4), ("Q6_K", 6)])
def test_k_types_are_better_than_one_scale_for_all(name: str, bits: int) -> None:
    x = weights(4, (16, 512)) * np.repeat(np.random.default_rng(5).uniform(0.2, 2, (16, 32)), 16, 1).astype(np.float32)
    step = np.abs(x.reshape(-1, 256)).max(1, keepdims=True) / (2 ** (bits - 1) - 1)
    coarse = np.rint(x.reshape(-1, 256) / step) * step - x.reshape(-1, 256)
    assert np.mean((read(name, QUANTIZERS[name].quantize(x)) - x) ** 2) < 0.7 * np.mean(coarse**2)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_blocks_that_are_special(name: str) -> None:
    n = QUANTIZERS[name].block_size
    x = np.zeros((6, n), np.float32)
    x[1], x[2], x[3, 5], x[4] = 0.25, -0.25, 3.0, 1e-38
    x[5] = np.linspace(-1e4, 1e4, n)
    back = read(name, QUANTIZERS[name].quantize(x))
    assert np.isfinite(back).all() and (back[0] == 0).all()
    np.testing.assert_allclose(back[1:3], x[1:3], rtol=0.02)
    assert abs(back[3, 5] - 3) < 0.1 and np.abs(back[4]).max() < 1e-7
    assert np.abs(back[5] - x[5]).max() < {"T": 7000}.get(name[0], 1400)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_weights_of_the_error_count(name: str) -> None:
    if name == "Q8_0":
        return  # takes the range as it is
    x, weight = weights(6, (40, 512)), np.ones(512, np.float32)
    weight[::7] = 50
    plain, weighted = (read(name, QUANTIZERS[name].quantize(x, w)) - x for w in (None, weight))
    assert (weight * weighted**2).mean() < 0.97 * (weight * plain**2).mean()


def test_ternary_scale_is_the_best_there_is() -> None:
    x, weight = weights(7, (20, 9)), np.random.default_rng(8).uniform(0.1, 3, (20, 9)).astype(np.float32)
    scale = fit_ternary_scale(x, weight).astype(np.float64)
    for row in range(20):
        tried = np.linspace(0.2, 2, 2001)[:, None] * scale[row]

        def error(s: np.ndarray, row: int = row) -> np.ndarray:
            return (weight[row] * (x[row] - s * np.clip(np.rint(x[row] / s), -1, 1)) ** 2).sum(1)

        assert error(scale[row : row + 1])[0] <= error(tried).min() * 1.001
