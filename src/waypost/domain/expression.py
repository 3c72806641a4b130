"""The home of the retry-delay language: text to a function from `retried` to milliseconds.

    sum     = product {("+" | "-") product}
    product = factor {("*" | "/") factor}
    factor  = number | "retried" | "-" factor | "(" sum ")" | name "(" sum {"," sum} ")"
    name    = pow min max (two arguments) | exp sqrt abs floor ceil round (one)

`retried` counts the retries already made, so it is 0 for the first (W61).
Everything is a float: no number can grow without bound and no text takes long.
`round` rounds halves away from zero.

An expression is checked when it is published: a value that is not finite, for
any retry that may come, is refused.  Should one turn up later all the same
(overflow, a division by zero, a root of a negative), the wait is the longest
there is: a mistake must not become a flood.
"""

import math
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from msgspec import Struct

from waypost.domain.errors import Invalid

WAIT_MS_MAX: Final = 86_400_000

_TEXT_CHARS_MAX: Final = 256
_DEPTH_MAX: Final = 16
_NODES_MAX: Final = 64

_Node = Callable[[float], float]

_WORD: Final = re.compile(
    r"[ \t]*(?:((?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+\-]?[0-9]+)?)|([a-z]+)|([-+*/(),]))"
)


def _round(x: float) -> float:
    whole = math.trunc(x)
    return float(whole + (math.copysign(1, x) if abs(x - whole) >= 0.5 else 0))


_ONE: Final[dict[str, Callable[[float], float]]] = {
    "exp": math.exp,
    "sqrt": math.sqrt,
    "abs": abs,
    "floor": lambda x: float(math.floor(x)),
    "ceil": lambda x: float(math.ceil(x)),
    "round": _round,
}
_TWO: Final[dict[str, Callable[[float, float], float]]] = {
    "pow": math.pow,
    "min": min,
    "max": max,
    "+": lambda x, y: x + y,
    "-": lambda x, y: x - y,
    "*": lambda x, y: x * y,
    "/": lambda x, y: x / y,
}
_OPERATORS: Final = ({"+", "-"}, {"*", "/"})
"""From the loosest to the tightest."""


class Expression(Struct, frozen=True):
    """A compiled expression."""

    node: _Node

    def value(self, retried: int) -> float | None:
        """The bare value in milliseconds, or None where it is not a finite number."""
        try:
            value = self.node(float(retried))
        except (ArithmeticError, ValueError):
            return None
        return value if math.isfinite(value) else None

    def wait_ms(self, retried: int) -> int:
        """How long to wait before the retry that follows `retried` others; at most a day."""
        value = self.value(retried)
        return WAIT_MS_MAX if value is None else int(min(max(value, 0), WAIT_MS_MAX))


@lru_cache(maxsize=1024)
def compile_expression(text: str) -> Expression:
    """Compile an expression.  Raises Invalid with the reason."""
    if len(text) > _TEXT_CHARS_MAX:
        raise Invalid(f"the expression is longer than {_TEXT_CHARS_MAX} characters")
    return Expression(_Parser(text).parse())


@lru_cache(maxsize=1024)
def check_expression(text: str, *, retries_max: int) -> None:
    """Raise Invalid when the expression is wrong, or not finite for a retry that may come."""
    expression = compile_expression(text)
    for retried in range(retries_max):
        if expression.value(retried) is None:
            raise Invalid(f"the expression is not a finite number where retried is {retried}")


class _Parser:
    """Recursive descent over the words; builds closures, innermost first."""

    def __init__(self, text: str) -> None:
        self._words = _words(text)
        self._position = 0
        self._depth = 0
        self._nodes = 0

    def parse(self) -> _Node:
        node = self._chain(0)
        if self._peek():
            raise Invalid(f"unexpected {self._peek()!r} in the expression")
        return node

    def _peek(self) -> str:
        return self._words[self._position]

    def _take(self) -> str:
        word = self._words[self._position]
        # The empty word at the end is never passed.
        self._position += bool(word)
        return word

    def _expect(self, word: str) -> None:
        found = self._take()
        if found != word:
            raise Invalid(f"expected {word!r} but found {found or 'the end'!r} in the expression")

    def _count(self) -> None:
        self._nodes += 1
        if self._nodes > _NODES_MAX:
            raise Invalid(f"the expression has more than {_NODES_MAX} parts")

    def _chain(self, tightness: int) -> _Node:
        """One level of left-associative operators."""
        tighter = tightness + 1
        operand = self._factor if tighter == len(_OPERATORS) else lambda: self._chain(tighter)
        node = operand()
        while self._peek() in _OPERATORS[tightness]:
            self._count()
            node = _apply_two(_TWO[self._take()], node, operand())
        return node

    def _factor(self) -> _Node:
        self._depth += 1
        if self._depth > _DEPTH_MAX:
            raise Invalid(f"the expression is nested deeper than {_DEPTH_MAX}")
        self._count()
        node = self._factor_at(self._take())
        self._depth -= 1
        return node

    def _factor_at(self, word: str) -> _Node:
        if word == "-":
            operand = self._factor()
            return lambda retried: -operand(retried)
        if word == "(":
            node = self._chain(0)
            self._expect(")")
            return node
        if word == "retried":
            return lambda retried: retried
        if word in _ONE:
            self._expect("(")
            node = _apply_one(_ONE[word], self._chain(0))
            self._expect(")")
            return node
        if word in _TWO and word.isalpha():
            self._expect("(")
            left = self._chain(0)
            self._expect(",")
            node = _apply_two(_TWO[word], left, self._chain(0))
            self._expect(")")
            return node
        if word[:1].isdigit() or word[:1] == ".":
            number = float(word)
            if math.isinf(number):
                raise Invalid("a number in the expression is too large")
            return lambda _: number
        raise Invalid(f"unexpected {word or 'end'!r} in the expression")


def _apply_one(function: Callable[[float], float], operand: _Node) -> _Node:
    return lambda retried: function(operand(retried))


def _apply_two(function: Callable[[float, float], float], left: _Node, right: _Node) -> _Node:
    return lambda retried: function(left(retried), right(retried))


def _words(text: str) -> list[str]:
    """All words, and an empty one for the end."""
    words = []
    position = 0
    text = text.rstrip(" \t")
    while position < len(text):
        found = _WORD.match(text, position)
        if found is None:
            raise Invalid(f"unexpected {text[position:].lstrip()[:1]!r} in the expression")
        words.append(found[found.lastindex or 0])
        position = found.end()
    return [*words, ""]
