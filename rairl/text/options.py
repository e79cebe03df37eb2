"""Multiple choice: the lettered options of a question, and the one that an answer names."""

from __future__ import annotations

import re
from collections.abc import Mapping

from rairl.text.equality import answers_match, normalise_answer
from rairl.text.markup import bare

_OPTION = re.compile(r"[ \t]*\(?([A-Z])[.):][ \t]+(\S.*?)[ \t]*")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_NAMED = r"(?:(?:the )?(?:(?:correct|right|best) )?(?:option|choice|answer)(?: is)?|选项|选|die Option)[\W_]*"
_LETTER = re.compile(rf"(?:{_NAMED})?[\W_]*([A-Z])[\W_]*", re.IGNORECASE)
_LABELLED = re.compile(
    rf"(?:{_NAMED}([A-Z])\b|[\W_]*\(([A-Z])\)|[\W_]*([A-Z])(?:[\W_]*[.):,;](?=[\s*]|$)|\s+[-–—=]+>?\s|\s?[，。、—]))",
    re.IGNORECASE,
)
_REASONED = re.compile(
    r"[\W_]*([A-Z])[\W_]*\s(?:because|since|as|for|due to|given|weil|da|denn|"
    r"is (?:the )?(?:correct|right|best|answer))\b"
)
_WITH_TEXT = re.compile(r"[\W_]*([A-Z])[\W_]+(.+)", re.IGNORECASE)


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

    By the option's very words, else by letter (``b``, ``(B)``, ``B. measles``, ``B because ...``, ``option B``), else
    by a text that means the same. A marked letter counts before what follows it, be it another one (``(B) and (C)``);
    letters without a mark (``B and C``) and a text that fits several options name none.
    """
    answer = bare(answer)
    whole = [letter for letter, text in options.items() if _same_words(answer, text)]
    if len(whole) == 1 and len(answer) > 1:
        return whole[0]
    text = _WITH_TEXT.fullmatch(answer)
    if text is not None and _same_words(text[2], options.get(text[1].upper(), "")):
        return text[1].upper()
    found = _LETTER.fullmatch(answer) or _LABELLED.match(answer) or _REASONED.match(answer)
    if found is not None:
        letter = next(group for group in found.groups() if group).upper()
        return letter if letter in options else None
    for same in (_same_form, answers_match):
        named = [letter for letter, text in options.items() if same(answer, text)]
        if named:
            return named[0] if len(named) == 1 else None
    return None


def _same_words(one: str, other: str) -> bool:
    words = _plain(one)
    return bool(words) and words == _plain(other)


def _same_form(one: str, other: str) -> bool:
    return normalise_answer(one).casefold() == normalise_answer(other).casefold()


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))
