"""Reads an expression such as `0.1*x + 0.2` as slope * x + offset, by its syntax tree: nothing of it is ever run.

Allowed: numbers, x, + - * /, signs, parentheses, as far as the whole stays linear in x. Values are exact fractions, so that
`0.1*x + 0.2` means one tenth and one fifth.
"""

from __future__ import annotations

import ast
from fractions import Fraction
from typing import NoReturn

from engine.errors import OptionError
from engine.escape import escape

LONGEST = 200  # characters
LARGEST, SMALLEST = 10**30, Fraction(1, 10**30)
Line = tuple[Fraction, Fraction]  # slope, offset


def linear(text: str) -> Line:
    """Returns slope and offset; raises OptionError, one line, for whatever is not linear in x or not an expression."""
    if len(text) > LONGEST:
        _fail(text, f"has {len(text)} characters, at most {LONGEST} are read")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        _fail(text, "is not an expression")
    found = _line(tree, text)
    for value in found:
        if value and not SMALLEST <= abs(value) <= LARGEST:
            _fail(text, f"holds {float(value):g}; numbers from {float(SMALLEST):g} to {LARGEST:g} are computed with")
    return found


def _line(node: ast.expr, text: str) -> Line:
    match node:
        case ast.Constant(value=int() | float() as value) if type(value) in (int, float):
            return Fraction(0), _number(node, value, text)
        case ast.Name(id="x"):
            return Fraction(1), Fraction(0)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _line(operand, text)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            a, b = _line(operand, text)
            return -a, -b
        case ast.BinOp(left=left, op=op, right=right):
            return _binary(_line(left, text), op, _line(right, text), text)
        case ast.Name(id=name):
            _fail(text, f"has the name '{escape(name, 20)}'; only x may vary")
    _fail(text, "holds something other than numbers, x, + - * / and parentheses")


def _number(node: ast.expr, value: int | float, text: str) -> Fraction:
    """The number as it is written, not its nearest float."""
    source = ast.get_source_segment(text.strip(), node) or ""
    try:
        found = Fraction(source.replace("_", ""))
    except ValueError:
        found = Fraction(value) if value == value and abs(value) != float("inf") else Fraction(10 * LARGEST)
    if abs(found) > LARGEST:
        _fail(text, f"holds a number beyond {LARGEST:g}")
    return found


def _binary(left: Line, op: ast.operator, right: Line, text: str) -> Line:
    (a, b), (c, d) = left, right
    match op:
        case ast.Add():
            return a + c, b + d
        case ast.Sub():
            return a - c, b - d
        case ast.Mult() if not (a and c):
            return a * d + b * c, b * d
        case ast.Mult():
            _fail(text, "multiplies x by x; it must be linear in x")
        case ast.Div() if c:
            _fail(text, "divides by x; it must be linear in x")
        case ast.Div() if not d:
            _fail(text, "divides by zero")
        case ast.Div():
            return a / d, b / d
    _fail(text, "holds an operation other than + - * /")


def _fail(text: str, found: str) -> NoReturn:
    raise OptionError(f"expression '{escape(text, 60)}': {found}; expected something like 0.1*x + 0.2")
