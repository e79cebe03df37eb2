"""A word problem of the built-in benchmark: its sentences, its solution, and the exact check of a step."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rairl.text.segment import compose

NAMES = (
    "Ana Ben Cleo Dan Eva Finn Gina Hugo Iris Jack Kim Leo".split()
)  # one word each, so that the parser can be a plain pattern
THINGS = "apples books coins eggs flowers marbles pencils shells".split()
DEMONSTRATED = ("more", "fewer", "times", "half")
UNSEEN = ("twice", "third")
"""Statement kinds that no demonstration has (they do occur in the pre-training corpus)."""


@dataclass(frozen=True, slots=True)
class Statement:
    """``subject`` has what ``ref`` has, changed by ``kind`` and, for some kinds, by ``number``."""

    kind: str
    subject: str
    ref: str
    number: int = 0


@dataclass(frozen=True, slots=True)
class Problem:
    """What the first person has, and how the others' possessions follow; the question asks for the last one's."""

    thing: str
    first: str
    start: int
    statements: tuple[Statement, ...]


# --- text ------------------------------------------------------------------------------------------------------------

SENTENCES: dict[str, str] = {
    "more": "{subject} has {number} more {thing} than {ref}.",
    "fewer": "{subject} has {number} fewer {thing} than {ref}.",
    "times": "{subject} has {number} times as many {thing} as {ref}.",
    "half": "{subject} has half as many {thing} as {ref}.",
    "twice": "{subject} has twice as many {thing} as {ref}.",
    "third": "{subject} has a third as many {thing} as {ref}.",
}
REWORDED: dict[str, str] = {
    "more": "{subject} has as many {thing} as {ref} and {number} more.",
    "fewer": "{subject} has as many {thing} as {ref} but {number} fewer.",
    "times": "{subject} has {number} times the {thing} that {ref} has.",
    "half": "{subject} has half the {thing} that {ref} has.",
}
"""The demonstrated kinds in words that neither the demonstrations nor the pre-training corpus use."""
EXPRESSIONS: dict[str, str] = {
    "more": "{x} + {number}",
    "fewer": "{x} - {number}",
    "times": "{number} * {x}",
    "half": "{x} / 2",
    "twice": "2 * {x}",
    "third": "{x} / 3",
}
COMMUTED: dict[str, str] = {"more": "{number} + {x}", "times": "{x} * {number}", "twice": "{x} * 2"}
"""The other order of what commutes; as right as the first."""


def _pattern(sentence: str) -> re.Pattern[str]:
    fields = {
        "subject": r"(?P<subject>\w+)",
        "number": r"(?P<number>\d+)",
        "thing": r"\w+",
        "ref": r"(?P<ref>\w+)",
    }
    return re.compile(re.sub(r"\\{(\w+)\\}", lambda match: fields[match[1]], re.escape(sentence)))


_PATTERNS = [(kind, _pattern(sentence)) for wording in (SENTENCES, REWORDED) for kind, sentence in wording.items()]
_FIRST = re.compile(r"Today (\w+) has (\d+) (\w+)\.")
_STEP = re.compile(r"So (?P<subject>\w+) has (?P<expression>[\d+\-*/() ]+) = (?P<result>\d+) (?P<thing>\w+)\.")


def render(problem: Problem, wording: Mapping[str, str] = SENTENCES) -> str:
    """The problem in English; ``wording`` has the sentence of each kind of statement."""
    parts = [f"Today {problem.first} has {problem.start} {problem.thing}."]
    for statement in problem.statements:
        parts.append(
            wording[statement.kind].format(
                subject=statement.subject, number=statement.number, thing=problem.thing, ref=statement.ref
            )
        )
    parts.append(f"How many {problem.thing} does {problem.statements[-1].subject} have?")
    return " ".join(parts)


def parse(text: str) -> Problem:
    """Inverse of :func:`render`.

    Raises:
        ValueError: when a sentence is not one that :func:`render` writes.
    """
    first, *rest = re.findall(r"[^.?]+[.?]", text)
    head = _FIRST.fullmatch(first.strip())
    if head is None:
        raise ValueError(f"not a problem of this benchmark: {text!r}")
    statements = []
    for sentence in rest[:-1]:
        for kind, pattern in _PATTERNS:
            match = pattern.fullmatch(sentence.strip())
            if match:
                fields = match.groupdict()
                statements.append(Statement(kind, fields["subject"], fields["ref"], int(fields.get("number", 0))))
                break
        else:
            raise ValueError(f"not a statement of this benchmark: {sentence.strip()!r}")
    return Problem(thing=head[3], first=head[1], start=int(head[2]), statements=tuple(statements))


def apply(kind: str, x: int, number: int) -> int:
    match kind:
        case "more":
            return x + number
        case "fewer":
            return x - number
        case "times":
            return number * x
        case "half":
            return x // 2
        case "twice":
            return 2 * x
        case "third":
            return x // 3
    raise ValueError(f"unknown statement kind {kind!r}")


def derive(problem: Problem) -> dict[str, int]:
    """What each person has."""
    values = {problem.first: problem.start}
    for statement in problem.statements:
        values[statement.subject] = apply(statement.kind, values[statement.ref], statement.number)
    return values


def step_text(problem: Problem, statement: Statement, x: int, result: int) -> str:
    expression = EXPRESSIONS[statement.kind].format(x=x, number=statement.number)
    return f"So {statement.subject} has {expression} = {result} {problem.thing}."


def expert_steps(problem: Problem) -> list[str]:
    """The expert's solution, one step per statement, in the problem's order."""
    values = derive(problem)
    return [
        step_text(problem, statement, values[statement.ref], values[statement.subject])
        for statement in problem.statements
    ]


def completion(steps: Sequence[str], answer: int | str) -> str:
    """Steps and answer in the form every trace has."""
    return compose(steps, str(answer))[0]


def is_problem(text: str) -> bool:
    """Whether ``text`` is a problem of this benchmark, so that the oracle can judge its solutions."""
    try:
        return bool(parse(text).statements)
    except ValueError:
        return False


# --- oracle ----------------------------------------------------------------------------------------------------------


def first_error(problem: str, steps: Sequence[str]) -> int | None:
    """Index of the first wrong step (0-based), or None when every step is right.

    Step i is right when it derives the i-th statement: right person, thing, operands (the true value, in either order
    where the operation commutes), operation and result. A step beyond the last statement is wrong. A solution that
    stops early has no wrong step; its answer is then missing or wrong.
    """
    parsed = parse(problem)
    values = derive(parsed)
    for index, step in enumerate(steps):
        if index >= len(parsed.statements) or not right(parsed, parsed.statements[index], values, step):
            return index
    return None


def right(problem: Problem, statement: Statement, values: dict[str, int], step: str) -> bool:
    match = _STEP.fullmatch(step.strip())
    if match is None or match["subject"] != statement.subject or match["thing"] != problem.thing:
        return False
    if match["result"] != str(values[statement.subject]):
        return False
    forms = [EXPRESSIONS[statement.kind], COMMUTED.get(statement.kind, EXPRESSIONS[statement.kind])]
    return match["expression"] in {form.format(x=values[statement.ref], number=statement.number) for form in forms}
