"""The block types of GGUF files: how many bytes a tensor takes, and what its bytes mean.

A row (the last axis) is cut into blocks of `block_size` elements, each stored in `block_bytes` bytes. One class per
type that we read; a further type is one more small class here. Formulas: ggml-quants.c of ggml-org/llama.cpp. In each,
d, m, dmin are half floats; all products are exact in float32, so that a value is rounded at most once, by its sum.

    Q4_0, Q4_1, Q5_0, Q5_1: byte j of `qs` holds element j in its low, element j + 16 in its high nibble.
    Q4_K: 256 elements in 8 runs of 32, each with a six-bit scale and minimum; runs 2i and 2i + 1 share bytes 32 i ..
    Q6_K: 256 elements in 16 runs of 16, each with an int8 scale; low nibbles in `ql`, upper two bits in `qh`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

# id -> name, elements per block, bytes per block: all types that ggml has, also those that we can't compute with
KNOWN: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18), 42: ("Q2_0", 64, 18),
}  # fmt: skip
REMOVED = {4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8",
           38: "IQ4_NL_8_8"}  # fmt: skip

_SIZES = {name: (size, nbytes) for name, size, nbytes in KNOWN.values()}


def tensor_nbytes(type: str, shape: Sequence[int]) -> int:
    """Returns how many bytes a tensor takes, computed in Python integers, which don't overflow.

    type: name of one of the KNOWN types.  shape: at least one axis, all positive, NumPy order (the last is the row).
    Raises ValueError with what is wrong where rows can't be cut into blocks.
    """
    size, nbytes = _SIZES[type]
    if shape[-1] % size:
        raise ValueError(f"rows of {shape[-1]} elements; {type} needs a multiple of {size}")
    total = shape[-1] // size * nbytes
    for n in shape[:-1]:
        total *= n
    return total


def block_type(type: str) -> BlockType:
    """Returns the class that reads tensors of this type; raises ValueError naming those supported."""
    try:
        return SUPPORTED[type]
    except KeyError:
        raise ValueError(f"type {type} is not supported; supported: {', '.join(SUPPORTED)}") from None


def _half(data: np.ndarray) -> np.ndarray:
    """(B, 2) bytes -> (B, 1) float32."""
    return np.ascontiguousarray(data).view("<f2").astype(np.float32)


def _nibbles(qs: np.ndarray) -> np.ndarray:
    """(..., n) bytes -> (..., 2 n): all low nibbles, then all high ones."""
    return np.concatenate([qs & 15, qs >> 4], axis=-1)


def _fifth_bits(qh: np.ndarray) -> np.ndarray:
    """(B, 4) bytes -> (B, 32), 0 or 16: bit e of the little-endian 32-bit word belongs to element e."""
    return np.unpackbits(qh, axis=-1, bitorder="little") << 4


@dataclass(frozen=True, slots=True)
class BlockType:
    """A block type: its id and name in GGUF, elements and bytes per block; a subclass says what the bytes mean."""

    id: int
    name: str
    block_size: int
    block_bytes: int

    quantised: ClassVar[bool] = True

    def dequantize(self, data: np.ndarray) -> np.ndarray:
        """Returns the values, float32 (n,), of whole blocks, uint8 (n / block_size * block_bytes,), C-contiguous."""
        if data.dtype != np.uint8 or data.ndim != 1 or data.size % self.block_bytes:
            raise ValueError(f"{self.name}: {data.dtype} {data.shape} is not uint8 in blocks of {self.block_bytes}")
        return self.decode(data.reshape(-1, self.block_bytes)).reshape(-1)

    def decode(self, b: np.ndarray) -> np.ndarray:
        """b: (B, block_bytes) uint8 -> (B, block_size) float32."""
        raise NotImplementedError


class F32(BlockType):
    """Little-endian float32."""

    quantised = False

    def decode(self, b: np.ndarray) -> np.ndarray:
        return b.view("<f4").astype(np.float32)


class F16(BlockType):
    """IEEE half."""

    quantised = False

    def decode(self, b: np.ndarray) -> np.ndarray:
        return _half(b)


class BF16(BlockType):
    """The upper half of a float32."""

    quantised = False

    def decode(self, b: np.ndarray) -> np.ndarray:
        return (b.view("<u2").astype(np.uint32) << 16).view(np.float32)


class Q4_0(BlockType):
    """d, qs[16]: d (q - 8)."""

    def decode(self, b: np.ndarray) -> np.ndarray:
        return _half(b[:, :2]) * (_nibbles(b[:, 2:]).astype(np.float32) - 8)


class Q4_1(BlockType):
    """d, m, qs[16]: d q + m."""

    def decode(self, b: np.ndarray) -> np.ndarray:
        return _half(b[:, :2]) * _nibbles(b[:, 4:]).astype(np.float32) + _half(b[:, 2:4])


class Q5_0(BlockType):
    """d, qh[4], qs[16]: d (q - 16)."""

    def decode(self, b: np.ndarray) -> np.ndarray:
        q = _nibbles(b[:, 6:]) | _fifth_bits(b[:, 2:6])
        return _half(b[:, :2]) * (q.astype(np.float32) - 16)


class Q5_1(BlockType):
    """d, m, qh[4], qs[16]: d q + m."""

    def decode(self, b: np.ndarray) -> np.ndarray:
        q = _nibbles(b[:, 8:]) | _fifth_bits(b[:, 4:8])
        return _half(b[:, :2]) * q.astype(np.float32) + _half(b[:, 2:4])


class Q8_0(BlockType):
    """d, int8 qs[32]: d q."""

    def decode(self, b: np.ndarray) -> np.ndarray:
        return _half(b[:, :2]) * b[:, 2:].view(np.int8).astype(np.float32)


class Q4_K(BlockType):
    """d, dmin, scales[12], qs[128]: d scale q - dmin minimum."""

    def decode(self, b: np.ndarray) -> np.ndarray:
        scale, minimum = six_bit_pairs(b[:, 4:16])
        q = _nibbles(b[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
        d = _half(b[:, :2]) * scale.astype(np.float32)
        m = _half(b[:, 2:4]) * minimum.astype(np.float32)
        return d[:, :, None] * q.astype(np.float32) - m[:, :, None]


class Q5_K(BlockType):
    """d, dmin, scales[12], qh[32], qs[128]: as Q4_K, bit 4 of the codes of run i being bit i of `qh`."""

    def decode(self, b: np.ndarray) -> np.ndarray:
        scale, minimum = six_bit_pairs(b[:, 4:16])
        high = b[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
        q = _nibbles(b[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32) | high << 4
        d = _half(b[:, :2]) * scale.astype(np.float32)
        m = _half(b[:, 2:4]) * minimum.astype(np.float32)
        return d[:, :, None] * q.astype(np.float32) - m[:, :, None]


class Q6_K(BlockType):
    """ql[128], qh[64], int8 scales[16], d: d scale (q - 32)."""

    def decode(self, b: np.ndarray) -> np.ndarray:
        low = _nibbles(b[:, :128].reshape(-1, 2, 64))  # each half of 128: runs 0, 1 low, then 2, 3 high nibbles
        high = b[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
        q = low.reshape(-1, 16, 16) | high.reshape(-1, 16, 16) << 4
        d = _half(b[:, 208:]) * b[:, 192:208].view(np.int8).astype(np.float32)
        return d[:, :, None] * (q.astype(np.float32) - 32)


class TQ1_0(BlockType):
    """qs[48], qh[4], d: d (t - 1); a byte holds five trits as a fraction in base 3, the last four bytes four each."""

    def decode(self, b: np.ndarray) -> np.ndarray:
        parts = (b[:, :32], 5), (b[:, 32:48], 5), (b[:, 48:52], 4)
        t = [trit(bytes_, n) for bytes_, count in parts for n in range(count)]
        return _half(b[:, 52:]) * (np.concatenate(t, axis=1).astype(np.float32) - 1)


class TQ2_0(BlockType):
    """qs[64], d: d (q - 1); byte 32 h + j holds elements j, j + 32, j + 64, j + 96 of half h."""

    def decode(self, b: np.ndarray) -> np.ndarray:
        q = b[:, :64].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
        return _half(b[:, 64:]) * (q.reshape(len(b), 256).astype(np.float32) - 1)


def trit(b: np.ndarray, n: int) -> np.ndarray:
    """Digit n, 0..2, of bytes of TQ1_0."""
    rest = b.astype(np.int64) * 3**n & 255  # what is left of the fraction behind the first n digits
    return rest * 3 >> 8


def six_bit_pairs(s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales and minima of Q4_K and Q5_K: (B, 12) packed bytes -> two arrays (B, 8) uint8 of 0..63."""
    low, mid, high = s[:, :4], s[:, 4:8], s[:, 8:]
    scale = np.concatenate([low & 63, (high & 15) | (low >> 6 << 4)], axis=1)
    minimum = np.concatenate([mid & 63, (high >> 4) | (mid >> 6 << 4)], axis=1)
    return scale, minimum


SUPPORTED: dict[str, BlockType] = {
    kind.__name__: kind(id, *KNOWN[id])
    for id, kind in ((0, F32), (1, F16), (30, BF16), (8, Q8_0), (2, Q4_0), (3, Q4_1), (6, Q5_0), (7, Q5_1),
                     (12, Q4_K), (13, Q5_K), (14, Q6_K), (34, TQ1_0), (35, TQ2_0))
}  # fmt: skip
