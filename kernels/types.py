"""The types that kernels are written in, as annotations: scalars, pointers into arrays, and vectors in registers.

To NumPy each is an array (or a number), so a kernel's body runs as plain Python; to the compiler the mark behind it says
which machine type it is.

    def scale(rank: Int, size: Int, run: I64, out: F32, x: F32, count: Int, factor: Float) -> None:

A pointer is a flat, C-contiguous array; `x[i]` is its element, without a bounds check in compiled code.
"""

from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

import numpy as np


@dataclass(frozen=True, slots=True)
class Scalar:
    """A number in a register: `int64` or `float32`."""

    dtype: str


@dataclass(frozen=True, slots=True)
class Pointer:
    """The address of the first element of a flat array of `dtype`."""

    dtype: str


@dataclass(frozen=True, slots=True)
class Vector:
    """`lanes` elements of `dtype` in a vector register.

    `PairSums` and `QuadSums` are running sums of integer products whose machine form depends on the processor; only
    operations of the vocabulary look inside.
    """

    dtype: str
    lanes: int


@dataclass(frozen=True, slots=True)
class Vectors:
    """A vector with `each` elements of `dtype` for each of N outputs; N is 8, or 16 where registers hold 64 bytes."""

    dtype: str
    each: int

    def of(self, outputs: int) -> Vector:
        """The vector for so many outputs."""
        return Vector(self.dtype, self.each * outputs)


Int = Annotated[int, Scalar("int64")]
Int32 = Annotated[Any, Scalar("int32")]
Float = Annotated[Any, Scalar("float32")]

U8 = Annotated[np.ndarray, Pointer("uint8")]
I8 = Annotated[np.ndarray, Pointer("int8")]
U16 = Annotated[np.ndarray, Pointer("uint16")]
F16 = Annotated[np.ndarray, Pointer("uint16")]  # IEEE half floats, seen as their bits
I32 = Annotated[np.ndarray, Pointer("int32")]
I64 = Annotated[np.ndarray, Pointer("int64")]
U64 = Annotated[np.ndarray, Pointer("uint64")]
F32 = Annotated[np.ndarray, Pointer("float32")]

U8x32 = Annotated[np.ndarray, Vector("uint8", 32)]
I8x32 = Annotated[np.ndarray, Vector("int8", 32)]
I32x8 = Annotated[np.ndarray, Vector("int32", 8)]
F32x8 = Annotated[np.ndarray, Vector("float32", 8)]
PairSums = Annotated[np.ndarray, Vector("pair sums", 16)]
QuadSums = Annotated[np.ndarray, Vector("quad sums", 8)]

U8x64 = Annotated[np.ndarray, Vector("uint8", 64)]
I8x64 = Annotated[np.ndarray, Vector("int8", 64)]
I32x16 = Annotated[np.ndarray, Vector("int32", 16)]
F32x16 = Annotated[np.ndarray, Vector("float32", 16)]
PairSums32 = Annotated[np.ndarray, Vector("pair sums", 32)]

# All those in one signature have the same N.
U8xN = Annotated[np.ndarray, Vectors("uint8", 4)]
I8xN = Annotated[np.ndarray, Vectors("int8", 4)]
I32xN = Annotated[np.ndarray, Vectors("int32", 1)]
F32xN = Annotated[np.ndarray, Vectors("float32", 1)]
PairSumsN = Annotated[np.ndarray, Vectors("pair sums", 2)]


def sized(type_: Any, outputs: int) -> Any:
    """The type for N = `outputs`; of a tuple, that of its parts."""
    if get_origin(type_) is tuple:
        return tuple.__class_getitem__(tuple(sized(part, outputs) for part in get_args(type_)))
    mark = type_.__metadata__[0]
    return Annotated[np.ndarray, mark.of(outputs)] if isinstance(mark, Vectors) else type_
