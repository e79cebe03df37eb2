"""Equations in the text of a step: found, read and evaluated."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from rairl.text.answers import NUMBER

_TOKEN = re.compile(rf"(?P<number>{NUMBER})|(?P<operator>(?<![A-Za-z])[xX](?![A-Za-z])|[-+*/×÷−–])|(?P<other>[()=])")
_SAME = str.maketrans("xX×÷−–", "***/--")
_GLUE = re.compile(r"[ \t]*%?[ \t]*[$€£]?[ \t]*")
"""What may stand between the parts of an equation: white space, a percent sign, a currency sign."""


@dataclass(frozen=True, slots=True)
class Token:
    """A part of an equation: ``kind`` is ``#`` for a number, else one of ``+ - * / ( ) =``; a span of the text."""

    kind: str
    start: int
    end: int
    value: Fraction = Fraction(0)
    percent: bool = False

    @property
    def worth(self) -> Fraction:
        """The number's value in a calculation: a percentage counts as its hundredth."""
        return self.value / 100 if self.percent else self.value


@dataclass(frozen=True, slots=True)
class Equation:
    """``left = result`` as written: an expression with at least one operator, and a plain number."""

    left: tuple[Token, ...]
    result: Token

    @property
    def holds(self) -> bool:
        """Whether it is true."""
        return evaluate(self.left) == self.result.worth


def tokens(text: str) -> list[Token]:
    """Numbers, operators, brackets and equality signs of ``text``, in order."""
    parts = []
    for match in _TOKEN.finditer(text):
        if match["number"]:
            percent = re.match(r"[ \t]*%", text[match.end() : match.end() + 4]) is not None
            parts.append(Token("#", *match.span(), Fraction(match[0].replace(",", "")), percent))
        else:
            parts.append(Token(match[0].translate(_SAME), *match.span()))
    return parts


def equations(text: str) -> list[Equation]:
    """Equations such as ``12 + 5 = 17``, ``12+5=$17``, ``3 x 4 = 12``, ``(1 + 2) * 3 = 9``, ``50% * 8 = 4``.

    The left side is an expression from its beginning (no unit words inside), the right side a single number. In a chain
    ``2 * 3 = 6 + 1 = 7`` only the last link has that form.
    """
    complete = []
    for run in equation_runs(text):
        parts: list[list[Token]] = [[]]
        for token in run:
            if token.kind == "=":
                parts.append([])
            else:
                parts[-1].append(token)
        for left, right in pairwise(parts):
            if len(right) == 1 and right[0].kind == "#" and len(left) > 2 and evaluate(left) is not None:
                complete.append(Equation(tuple(left), right[0]))
    return complete


def equation_runs(text: str) -> Iterator[list[Token]]:
    """Tokens with nothing but glue between them."""
    run: list[Token] = []
    for token in tokens(text):
        if run and not _GLUE.fullmatch(text, run[-1].end, token.start):
            yield run
            run = []
        run.append(token)
    if run:
        yield run


def evaluate(expression: Sequence[Token]) -> Fraction | None:
    """The exact value of an expression with the usual precedence; None when it is malformed or divides by zero."""
    rest = list(reversed(expression))

    def factor() -> Fraction:
        token = rest.pop()
        if token.kind == "#":
            return token.worth
        if token.kind != "(":
            raise ValueError
        value = total()
        if rest.pop().kind != ")":
            raise ValueError
        return value

    def product() -> Fraction:
        value = factor()
        while rest and rest[-1].kind in ("*", "/"):
            value = value * factor() if rest.pop().kind == "*" else value / factor()
        return value

    def total() -> Fraction:
        value = product()
        while rest and rest[-1].kind in ("+", "-"):
            value = value + product() if rest.pop().kind == "+" else value - product()
        return value

    try:
        value = total()
    except (IndexError, ValueError, ZeroDivisionError):
        return None
    return None if rest else value
