"""GPTQ: rounding one column after the other, each error made good by the columns still to come.

What counts is not how near the rounded weights Q are to W, but how near their products with the layer's inputs X are:

    minimise  |W X - Q X|^2  =  trace (W - Q) H (W - Q)^T          H = X X^T, summed over the calibration text

Column k is rounded to its grid; its error, divided by U[k, k], is then taken from the columns behind it along row k of U,
where U^T U = (H + damp)^-1, U upper triangular. The scales of a block are fitted when its first column is reached, to the
weights as they have become by then, each column's error counting 1 / U[k, k]^2: what its error costs after it has been made
good. Columns come in the file's order, or in that of falling H[k, k] with the scales fitted beforehand (`order`).

The inputs X~ that the rounded layer will get are not the float model's X: the layers before it are rounded too. So W is
first moved towards the matrix that gives W X from X~ in the least-squares sense, halfway, since a calibration text is short:

    W + DRIFT * W (X - X~) X~^T (X~ X~^T + damp)^-1

Sources: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2022,
section 3, algorithm 1; the drift: Li et al., "GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric Calibration",
2025.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from kernels.block_types import Grid, Quantizer

WIDE = 2048
PANEL = 256  # columns whose errors are passed on to the rest of the matrix together
DAMP = 0.01  # of the mean of H's diagonal, added to it
DRIFT = 0.5
DRIFT_DAMP = 0.03


def moments_and_drift(inputs: Iterable[np.ndarray], originals: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """H = X~ X~^T and (X - X~) X~^T, each (K, K), of inputs (T, K) float32 and what they were in the float model.

    In float64, but for more than WIDE columns in float32, to keep memory at some layers' worth.
    """
    moments = drift = np.zeros((0, 0))
    for x, original in zip(inputs, originals):
        if not moments.size:
            dtype = np.float32 if x.shape[1] > WIDE else np.float64
            moments, drift = np.zeros((x.shape[1],) * 2, dtype), np.zeros((x.shape[1],) * 2, dtype)
        moments += x.T @ x
        drift += (original - x).T @ x
    return moments, drift


def against_drift(weight: np.ndarray, moments: np.ndarray, drift: np.ndarray) -> np.ndarray:
    """The matrix (N, K) float32 that makes good, halfway, what the inputs have drifted."""
    damped = moments.copy()
    np.einsum("ii->i", damped)[:] += max(np.trace(moments) / len(moments) * DRIFT_DAMP, 1e-30)
    # W D (H + damp)^-1, with D the drift: as wide as W, where D (H + damp)^-1 would be as wide as H
    change = np.linalg.solve(damped, (weight @ drift.astype(np.float32, copy=False)).T).T
    return weight + DRIFT * change.astype(np.float32)


def feedback(moments: np.ndarray, damp: float = DAMP) -> np.ndarray:
    """U of above, (K, K) of H's dtype, upper triangular; inputs that are always 0 get a row of their own."""
    mean = max(float(np.mean(np.diag(moments))), 1e-30)
    for attempt in range(8):
        h = moments.copy()
        diagonal = np.einsum("ii->i", h)
        diagonal[diagonal <= 0] = mean
        diagonal += mean * damp * 10**attempt
        try:  # one name for all: of the widest matrices each of these is larger than a layer
            h = np.linalg.cholesky(h)
            h = np.linalg.inv(h)
            h = h.T @ h
            return np.linalg.cholesky(h).T
        except np.linalg.LinAlgError:
            continue
    raise ValueError("the inputs of a matrix are too large or not finite; the calibration can't use them")


@dataclass(frozen=True, slots=True)
class Plan:
    """What all matrices that read the same inputs share.

    Attributes:
        order: Whether columns come in the order of falling H[k, k].
        sequence: (K,) the columns in the order in which they are rounded.
        u: (K, K) float32, U for this order.
        importance: (K,) float32, 1 / U[k, k]^2 of each column of the matrix, 1 on average.
    """

    order: bool
    sequence: np.ndarray
    u: np.ndarray
    importance: np.ndarray


def plan(moments: np.ndarray, order: bool = True, damp: float = DAMP) -> Plan:
    """The plan for inputs with the given H, (K, K)."""
    columns = len(moments)
    sequence = np.argsort(-np.diag(moments), kind="stable") if order else np.arange(columns)
    u = feedback(moments[np.ix_(sequence, sequence)] if order else moments, damp)
    importance = np.empty(columns)
    importance[sequence] = 1 / np.diag(u).astype(np.float64) ** 2
    importance = (importance / importance.mean()).astype(np.float32)
    return Plan(order, sequence, u.astype(np.float32, copy=False), importance)


def gptq(weight: np.ndarray, given: Plan, quantizer: Quantizer) -> tuple[np.ndarray, np.ndarray]:
    """Quantises a matrix with feedback.

    Args:
        weight: (N, K) float32, K a multiple of the quantizer's block.
        given: The plan for its inputs.

    Returns:
        The file's bytes, (N, ...) uint8, and the weights that they stand for, (N, K) float32.
    """
    size, (rows, columns) = quantizer.block_size, weight.shape
    sequence, u, importance = given.sequence, given.u, given.importance
    w = np.ascontiguousarray(weight.T[sequence])  # (K, N): a column of the matrix lies together
    grids: list[Grid | None] = [None] * (columns // size)

    def fit(block: int, x: np.ndarray) -> Grid:
        return quantizer.fit(np.ascontiguousarray(x), importance[None, block * size : (block + 1) * size])

    if given.order:
        grids = [fit(b, weight[:, b * size : (b + 1) * size]) for b in range(columns // size)]
    codes = np.zeros((columns, rows), np.int32)
    for start in range(0, columns, PANEL):
        end = min(start + PANEL, columns)
        errors = np.zeros((end - start, rows), np.float32)
        for i in range(start, end):
            k = int(sequence[i])
            block = k // size
            grid = grids[block]
            if grid is None:
                grid = grids[block] = fit(block, w[i : i + size].T)
            scale, offset = grid.column(k % size)
            code = np.clip(np.rint((w[i] - offset) / np.where(scale == 0, np.inf, scale)), grid.low, grid.high)
            codes[k] = code
            error = (w[i] - (scale * code + offset)) / u[i, i]
            w[i + 1 : end] -= u[i, i + 1 : end, None] * error
            errors[i - start] = error
        w[end:] -= u[start:end, end:].T @ errors
    parts = [(grid, codes[b * size : (b + 1) * size].T) for b, grid in enumerate(grids) if grid is not None]
    packed = np.concatenate([quantizer.pack(grid, c) for grid, c in parts], axis=1)
    return packed, np.concatenate([grid.values(c) for grid, c in parts], axis=1)
