"""Observers: which range of an activation the 8-bit codes shall cover, from what a calibration text shows.

    min-max       the largest |x| seen
    percentile    the |x| that all but one in ten thousand stay below: rare giants are clamped
    mse           the limit with the least mean squared error of rounding and clamping together

All keep a histogram of |x| that doubles its range as larger values come, so that memory doesn't grow with the text.
"""

import numpy as np

from kernels.affine import INT8

BINS = 4096
OBSERVERS = ("min-max", "percentile", "mse")
KEPT = 0.9999


class Observer:
    """Watches inputs; `limit` says up to which |x| codes shall reach."""

    def __init__(self, kind: str) -> None:
        if kind not in OBSERVERS:
            raise ValueError(f"observer '{kind}' is not known; known: {', '.join(OBSERVERS)}")
        self.kind = kind
        self._counts = np.zeros(BINS)
        self._width = 0.0  # of a bin
        self._largest = 0.0

    def watch(self, x: np.ndarray) -> None:
        """Takes in values of any shape; those that aren't finite don't count."""
        size = np.abs(x[np.isfinite(x)])
        if not size.size:
            return
        self._largest = max(self._largest, float(size.max()))
        if self._largest == 0:
            self._counts[0] += size.size
            return
        if self._width == 0:
            self._width = self._largest / BINS
        while self._width * BINS < self._largest:
            self._counts = np.concatenate([self._counts.reshape(-1, 2).sum(1), np.zeros(BINS // 2)])
            self._width *= 2
        self._counts += np.bincount(
            np.minimum((size / self._width).astype(np.int64), BINS - 1).reshape(-1), minlength=BINS
        )

    def limit(self) -> float:
        """The |x| that the last code shall stand for; 0 where nothing but zeros was seen."""
        if self.kind == "min-max" or self._largest == 0:
            return self._largest
        if self.kind == "percentile":
            at = int(np.searchsorted(np.cumsum(self._counts), KEPT * self._counts.sum()))
            return min(self._width * (at + 1), self._largest)
        middles = self._width * (np.arange(BINS) + 0.5)
        tried = self._largest * np.linspace(0.05, 1, 200)
        errors = [self._error(middles, limit) for limit in tried]
        return float(tried[int(np.argmin(errors))])

    def _error(self, x: np.ndarray, limit: float) -> float:
        """The summed squared error: of clamped values their distance, of others that of rounding, step^2 / 12."""
        step = limit / INT8.high
        return float(np.sum(self._counts * np.where(x > limit, (x - limit) ** 2, step * step / 12)))
