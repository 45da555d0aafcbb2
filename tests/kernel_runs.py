"""Runs a kernel in its two forms, plain Python and machine code, with one worker and with several, and compares the bits."""

from typing import Any

import numpy as np

from kernels.compiler import call
from kernels.quantize import SCALES, SUMS, untile
from kernels.registry import Kernel
from kernels.run import FIRST, LOGIT_ROW, LOGIT_ROWS, POSITION, ROWS, SLOT, TOKEN, WIDTH, run_block

SIZES = (1, 2, 3, 5)


def rows_block(
    count: int,
    positions: list[int] | None = None,
    slots: list[int] | None = None,
    tokens: list[int] | None = None,
    logit_rows: list[int] | None = None,
) -> np.ndarray:
    """A run block of `count` rows."""
    run = run_block(max(count, 1))
    run[ROWS] = count
    rows = run[FIRST:].reshape(-1, WIDTH)
    for column, values in ((POSITION, positions), (SLOT, slots), (TOKEN, tokens), (LOGIT_ROW, logit_rows)):
        if values is not None:
            rows[: len(values), column] = values
    run[LOGIT_ROWS] = len(logit_rows or [])
    return run


def run_both(
    kernel: Kernel, run: np.ndarray, changes: tuple[str, ...], sizes: tuple[int, ...] = SIZES, **values: Any
) -> tuple[np.ndarray, ...]:
    """What the kernel leaves in the operands named by `changes`; fails unless twin and machine code leave the same bits.

    The workers run one after another, the last one first, as if each had been late.
    """

    def outcome(compiled: bool, size: int) -> list[np.ndarray]:
        own = values | {name: values[name].copy() for name in changes}
        for rank in reversed(range(size)):
            if compiled:
                call(kernel, run, rank, size, **own)
            else:
                with np.errstate(all="ignore"):
                    kernel(rank, size, run, **own)
        return [own[name] for name in changes]

    twin = outcome(False, 1)
    for size in sizes:
        for name, found, expected in zip(changes, outcome(True, size), twin, strict=True):
            assert_same_bits(found, expected, f"{kernel.name}: {name}, {size} workers")
    return tuple(twin)


def assert_same_bits(found: np.ndarray, expected: np.ndarray, what: str = "") -> None:
    """Equal shapes and bits; any NaN equals any NaN."""
    assert found.shape == expected.shape and found.dtype == expected.dtype, what
    if found.dtype == np.float32:
        same = (found.view(np.int32) == expected.view(np.int32)) | (np.isnan(found) & np.isnan(expected))
    else:
        same = found == expected
    where = np.flatnonzero(~same)
    assert same.all(), f"{what}: {len(where)} differ, first {where[:5]}: {found[~same][:5]}, {expected[~same][:5]}"


def assert_quantized(
    codes: np.ndarray, scales: np.ndarray, sums: np.ndarray, expected: tuple[np.ndarray, np.ndarray]
) -> None:
    """Fails unless the operands hold these codes (T, K) and scales (T, B), and the sums that belong to them."""
    rows, blocks = expected[1].shape
    block, scale = expected[0].reshape(rows, blocks, 32), expected[1]
    assert (untile(codes.reshape(-1, 32), rows, blocks) == block).all()
    first, last = (half.sum(-1, dtype=np.int32) for half in (block[..., :16], block[..., 16:]))
    both = first + last
    expected_scales = np.stack([scale, scale * both.astype(np.float32)], -1)
    assert_same_bits(untile(scales.reshape(-1, SCALES), rows, blocks), expected_scales)
    expected_sums = np.stack([both, 32 * first, 32 * last], -1)
    assert (untile(sums.reshape(-1, SUMS), rows, blocks) == expected_sums).all()
