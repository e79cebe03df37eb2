"""Final answers: reading them out of a text, bringing them to one form, comparing them.

Two checkers, always reported side by side, because exact matching mixes format with skill: the *lenient* one reads any
common way to mark an answer and compares numbers by value; the *exact* one wants the tags and the very string.
"""

from __future__ import annotations

import re
from fractions import Fraction

NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
"""A number as people write it: ``1,000``, ``3.50``, ``.5``. No sign, no currency."""

_MINUS = str.maketrans("−–", "--")
_BLOCK = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_FORM = re.compile(r"<think>\n.*?\n</think>\n<answer>\n([^\n<>]+)\n</answer>\s*", re.DOTALL)
_MARKS = (
    re.compile(r"^\s*####[ \t]*(.+?)[ \t]*$", re.MULTILINE),
    re.compile(r"^[ \t]*A:[ \t]*(.+?)[ \t]*$", re.MULTILINE),
    re.compile(r"\banswer(?:[ \t]+is[ \t]*:?|:)[ \t]*([^\s:].*?)(?=[.!](?:\s|$)|\n|$)", re.IGNORECASE),
)
_FRACTION = re.compile(rf"(?P<whole>\d+ )?(?P<top>{NUMBER}) ?/ ?(?P<bottom>{NUMBER})")
_LONGEST = 60
"""More digits than this are not a number anybody meant, but a decoder in a loop."""


def extract_answer(text: str) -> str | None:
    r"""The final answer as written in ``text``, or None when none is marked.

    Read in this order, the last occurrence of each: ``<answer>...</answer>``, ``\boxed{...}``, ``#### 42``, a line
    ``A: 42``, "the answer is 42". A text that opens ``<answer>`` without closing it was cut off and has no answer.
    """
    if "<answer>" in text:
        blocks = _BLOCK.findall(text)
        if not blocks or text.rfind("<answer>") > text.rfind("</answer>"):
            return None
        inside = blocks[-1].strip()
        return _marked(inside) or inside or None
    return _marked(text)


def _marked(text: str) -> str | None:
    boxed = _boxed(text)
    if boxed:
        return boxed
    for mark in _MARKS:
        found = mark.findall(text)
        if found:
            return found[-1].strip(" \t*") or None
    return None


def _boxed(text: str) -> str | None:
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    start += len("\\boxed{")
    depth = 1
    for at in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[start:at].strip() or None
    return None


def to_number(text: str) -> Fraction | None:
    r"""The value of a text that is one number, or None.

    Understands a sign, ``$``, thousands commas, a trailing ``%`` (kept as the plain number: 25% is 25), decimals,
    ``3/4``, ``2 1/2`` and ``\frac{3}{4}``.
    """
    text = re.sub(r"\\[dt]?frac\{([^{}]+)\}\{([^{}]+)\}", r"\1/\2", text.translate(_MINUS))
    text = re.sub(r"\\text\{[^{}]*\}|\\[()\[\],!;]|[$€£\\{}]", "", text).strip().rstrip("%.").strip()
    sign = -1 if text.startswith("-") else 1
    text = text.lstrip("+-").strip()
    if len(text) > _LONGEST:
        return None
    if re.fullmatch(NUMBER, text):
        return sign * Fraction(text.replace(",", ""))
    match = _FRACTION.fullmatch(text)
    if match is None:
        return None
    top, bottom = (Fraction(match[name].replace(",", "")) for name in ("top", "bottom"))
    return sign * (Fraction(match["whole"] or 0) + top / bottom) if bottom else None


def format_number(value: Fraction) -> str:
    """A number in its one form: no commas, no trailing zeros; a fraction where no finite decimal exists."""
    if value.denominator == 1:
        return str(value.numerator)
    places = next((places for places in range(1, 13) if (value * 10**places).denominator == 1), None)
    if places is None:
        return f"{value.numerator}/{value.denominator}"
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"


def normalise_answer(answer: str) -> str:
    """One form for equal answers, for matching and for votes.

    A number by its value (``$1,000.00`` and ``1000`` are the same); a text with exactly one number in it by that number
    (``42 apples``); any other text without case, surrounding punctuation and repeated white space (``(B).`` is ``b``).
    """
    answer = " ".join(answer.split()).lstrip("([*\"',;: ").rstrip(")]*\"'.,;: ")
    value = to_number(answer)
    if value is None:
        numbers = re.findall(rf"(?<![\w./,])-?[$€£]?{NUMBER}(?![\w/])", answer.translate(_MINUS))
        value = to_number(numbers[0]) if len(numbers) == 1 else None
    return answer.casefold() if value is None else format_number(value)


def answers_match(answer: str | None, gold: str, *, exact: bool = False) -> bool:
    """Whether ``answer`` is ``gold``: the very string when ``exact``, else by :func:`normalise_answer`.

    A missing answer is wrong.
    """
    if answer is None:
        return False
    if exact:
        return answer.strip() == gold.strip()
    return normalise_answer(answer) == normalise_answer(gold)


def well_formed(text: str) -> bool:
    """Whether ``text`` is exactly one think block followed by one non-empty answer line in its block."""
    return _FORM.fullmatch(text) is not None and text.count("<answer>") == 1 and text.count("<think>") == 1


def grade(text: str, gold: str, *, exact: bool = False) -> bool:
    """Whether the completion ``text`` ends in the answer ``gold``; when ``exact``, also in the prescribed form."""
    if exact and not well_formed(text):
        return False
    return answers_match(extract_answer(text), gold, exact=exact)
