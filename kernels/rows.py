"""One, four or eight rows of activations against the same weights: sums for all of them, as subroutines that read the same.

Four rows lie side by side (`kernels/quantize.py`), so that of a vector of codes, unpacked once, four products are formed:

    x[k]      row 0: 32 activations of a block | row 1 | row 2 | row 3

and eight rows are two such tiles, `apart` blocks from each other. More rows: fewer instructions for each product and more
independent sums, which hide the latency of the products, as far as there are registers to hold them: eight where a vector
holds 16 outputs (`kernels/lanes.py`), else four. A single row has two sums that take turns.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from kernels.dot import dot_i6, dot_i8, dot_u4, pair_sums
from kernels.lanes import OUTPUTS8, OUTPUTS16, Lanes, Subroutine
from kernels.registry import subroutine, typed
from kernels.simd import add_i32
from kernels.types import F32, I8, I32, F32xN, I32xN, Int, PairSumsN, U8xN, sized

BLOCK = 32


@dataclass(frozen=True, slots=True)
class Product:
    """A product of codes and activations: how a sum of it begins, grows and ends, and its type meanwhile."""

    zero: Callable[[Lanes], Subroutine]
    dot: Subroutine
    total: Subroutine
    Partial: Any


def several(count: int, type_: Any) -> Any:
    """The type of a tuple of so many of a type."""
    return tuple.__class_getitem__((type_,) * count)


@subroutine
def as_it_is(s: I32xN) -> I32xN:
    """s."""
    return s


UNSIGNED = Product(lambda lanes: lanes.zero_pairs, dot_u4, pair_sums, PairSumsN)
SIGNED6 = Product(lambda lanes: lanes.zero_pairs, dot_i6, pair_sums, PairSumsN)
SIGNED8 = Product(lambda lanes: lanes.zero_sums, dot_i8, as_it_is, I32xN)


@dataclass(frozen=True, slots=True)
class Running:
    """The sums of one product for some rows: how they begin, grow by one vector of codes, and end as `Sums`."""

    zero: Subroutine  # () -> partial sums
    add: Subroutine  # (partial sums, codes, x, k, apart) -> partial sums
    total: Subroutine  # (partial sums) -> Sums


@dataclass(frozen=True, slots=True)
class Rows:
    """So many rows at a time.

    Attributes:
        lanes: The outputs in each vector.
        Sums: The type of one I32xN for each row.
        running: A product -> its running sums, made once, so that kernels share what is compiled.
        plus: (Sums, Sums) -> Sums.
        zero: () -> one float sum for each row.
        terms: (what adds a sum of one row, the types of sums and weights) -> the same for all rows at once.
        finish: Stores the float sums of the first `count` rows.
    """

    count: int
    lanes: Lanes
    Sums: Any
    running: Callable[[Product], Running]
    plus: Subroutine
    zero: Subroutine
    terms: Callable[[Subroutine, Any, Any], Subroutine]
    finish: Subroutine


def _one(lanes: Lanes) -> Rows:
    outputs, subroutine, broadcast, finish = lanes.outputs, lanes.subroutine, lanes.broadcast, lanes.finish
    Codes, Sums, Floats = (sized(type_, outputs) for type_ in (U8xN, I32xN, F32xN))

    @cache
    def running(product: Product) -> Running:
        begin, dot, end = product.zero(lanes), product.dot, product.total
        Partial = several(2, sized(product.Partial, outputs))

        @subroutine
        @typed(result=Partial)
        def zero() -> Any:
            return begin(), begin()

        @subroutine
        @typed(sums=Partial, w=Codes, result=Partial)
        def add(sums: Any, w: Any, x: I8, k: Int, apart: Int) -> Any:
            a, b = sums
            return b, dot(a, w, broadcast(x, k))

        @subroutine
        @typed(sums=Partial, result=Sums)
        def total(sums: Any) -> Any:
            a, b = sums
            return add_i32(end(a), end(b))

        return Running(zero, add, total)

    def terms(add: Subroutine, Sum: Any, Weights: Any) -> Subroutine:
        Acc = sized(add.__annotations__["return"], outputs)

        @subroutine
        @typed(acc=Acc, s=sized(Sum, outputs), weights=sized(Weights, outputs), result=Acc)
        def term(acc: Any, s: Any, weights: Any, x_scales: F32, x_sums: I32, at: Int, apart: Int) -> Any:
            return add(acc, s, weights, x_scales, x_sums, at)

        return term

    @subroutine
    @typed(acc=Floats)
    def store(out: F32, i: Int, stride: Int, acc: Any, bias: F32, n: Int, add: Int, count: Int) -> None:
        finish(out, i, acc, bias, n, add)

    return Rows(1, lanes, Sums, running, add_i32, lanes.zero_floats, terms, store)


def _four(lanes: Lanes) -> Rows:
    outputs, subroutine, broadcast, finish = lanes.outputs, lanes.subroutine, lanes.broadcast, lanes.finish
    Codes, Sum, Float = (sized(type_, outputs) for type_ in (U8xN, I32xN, F32xN))
    Sums, Floats = several(4, Sum), several(4, Float)
    zero_float = lanes.zero_floats

    @cache
    def running(product: Product) -> Running:
        begin, dot, end = product.zero(lanes), product.dot, product.total
        Partial = several(4, sized(product.Partial, outputs))

        @subroutine
        @typed(result=Partial)
        def zero() -> Any:
            return begin(), begin(), begin(), begin()

        @subroutine
        @typed(sums=Partial, w=Codes, result=Partial)
        def add(sums: Any, w: Any, x: I8, k: Int, apart: Int) -> Any:
            a, b, c, d = sums
            return (
                dot(a, w, broadcast(x, k)),
                dot(b, w, broadcast(x, k + BLOCK)),
                dot(c, w, broadcast(x, k + 2 * BLOCK)),
                dot(d, w, broadcast(x, k + 3 * BLOCK)),
            )

        @subroutine
        @typed(sums=Partial, result=Sums)
        def total(sums: Any) -> Any:
            a, b, c, d = sums
            return end(a), end(b), end(c), end(d)

        return Running(zero, add, total)

    @subroutine
    @typed(s=Sums, t=Sums, result=Sums)
    def plus(s: Any, t: Any) -> Any:
        (a, b, c, d), (e, f, g, h) = s, t
        return add_i32(a, e), add_i32(b, f), add_i32(c, g), add_i32(d, h)

    @subroutine
    @typed(result=Floats)
    def zero() -> Any:
        z = zero_float()
        return z, z, z, z

    def terms(add: Subroutine, Sum: Any, Weights: Any) -> Subroutine:
        Acc = several(4, sized(add.__annotations__["return"], outputs))

        @subroutine
        @typed(acc=Acc, s=several(4, sized(Sum, outputs)), weights=sized(Weights, outputs), result=Acc)
        def term(acc: Any, s: Any, weights: Any, x_scales: F32, x_sums: I32, at: Int, apart: Int) -> Any:
            (a, b, c, d), (e, f, g, h) = acc, s
            return (
                add(a, e, weights, x_scales, x_sums, at),
                add(b, f, weights, x_scales, x_sums, at + 1),
                add(c, g, weights, x_scales, x_sums, at + 2),
                add(d, h, weights, x_scales, x_sums, at + 3),
            )

        return term

    @subroutine
    @typed(acc=Floats)
    def store(out: F32, i: Int, stride: Int, acc: Any, bias: F32, n: Int, add: Int, count: Int) -> None:
        a, b, c, d = acc
        finish(out, i, a, bias, n, add)
        if count > 1:
            finish(out, i + stride, b, bias, n, add)
        if count > 2:
            finish(out, i + 2 * stride, c, bias, n, add)
        if count > 3:
            finish(out, i + 3 * stride, d, bias, n, add)

    return Rows(4, lanes, Sums, running, plus, zero, terms, store)


def _twice(rows: Rows) -> Rows:
    """Two tiles of the same kind."""
    lanes, outputs, subroutine = rows.lanes, rows.lanes.outputs, rows.lanes.subroutine
    Codes = sized(U8xN, outputs)
    half, plus_half, zero_half = rows.Sums, rows.plus, rows.zero
    half_count, store_half = rows.count, rows.finish
    Sums = several(2, half)
    FloatsHalf = zero_half.__annotations__["return"]
    Floats = several(2, FloatsHalf)

    @cache
    def running(product: Product) -> Running:
        part = rows.running(product)
        begin, grow, end = part.zero, part.add, part.total
        PartialHalf = begin.__annotations__["return"]
        Partial = several(2, PartialHalf)

        @subroutine
        @typed(result=Partial)
        def zero() -> Any:
            return begin(), begin()

        @subroutine
        @typed(sums=Partial, w=Codes, result=Partial)
        def add(sums: Any, w: Any, x: I8, k: Int, apart: Int) -> Any:
            s, t = sums
            return grow(s, w, x, k, apart), grow(t, w, x, k + BLOCK * apart, apart)

        @subroutine
        @typed(sums=Partial, result=Sums)
        def total(sums: Any) -> Any:
            s, t = sums
            return end(s), end(t)

        return Running(zero, add, total)

    @subroutine
    @typed(s=Sums, t=Sums, result=Sums)
    def plus(s: Any, t: Any) -> Any:
        return plus_half(s[0], t[0]), plus_half(s[1], t[1])

    @subroutine
    @typed(result=Floats)
    def zero() -> Any:
        return zero_half(), zero_half()

    def terms(add: Subroutine, Sum: Any, Weights: Any) -> Subroutine:
        term_half = rows.terms(add, Sum, Weights)
        SumsHalf, Acc = term_half.__annotations__["s"], several(2, term_half.__annotations__["return"])

        @subroutine
        @typed(acc=Acc, s=several(2, SumsHalf), weights=sized(Weights, outputs), result=Acc)
        def term(acc: Any, s: Any, weights: Any, x_scales: F32, x_sums: I32, at: Int, apart: Int) -> Any:
            return (
                term_half(acc[0], s[0], weights, x_scales, x_sums, at, apart),
                term_half(acc[1], s[1], weights, x_scales, x_sums, at + apart, apart),
            )

        return term

    @subroutine
    @typed(acc=Floats)
    def store(out: F32, i: Int, stride: Int, acc: Any, bias: F32, n: Int, add: Int, count: Int) -> None:
        store_half(out, i, stride, acc[0], bias, n, add, half_count)
        store_half(out, i + half_count * stride, stride, acc[1], bias, n, add, count - half_count)

    return Rows(2 * half_count, lanes, Sums, running, plus, zero, terms, store)


ONE, FOUR, WIDE = _one(OUTPUTS8), _four(OUTPUTS8), _twice(_four(OUTPUTS16))
