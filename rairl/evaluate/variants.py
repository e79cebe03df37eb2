"""The same solution said otherwise: what a reward that follows the reasoning should not care about.

A variant changes a trace's problem, form or wording and leaves what it says: a right step stays right, a wrong one
wrong. So right traces should still score above wrong ones, and the order of the candidates should hardly change.
"""

from __future__ import annotations

from collections.abc import Callable

from rairl.core.traces import Trace, locate_steps, relabel
from rairl.datasets import arithmetic_problem
from rairl.evaluate.probes import with_step
from rairl.text.equations import equations


def _same(trace: Trace, **changes: object) -> Trace:
    """The trace with changes that keep its question and what is known of its steps."""
    return relabel(trace, group=trace.question, **changes)


def distracted(trace: Trace) -> Trace | None:
    """With a sentence in the problem that has nothing to do with it, after the first one."""
    first, dot, rest = trace.problem.partition(". ")
    if not dot:
        return None
    return _same(trace, problem=f"{first}. A bus with 7 seats goes by. {rest}")


def reworded(trace: Trace) -> Trace | None:
    """The problem in words that no demonstration uses; only problems of the built-in benchmark's demonstrated kinds."""
    if not arithmetic_problem.is_problem(trace.problem):
        return None
    problem = arithmetic_problem.parse(trace.problem)
    if any(statement.kind not in arithmetic_problem.REWORDED for statement in problem.statements):
        return None
    return _same(trace, problem=arithmetic_problem.render(problem, arithmetic_problem.REWORDED))


def restyled(trace: Trace) -> Trace | None:
    """Every equation first, and then what it says: ``So Ana has 12 + 5 = 17 eggs.`` to ``12 + 5 = 17. So Ana has 17
    eggs.``; None where no step states just one."""
    changed = trace
    for index, text in enumerate(trace.step_texts()):
        stated = equations(text)
        if len(stated) == 1:
            start, value = stated[0].left[0].start, stated[0].result
            changed = with_step(changed, index, f"{text[start : value.end]}. {text[:start]}{text[value.start :]}")
    return None if changed is trace else _known(trace, changed)


def numbered(trace: Trace) -> Trace | None:
    """With ``Step 1:``, ``Step 2:``, ... before the steps."""
    changed = trace
    for index, text in enumerate(trace.step_texts()):
        changed = with_step(changed, index, f"Step {index + 1}: {text}")
    return None if changed is trace else _known(trace, changed)


def untagged(trace: Trace) -> Trace | None:
    """One step a line and the answer in a sentence, without any tags."""
    steps = trace.step_texts()
    if not steps:
        return None
    body = "\n".join(steps)
    ending = "" if trace.answer is None else f"\nThe answer is {trace.answer}."
    return _same(trace, text=body + ending, steps=locate_steps(body, steps))


def boxed(trace: Trace) -> Trace | None:
    """The answer as ``\\boxed{...}``; None where it does not stand after the last step."""
    after = trace.steps[-1].end if trace.steps else 0
    at = -1 if trace.answer is None else trace.text.find(trace.answer, after)
    if at < 0 or trace.answer is None:
        return None
    text = f"{trace.text[:at]}\\boxed{{{trace.answer}}}{trace.text[at + len(trace.answer) :]}"
    return _same(trace, text=text)


def asked(trace: Trace) -> Trace | None:
    """The problem in another prompt: with a heading and an instruction."""
    return _same(trace, problem=f"Question: {trace.problem}\nThink step by step.")


def _known(trace: Trace, changed: Trace) -> Trace:
    return _same(changed, first_error=trace.first_error, labelled=trace.labelled)


VARIANTS: dict[str, Callable[[Trace], Trace | None]] = {
    "distracted": distracted,
    "reworded": reworded,
    "restyled": restyled,
    "numbered": numbered,
    "untagged": untagged,
    "boxed": boxed,
    "asked": asked,
}
"""Name to the change; None where it does not apply."""


def overlap(first: str, second: str) -> float:
    """Share of word pairs that two texts have in common (Jaccard similarity of their bigrams, as sets)."""
    left, right = (set(zip(text.split(), text.split()[1:], strict=False)) for text in (first, second))
    return len(left & right) / len(left | right) if left | right else 1.0
