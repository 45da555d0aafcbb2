"""GPTQ: rounding one column after the other, each error made good by the columns still to come.

What counts is not how near the rounded weights Q are to W, but how near their products with the layer's inputs X are:

    minimise  |W X - Q X|^2  =  trace (W - Q) H (W - Q)^T          H = X X^T, summed over the calibration text

Columns are ordered by rising H[k, k] and rounded from the last to the first. The error of column k, divided by M[k, k], is
taken from the columns before it along row k of M, which is lower triangular:

    M = L^-1,   L L^T = H + damp            so that M^T M = (H + damp)^-1

(the paper goes from the first to the last and takes U, upper triangular, with U^T U = the same: M from its other end).
Scales are fitted beforehand, each column's error counting 1 / M[k, k]^2: what it costs after it has been made good.

The inputs X~ that the rounded layer will get are not the float model's X: the layers before it are rounded too. So W is
first moved towards the matrix that gives W X from X~ in the least-squares sense, halfway, since a calibration text is short:

    W + DRIFT * W (X - X~) X~^T (H + damp)^-1                       H = X~ X~^T

Memory: of H only the lower half is kept, as `Lower`; it becomes L and then M in its own place. Beside it W and
W (X - X~) X~^T, (N, K) float32 each; all else goes by panels, or by some rows at a time, of a few MB.

    Lower    panel p, float32:   rows 256 p .. 256 p + 255,   columns 0 .. the last of these rows

Sources: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2022,
section 3, algorithm 1; the drift: Li et al., "GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric Calibration",
2025, section 3.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from kernels.block_types import Quantizer

PANEL = 256  # columns, or rows, that are computed together
AT_ONCE = 1 << 20  # elements of a matrix that are rounded together
DAMP = 0.02  # of the mean of H's diagonal, added to it
DRIFT = 0.5


Inputs = Callable[[], Iterable[np.ndarray]]  # gives, whenever it is called, one array (T, K) float32 for each text
Lower = list[np.ndarray]


def panels(count: int) -> Iterator[slice]:
    """0 .. count cut into slices of PANEL."""
    return (slice(start, min(start + PANEL, count)) for start in range(0, count, PANEL))


def moments(inputs: Iterable[np.ndarray]) -> np.ndarray:
    """All of H = X X^T, (K, K) float32, of inputs (T, K) float32, one array for each text."""
    total = np.zeros((0, 0), np.float32)
    for x in inputs:
        total = total if total.size else np.zeros((x.shape[1],) * 2, np.float32)
        for part in panels(len(total)):
            total[part] += x[:, part].T @ x
    return total


def gathered(
    inputs: Inputs, originals: Inputs, weights: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, Lower, dict[str, np.ndarray]]:
    """What a group of matrices has to know of its inputs.

    Args:
        inputs, originals: X~ and X.
        weights: Name -> W (N, K) float32.

    Returns:
        The columns by rising H[k, k], (K,); H for this order; and for each name W (X - X~) X~^T, (N, K) float32.
    """
    squares = sum(np.sum(np.square(x), axis=0, dtype=np.float64) for x in inputs())
    sequence = np.argsort(squares, kind="stable")
    columns = len(sequence)
    h = [np.zeros((part.stop - part.start, part.stop), np.float32) for part in panels(columns)]
    together = columns < sum(map(len, weights.values()))  # (X - X~) X~^T is smaller than its products with all W
    drift = np.zeros((columns if together else 0, columns), np.float32)
    moved = {} if together else {name: np.zeros_like(w) for name, w in weights.items()}
    for x, original in zip(inputs(), originals()):
        difference = original - x
        if together:
            drift += difference.T @ x
        for name, total in moved.items():
            error = difference @ weights[name].T
            for part in panels(len(total)):
                total[part] += error[:, part].T @ x
        x = x[:, sequence]
        for rows, part in zip(h, panels(columns)):
            rows += x[:, part].T @ x[:, : part.stop]
    return sequence, h, {name: w @ drift for name, w in weights.items()} if together else moved


@dataclass(frozen=True, slots=True)
class Plan:
    """What all matrices that read the same inputs share.

    Attributes:
        sequence: (K,) the columns by rising H[k, k].
        inverse: M for this order.
        importance: (K,) float32, 1 / M[k, k]^2 of each column of the matrix, 1 on average.
    """

    sequence: np.ndarray
    inverse: Lower
    importance: np.ndarray


def plan(sequence: np.ndarray, h: Lower) -> Plan:
    """The plan for columns in this order, with their H, whose memory it takes over.

    Raises ValueError for inputs that are too large or not finite.
    """
    diagonals = [np.einsum("ii->i", rows[:, part]) for rows, part in zip(h, panels(len(sequence)))]
    mean = max(float(np.mean(np.concatenate(diagonals), dtype=np.float64)), 1e-30)
    for diagonal in diagonals:
        diagonal[diagonal <= 0] = mean  # inputs that are always 0
        diagonal += np.float32(mean * DAMP)
    try:
        if not np.isfinite(mean):
            raise np.linalg.LinAlgError
        cholesky(h)
    except np.linalg.LinAlgError:
        raise ValueError("the inputs of a matrix are too large or not finite; the calibration can't use them") from None
    invert(h)
    importance = np.empty(len(sequence))
    importance[sequence] = 1 / np.concatenate(diagonals).astype(np.float64) ** 2
    return Plan(sequence, h, (importance / importance.mean()).astype(np.float32))


def cholesky(a: Lower) -> None:
    """Overwrites a symmetric matrix with L, L L^T = a; raises LinAlgError if it is not positive definite."""
    parts = list(panels(a[-1].shape[1]))
    for p, now in enumerate(parts):
        corner = np.linalg.cholesky(np.tril(a[p][:, now]).astype(np.float64))
        a[p][:, now] = corner
        inverse = np.linalg.inv(corner).T.astype(np.float32)
        for rows in a[p + 1 :]:
            rows[:, now] = rows[:, now] @ inverse
        for i in range(p + 1, len(a)):
            for j in range(p + 1, i + 1):
                a[i][:, parts[j]] -= a[i][:, now] @ a[j][:, now].T


def invert(a: Lower) -> None:
    """Overwrites a lower triangular matrix with its inverse."""
    parts = list(panels(a[-1].shape[1]))
    for p, now in enumerate(parts):
        corner = np.linalg.inv(a[p][:, now].astype(np.float64)).astype(np.float32)
        row = np.zeros((len(corner), now.start), np.float32)
        for i in range(p):
            row[:, : parts[i].stop] += a[p][:, parts[i]] @ a[i]
        a[p][:, : now.start] = -(corner @ row)
        a[p][:, now] = np.tril(corner)


def against_drift(weight: np.ndarray, moved: np.ndarray, given: Plan) -> np.ndarray:
    """The matrix (N, K) float32 that makes good, halfway, what the inputs have drifted; it takes the place of `moved`.

    moved: W (X - X~) X~^T, as `gathered` gives it.
    """
    step = max(1, AT_ONCE // weight.shape[1])
    for start in range(0, len(weight), step):
        rows = slice(start, start + step)
        x = moved[rows][:, given.sequence]
        change = np.zeros_like(x)
        for inverse, part in zip(given.inverse, panels(x.shape[1])):
            change[:, : part.stop] += x[:, : part.stop] @ inverse.T @ inverse
        moved[rows, given.sequence] = np.float32(DRIFT) * change
        moved[rows] += weight[rows]
    return moved


def gptq(weight: np.ndarray, given: Plan, quantizer: Quantizer) -> Iterator[np.ndarray]:
    """Quantises a matrix with feedback, some rows after the other.

    Args:
        weight: (N, K) float32, K a multiple of the quantizer's block; becomes what the codes stand for.
        given: The plan for its inputs.

    Yields:
        The file's bytes of the next rows, uint8.
    """
    step = max(1, AT_ONCE // weight.shape[1])
    for start in range(0, len(weight), step):
        yield _rows(weight[start : start + step], given, quantizer)


def _rows(weight: np.ndarray, given: Plan, quantizer: Quantizer) -> np.ndarray:
    """Bytes of rows (N, K), which become what they stand for."""
    size, (rows, columns) = quantizer.block_size, weight.shape
    sequence = given.sequence
    blocks = [slice(start, start + size) for start in range(0, columns, size)]
    grids = [quantizer.fit(np.ascontiguousarray(weight[:, b]), given.importance[None, b]) for b in blocks]
    w = np.ascontiguousarray(weight.T[sequence])  # (K, N): a column of the matrix lies together
    codes = np.zeros((columns, rows), np.int8)
    errors = np.zeros((PANEL, rows), np.float32)
    for inverse, part in reversed(list(zip(given.inverse, panels(columns)))):
        for i in range(part.stop - 1, part.start - 1, -1):
            k = int(sequence[i])
            grid = grids[k // size]
            scale, offset = grid.column(k % size)
            code = np.clip(np.rint((w[i] - offset) / np.where(scale == 0, np.inf, scale)), grid.low, grid.high)
            codes[k] = code
            along, error = inverse[i - part.start], errors[i - part.start]
            np.divide(w[i] - (scale * code + offset), along[i], out=error)
            w[part.start : i] -= along[part.start : i, None] * error
        w[: part.start] -= inverse[:, : part.start].T @ errors[: len(inverse)]
    packed = []
    for block, grid in zip(blocks, grids):
        found = codes[block].T.astype(np.int32)
        packed.append(quantizer.pack(grid, found))
        weight[:, block] = grid.values(found)
    return np.concatenate(packed, axis=1)
