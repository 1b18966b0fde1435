"""Arithmetic on numbers and named values: a text is parsed into a tree, and nothing in it is ever executed.

The result is Python's for the same text, with numbers as Python's own or as arrays. What Python answers with
a complex number has no result here.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any

from proactor.environments.errors import GymError

LONGEST = 200
"""Characters of a text."""
MOST_BITS = 10_000
"""Bits of an integer power: a larger one would only take time."""

Expression = str | int | float | tuple[str, "Expression"] | tuple[str, "Expression", "Expression"]
"""A name, a number, or an operator with what it is applied to."""


class ExpressionError(GymError):
    """A text that is no arithmetic, or a value that cannot be computed."""


def _power(base: Any, exponent: Any) -> Any:
    if isinstance(base, int) and isinstance(exponent, int) and abs(base).bit_length() * exponent > MOST_BITS:
        raise OverflowError(f"a power of more than {MOST_BITS} bits")
    return base**exponent


BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "**": _power,
}
"""What each operator computes."""
_SIGNS = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.FloorDiv: "//",
    ast.Pow: "**",
    ast.UAdd: "+",
    ast.USub: "-",
}


def parse(text: str, names: Collection[str] = ()) -> Expression:
    """The tree of an expression. Raises ExpressionError for all but arithmetic on numbers and ``names``."""
    if len(text) > LONGEST:
        raise ExpressionError(f"an expression of {len(text)} characters ({LONGEST} at most)")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ExpressionError(f"{text!r} is no arithmetic ({error})") from None
    return _tree(tree, names, text)


def _tree(node: ast.expr, names: Collection[str], text: str) -> Expression:
    match node:
        case ast.Constant(value=bool()):
            pass
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.Name(id=name) if name in names:
            return name
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in _SIGNS:
            return _SIGNS[type(sign)], _tree(operand, names, text)
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _SIGNS:
            return _SIGNS[type(sign)], _tree(left, names, text), _tree(right, names, text)
    raise ExpressionError(f"{text!r} is no arithmetic: {ast.unparse(node)!r} is not allowed")


def evaluate(expression: Expression, values: Mapping[str, Any]) -> Any:
    """The value of an expression. Raises ZeroDivisionError or OverflowError as Python does, and
    ExpressionError where the result is complex.
    """
    result = _value(expression, values)
    if isinstance(result, complex):
        raise ExpressionError("the result is complex")
    return result


def _value(expression: Expression, values: Mapping[str, Any]) -> Any:
    match expression:
        case str():
            return values[expression]
        case (sign, operand):
            value = _value(operand, values)
            return -value if sign == "-" else +value
        case (sign, left, right):
            return BINARY[sign](_value(left, values), _value(right, values))
    return expression
