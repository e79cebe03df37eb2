"""Right traces changed on purpose, for what they tell about the reward: errors of known kind and place.

The kinds of :data:`SEEN` are those that the reward has seen as negatives; those of :data:`UNSEEN` are made by other
means and never used in training. Where the built-in oracle knows the problem, it confirms every label.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rairl.core.stats import Estimate, bootstrap_mean
from rairl.core.traces import Step, Trace, relabel
from rairl.datasets import arithmetic, arithmetic_problem
from rairl.evaluate.candidates import by_question
from rairl.evaluate.first_error import location_hits
from rairl.text.answers import options_of
from rairl.text.corrupt import CHOICE_KINDS, KINDS, perturb_once
from rairl.text.equations import equations
from rairl.text.segment import compose, pieces

SEEN = (*KINDS, *CHOICE_KINDS)
"""Kinds of error that training negatives are made by; the last four on questions with options only."""
UNSEEN = ("misread", "foreign", "reversed", "renamed", "unit")
"""Kinds of error that no training negative is made by."""


def originals(traces: Sequence[Trace], limit: int) -> list[Trace]:
    """The first right trace of each of the first ``limit`` questions that have one; where its steps were checked, they
    must be right as well."""
    chosen = []
    for members in by_question(traces).values():
        right = [traces[row] for row in members if traces[row].correct and traces[row].steps]
        chosen += [trace for trace in right if trace.first_error is None][:1]
    return chosen[:limit]


def corrupted(traces: Sequence[Trace], kind: str, seed: int) -> list[tuple[int, Trace]]:
    """A corruption of each trace that the kind applies to, with the trace's index.

    Args:
        traces: right ones.
        kind: one of :data:`SEEN` or :data:`UNSEEN`.
        seed: of every choice.
    """
    corruptions = []
    for row, trace in enumerate(traces):
        rng = random.Random(f"{seed}/{kind}/{trace.id}")
        if kind in CHOICE_KINDS and not options_of(trace.problem):
            continue
        if kind in SEEN:
            bad = perturb_once(trace, rng, kind)
        else:
            others = [other for other in traces if other.question != trace.question]
            bad = _confirmed(trace, _UNSEEN[kind](trace, others, rng), kind)
        if bad is not None:
            corruptions.append((row, bad))
    return corruptions


def with_step(trace: Trace, index: int, text: str) -> Trace:
    """The trace with another text for one step; nothing is known about its steps any more."""
    parts = pieces(trace.text, trace.steps)
    parts[2 * index + 1] = text
    spans, length = [], 0
    for place, part in enumerate(parts):
        if place % 2:
            spans.append(Step(length, length + len(part)))
        length += len(part)
    return relabel(trace, text="".join(parts), steps=tuple(spans), first_error=None, labelled=False)


class Probe(NamedTuple):
    """A corruption beside its original, and what was read of it.

    Attributes:
        kind: of the corruption.
        trace: the corruption.
        gaps: per method by how much it scores above the original: below 0 is as it should be.
        predictions: per method the step it points at.
    """

    kind: str
    trace: Trace
    gaps: Mapping[str, float]
    predictions: Mapping[str, int]


def probe_figures(probes: Sequence[Probe], prefix: str, *, draws: int, seed: int) -> dict[str, Estimate]:
    """Per kind, and for the kinds seen and unseen in training together: what is found, and what is preferred.

    Returns:
        ``<prefix>.<kind.<kind>|family.<seen|unseen>>.<method>.exact`` (given that there is an error; absent for kinds
        that break no step) with ``chance``, and ``.<method>.prefers``: the share of corruptions that score below their
        original, ties one half.
    """
    figures = {}
    kinds = {f"kind.{kind}": (kind,) for kind in (*SEEN, *UNSEEN)}
    for name, members in (kinds | {"family.seen": SEEN, "family.unseen": UNSEEN}).items():
        family = [probe for probe in probes if probe.kind in members]
        groups = [probe.trace.question for probe in family]
        for method in family[0].gaps if family else ():
            gaps = np.array([probe.gaps[method] for probe in family])
            figures[f"{prefix}.{name}.{method}.prefers"] = bootstrap_mean(
                (gaps < 0) + (gaps == 0) / 2, groups, draws=draws, seed=seed
            )
        broken = [probe for probe in family if probe.trace.first_error is not None]
        if broken:
            predictions = {method: [probe.predictions[method] for probe in broken] for method in broken[0].predictions}
            groups = [probe.trace.question for probe in broken]
            for method, hits in location_hits([probe.trace for probe in broken], predictions).items():
                figures[f"{prefix}.{name}.{method}.exact"] = bootstrap_mean(
                    hits["exact"], groups, draws=draws, seed=seed
                )
    return figures


Change = tuple[Trace, int]
"""A changed trace and its first wrong step."""


def _confirmed(trace: Trace, change: Change | None, kind: str) -> Trace | None:
    """The changed trace with its label; None where nothing changed, or where the oracle finds another first error."""
    if change is None or change[0].text == trace.text:
        return None
    bad, index = change
    if (
        arithmetic_problem.is_problem(trace.problem)
        and arithmetic_problem.first_error(trace.problem, bad.step_texts()) != index
    ):
        return None
    return relabel(bad, id=f"{trace.id}/{kind}", first_error=index, labelled=True, source=f"probe:{kind}", meta={})


def _misread(trace: Trace, others: Sequence[Trace], rng: random.Random) -> Change | None:
    """What a careless author makes of the built-in problem: a statement misread, and everything after it follows."""
    if not arithmetic_problem.is_problem(trace.problem):
        return None
    problem = arithmetic_problem.parse(trace.problem)
    habits = [*arithmetic.HABITS, *arithmetic.MISCONCEPTIONS]
    for habit in rng.sample(habits, len(habits)):
        steps, answer = arithmetic.habitual_steps(problem, frozenset([habit]))
        index = arithmetic_problem.first_error(trace.problem, steps)
        if index is not None:
            text, spans = compose(steps, str(answer))
            wrong = str(answer) != trace.gold
            return relabel(trace, text=text, steps=spans, answer=str(answer), correct=not wrong), index
    return None


def _foreign(trace: Trace, others: Sequence[Trace], rng: random.Random) -> Change | None:
    """A step of another question's solution in the place of one."""
    index = rng.randrange(len(trace.steps))
    rivals = [other for other in others if len(other.steps) > index]
    return (with_step(trace, index, rng.choice(rivals).step_texts()[index]), index) if rivals else None


def _reversed(trace: Trace, others: Sequence[Trace], rng: random.Random) -> Change | None:
    """The operands of a difference or a quotient swapped, the result left: ``12 - 5 = 7`` to ``5 - 12 = 7``."""
    turned = turned_round(trace, "-/")
    return rng.choice(turned) if turned else None


def turned_round(trace: Trace, operators: str) -> list[Change]:
    """Every way to swap the two operands of an equation with one of the operators, and the step it is in.

    The words, numbers and signs are the same as before. With + and * the equation is still right.
    """
    changes = []
    for index, text in enumerate(trace.step_texts()):
        for equation in equations(text):
            kinds = "".join(token.kind for token in equation.left)
            first, last = equation.left[0], equation.left[-1]
            if len(kinds) == 3 and kinds[1] in operators and first.value != last.value and equation.holds:
                a, b = text[first.start : first.end], text[last.start : last.end]
                changed = text[: first.start] + b + text[first.end : last.start] + a + text[last.end :]
                changes.append((with_step(trace, index, changed), index))
    return changes


def _renamed(trace: Trace, others: Sequence[Trace], rng: random.Random) -> Change | None:
    """Another person of the problem in a step: what is derived is somebody else's."""
    names = [name for name in arithmetic_problem.NAMES if re.search(rf"\b{name}\b", trace.problem)]
    return _exchanged(trace, names, rng)


def _unit(trace: Trace, others: Sequence[Trace], rng: random.Random) -> Change | None:
    """Another thing in a step: apples where books were asked for."""
    return _exchanged(trace, arithmetic_problem.THINGS, rng)


def _exchanged(trace: Trace, words: Sequence[str], rng: random.Random) -> Change | None:
    if not arithmetic_problem.is_problem(trace.problem):
        return None
    index = rng.randrange(len(trace.steps))
    text = trace.step_texts()[index]
    present = [word for word in words if re.search(rf"\b{word}\b", text)]
    absent = [word for word in words if word not in present]
    if not present or not absent:
        return None
    return with_step(trace, index, re.sub(rf"\b{present[0]}\b", rng.choice(absent), text)), index


_UNSEEN: dict[str, Callable[[Trace, Sequence[Trace], random.Random], Change | None]] = {
    "misread": _misread,
    "foreign": _foreign,
    "reversed": _reversed,
    "renamed": _renamed,
    "unit": _unit,
}
