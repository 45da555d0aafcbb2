"""Which scale a block of weights should get: a search for the least weighted squared error.

    symmetric   x ~ scale * q              low <= q <= high
    affine      x ~ scale * q + offset     0 <= q <= high

For codes held fixed the best scale (and offset) is a least-squares solution in closed form; for a scale held fixed the best
codes are the nearest. A grid of first guesses around the range's own scale, each followed by these two steps, finds nearly
always the best of all. Scales are float16 in files, so the errors compared are those of the scales already rounded. All rows
are searched at once, in pieces that stay in the processor's cache.

The guesses follow ggml-quants.c of ggml-org/llama.cpp (make_qx_quants, make_qkx2_quants), which compares the errors before
scales are rounded.
"""

from collections.abc import Callable

import numpy as np

PIECE = 1 << 16  # elements searched together
SYMMETRIC_GUESSES = np.linspace(-1.2, 2.0, 17)  # codes beyond the end of the range that the largest value gets
AFFINE_GUESSES = np.linspace(-1.0, 1.5, 21)
TINY = np.float32(1e-30)
Arrays = tuple[np.ndarray, ...]


def half(x: np.ndarray) -> np.ndarray:
    """x as a float16 holds it, in float32; what is too large becomes the largest float16."""
    return np.clip(x, -65504, 65504).astype(np.float16).astype(np.float32)


def nearest(x: np.ndarray, scale: np.ndarray, offset: np.ndarray | float, low: int, high: int) -> np.ndarray:
    """The codes (float32) of x, for scale and offset that broadcast to it; a scale of 0 gives the code 0."""
    codes: np.ndarray = (x - offset) / np.where(scale == 0, np.float32(np.inf), scale)
    np.rint(codes, out=codes)
    return np.clip(codes, low, high, out=codes)


def fit_symmetric(x: np.ndarray, weight: np.ndarray, low: int, high: int, rounded: bool = True) -> np.ndarray:
    """The scale of each row, (R, 1) float32, of either sign.

    Args:
        x: (R, n) float32.
        weight: (R, n) or (1, n) float32, not negative: how much each value's squared error counts.
        low, high: The codes; -low and high may differ by one, then the sign of the scale matters and both are tried.
        rounded: Whether the scale is a float16.
    """
    return in_pieces(lambda a, w: (_symmetric(a, w, low, high, rounded),), x, weight)[0]


def _symmetric(x: np.ndarray, weight: np.ndarray, low: int, high: int, rounded: bool) -> np.ndarray:
    at = np.argmax(np.abs(x), axis=0)[None]
    largest = np.take_along_axis(x, at, 0)
    largest = np.where(np.abs(largest) < TINY, np.float32(0), largest)
    best = half(largest / np.float32(low)) if rounded else largest / np.float32(low)
    error = squared_error(x, weight, best, 0.0, low, high)
    for end in [low] if low == -high else [low, high]:
        for guess in SYMMETRIC_GUESSES:
            first = largest / np.float32(end + (guess if end > 0 else -guess))
            q = nearest(x, first, 0.0, low, high)
            wq = weight * q
            scale = np.sum(wq * x, 0, keepdims=True) / np.maximum(np.sum(wq * q, 0, keepdims=True), TINY)
            if rounded:
                scale = half(scale)
            found = squared_error(x, weight, scale, 0.0, low, high)
            better = found < error
            best, error = np.where(better, scale, best), np.where(better, found, error)
    return best


def fit_ternary_scale(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The scale of each row (R, 1) float32, for codes -1, 0, 1, with the least weighted squared error.

    Codes are 0 up to some |x|; for the values beyond it the best scale is their weighted mean, which lowers the error by
    (sum w |x|)^2 / sum w. All places for the limit are tried.
    """
    order = np.argsort(-np.abs(x), axis=1, kind="stable")
    w = np.take_along_axis(np.broadcast_to(weight, x.shape), order, 1).astype(np.float64)
    total, count = np.cumsum(w * np.take_along_axis(np.abs(x), order, 1), 1), np.cumsum(w, 1)
    count = np.maximum(count, TINY)
    best = np.argmax(total * total / count, axis=1)[:, None]
    return half((np.take_along_axis(total, best, 1) / np.take_along_axis(count, best, 1)).astype(np.float32))


def fit_affine(
    x: np.ndarray, weight: np.ndarray, high: int, rounded: bool = True, offset_above_zero: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """The scale and the offset of each row, each (R, 1) float32; as `fit_symmetric`, scales are positive.

    Args:
        offset_above_zero: Whether an offset may be positive; the K types have none.
    """
    found = in_pieces(lambda a, w: _affine(a, w, high, rounded, offset_above_zero), x, weight)
    return found[0], found[1]


def _affine(x: np.ndarray, weight: np.ndarray, high: int, rounded: bool, above: bool) -> tuple[np.ndarray, np.ndarray]:
    keep: Callable[[np.ndarray], np.ndarray] = half if rounded else (lambda v: v)
    low = x.min(0, keepdims=True)
    if not above:
        low = np.minimum(low, 0)
    span = np.maximum(x.max(0, keepdims=True) - low, 0)
    best, best_offset = keep(span / np.float32(high)), keep(low)
    error = squared_error(x, weight, best, best_offset, 0, high)
    weight = np.broadcast_to(weight, x.shape)
    sum_w, sum_x = np.sum(weight, 0, keepdims=True), np.sum(weight * x, 0, keepdims=True)
    for guess in AFFINE_GUESSES:
        q = nearest(x, span / np.float32(high + guess), low, 0, high)
        wq = weight * q
        sum_q, sum_qq = np.sum(wq, 0, keepdims=True), np.sum(wq * q, 0, keepdims=True)
        sum_qx = np.sum(wq * x, 0, keepdims=True)
        determinant = sum_w * sum_qq - sum_q * sum_q
        sound = determinant > 1e-7 * sum_w * sum_qq
        safe = np.where(sound, determinant, np.float32(1))
        scale = np.where(sound, (sum_w * sum_qx - sum_x * sum_q) / safe, best)
        offset = np.where(sound, (sum_qq * sum_x - sum_q * sum_qx) / safe, best_offset)
        if not above:
            alone = sum_qx / np.maximum(sum_qq, TINY)
            scale, offset = np.where(offset > 0, alone, scale), np.minimum(offset, 0)
        scale, offset = keep(np.maximum(scale, 0)), keep(offset)
        found = squared_error(x, weight, scale, offset, 0, high)
        better = found < error
        best, best_offset = np.where(better, scale, best), np.where(better, offset, best_offset)
        error = np.where(better, found, error)
    return best, best_offset


def squared_error(
    x: np.ndarray, weight: np.ndarray, scale: np.ndarray, offset: np.ndarray | float, low: int, high: int
) -> np.ndarray:
    """The weighted squared error of the nearest codes, over the first axis: (1, R)."""
    difference = nearest(x, scale, offset, low, high)
    difference *= scale
    difference += offset
    difference -= x
    difference *= difference
    difference *= weight
    return difference.sum(0, keepdims=True)


def in_pieces(work: Callable[..., Arrays], x: np.ndarray, weight: np.ndarray, *columns: np.ndarray) -> Arrays:
    """`work` on some rows at a time, transposed, so that sums over a row run along vectors; (1, R) becomes (R, 1) again.

    x: (R, n); weight: (R, n) or (1, n); columns: (R, 1) each.
    """
    rows = max(1, PIECE // max(1, x.shape[1]))
    parts = []
    for start in range(0, len(x), rows):
        piece = slice(start, start + rows)
        w = weight if len(weight) == 1 else weight[piece]
        given = [np.ascontiguousarray(a.T) for a in (x[piece], w, *(c[piece] for c in columns))]
        parts.append([np.ascontiguousarray(a.T) for a in work(*given)])
    return tuple(np.concatenate(column) for column in zip(*parts))
