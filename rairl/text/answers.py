"""Final answers: reading them out of a text, bringing them to one form, comparing them.

Two checkers, always reported side by side, because exact matching mixes format with skill: the *lenient* one reads any
common way to mark an answer and compares numbers by value; the *exact* one wants the tags and the very string.
A completion without a readable answer has none (a mistake of form), which is not the same as a wrong one.

The answer of a multiple-choice question is the letter of an option, however it was written down (:func:`read_answer`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction

from rairl.core.errors import RairlError

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
_OPTION = re.compile(r"[ \t]*\(?([A-Z])[.):][ \t]+(\S.*?)[ \t]*")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LETTER = re.compile(r"(?:(?:the )?(?:option|choice) )?[\W_]*([A-Za-z])[\W_]*", re.IGNORECASE)
_LABELLED = re.compile(
    r"(?:(?:the )?(?:option|choice) [\W_]*([A-Z])\b|[\W_]*\(([A-Z])\)|[\W_]*([A-Z])[\W_]*[.):,](?=[\s*]|$))",
    re.IGNORECASE,
)
_LATEX = re.compile(r"\\[A-Za-z]+|\^\{")
_LONGEST_LATEX = 200
_LONGEST = 60
"""More digits than this are not a number anybody meant, but a decoder in a loop."""


def extract_answer(text: str, *, choice: bool = False) -> str | None:
    r"""The final answer as written in ``text``, or None when none is marked.

    Read in this order, the last occurrence of each: ``<answer>...</answer>``, ``\boxed{...}``, ``#### 42``, a line
    ``A: 42``, "the answer is 42". A text that opens ``<answer>`` without closing it was cut off and has no answer.

    Args:
        text: a completion.
        choice: the question has lettered options, so that a line ``A: ...`` is one of them and marks no answer.
    """
    marks = (_MARKS[0], _MARKS[2]) if choice else _MARKS
    if "<answer>" in text:
        blocks = _BLOCK.findall(text)
        if not blocks or text.rfind("<answer>") > text.rfind("</answer>"):
            return None
        inside = blocks[-1].strip()
        return _marked(inside, marks) or inside or None
    return _marked(text, marks)


def options_of(problem: str) -> dict[str, str]:
    """Letter and text of the options that a problem's last lines list (``A. text``, ``(B) text``); empty without any.

    They must be lettered from A on without a gap, two at least, with nothing after them.
    """
    rows: list[tuple[str, str]] = []
    for line in reversed(problem.rstrip().split("\n")):
        match = _OPTION.fullmatch(line)
        if match is None:
            break
        rows.append((match[1], match[2]))
    rows.reverse()
    letters = "".join(letter for letter, _ in rows)
    return dict(rows) if len(rows) >= 2 and _LETTERS.startswith(letters) else {}


def option_letter(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter of the option that ``answer`` names, or None.

    By letter (``b``, ``(B)``, ``B. measles``, ``option B``), else by the option's text. A letter counts before the text
    after it; a text that fits several options names none of them.
    """
    answer = re.sub(r"\\text\{([^{}]*)\}", r"\1", answer).strip().strip("*$\"'` ")
    match = _LETTER.fullmatch(answer) or _LABELLED.match(answer)
    if match is not None:
        letter = next(group for group in match.groups() if group).upper()
        return letter if letter in options else None
    for same in (_plain, normalise_answer):
        named = [letter for letter, text in options.items() if same(text) == same(answer)]
        if named:
            return named[0] if len(named) == 1 else None
    return None


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def read_answer(text: str, problem: str) -> str | None:
    """The final answer of a completion: the letter for a multiple-choice question, else :func:`extract_answer`.

    An answer that names no option stays as it was written: it was given, and is wrong.
    """
    options = options_of(problem)
    answer = extract_answer(text, choice=bool(options))
    return answer if answer is None or not options else option_letter(answer, options) or answer


def _marked(text: str, marks: tuple[re.Pattern[str], ...]) -> str | None:
    boxed = _boxed(text)
    if boxed:
        return boxed
    for mark in marks:
        matches = mark.findall(text)
        if matches:
            answer = matches[-1].strip(" \t*")
            # "Final answer: The answer is `B`": the answer is what the innermost mark says
            return (_marked(answer, marks) or answer) or None
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
    if value is None and not _LATEX.search(answer):  # the root of two is not two
        numbers = re.findall(rf"(?<![\w./,])-?[$€£]?{NUMBER}(?![\w/])", answer.translate(_MINUS))
        value = to_number(numbers[0]) if len(numbers) == 1 else None
    return answer.casefold() if value is None else format_number(value)


def answers_match(answer: str | None, gold: str, *, exact: bool = False) -> bool:
    """Whether ``answer`` is ``gold``: the very string when ``exact``, else by :func:`normalise_answer`.

    Where one of the two is a formula in LaTeX and they are not the same so far, math-verify decides whether they are
    equal. A missing answer is wrong.
    """
    if answer is None:
        return False
    if exact:
        return answer.strip() == gold.strip()
    if normalise_answer(answer) == normalise_answer(gold):
        return True
    return bool(_LATEX.search(answer) or _LATEX.search(gold)) and _same_formula(answer, gold)


def _same_formula(answer: str, gold: str) -> bool:
    """Whether two formulas are equal, by math-verify; what is too long to be an answer is not."""
    if max(len(answer), len(gold)) > _LONGEST_LATEX:
        return False
    try:
        from math_verify import parse, verify
    except ImportError as error:
        raise RairlError(f"comparing {answer[:40]!r} with {gold[:40]!r} needs `pip install math-verify`") from error
    return bool(verify(parse(f"${gold}$"), parse(f"${answer}$")))


def well_formed(text: str) -> bool:
    """Whether ``text`` is exactly one think block followed by one non-empty answer line in its block."""
    return _FORM.fullmatch(text) is not None and text.count("<answer>") == 1 and text.count("<think>") == 1


def grade(text: str, gold: str, *, exact: bool = False) -> bool:
    """Whether the completion ``text`` ends in the answer ``gold``; when ``exact``, also in the prescribed form."""
    if exact and not well_formed(text):
        return False
    return answers_match(extract_answer(text), gold, exact=exact)
