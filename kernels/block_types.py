"""Float weights to the block types of GGUF files: what scales a block gets, and its bytes.

Every type is  weight = scale * code + offset  with codes low .. high; a `Grid` holds scale and offset for each element of a
block, as they will be once they are stored. Rounding to it, or rounding with feedback (GPTQ), gives codes; `pack` gives the
file's bytes. One class per type; the formulas and the layouts are those of `engine/gguf_types.py`, read backwards.

    quantizer = QUANTIZERS["Q4_0"]
    grid = quantizer.fit(x, weight)             # x: (R, block_size) float32, weight: (R or 1, block_size)
    codes = grid.nearest(x)
    bytes = quantizer.pack(grid, codes)         # (R, block_bytes) uint8

The K types store the scales of their runs as integers times one float16: the runs are fitted one by one, their scales
rounded to these integers, each integer is tried a little lower and higher, and the float16 is fitted to what came out.
"""

from dataclasses import dataclass

import numpy as np

from kernels.block_fit import (
    Arrays,
    fit_affine,
    fit_symmetric,
    fit_ternary_scale,
    half,
    in_pieces,
    nearest,
    squared_error,
)

TERNARY_SPAN = 5  # trits in a byte of TQ1_0
REFITS = 3  # of the K types' common scales


@dataclass(frozen=True, slots=True)
class Grid:
    """What the codes of R blocks stand for.

    Attributes:
        scale, offset: (R, block_size) float32, or (R, 1) where all elements share them.
        low, high: The codes.
        stored: The numbers that `pack` writes beside the codes, by name.
    """

    scale: np.ndarray
    offset: np.ndarray
    low: int
    high: int
    stored: dict[str, np.ndarray]

    def nearest(self, x: np.ndarray) -> np.ndarray:
        """The codes of x (R, block_size), int32."""
        return nearest(x, self.scale, self.offset, self.low, self.high).astype(np.int32)

    def values(self, codes: np.ndarray) -> np.ndarray:
        """The weights that codes stand for, float32."""
        return self.scale * codes.astype(np.float32) + self.offset

    def column(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Scale and offset, each (R,), of element k of the blocks."""
        k = min(k, self.scale.shape[1] - 1)
        return self.scale[:, k], self.offset[:, min(k, self.offset.shape[1] - 1)]


class Quantizer:
    """A block type: `block_size` elements in `block_bytes` bytes; a subclass says how they are fitted and packed."""

    def __init__(self, name: str, block_size: int, block_bytes: int, low: int, high: int) -> None:
        self.name, self.block_size, self.block_bytes = name, block_size, block_bytes
        self.low, self.high = low, high

    def fit(self, x: np.ndarray, weight: np.ndarray) -> Grid:
        """The grid of the least weighted squared error that was found.

        Args:
            x: (R, block_size) float32, finite.
            weight: (R, block_size) or (1, block_size) float32, not negative.
        """
        raise NotImplementedError

    def pack(self, grid: Grid, codes: np.ndarray) -> np.ndarray:
        """The file's bytes, (R, block_bytes) uint8, of codes (R, block_size) int32."""
        raise NotImplementedError

    def rounded(self, x: np.ndarray, weight: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Rounds a matrix (N, K) float32 to the grid: its bytes, (N, K / block_size * block_bytes) uint8, and their values.

        weight: (K,) how much an error counts in each column; None: all the same.
        """
        blocks = x.reshape(-1, self.block_size)
        if weight is None:
            counts = np.ones((1, self.block_size), np.float32)
        else:
            counts = np.tile(weight.reshape(-1, self.block_size).astype(np.float32), (len(x), 1))
        grid = self.fit(blocks, counts)
        codes = grid.nearest(blocks)
        return self.pack(grid, codes).reshape(len(x), -1), grid.values(codes).reshape(x.shape)

    def quantize(self, x: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
        """The bytes of `rounded`."""
        return self.rounded(x, weight)[0]


class Symmetric(Quantizer):
    """d q: Q4_0, Q5_0, Q8_0."""

    def fit(self, x: np.ndarray, weight: np.ndarray) -> Grid:
        scale = fit_symmetric(x, weight, self.low, self.high)
        return Grid(scale, np.zeros_like(scale), self.low, self.high, {"d": scale})

    def pack(self, grid: Grid, codes: np.ndarray) -> np.ndarray:
        return np.concatenate(
            [half_bytes(grid.stored["d"]), code_bytes(codes - self.low, self.high - self.low)], axis=1
        )


class Bytes(Symmetric):
    """d q with int8 codes: Q8_0. 255 steps leave nothing to search for."""

    def fit(self, x: np.ndarray, weight: np.ndarray) -> Grid:
        scale = half(np.abs(x).max(1, keepdims=True) / np.float32(self.high))
        return Grid(scale, np.zeros_like(scale), self.low, self.high, {"d": scale})

    def pack(self, grid: Grid, codes: np.ndarray) -> np.ndarray:
        return np.concatenate([half_bytes(grid.stored["d"]), codes.astype(np.int8).view(np.uint8)], axis=1)


class Offset(Quantizer):
    """d q + m: Q4_1, Q5_1."""

    def fit(self, x: np.ndarray, weight: np.ndarray) -> Grid:
        scale, offset = fit_affine(x, weight, self.high)
        return Grid(scale, offset, self.low, self.high, {"d": scale, "m": offset})

    def pack(self, grid: Grid, codes: np.ndarray) -> np.ndarray:
        head = [half_bytes(grid.stored["d"]), half_bytes(grid.stored["m"])]
        return np.concatenate([*head, code_bytes(codes, self.high)], axis=1)


class SubScaledOffset(Quantizer):
    """d scale q - dmin minimum, with six-bit scale and minimum for each 32: Q4_K, Q5_K."""

    def fit(self, x: np.ndarray, weight: np.ndarray) -> Grid:
        runs = x.reshape(-1, 32)
        w = np.ascontiguousarray(np.broadcast_to(weight, x.shape)).reshape(-1, 32)
        scale, offset = fit_affine(runs, w, self.high, rounded=False, offset_above_zero=False)
        d = half(scale.reshape(-1, 8).max(1, keepdims=True) / 63)
        dmin = half(-offset.reshape(-1, 8).min(1, keepdims=True) / 63)
        sub, minimum, error = self._integers(runs, w, scale, offset, d, dmin)
        for _ in range(REFITS):  # with codes and integers held fixed, better d and dmin; then all again
            new_d, new_dmin = self._refitted(runs, w, sub, minimum, d, dmin)
            eight = (_spread(v, 8) for v in (d, dmin))
            found = self._integers(runs, w, next(eight) * sub, -next(eight) * minimum, new_d, new_dmin)
            better = found[2].reshape(-1, 8).sum(1, keepdims=True) < error.reshape(-1, 8).sum(1, keepdims=True)
            d, dmin = np.where(better, new_d, d), np.where(better, new_dmin, dmin)
            runs_better = _spread(better, 8)
            sub, minimum, error = (np.where(runs_better, n, o) for n, o in zip(found, (sub, minimum, error)))
        stored = {"d": d, "dmin": dmin, "scale": sub.reshape(-1, 8), "minimum": minimum.reshape(-1, 8)}
        full = _spread(d * stored["scale"], 32), _spread(-dmin * stored["minimum"], 32)
        return Grid(full[0].reshape(x.shape), full[1].reshape(x.shape), self.low, self.high, stored)

    def _integers(
        self, x: np.ndarray, w: np.ndarray, scale: np.ndarray, offset: np.ndarray, d: np.ndarray, dmin: np.ndarray
    ) -> Arrays:
        """The best six-bit integers of each run near scale and offset (R, 1), and the run's error."""

        def work(*given: np.ndarray) -> Arrays:
            return _sub_scaled_offset(self.high, *given)

        return in_pieces(work, x, w, scale, offset, _spread(d, 8), _spread(dmin, 8))

    def _refitted(
        self, x: np.ndarray, w: np.ndarray, sub: np.ndarray, minimum: np.ndarray, d: np.ndarray, dmin: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The d and dmin (R, 1) of the least squared error, for the codes and integers that there are."""
        q = nearest(x, _spread(d, 8) * sub, -_spread(dmin, 8) * minimum, 0, self.high)
        a, b = sub * q, -minimum * np.ones_like(q)

        def total(v: np.ndarray) -> np.ndarray:
            whole: np.ndarray = (w * v).reshape(len(d), -1)
            return whole.sum(1, keepdims=True, dtype=np.float64)

        aa, ab, bb, ax, bx = total(a * a), total(a * b), total(b * b), total(a * x), total(b * x)
        determinant = aa * bb - ab * ab
        sound = determinant > 1e-9 * aa * bb
        safe = np.where(sound, determinant, 1)
        new_d = np.where(sound, (bb * ax - ab * bx) / safe, np.where(bb == 0, ax / np.maximum(aa, 1e-30), d))
        new_dmin = np.where(sound, (aa * bx - ab * ax) / safe, dmin)
        return half(np.maximum(new_d, 0).astype(np.float32)), half(np.maximum(new_dmin, 0).astype(np.float32))

    def pack(self, grid: Grid, codes: np.ndarray) -> np.ndarray:
        s = grid.stored
        scale, minimum = s["scale"].astype(np.uint8), s["minimum"].astype(np.uint8)
        low = scale[:, :4] | (scale[:, 4:] >> 4) << 6
        middle = minimum[:, :4] | (minimum[:, 4:] >> 4) << 6
        high = (scale[:, 4:] & 15) | (minimum[:, 4:] & 15) << 4
        q = codes.astype(np.uint8).reshape(-1, 8, 32)
        pairs = (q & 15).reshape(-1, 4, 2, 32)
        parts = [half_bytes(s["d"]), half_bytes(s["dmin"]), low, middle, high]
        if self.high > 15:  # bit i of a byte is bit 4 of run i
            parts.append(np.bitwise_or.reduce((q >> 4) << np.arange(8, dtype=np.uint8)[:, None], axis=1))
        return np.concatenate([*parts, (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(len(codes), -1)], axis=1)


class SubScaled(Quantizer):
    """d scale (q - 32), with an int8 scale for each 16: Q6_K; codes here are -32..31."""

    def fit(self, x: np.ndarray, weight: np.ndarray) -> Grid:
        runs = x.reshape(-1, 16)
        w = np.ascontiguousarray(np.broadcast_to(weight, x.shape)).reshape(-1, 16)
        scale = fit_symmetric(runs, w, self.low, self.high, rounded=False).reshape(-1, 16)
        at = np.argmax(np.abs(scale), 1)[:, None]
        d = half(np.take_along_axis(scale, at, 1) / -128)
        dd = np.repeat(d, 16, 1)
        dd = dd.reshape(-1, 1)
        (best,) = in_pieces(_sub_scaled, runs, w, scale.reshape(-1, 1), dd)
        full = np.repeat((dd * best).reshape(-1, 16), 16, 1)
        return Grid(
            full, np.zeros((len(full), 1), np.float32), self.low, self.high, {"d": d, "scale": best.reshape(-1, 16)}
        )

    def pack(self, grid: Grid, codes: np.ndarray) -> np.ndarray:
        q = (codes + 32).astype(np.uint8).reshape(-1, 2, 4, 32)  # (block, half of 128, run, element)
        low = (q[:, :, :2] & 15) | (q[:, :, 2:] & 15) << 4
        pairs = q >> 4
        high = pairs[:, :, 0] | pairs[:, :, 1] << 2 | pairs[:, :, 2] << 4 | pairs[:, :, 3] << 6
        scale = grid.stored["scale"].astype(np.int8).view(np.uint8)
        parts = [low.reshape(len(codes), -1), high.reshape(len(codes), -1), scale, half_bytes(grid.stored["d"])]
        return np.concatenate(parts, axis=1)


class Ternary(Symmetric):
    """d t with t in -1, 0, 1 and one scale for 256: TQ2_0 (two bits each) and TQ1_0 (five in a byte)."""

    def fit(self, x: np.ndarray, weight: np.ndarray) -> Grid:
        scale = fit_ternary_scale(x, weight)
        return Grid(scale, np.zeros_like(scale), self.low, self.high, {"d": scale})

    def pack(self, grid: Grid, codes: np.ndarray) -> np.ndarray:
        t = (codes + 1).astype(np.uint8)
        packed = _two_bits(t) if self.name == "TQ2_0" else _five_in_a_byte(t)
        return np.concatenate([packed, half_bytes(grid.stored["d"])], axis=1)


def half_bytes(x: np.ndarray) -> np.ndarray:
    """(R, n) -> (R, 2 n) bytes of float16, little-endian."""
    return np.ascontiguousarray(x, "<f2").view(np.uint8).reshape(len(x), -1)


def code_bytes(codes: np.ndarray, high: int) -> np.ndarray:
    """Codes 0..15, or 0..31, of blocks of 32: fifth bits first, if there are any; then element j beside element j + 16."""
    q = codes.astype(np.uint8)
    nibbles = (q[:, :16] & 15) | (q[:, 16:] & 15) << 4
    if high < 16:
        return nibbles
    return np.concatenate([np.packbits(q >> 4, axis=1, bitorder="little"), nibbles], axis=1)


def _two_bits(t: np.ndarray) -> np.ndarray:
    """Byte 32 i + j holds elements j, j + 32, j + 64, j + 96 of half i."""
    runs = t.reshape(-1, 2, 4, 32)
    return (runs[:, :, 0] | runs[:, :, 1] << 2 | runs[:, :, 2] << 4 | runs[:, :, 3] << 6).reshape(len(t), -1)


def _five_in_a_byte(t: np.ndarray) -> np.ndarray:
    """TQ1_0: trits n of elements 32 n + j in byte j (n < 5), 16 n + j in byte 32 + j, and four in each of the last four.

    A byte holds the number 0.t0 t1 t2 t3 t4 in base 3 as a fraction of 256, rounded up, so that multiplying by 3 brings out
    one trit after the other.
    """
    parts = (t[:, :160].reshape(-1, 5, 32), t[:, 160:240].reshape(-1, 5, 16), t[:, 240:].reshape(-1, 4, 4))
    packed = []
    for part in parts:
        number = np.zeros((len(t), part.shape[2]), np.int64)
        for n in range(TERNARY_SPAN):
            number = number * 3 + (part[:, n] if n < part.shape[1] else 0)
        packed.append(-(-number * 256 // 243))
    return np.concatenate(packed, axis=1).astype(np.uint8)


def _sub_scaled_offset(
    high: int, x: np.ndarray, w: np.ndarray, scale: np.ndarray, offset: np.ndarray, d: np.ndarray, dmin: np.ndarray
) -> Arrays:
    """The integers for scale and offset that fit best, and their error; runs x (32, R), all else (1, R)."""
    first, minimum = _integers(scale, d, 0, 63), _integers(-offset, dmin, 0, 63)
    best, best_minimum = first, minimum
    error = squared_error(x, w, d * first, -dmin * minimum, 0, high)
    total = np.maximum(w.sum(0, keepdims=True), np.float32(1e-30))
    for change in (0, -1, 1, -2, 2):
        tried, m = np.clip(first + np.float32(change), 0, 63), minimum
        for _ in range(2):  # the codes for this minimum, then the best minimum for these codes
            rest = x - d * tried * nearest(x, d * tried, -dmin * m, 0, high)
            m = _integers(-np.sum(w * rest, 0, keepdims=True) / total, dmin, 0, 63)
            found = squared_error(x, w, d * tried, -dmin * m, 0, high)
            better = found < error
            best, best_minimum = np.where(better, tried, best), np.where(better, m, best_minimum)
            error = np.where(better, found, error)
    return best, best_minimum, error


def _sub_scaled(x: np.ndarray, w: np.ndarray, scale: np.ndarray, d: np.ndarray) -> tuple[np.ndarray]:
    """Q6_K: the integer for scale that fits best; runs x (16, R), scale and d (1, R)."""
    first = _integers(scale, d, -128, 127)
    best, error = first, np.full_like(first, np.inf)
    for change in (0, -1, 1):
        tried = np.clip(first + np.float32(change), -128, 127)
        found = squared_error(x, w, d * tried, 0.0, -32, 31)
        better = found < error
        best, error = np.where(better, tried, best), np.where(better, found, error)
    return (best,)


def _spread(x: np.ndarray, times: int) -> np.ndarray:
    """(R, n) -> (R * n * times, 1): each value as often as there are runs, or elements, that share it."""
    return np.repeat(x.reshape(-1), times)[:, None]


def _integers(x: np.ndarray, step: np.ndarray, low: int, high: int) -> np.ndarray:
    """The integers nearest to x / step, as float32; of a step of 0, 0."""
    return np.clip(np.rint(x / np.where(step == 0, np.float32(np.inf), step)), low, high).astype(np.float32)


QUANTIZERS: dict[str, Quantizer] = {
    q.name: q
    for q in (
        Symmetric("Q4_0", 32, 18, -8, 7),
        Offset("Q4_1", 32, 20, 0, 15),
        Symmetric("Q5_0", 32, 22, -16, 15),
        Offset("Q5_1", 32, 24, 0, 31),
        Bytes("Q8_0", 32, 34, -127, 127),
        SubScaledOffset("Q4_K", 256, 144, 0, 15),
        SubScaledOffset("Q5_K", 256, 176, 0, 31),
        SubScaled("Q6_K", 256, 210, -32, 31),
        Ternary("TQ1_0", 256, 54, -1, 1),
        Ternary("TQ2_0", 256, 66, -1, 1),
    )
}
