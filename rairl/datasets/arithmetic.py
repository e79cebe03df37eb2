"""The built-in benchmark: generated word problems whose every step can be checked exactly.

A problem tells what one person has and how the others' possessions follow from it. The expert derives them one after
the other, one step per statement::

    Today Tom has 12 apples. Ana has 5 more apples than Tom. Ben has 3 times as many apples as Ana.
    How many apples does Ben have?

    So Ana has 12 + 5 = 17 apples.
    So Ben has 3 * 17 = 51 apples.

The *oracle* (:func:`first_error`) parses the problem's text back and re-derives every step, so it needs nothing but
what the reader sees. The pre-training corpus (:func:`corpus`) is written by many authors, most of whom have systematic
habits (read "fewer" as "more", take the person mentioned last): a model trained on it is wrong *with confidence*, as a
real language model is, and its wrong answers agree with one another. Experts have no such habits.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from rairl.params import ArithmeticDataset
from rairl.traces import Trace, locate_steps

NAMES = (
    "Ana Ben Cleo Dan Eva Finn Gina Hugo Iris Jack Kim Leo".split()
)  # one word each, so that the parser can be a plain pattern
THINGS = "apples books coins eggs flowers marbles pencils shells".split()
DEMONSTRATED = ("more", "fewer", "times", "together")
UNSEEN = ("half", "twice_together")
"""Statement kinds that no demonstration has (they do occur in the pre-training corpus)."""


@dataclass(frozen=True, slots=True)
class Statement:
    """``subject`` has something derived from the people in ``refs`` by ``kind`` and, for some kinds, ``number``."""

    kind: str
    subject: str
    refs: tuple[str, ...]
    number: int = 0


@dataclass(frozen=True, slots=True)
class Problem:
    """What the first person has, and how the others' possessions follow; the question asks for the last one's."""

    thing: str
    first: str
    start: int
    statements: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """What a split may contain: chain length, statement kinds, and the numbers' bounds."""

    steps: tuple[int, int] = (2, 4)
    kinds: tuple[str, ...] = DEMONSTRATED
    values: tuple[int, int] = (2, 30)
    starts: tuple[int, int] = (8, 20)


IN_RANGE = Range()
OUT_OF_RANGE = {
    "ood_longer": Range(steps=(5, 6)),
    "ood_operators": Range(kinds=DEMONSTRATED + UNSEEN),
    "ood_numbers": Range(values=(2, 60), starts=(31, 50)),
}


# --- text ------------------------------------------------------------------------------------------------------------

_SENTENCES: dict[str, str] = {
    "more": "{subject} has {number} more {thing} than {a}.",
    "fewer": "{subject} has {number} fewer {thing} than {a}.",
    "times": "{subject} has {number} times as many {thing} as {a}.",
    "together": "{subject} has as many {thing} as {a} and {b} together.",
    "half": "{subject} has half as many {thing} as {a}.",
    "twice_together": "{subject} has twice as many {thing} as {a} and {b} together.",
}
_EXPRESSIONS: dict[str, str] = {
    "more": "{x} + {number}",
    "fewer": "{x} - {number}",
    "times": "{number} * {x}",
    "together": "{x} + {y}",
    "half": "{x} / 2",
    "twice_together": "2 * ({x} + {y})",
}


def _pattern(sentence: str) -> re.Pattern[str]:
    fields = {
        "subject": r"(?P<subject>\w+)",
        "number": r"(?P<number>\d+)",
        "thing": r"\w+",
        "a": r"(?P<a>\w+)",
        "b": r"(?P<b>\w+)",
    }
    return re.compile(re.sub(r"\\{(\w+)\\}", lambda match: fields[match[1]], re.escape(sentence)))


_PATTERNS = {kind: _pattern(sentence) for kind, sentence in _SENTENCES.items()}
_FIRST = re.compile(r"Today (\w+) has (\d+) (\w+)\.")
_STEP = re.compile(r"So (?P<subject>\w+) has (?P<expression>[\d+\-*/() ]+) = (?P<result>\d+) (?P<thing>\w+)\.")


def render(problem: Problem) -> str:
    """The problem in English."""
    parts = [f"Today {problem.first} has {problem.start} {problem.thing}."]
    for said in problem.statements:
        refs = dict(zip("ab", said.refs, strict=False))
        parts.append(
            _SENTENCES[said.kind].format(subject=said.subject, number=said.number, thing=problem.thing, **refs)
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
        for kind, pattern in _PATTERNS.items():
            match = pattern.fullmatch(sentence.strip())
            if match:
                found = match.groupdict()
                refs = tuple(found[key] for key in "ab" if key in found)
                statements.append(Statement(kind, found["subject"], refs, int(found.get("number", 0))))
                break
        else:
            raise ValueError(f"not a statement of this benchmark: {sentence.strip()!r}")
    return Problem(thing=head[3], first=head[1], start=int(head[2]), statements=tuple(statements))


def _apply(said: Statement, values: Sequence[int]) -> int:
    x = values[0]
    match said.kind:
        case "more":
            return x + said.number
        case "fewer":
            return x - said.number
        case "times":
            return said.number * x
        case "together":
            return x + values[1]
        case "half":
            return x // 2
        case "twice_together":
            return 2 * (x + values[1])
    raise ValueError(f"unknown statement kind {said.kind!r}")


def derive(problem: Problem) -> dict[str, int]:
    """What each person has."""
    values = {problem.first: problem.start}
    for said in problem.statements:
        values[said.subject] = _apply(said, [values[ref] for ref in said.refs])
    return values


def _step_text(problem: Problem, said: Statement, operands: Sequence[int], result: int, kind: str | None = None) -> str:
    names = dict(zip("xy", operands, strict=False))
    expression = _EXPRESSIONS[kind or said.kind].format(number=said.number, **names)
    return f"So {said.subject} has {expression} = {result} {problem.thing}."


def expert_steps(problem: Problem) -> list[str]:
    """The expert's solution, one step per statement, in the problem's order."""
    values = derive(problem)
    return [
        _step_text(problem, said, [values[ref] for ref in said.refs], values[said.subject])
        for said in problem.statements
    ]


def completion(steps: Sequence[str], answer: int | str) -> str:
    """Steps and answer in the form every trace has."""
    return "<think>\n" + "\n".join(steps) + f"\n</think>\n<answer>\n{answer}\n</answer>"


def is_problem(text: str) -> bool:
    """Whether ``text`` is a problem of this benchmark, so that the oracle can judge its solutions."""
    try:
        return bool(parse(text).statements)
    except ValueError:
        return False


# --- oracle ----------------------------------------------------------------------------------------------------------


def first_error(problem: str, steps: Sequence[str]) -> int | None:
    """Index of the first wrong step (0-based), or None when every step is right.

    Step i is right when it derives the i-th statement: right person, thing, operands (true values, in either order
    where the operation commutes), operation and result. A step beyond the last statement is wrong. A solution that
    stops early has no wrong step; its answer is then missing or wrong.
    """
    parsed = parse(problem)
    values = derive(parsed)
    for index, step in enumerate(steps):
        if index >= len(parsed.statements) or not _right(parsed, parsed.statements[index], values, step):
            return index
    return None


def _right(problem: Problem, said: Statement, values: dict[str, int], step: str) -> bool:
    match = _STEP.fullmatch(step.strip())
    if match is None or match["subject"] != said.subject or match["thing"] != problem.thing:
        return False
    if match["result"] != str(values[said.subject]):
        return False
    operands = [values[ref] for ref in said.refs]
    orders = [operands, operands[::-1]]
    allowed = {
        _EXPRESSIONS[said.kind].format(number=said.number, **dict(zip("xy", order, strict=False))) for order in orders
    }
    if said.kind == "more":
        allowed.add(f"{said.number} + {operands[0]}")
    if said.kind == "times":
        allowed.add(f"{operands[0]} * {said.number}")
    return match["expression"] in allowed


# --- problems --------------------------------------------------------------------------------------------------------


def generate(rng: random.Random, allowed: Range) -> Problem:
    """Draw one problem. Every kind in ``allowed.kinds`` is equally likely wherever it keeps the values in bounds."""
    low, high = allowed.values
    while True:
        count = rng.randint(*allowed.steps)
        at = rng.randrange(len(NAMES) - count)
        people = NAMES[at : at + count + 1]  # in alphabetical order, which a tiny model can follow
        values = {people[0]: rng.randint(*allowed.starts)}
        statements: list[Statement] = []
        for subject in people[1:]:
            said = _draw(rng, allowed, subject, values)
            result = _apply(said, [values[ref] for ref in said.refs])
            if not low <= result <= high or (said.kind == "half" and values[said.refs[0]] % 2):
                break
            values[subject] = result
            statements.append(said)
        if len(statements) == count and (allowed.kinds == DEMONSTRATED or any(s.kind in UNSEEN for s in statements)):
            return Problem(rng.choice(THINGS), people[0], values[people[0]], tuple(statements))


def _draw(rng: random.Random, allowed: Range, subject: str, values: dict[str, int]) -> Statement:
    kinds = [kind for kind in allowed.kinds if len(values) > 1 or "together" not in kind]
    kind = rng.choice(kinds)
    people = list(values)[-2:]  # nobody further back: a tiny model can follow that
    if "together" in kind:
        return Statement(kind, subject, tuple(people))
    ref = rng.choice(people)
    number = {"times": lambda: rng.randint(2, 3), "half": lambda: 0}.get(kind, lambda: rng.randint(2, 6))()
    return Statement(kind, subject, (ref,), number)


def trace(problem: Problem, key: str, *, solved: bool, source: str = "expert") -> Trace:
    """The problem as a trace: with the expert's solution, or as a prompt that only knows its answer."""
    text = render(problem)
    gold = str(derive(problem)[problem.statements[-1].subject])
    if not solved:
        return Trace(id=key, problem=text, gold=gold)
    steps = expert_steps(problem)
    written = completion(steps, gold)
    spans = locate_steps(written, steps)
    return Trace(key, text, written, spans, gold, gold, True, None, True, source)


def build(params: ArithmeticDataset, seed: int) -> dict[str, list[Trace]]:
    """All splits, deterministic in ``seed``; no problem occurs in two of them, nor twice in one."""
    plan: list[tuple[str, int, Range, bool]] = [
        ("test", params.test, IN_RANGE, False),
        ("dev", params.dev, IN_RANGE, True),
        ("demos", params.demos, IN_RANGE, True),
        ("prompts", params.prompts, IN_RANGE, False),
    ]
    plan += [(name, params.ood, allowed, False) for name, allowed in OUT_OF_RANGE.items()]
    seen: set[str] = set()
    splits = {}
    for name, count, allowed, solved in plan:
        rng = random.Random(f"arithmetic/{seed}/{name}")
        rows: list[Trace] = []
        while len(rows) < count:
            problem = generate(rng, allowed)
            if render(problem) not in seen:
                seen.add(render(problem))
                rows.append(trace(problem, f"{name}-{len(rows)}", solved=solved))
        splits[name] = rows
    return splits


# --- the pre-training corpus -----------------------------------------------------------------------------------------

HABIT_RATE = 0.8
"""Probability that a careless author has a given habit."""
CAREFUL_RATE = 0.2
"""Share of authors without any habit."""


HABITS = ("fewer_as_more", "times_as_more", "last_person", "together_once")


def author(rng: random.Random) -> frozenset[str]:
    """Draw an author: the set of habits they have."""
    if rng.random() < CAREFUL_RATE:
        return frozenset()
    return frozenset(habit for habit in HABITS if rng.random() < HABIT_RATE)


def habitual_steps(problem: Problem, habits: frozenset[str]) -> tuple[list[str], int]:
    """Steps and answer as an author with these habits writes them: wrong steps are followed up consistently."""
    values = {problem.first: problem.start}
    last = problem.first
    steps = []
    for said in problem.statements:
        refs = list(said.refs)
        if "last_person" in habits and len(refs) == 1:
            refs = [last]
        if "together_once" in habits and len(refs) == 2:
            refs = [refs[1], refs[1]]
        operands = [values[ref] for ref in refs]
        kind = said.kind
        if kind == "fewer" and "fewer_as_more" in habits:
            kind = "more"
        if kind == "times" and "times_as_more" in habits:
            kind = "more"
        result = max(_apply(replace(said, kind=kind), operands), 0)  # people have no fewer than nothing
        steps.append(_step_text(problem, said, operands, result, kind))
        values[said.subject] = result
        last = said.subject
    return steps, values[last]


def corpus(count: int, seed: int, exclude: frozenset[str] = frozenset()) -> Iterator[tuple[str, str]]:
    """``count`` pairs (problem, completion) by many authors, over all ranges and kinds.

    Problems in ``exclude`` are left out, so that the base model has never seen a problem of the splits.
    """
    rng = random.Random(f"arithmetic/{seed}/corpus")
    ranges = [IN_RANGE] * 5 + list(OUT_OF_RANGE.values())
    made = 0
    while made < count:
        problem = generate(rng, rng.choice(ranges))
        text = render(problem)
        if text in exclude:
            continue
        steps, answer = habitual_steps(problem, author(rng))
        made += 1
        yield text, completion(steps, answer)
