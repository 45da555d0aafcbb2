"""Matrix products of every weight format: packing against the `gguf` package and published vectors, products bit for bit.

Shapes (N, K, T) are pairwise different: one row, one block, outputs that fill no group of 8, and rows that fill no
tiles of 8 and 4; K is in blocks of the file's format.
"""

from collections.abc import Callable
from functools import cache
from types import ModuleType

import gguf
import numpy as np
import pytest

from kernels import (
    matmul_q4_0,
    matmul_q4_1,
    matmul_q4_k,
    matmul_q5_0,
    matmul_q5_1,
    matmul_q5_k,
    matmul_q6_k,
    matmul_q8_0,
)
from kernels.compiler import call
from kernels.matmul_blocks import Format
from kernels.quantize import empty_quantized, quantize, quantize_exact
from kernels.run import FIRST, LOGIT_ROWS, ROWS, TOKEN, WIDTH, run_block

MODULES: dict[str, ModuleType] = {
    "Q4_0": matmul_q4_0, "Q4_1": matmul_q4_1, "Q5_0": matmul_q5_0, "Q5_1": matmul_q5_1, "Q8_0": matmul_q8_0,
    "Q4_K": matmul_q4_k, "Q5_K": matmul_q5_k, "Q6_K": matmul_q6_k,
}  # fmt: skip
FORMATS: dict[str, Format] = {name: getattr(module, name) for name, module in MODULES.items()}
HALVES = {
    "Q4_1": (0, 2),
    "Q5_1": (0, 2),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}  # where they lie in a block, else 0
SHAPES = [(20, 2, 1), (24, 3, 15), (9, 1, 4), (8, 5, 2)]  # N, K in blocks of the file, T
EPS = 2.0**-24  # the rounding error of one float32 operation, relative

# FORMATS: weights 0, 1, n / 2 and n - 1 of the block whose bytes are 97 i + 13 and whose scales are 0.25 and 0.125, their
# sum, and the sum of (e + 1) w[e]
VECTORS = {
    "Q4_0": (1.75, -2, 1, -0.25, -2.25, 19.75),
    "Q4_1": (0.375, 0.625, 2.375, 1.125, 66.25, 1154),
    "Q5_0": (0.75, 1, 1.25, 0, -5.25, -104.75),
    "Q5_1": (5.375, 1.625, 4.375, 7.125, 127.25, 2131.5),
    "Q8_0": (-12.25, 12, -8.25, -28.5, -12, -412),
    "Q4_K": (52.625, 56.875, 132.125, 31.625, 17350, 2408144),
    "Q5_K": (120.625, 56.875, 296.125, 229.625, 36930, 5109376),
    "Q6_K": (38.25, -178.5, 32.25, -434, 7161, 747986),
}


def file_bytes(format_: Format, rows: int, blocks: int) -> np.ndarray:
    """Random blocks with scales (and minima) of either sign: (rows, blocks, bytes) uint8."""
    generator = np.random.default_rng([rows, blocks, format_.file_bytes])
    source = generator.integers(0, 256, (rows, blocks, format_.file_bytes), dtype=np.uint8)
    for at in HALVES.get(format_.name, (0,)):
        scale = generator.uniform(-0.02, 0.02, (rows, blocks, 1)).astype(np.float16)
        source[..., at : at + 2] = scale.view(np.uint8)
    return source


def packed(format_: Format, source: np.ndarray, invoke: Callable = call) -> dict[str, np.ndarray]:
    """A file's blocks, packed; the arrays held rubbish before."""
    rows, columns = len(source), source.shape[1] * format_.file_block
    codes, scales = format_.packed(rows, columns)
    arrays = {"codes": np.full(codes, 0xA5, np.uint8), "scales": np.full(scales, 0xA5A5, np.uint16)}
    invoke(format_.pack, **arrays, source=source.reshape(-1), rows=rows, blocks=columns // 32)
    return arrays


def looked_up(format_: Format, arrays: dict[str, np.ndarray], rows: int, columns: int) -> np.ndarray:
    """All rows, dequantised by the embedding lookup, asked for in reverse."""
    run = run_of(rows, tokens=range(rows - 1, -1, -1))
    out = np.full((rows, columns + 3), np.float32(7))
    call(format_.embed, run, out=out.reshape(-1), **arrays, blocks=columns // 32, stride=columns + 3)
    assert (out[:, columns:] == 7).all()
    return out[::-1, :columns]


def run_of(rows: int, logit_rows: int = 0, tokens: range = range(0)) -> np.ndarray:
    run = run_block(max(rows, 1))
    run[ROWS], run[LOGIT_ROWS] = rows, logit_rows
    run[FIRST + TOKEN : FIRST + WIDTH * len(tokens) : WIDTH] = tokens
    return run


def twin(kernel, run=None, rank=0, size=1, **operands) -> None:
    """Call a kernel as plain Python, which checks bounds and overflow."""
    kernel(rank, size, np.zeros(8, np.int64) if run is None else run, **operands)


def quantised(x: np.ndarray) -> dict[str, np.ndarray]:
    rows, columns = x.shape
    names = empty_quantized(rows, columns // 32)
    call(quantize, run_of(rows), **names, x=x.reshape(-1), blocks=columns // 32, stride=columns, count=ROWS)
    return {"x": names["codes"], "x_scales": names["scales"], "x_sums": names["sums"]}


def product(
    format_: Format,
    arrays: dict[str, np.ndarray],
    x: np.ndarray,
    outputs: int,
    bias: np.ndarray | None = None,
    before: np.ndarray | None = None,
    threads: int = 1,
    invoke: Callable = call,
) -> np.ndarray:
    """x @ weights by the kernel: x (T, K) float32 -> (T, groups of 8 outputs, filled up)."""
    groups, (rows, columns) = -(-outputs // 8), x.shape
    stride = 8 * groups + 8
    out = np.zeros((rows, stride), np.float32)
    if before is not None:
        out[:, : 8 * groups] = before
    padded = np.zeros(8 * groups, np.float32)
    padded[:outputs] = 0 if bias is None else bias
    given = {
        "out": out.reshape(-1),
        **quantised(x),
        **arrays,
        "bias": padded,
        "groups": groups,
        "blocks": columns // 32,
    }
    for rank in range(threads):
        invoke(
            format_.matmul, run_of(rows), rank, threads, **given, stride=stride, add=int(before is not None), count=ROWS
        )
    assert (out[:, 8 * groups :] == 0).all(), "written beyond the outputs"
    return out[:, : 8 * groups]


@cache
def case(name: str, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
    """A file's blocks, activations, and the blocks decoded."""
    outputs, blocks, rows = shape
    format_ = FORMATS[name]
    source = file_bytes(format_, outputs, blocks)
    x = np.random.default_rng(rows).standard_normal((rows, blocks * format_.file_block)).astype(np.float32)
    return source, x, MODULES[name].decode(source, outputs, x.shape[1] // 32)


def exact(name: str, x: np.ndarray, decoded: tuple[np.ndarray, ...]) -> np.ndarray:
    return getattr(MODULES[name], f"matmul_{name.lower()}_exact")(*quantize_exact(x), *decoded)


def same_bits(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))


def results() -> dict[str, np.ndarray]:
    """What compiled code gives for one row and for several, for each format: compared between processors."""
    found = {}
    for name in MODULES:
        for shape in SHAPES[:2]:
            source, x, _ = case(name, shape)
            arrays = packed(FORMATS[name], source, twin)  # in plain Python: less to compile
            found[f"{name} {shape}"] = product(FORMATS[name], arrays, x, shape[0])
    return found


# ---- packing ----


@pytest.mark.parametrize("name", MODULES)
def test_packed_block_holds_the_published_values(name: str) -> None:
    format_ = FORMATS[name]
    block = ((97 * np.arange(format_.file_bytes) + 13) % 256).astype(np.uint8)
    for at, value in zip(HALVES.get(name, (0,)), (0.25, 0.125)):
        block[at : at + 2] = np.array([value], np.float16).view(np.uint8)
    n = format_.file_block
    w = looked_up(format_, packed(format_, block.reshape(1, 1, -1)), 1, n)[0].astype(np.float64)
    assert (w[0], w[1], w[n // 2], w[n - 1], w.sum(), (np.arange(1, n + 1) * w).sum()) == VECTORS[name]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", MODULES)
def test_packed_and_decoded_weights_are_those_of_the_gguf_package(name: str, shape: tuple[int, int, int]) -> None:
    source, x, decoded = case(name, shape)
    expected = gguf.dequantize(source.reshape(len(source), -1), gguf.GGMLQuantizationType[name])
    np.testing.assert_array_equal(looked_up(FORMATS[name], packed(FORMATS[name], source), *expected.shape), expected)
    identity = np.eye(x.shape[1])
    truth = getattr(MODULES[name], f"matmul_{name.lower()}_truth")(identity, *decoded)
    np.testing.assert_allclose(truth.T, expected, rtol=EPS, atol=EPS * np.abs(expected).max())


@pytest.mark.parametrize("name", MODULES)
def test_packing_in_plain_python_and_by_three_workers(name: str) -> None:
    source, _, _ = case(name, SHAPES[2])
    together = packed(FORMATS[name], source)

    def three(kernel, **operands) -> None:
        for rank in range(3):
            call(kernel, None, rank, 3, **operands)

    for invoke in (twin, three):
        for key, array in packed(FORMATS[name], source, invoke).items():
            np.testing.assert_array_equal(array, together[key])


# ---- products ----


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", MODULES)
def test_product_equals_exact(name: str, shape: tuple[int, int, int]) -> None:
    source, x, decoded = case(name, shape)
    got = product(FORMATS[name], packed(FORMATS[name], source), x, shape[0])
    same_bits(got[:, : shape[0]], exact(name, x, decoded))
    assert (got[:, shape[0] :] == 0).all(), "outputs beyond the last are 0"


@pytest.mark.parametrize("name", MODULES)
def test_plain_python_gives_the_same(name: str) -> None:
    """The kernel's own body, on arrays: nothing is read or written out of bounds, no sum overflows."""
    for shape in ((9, 1, 13), (9, 1, 3), (3, 1, 2), (3, 1, 1)):
        source, x, _ = case(name, shape)
        arrays = packed(FORMATS[name], source)
        same_bits(product(FORMATS[name], arrays, x, shape[0], invoke=twin), product(FORMATS[name], arrays, x, shape[0]))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", MODULES)
def test_largest_codes_stay_inside_the_bounds(name: str, sign: int) -> None:
    """All codes at their largest, all activations at 127 or -127: the twin finds no overflow. -128 it refuses."""
    format_ = FORMATS[name]
    source = np.full((1, 1, format_.file_bytes), 0x7F if name == "Q8_0" else 0xFF, np.uint8)
    if name == "Q6_K":
        source[..., 192:208] = 0x80
    for at in HALVES.get(name, (0,)):
        source[..., at : at + 2] = np.array([1], np.float16).view(np.uint8)
    arrays = packed(format_, source)
    x = np.full((1, format_.file_block), np.float32(sign))
    decoded = MODULES[name].decode(source, 1, format_.file_block // 32)
    same_bits(product(format_, arrays, x, 1, invoke=twin)[:, :1], exact(name, x, decoded))

    def spoilt(kernel, run, rank, size, **operands) -> None:
        operands["x"][3] = -128
        twin(kernel, run, rank, size, **operands)

    with pytest.raises(AssertionError):
        product(format_, arrays, x, 1, invoke=spoilt)


@pytest.mark.parametrize("name", MODULES)
def test_error_against_truth_is_that_of_rounding(name: str) -> None:
    """What quantising an activation may change is half a step of its scale; the rest is float32's rounding of sums."""
    for shape in SHAPES:
        _, x, decoded = case(name, shape)
        truth = getattr(MODULES[name], f"matmul_{name.lower()}_truth")
        codes, x_scale = quantize_exact(x)
        step = np.repeat(x_scale.astype(np.float64), 32, axis=1)
        absolute = [np.abs(part) for part in decoded]
        terms = 2 * x.shape[1] // 32
        tolerance = truth(step * (0.5 + 127 * EPS), *absolute)
        tolerance += (terms + 2) * 1.01 * EPS * truth(step * np.abs(codes), *absolute)
        assert (np.abs(exact(name, x, decoded) - truth(x, *decoded)) <= tolerance).all()


@pytest.mark.parametrize("name", MODULES)
def test_rows_alone_together_and_split_among_workers(name: str) -> None:
    shape = (44, 2, 13)
    source, x, _ = case(name, shape)
    arrays = packed(FORMATS[name], source)
    together = product(FORMATS[name], arrays, x, shape[0])
    for t in range(len(x)):
        same_bits(product(FORMATS[name], arrays, x[t : t + 1], shape[0]), together[t : t + 1])
    for rows in (2, 3, 4, 5, 8, 12):
        same_bits(product(FORMATS[name], arrays, x[:rows], shape[0]), together[:rows])
    for threads in (2, 3, 7):
        for rows in (1, 13):
            same_bits(product(FORMATS[name], arrays, x[:rows], shape[0], threads=threads), together[:rows])


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("name", ["Q4_0", "Q6_K"])
def test_bias_and_adding_to_what_is_there(name: str, rows: int) -> None:
    source, x, _ = case(name, (20, 2, 7))
    arrays, x = packed(FORMATS[name], source), x[:rows]
    plain = product(FORMATS[name], arrays, x, 20)
    bias = np.linspace(-1, 1, 20).astype(np.float32)
    with_bias = product(FORMATS[name], arrays, x, 20, bias)
    same_bits(with_bias[:, :20], plain[:, :20] + bias)
    before = np.random.default_rng(1).standard_normal(plain.shape).astype(np.float32)
    same_bits(product(FORMATS[name], arrays, x, 20, bias, before), before + with_bias)


def test_count_chooses_which_rows_are_meant() -> None:
    source, x, _ = case("Q4_0", (20, 2, 7))
    arrays = packed(FORMATS["Q4_0"], source)

    def logits(kernel, run, rank, size, **operands) -> None:
        run[ROWS], run[LOGIT_ROWS] = 99, run[ROWS]
        call(kernel, run, rank, size, **operands | {"count": LOGIT_ROWS})

    same_bits(product(FORMATS["Q4_0"], arrays, x, 20, invoke=logits), product(FORMATS["Q4_0"], arrays, x, 20))


def test_no_rows_is_no_work() -> None:
    source, x, _ = case("Q4_0", (20, 2, 7))
    arrays = packed(FORMATS["Q4_0"], source)
    for invoke in (call, twin):

        def nothing(kernel, run, rank, size, invoke=invoke, **operands) -> None:
            run[LOGIT_ROWS] = 0
            invoke(kernel, run, rank, size, **operands | {"count": LOGIT_ROWS})

        assert (product(FORMATS["Q4_0"], arrays, x, 20, invoke=nothing) == 0).all()
