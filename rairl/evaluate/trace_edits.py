"""Edits of traces that tell what a reward looks at: the answer, the order of the steps, their results."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from rairl.core.traces import Step, Trace, relabel
from rairl.evaluate.candidates import by_question
from rairl.evaluate.probes import Change, turned_round
from rairl.text.equations import equations


def shuffle_steps(trace: Trace, rng: np.random.Generator) -> Trace | None:
    """The same steps in another order, all else in place; None when there is no other order."""
    texts = trace.step_texts()
    if len(set(texts)) < 2:
        return None
    order = rng.permutation(len(texts))
    while all(texts[place] == text for place, text in zip(order, texts, strict=True)):
        order = rng.permutation(len(texts))
    parts: list[str] = []
    steps: list[Step] = []
    end, length = 0, 0
    for span, place in zip(trace.steps, order, strict=True):
        between = trace.text[end : span.start]
        start = length + len(between)
        length = start + len(texts[place])
        parts += [between, texts[place]]
        steps.append(Step(start, length))
        end = span.end
    text = "".join(parts) + trace.text[end:]
    return relabel(trace, text=text, steps=tuple(steps), first_error=None, labelled=False)


def answer_block(trace: Trace) -> str:
    """What follows the last step: the markup and the answer; blank when the answer stands in a step."""
    return trace.text[trace.steps[-1].end :] if trace.steps else ""


def without_answer(trace: Trace) -> Trace:
    """The trace cut off after its last step."""
    return relabel(trace, text=trace.text[: len(trace.text) - len(answer_block(trace))], answer=None)


def without_result(trace: Trace) -> Trace | None:
    """The trace cut off inside its last step, before the result of its last equation or, without one, before the final
    answer where the step states it; None where it does neither or nothing would be left of the step."""
    if not trace.steps:
        return None
    *steps, last = trace.steps
    text = trace.text[last.start : last.end]
    starts = [equation.result.start for equation in equations(text)]
    if not starts and trace.answer:
        starts = [match.start() for match in re.finditer(rf"(?<![\w.,]){re.escape(trace.answer)}(?!\w|[.,]\d)", text)]
    left = text[: starts[-1]].rstrip(" \t$€£") if starts else ""
    if not left:
        return None
    cut = Step(last.start, last.start + len(left))
    return relabel(trace, text=trace.text[: cut.end], steps=(*steps, cut), answer=None)


def _hide_answer(trace: Trace) -> Trace | None:
    return without_answer(trace) if answer_block(trace).strip() and _error_shows(trace, len(trace.steps)) else None


def _hide_result(trace: Trace) -> Trace | None:
    return without_result(trace) if _error_shows(trace, len(trace.steps) - 1) else None


def _error_shows(trace: Trace, steps: int) -> bool:
    """Whether what is known to be wrong with a trace, if anything, is wrong in its first ``steps`` steps."""
    if trace.first_error is not None:
        return trace.first_error < steps
    return bool(trace.correct) or not trace.labelled


HIDDEN: dict[str, Callable[[Trace], Trace | None]] = {"answer": _hide_answer, "result": _hide_result}
"""How much of the outcome is hidden: the answer after the last step, or the last step's result with it. None where
there is none to hide, and where the only known error would be hidden with it, so that nobody could see it."""


def with_answer_of(trace: Trace, donor: Trace) -> Trace:
    """The trace's steps followed by the donor's answer block."""
    cut = without_answer(trace)
    return relabel(cut, text=cut.text + answer_block(donor), answer=donor.answer)


def mixed_sample(traces: Sequence[Trace], each: int) -> list[int]:
    """Indices of the first ``each`` right and wrong candidates of every question that has both kinds."""
    rows = []
    for members in by_question(traces).values():
        right = [row for row in members if traces[row].correct]
        wrong = [row for row in members if not traces[row].correct]
        if right and wrong:
            rows += [*right[:each], *wrong[:each]]
    return rows


def shuffled_pairs(traces: Sequence[Trace], seed: int) -> list[tuple[int, Trace]]:
    """One right candidate per question, by index, and its shuffled copy."""
    rng = np.random.default_rng(seed)
    pairs = []
    for members in by_question(traces).values():
        right = next((row for row in members if traces[row].correct), None)
        shuffled = None if right is None else shuffle_steps(traces[right], rng)
        if right is not None and shuffled is not None:
            pairs.append((right, shuffled))
    return pairs


def swapped_pairs(traces: Sequence[Trace]) -> list[tuple[int, int, Trace, Trace]]:
    """Per question the first right and first wrong candidate with an answer block, by index, and both with the answers
    exchanged: (right, wrong, right steps with the wrong answer, wrong steps with the right answer)."""
    swaps = []
    for members in by_question(traces).values():
        usable = [row for row in members if answer_block(traces[row]).strip() and traces[row].answer is not None]
        right = next((row for row in usable if traces[row].correct), None)
        wrong = next((row for row in usable if not traces[row].correct), None)
        if right is not None and wrong is not None:
            a, b = traces[right], traces[wrong]
            swaps.append((right, wrong, with_answer_of(a, b), with_answer_of(b, a)))
    return swaps


def turned_pairs(traces: Sequence[Trace], seed: int) -> list[tuple[Trace, Trace, Trace]]:
    """(right trace, its operands swapped where that is right, and where it is wrong), one per usable trace.

    Both changes put the same words and numbers in another order inside one equation; only one of them, the swapped
    difference or quotient, makes a step wrong. A reward that counts n-grams cannot tell them apart.
    """
    rng = np.random.default_rng(seed)
    triples = []
    for trace in traces:
        harmless, harmful = turned_round(trace, "+*"), turned_round(trace, "-/")
        if harmless and harmful:
            picked: list[Change] = [choices[rng.integers(len(choices))] for choices in (harmless, harmful)]
            triples.append((trace, picked[0][0], picked[1][0]))
    return triples
