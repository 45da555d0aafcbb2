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

Memory: H, (K, K) float32, becomes L and then M in its own place; W and W (X - X~) X~^T, (N, K) float32 each; all else goes
by panels, or by some rows at a time, of a few MB.

Sources: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2022,
section 3, algorithm 1; the drift: Li et al., "GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric Calibration",
2025, section 3.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from kernels.block_types import Quantizer

PANEL = 256  # columns, or rows, that are computed together
AT_ONCE = 1 << 20  # elements of a matrix that are rounded together
DAMP = 0.01  # of the mean of H's diagonal, added to it
DRIFT = 0.5


def panels(count: int) -> Iterator[slice]:
    """0 .. count cut into slices of PANEL."""
    return (slice(start, min(start + PANEL, count)) for start in range(0, count, PANEL))


def moments(inputs: Iterable[np.ndarray]) -> np.ndarray:
    """H = X X^T, (K, K) float32, of inputs (T, K) float32."""
    return gathered(inputs, None, {})[0]


def gathered(
    inputs: Iterable[np.ndarray], originals: Iterable[np.ndarray] | None, weights: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """What a group of matrices has to know of its inputs.

    Args:
        inputs, originals: X~ and X, each one array (T, K) float32 for each text; originals None: the same.
        weights: Name -> W (N, K) float32.

    Returns:
        H, (K, K) float32, and for each name W (X - X~) X~^T, (N, K) float32 (none if there are no originals).
    """
    h = np.zeros((0, 0), np.float32)
    drift = np.zeros((0, 0), np.float32)
    moved: dict[str, np.ndarray] = {}
    both = ((x, None) for x in inputs) if originals is None else zip(inputs, originals)
    for x, original in both:
        columns = x.shape[1]
        together = columns < sum(map(len, weights.values()))  # (X - X~) X~^T is smaller than its products with all W
        if not h.size:
            h = np.zeros((columns, columns), np.float32)
            drift = np.zeros_like(h) if originals is not None and together else drift
            moved = {} if originals is None or together else {name: np.zeros_like(w) for name, w in weights.items()}
        for part in panels(columns):
            h[part, : part.stop] += x[:, part].T @ x[:, : part.stop]
        if original is not None:
            difference = original - x
            if together:
                drift += difference.T @ x
            for name, total in moved.items():
                error = difference @ weights[name].T
                for part in panels(len(total)):
                    total[part] += error[:, part].T @ x
    for part in panels(len(h)):
        h[part, part.stop :] = h[part.stop :, part].T
    return h, {name: w @ drift for name, w in weights.items()} if drift.size else moved


@dataclass(frozen=True, slots=True)
class Plan:
    """What all matrices that read the same inputs share.

    Attributes:
        sequence: (K,) the columns by rising H[k, k].
        inverse: (K, K) float32, M for this order, zeros above its diagonal.
        importance: (K,) float32, 1 / M[k, k]^2 of each column of the matrix, 1 on average.
    """

    sequence: np.ndarray
    inverse: np.ndarray
    importance: np.ndarray


def plan(h: np.ndarray) -> Plan:
    """The plan for inputs with the given H, (K, K) float32, whose memory it takes over.

    Raises ValueError for inputs that are too large or not finite.
    """
    diagonal = np.einsum("ii->i", h)
    mean = max(float(np.mean(diagonal, dtype=np.float64)), 1e-30)
    diagonal[diagonal <= 0] = mean  # inputs that are always 0
    sequence = np.argsort(diagonal, kind="stable")
    diagonal += np.float32(mean * DAMP)
    for part in panels(len(h)):
        h[:, part] = h[sequence, part]
    for part in panels(len(h)):
        h[part] = h[part][:, sequence]
    try:
        if not np.isfinite(mean):
            raise np.linalg.LinAlgError
        cholesky(h)
    except np.linalg.LinAlgError:
        raise ValueError("the inputs of a matrix are too large or not finite; the calibration can't use them") from None
    invert(h)
    importance = np.empty(len(h))
    importance[sequence] = 1 / np.diag(h).astype(np.float64) ** 2
    return Plan(sequence, h, (importance / importance.mean()).astype(np.float32))


def cholesky(a: np.ndarray) -> None:
    """Overwrites a symmetric matrix (K, K) float32 with L, L L^T = a, zeros above its diagonal.

    Raises LinAlgError if it is not positive definite.
    """
    for now in panels(len(a)):
        corner = np.linalg.cholesky(a[now, now].astype(np.float64))
        a[now, now] = corner
        a[now, now.stop :] = 0
        a[now.stop :, now] = a[now.stop :, now] @ np.linalg.inv(corner).T.astype(np.float32)
        for part in panels(len(a)):
            if part.start > now.start:
                rest = slice(now.stop, part.stop)
                a[part, rest] -= a[part, now] @ a[rest, now].T


def invert(a: np.ndarray) -> None:
    """Overwrites a lower triangular matrix (K, K) float32 with its inverse."""
    for now in panels(len(a)):
        corner = np.linalg.inv(a[now, now].astype(np.float64)).astype(np.float32)
        row = np.zeros((len(corner), now.start), np.float32)
        for part in panels(now.start):
            between = slice(part.start, now.start)
            row[:, part] = a[now, between] @ a[between, part]
        a[now, : now.start] = -(corner @ row)
        a[now, now] = np.tril(corner)


def against_drift(weight: np.ndarray, moved: np.ndarray, given: Plan) -> np.ndarray:
    """The matrix (N, K) float32 that makes good, halfway, what the inputs have drifted; it takes the place of `moved`.

    moved: W (X - X~) X~^T, as `gathered` gives it.
    """
    step = max(1, AT_ONCE // weight.shape[1])
    for start in range(0, len(weight), step):
        rows = slice(start, start + step)
        change = moved[rows][:, given.sequence] @ given.inverse.T @ given.inverse
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
    sequence, inverse = given.sequence, given.inverse
    blocks = [slice(start, start + size) for start in range(0, columns, size)]
    grids = [quantizer.fit(np.ascontiguousarray(weight[:, b]), given.importance[None, b]) for b in blocks]
    w = np.ascontiguousarray(weight.T[sequence])  # (K, N): a column of the matrix lies together
    codes = np.zeros((columns, rows), np.int8)
    errors = np.zeros((PANEL, rows), np.float32)
    for part in reversed(list(panels(columns))):
        for i in range(part.stop - 1, part.start - 1, -1):
            k = int(sequence[i])
            grid = grids[k // size]
            scale, offset = grid.column(k % size)
            code = np.clip(np.rint((w[i] - offset) / np.where(scale == 0, np.inf, scale)), grid.low, grid.high)
            codes[k] = code
            error = errors[i - part.start]
            np.divide(w[i] - (scale * code + offset), inverse[i, i], out=error)
            w[part.start : i] -= inverse[i, part.start : i, None] * error
        w[: part.start] -= inverse[part, : part.start].T @ errors[: part.stop - part.start]
    packed = []
    for block, grid in zip(blocks, grids):
        found = codes[block].T.astype(np.int32)
        packed.append(quantizer.pack(grid, found))
        weight[:, block] = grid.values(found)
    return np.concatenate(packed, axis=1)
