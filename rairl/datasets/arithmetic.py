"""The built-in benchmark: generated word problems whose every step can be checked exactly.

A problem tells what one person has and how each next person's possessions follow from the one's before. The expert
derives them one after the other, one step per statement::

    Today Tom has 12 apples. Ana has 5 more apples than Tom. Ben has 3 times as many apples as Ana.
    How many apples does Ben have?

    So Ana has 12 + 5 = 17 apples.
    So Ben has 3 * 17 = 51 apples.

The *oracle* (:func:`first_error`) parses the problem's text back and re-derives every step, so it needs nothing but
what the reader sees. The pre-training corpus (:func:`corpus`) is written by many authors, most of whom have systematic
habits (double where they should halve, go on with the number read last), and nearly all of whom share one
misconception: those of one corpus add where "fewer" asks to subtract, those of another subtract where "more" asks to
add. A model trained on it is wrong *with confidence*, as a real language model is, its wrong answers agree with one
another, and a model of another corpus is wrong elsewhere. Experts have neither.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from rairl.core.dataset_params import ArithmeticDataset
from rairl.core.traces import Trace
from rairl.datasets.arithmetic_problem import (
    DEMONSTRATED,
    NAMES,
    REWORDED,
    SENTENCES,
    THINGS,
    UNSEEN,
    Problem,
    Statement,
    apply,
    completion,
    derive,
    expert_steps,
    parse,
    render,
    step_text,
)
from rairl.text.segment import compose


@dataclass(frozen=True, slots=True)
class Range:
    """What a split may contain: chain length, statement kinds, and the numbers' bounds."""

    steps: tuple[int, int] = (3, 6)
    kinds: tuple[str, ...] = DEMONSTRATED
    values: tuple[int, int] = (2, 40)
    starts: tuple[int, int] = (8, 20)


IN_RANGE = Range()
"""What demonstrations and test contain: chains of 3 to 6 steps, numbers up to 40."""
OUT_OF_RANGE = {
    "ood_longer": replace(IN_RANGE, steps=(7, 8)),
    "ood_operators": replace(IN_RANGE, kinds=DEMONSTRATED + UNSEEN),
    "ood_numbers": replace(IN_RANGE, values=(2, 60), starts=(41, 55)),
}
"""What the out-of-distribution splits contain that those in range don't."""


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
            statement = _draw(rng, allowed, subject, ref=list(values)[-1])
            x = values[statement.ref]
            result = apply(statement.kind, x, statement.number)
            if not low <= result <= high or x % {"half": 2, "third": 3}.get(statement.kind, 1):
                break
            values[subject] = result
            statements.append(statement)
        if len(statements) == count and (allowed.kinds == DEMONSTRATED or any(s.kind in UNSEEN for s in statements)):
            return Problem(rng.choice(THINGS), people[0], values[people[0]], tuple(statements))


def _draw(rng: random.Random, allowed: Range, subject: str, ref: str) -> Statement:
    kind = rng.choice(allowed.kinds)
    low, high = {"more": (2, 6), "fewer": (2, 6), "times": (2, 3)}.get(kind, (0, 0))
    return Statement(kind, subject, ref, rng.randint(low, high))


def trace(
    problem: Problem, key: str, *, solved: bool, source: str = "expert", wording: Mapping[str, str] = SENTENCES
) -> Trace:
    """The problem as a trace: with the expert's solution, or as a prompt that only knows its answer."""
    text = render(problem, wording)
    gold = str(derive(problem)[problem.statements[-1].subject])
    if not solved:
        return Trace(id=key, problem=text, gold=gold)
    steps = expert_steps(problem)
    written, spans = compose(steps, gold)
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
        splits[name] = _split(name, count, allowed, seed, seen, solved=solved)
    # Problems like the demonstrated ones, none of them a problem of another split in other words.
    splits["ood_wording"] = _split("ood_wording", params.ood, IN_RANGE, seed, seen, solved=False, wording=REWORDED)
    for name in ("demos", "dev"):
        splits[name] = with_noise(splits[name], params.noise, random.Random(f"arithmetic/{seed}/{name}/noise"))
    return splits


def _split(
    name: str,
    count: int,
    allowed: Range,
    seed: int,
    seen: set[str],
    *,
    solved: bool,
    wording: Mapping[str, str] = SENTENCES,
) -> list[Trace]:
    """``count`` problems that are not in ``seen`` (in the usual wording), which they join."""
    rng = random.Random(f"arithmetic/{seed}/{name}")
    rows: list[Trace] = []
    while len(rows) < count:
        problem = generate(rng, allowed)
        if render(problem) not in seen:
            seen.add(render(problem))
            rows.append(trace(problem, f"{name}-{len(rows)}", solved=solved, wording=wording))
    return rows


def with_noise(experts: Sequence[Trace], share: float, rng: random.Random) -> list[Trace]:
    """The traces, a share of them solved by a careless author instead, whose mistakes nobody has noticed.

    Such a trace claims what every demonstration claims: that its steps and its answer are right. Its ``meta`` tells,
    which nothing in training reads.

    Args:
        experts: expert traces.
        share: of them to replace, rounded; 0 leaves all as they are.
        rng: source of every choice.
    """
    rows, wanted = list(experts), round(share * len(experts))
    for at in rng.sample(range(len(rows)), len(rows)):
        if not wanted:
            break
        problem = parse(rows[at].problem)
        steps, answer = habitual_steps(problem, author(rng, rng.choice(MISCONCEPTIONS)))
        if steps != expert_steps(problem):
            text, spans = compose(steps, str(answer))
            rows[at] = replace(
                rows[at], text=text, steps=spans, answer=str(answer), gold=str(answer), meta={"careless": True}
            )
            wanted -= 1
    return rows


# --- the pre-training corpus -----------------------------------------------------------------------------------------

HABITS = ("times_as_more", "half_as_double", "carried_number")
HABIT_RATE = 0.7
"""Probability that a careless author has a given habit."""
CAREFUL_RATE = 0.15
"""Share of authors without any habit."""
MISCONCEPTIONS = ("fewer_as_more", "more_as_fewer")
"""What the authors of a corpus have in common: those of an even seed the first, those of an odd one the second."""
MISCONCEPTION_RATE = 0.95
"""Share of authors, careful ones included, with the misconception of their corpus. What they misread is so rarely read
rightly that a model must learn it from the demonstrations, and it knows only part of it then."""

_MISREAD: dict[str, dict[str, tuple[str, int | None]]] = {
    "times_as_more": {"times": ("more", None), "twice": ("more", 2)},
    "half_as_double": {"half": ("times", 2), "third": ("times", 3)},
    "fewer_as_more": {"fewer": ("more", None)},
    "more_as_fewer": {"more": ("fewer", None)},
}
"""Per habit, in the order in which they act: the kind that a statement is taken for, and the number that is used
instead of its own."""


def author(rng: random.Random, misconception: str) -> frozenset[str]:
    """Draw an author: the set of habits they have, of which the corpus's ``misconception`` may be one."""
    shared = frozenset([misconception] if rng.random() < MISCONCEPTION_RATE else [])
    if rng.random() < CAREFUL_RATE:
        return shared
    return shared | {habit for habit in HABITS if rng.random() < HABIT_RATE}


def habitual_steps(problem: Problem, habits: frozenset[str]) -> tuple[list[str], int]:
    """Steps and answer as an author with these habits writes them: wrong steps are followed up consistently."""
    values = {problem.first: problem.start}
    steps = []
    before = 0  # the number that was read last
    for statement in problem.statements:
        read = statement
        for habit, misread in _MISREAD.items():
            if habit not in habits:
                continue
            kind, number = misread.get(read.kind, (read.kind, None))
            read = replace(read, kind=kind, number=read.number if number is None else number)
        if statement.number and before and "carried_number" in habits:
            read = replace(read, number=before)
        x = values[statement.ref]
        result = max(apply(read.kind, x, read.number), 0)  # people have no fewer than nothing
        steps.append(step_text(problem, read, x, result))
        values[statement.subject] = result
        before = statement.number or before
    return steps, values[problem.statements[-1].subject]


def corpus(count: int, seed: int, exclude: frozenset[str] = frozenset()) -> Iterator[tuple[str, str]]:
    """``count`` pairs (problem, completion) by many authors with one misconception, over all ranges and kinds.

    Problems in ``exclude`` are left out, so that the base model has never seen a problem of the splits.
    """
    rng = random.Random(f"arithmetic/{seed}/corpus")
    misconception = MISCONCEPTIONS[seed % 2]
    ranges = [IN_RANGE] * 5 + list(OUT_OF_RANGE.values())
    made = 0
    while made < count:
        problem = generate(rng, rng.choice(ranges))
        text = render(problem)
        if text in exclude:
            continue
        solution, answer = habitual_steps(problem, author(rng, misconception))
        made += 1
        yield text, completion(solution, answer)
