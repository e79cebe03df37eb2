r"""Whether two answers are equal.

An answer is compared as what it is as a whole: a quantity by its value and unit, a formula by its value, any other text
by its words without case, marks and spaces around signs. Equality holds both ways round, and every answer equals
itself. What only one side says does not part them (``72 cm`` and ``72``), so that of ``5 kg``, ``5`` and ``5 g`` the
last is equal to the second, not to the first: votes go to the first group whose first member they equal.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from rairl.text.formulas import as_latex, same_formula, split_equation
from rairl.text.markup import bare
from rairl.text.quantities import Quantity, format_number, read_quantity


class _Answer(NamedTuple):
    """An answer as it is compared.

    Attributes:
        words: the whole of it.
        name: of what it says the value, as the x of ``x = 5``.
        quantity: its value, if that is a quantity.
        latex: its value, if that is a formula, and the whole of it, if that is one.
    """

    words: str
    name: str
    quantity: Quantity | None
    latex: tuple[str | None, str | None]


@lru_cache(maxsize=2**16)
def _read(answer: str) -> _Answer:
    text = bare(answer)
    name, value = split_equation(text)
    quantity = read_quantity(bare(value))
    plain = quantity is None or not (quantity.unit or quantity.words)
    return _Answer(_words(text), name, quantity, (as_latex(bare(value)), as_latex(text)) if plain else (None, None))


def _words(text: str) -> str:
    r"""Equal for texts that differ in case and in spaces around signs; ``\Delta`` is not ``\delta``."""
    text = re.sub(r"\s*([^\w\s\\])\s*", r"\1", text)
    return re.sub(r"\\[A-Za-z]+|[^\\]+", lambda match: match[0] if match[0][0] == "\\" else match[0].casefold(), text)


def normalise_answer(answer: str) -> str:
    """One written form of an answer: a quantity as its number (``$1,000.00`` is ``1000``, ``42 apples`` is ``42``), any
    other text without marks around it and repeated white space."""
    text = bare(answer)
    quantity = read_quantity(text)
    return text if quantity is None else format_number(quantity.number)


def answers_match(answer: str | None, gold: str, *, exact: bool = False) -> bool:
    """Whether ``answer`` is ``gold``: the very string when ``exact``, else what both say.

    A missing or empty answer is wrong.
    """
    if answer is None or not (said := answer.strip()):
        return False
    wanted = gold.strip()
    if said == wanted:
        return True
    return not exact and bool(wanted) and _equal(_read(said), _read(wanted))


def _equal(one: _Answer, other: _Answer) -> bool:
    if one.words == other.words:
        return bool(one.words)
    whole = one.name != other.name and "=" in one.words and "=" in other.words  # x = 5 is not y = 5, but it is 5 = x
    if not whole and one.quantity is not None and other.quantity is not None:
        return one.quantity.agrees(other.quantity)
    left, right = one.latex[whole], other.latex[whole]
    if left is None or right is None or ("=" in left) != ("=" in right):
        return False
    return same_formula(*sorted((left, right)))


def group_answers(answers: Sequence[str | None]) -> list[str | None]:
    """For each answer the name of its group: equal answers share one, and None has none.

    The name is the first member's written form, made different from the names of other groups where need be.
    """
    names: list[str | None] = []
    groups: dict[str, str] = {}  # first member: name
    known: dict[str, str] = {}
    for answer in answers:
        if answer is None or not answer.strip():
            names.append(None)
            continue
        if answer not in known:
            first = next((member for member in groups if answers_match(answer, member)), answer)
            if first is answer:
                name = normalise_answer(answer) or answer.strip()
                groups[answer] = name if name not in groups.values() else answer.strip()
            known[answer] = groups[first]
        names.append(known[answer])
    return names
