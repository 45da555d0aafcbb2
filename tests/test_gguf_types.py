"""Block types against the `gguf` package and against the self-check vectors of our format notes."""

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from engine import gguf_types
from engine.gguf_types import KNOWN, REMOVED, SUPPORTED, block_type, tensor_nbytes

# Bytes 97 i + 13 (mod 256), then d = 0.25 and m or dmin = 0.125 at their places; the values follow by hand from the
# formulas: w[0], w[1], w[n/2], w[n-1], sum of w[e], sum of (e+1) w[e]
VECTORS = {
    "Q4_0": ((0, None), (1.75, -2, 1, -0.25, -2.25, 19.75)),
    "Q4_1": ((0, 2), (0.375, 0.625, 2.375, 1.125, 66.25, 1154)),
    "Q5_0": ((0, None), (0.75, 1, 1.25, 0, -5.25, -104.75)),
    "Q5_1": ((0, 2), (5.375, 1.625, 4.375, 7.125, 127.25, 2131.5)),
    "Q8_0": ((0, None), (-12.25, 12, -8.25, -28.5, -12, -412)),
    "Q4_K": ((0, 2), (52.625, 56.875, 132.125, 31.625, 17350, 2408144)),
    "Q5_K": ((0, 2), (120.625, 56.875, 296.125, 229.625, 36930, 5109376)),
    "Q6_K": ((208, None), (38.25, -178.5, 32.25, -434, 7161, 747986)),
    "TQ1_0": ((52, None), (-0.25, 0, -0.25, -0.25, 0.5, 191)),
    "TQ2_0": ((64, None), (0, 0.25, 0, 0.5, 32.25, 4245.5)),
}


@pytest.mark.parametrize("name", SUPPORTED)
def test_dequantize_equals_the_gguf_package_to_the_bit(name: str) -> None:
    kind = SUPPORTED[name]
    blocks = np.random.default_rng(7).integers(0, 256, (301, kind.block_bytes), np.uint8)
    with np.errstate(all="ignore"):  # random halves include infinity and NaN
        expected = gguf.quants.dequantize(blocks, GGMLQuantizationType[name]).reshape(-1)
        values = kind.dequantize(blocks.reshape(-1))
    assert values.dtype == np.float32 and values.shape == (301 * kind.block_size,)
    assert np.array_equal(values.view(np.uint32), expected.astype(np.float32).view(np.uint32))


@pytest.mark.parametrize("name", VECTORS)
def test_self_check_vectors(name: str) -> None:
    (d, m), expected = VECTORS[name]
    block = ((97 * np.arange(SUPPORTED[name].block_bytes) + 13) % 256).astype(np.uint8)
    block[d : d + 2] = 0x00, 0x34
    if m is not None:
        block[m : m + 2] = 0x00, 0x30
    w = SUPPORTED[name].dequantize(block).astype(np.float64)
    n = len(w)
    assert (w[0], w[1], w[n // 2], w[-1], w.sum(), (w * np.arange(1, n + 1)).sum()) == expected


def test_every_vector_covers_a_quantised_type() -> None:
    assert set(VECTORS) == {name for name, kind in SUPPORTED.items() if kind.quantised}


def test_sizes_and_names_equal_those_of_the_gguf_package() -> None:
    theirs = {kind.value: (kind.name, *GGML_QUANT_SIZES[kind]) for kind in GGMLQuantizationType}
    theirs[9] = ("Q8_1", 32, 36)  # the package counts its two halves as floats; in ggml.c they are halves
    assert {id: theirs[id] for id in KNOWN if id in theirs} == {id: KNOWN[id] for id in KNOWN if id in theirs}
    assert set(theirs) <= set(KNOWN)
    assert not set(KNOWN) & set(REMOVED)


def test_half_of_every_kind_is_read_exactly() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16)
    with np.errstate(all="ignore"):
        expected = halves.view(np.float16).astype(np.float32)
        assert np.array_equal(SUPPORTED["F16"].dequantize(halves.view(np.uint8)), expected, equal_nan=True)


def test_data_need_not_be_writable_or_aligned() -> None:
    raw = bytes(1) + np.arange(7, dtype="<f4").tobytes()
    data = np.frombuffer(raw, np.uint8)[1:]
    assert np.array_equal(SUPPORTED["F32"].dequantize(data), np.arange(7, dtype=np.float32))


@pytest.mark.parametrize(
    "type, shape, nbytes",
    [("F32", (3,), 12), ("Q4_0", (5, 64), 180), ("Q6_K", (2, 3, 256), 1260), ("BF16", (1, 1), 2),
     ("Q8_0", (2**60, 32), 34 * 2**60)],
)  # fmt: skip
def test_tensor_nbytes(type: str, shape: tuple[int, ...], nbytes: int) -> None:
    assert tensor_nbytes(type, shape) == nbytes


def test_tensor_nbytes_refuses_rows_that_are_not_whole_blocks() -> None:
    with pytest.raises(ValueError, match="rows of 172 elements; Q4_0 needs a multiple of 32"):
        tensor_nbytes("Q4_0", (64, 172))


def test_unsupported_type_names_those_supported() -> None:
    with pytest.raises(ValueError, match=r"type IQ2_S is not supported; supported: F32, F16, .*Q6_K"):
        block_type("IQ2_S")


def test_dequantize_refuses_what_is_not_whole_blocks() -> None:
    for data in (np.zeros(17, np.uint8), np.zeros(18, np.int8), np.zeros((2, 18), np.uint8)):
        with pytest.raises(ValueError, match="Q4_0"):
            gguf_types.SUPPORTED["Q4_0"].dequantize(data)
