"""Products with ternary weights, TQ1_0 and TQ2_0: packing against the `gguf` package, products bit for bit."""

import gguf
import numpy as np
import pytest
from test_matmul import looked_up, packed, product, same_bits, twin

from kernels import matmul_tq1_0, matmul_tq2_0
from kernels.quantize import quantize_exact
from kernels.terms import scaled_exact, scaled_truth

MODULES = {"TQ1_0": matmul_tq1_0, "TQ2_0": matmul_tq2_0}
# as in test_matmul.py: weights 0, 1, n / 2 and n - 1, their sum, and the sum of (e + 1) w[e]
VECTORS = {"TQ1_0": (-0.25, 0, -0.25, -0.25, 0.5, 191), "TQ2_0": (0, 0.25, 0, 0.5, 32.25, 4245.5)}


def blocks_of(name: str, rows: int, blocks: int) -> np.ndarray:
    """Ternary blocks as a writer makes them, with scales of either sign: (rows, blocks, bytes)."""
    random = np.random.default_rng([rows, blocks])
    codes = random.integers(-1, 2, (rows * blocks, 256)).astype(np.float32)
    source = gguf.quants.quantize(codes, gguf.GGMLQuantizationType[name]).reshape(rows, blocks, -1)
    source[..., -2:] = random.uniform(-0.02, 0.02, (rows, blocks, 1)).astype(np.float16).view(np.uint8)
    return source


@pytest.mark.parametrize("name", MODULES)
def test_packed_block_holds_the_published_values(name: str) -> None:
    format_ = getattr(MODULES[name], name)
    block = ((97 * np.arange(format_.file_bytes) + 13) % 256).astype(np.uint8)
    block[-2:] = np.array([0.25], np.float16).view(np.uint8)
    w = looked_up(format_, packed(format_, block.reshape(1, 1, -1)), 1, 256)[0].astype(np.float64)
    assert (w[0], w[1], w[128], w[255], w.sum(), (np.arange(1, 257) * w).sum()) == VECTORS[name]


@pytest.mark.parametrize("shape", [(20, 2, 1), (9, 1, 6)])
@pytest.mark.parametrize("name", MODULES)
def test_packing_and_product(name: str, shape: tuple[int, int, int]) -> None:
    outputs, blocks, rows = shape
    module, format_ = MODULES[name], getattr(MODULES[name], name)
    source = blocks_of(name, outputs, blocks)
    expected = gguf.dequantize(source.reshape(outputs, -1), gguf.GGMLQuantizationType[name])
    arrays = packed(format_, source)
    np.testing.assert_array_equal(looked_up(format_, arrays, outputs, 256 * blocks), expected)
    for key, array in packed(format_, source, twin).items():
        np.testing.assert_array_equal(array, arrays[key])
    decoded = module.decode(source, outputs, 8 * blocks)
    np.testing.assert_allclose(scaled_truth(np.eye(256 * blocks), *decoded).T, expected, rtol=0, atol=0)
    x = np.random.default_rng(rows).standard_normal((rows, 256 * blocks)).astype(np.float32)
    got = product(format_, arrays, x, outputs)
    same_bits(got[:, :outputs], scaled_exact(*quantize_exact(x), *decoded))
