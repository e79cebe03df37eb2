"""Edits of a trace that keep its form: a number or a word replaced, steps rebuilt, the answer rewritten."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

from rairl.core.traces import Step, Trace
from rairl.text.answers import answers_match, read_answer
from rairl.text.equations import tokens

if TYPE_CHECKING:
    from rairl.text.equations import Token


Numeric = Literal["operator", "operand", "result", "answer", "dropped", "swapped"]
Choice = Literal["option", "negated", "entity", "contradiction"]
Kind = Numeric | Choice
_SHIFTS = (1, 2, 3, 5, 10)
_LARGEST = 10**9
_WORDS = {word: Fraction(value) for value, word in enumerate(
    "zero one two three four five six seven eight nine ten eleven twelve".split()
)} | {"once": Fraction(1), "twice": Fraction(2), "double": Fraction(2), "half": Fraction(2), "thrice": Fraction(3),
      "triple": Fraction(3), "third": Fraction(3), "quarter": Fraction(4), "dozen": Fraction(12)}  # fmt: skip
_COMMON = frozenset(map(Fraction, (0, 1, 2, 7, 12, 24, 30, 52, 60, 100, 365, 1000)))
"""Numbers that a step may use without having been told: days, months, hours, per cent."""


# --- what the kinds share --------------------------------------------------------------------------------------------


def open_steps(trace: Trace) -> range:
    """Steps that may be corrupted: those after the first wrong one, so that it stays the first."""
    return range(0 if trace.first_error is None else trace.first_error + 1, len(trace.steps))


def part(trace: Trace, index: int, token: Token) -> str:
    start = trace.steps[index].start
    return trace.text[start + token.start : start + token.end]


def others(value: Fraction, rng: random.Random, known: Sequence[Fraction]) -> list[Fraction]:
    """Plausible other numbers than ``value`` in random order: its neighbours, its digits reversed, known ones."""
    unit = Fraction(1)
    while (value / unit).denominator != 1 and unit > Fraction(1, 10**4):
        unit /= 10
    near = [value + sign * shift * unit for shift in _SHIFTS for sign in (1, -1)]
    if value.denominator == 1 and value >= 10:
        near.append(Fraction(int(str(value)[::-1])))
    far = [number for number in known if number != value]
    near = [number for number in near if number > 0 and number != value]
    rng.shuffle(near)
    rng.shuffle(far)
    return far + near if rng.random() < 0.5 else near + far


def write(value: Fraction, like: str) -> str | None:
    """``value`` in the manner of ``like`` (commas, decimals); None for a negative, very large or endless number."""
    decimals = len(like.partition(".")[2])
    if not 0 <= value <= _LARGEST:
        return None
    for places in range(decimals if value.denominator > 1 or decimals == 2 else 0, max(decimals, 2) + 1):
        if (value * 10**places).denominator == 1:
            digits = f"{value.numerator * 10**places // value.denominator:0{places + 1}d}"
            whole, rest = (digits[:-places], "." + digits[-places:]) if places else (digits, "")
            return (f"{int(whole):,}" if "," in like else whole) + rest
    return None


def earliest(trace: Trace, index: int) -> int:
    return index if trace.first_error is None else trace.first_error


def given(problem: str) -> set[Fraction]:
    """Numbers that a step may use without deriving them: those of the problem, in digits or words, and common ones."""
    words = {_WORDS[word] for word in re.findall(r"[a-z]+", problem.lower()) if word in _WORDS}
    return {token.value for token in tokens(problem) if token.kind == "#"} | words | _COMMON


def answer_span(trace: Trace) -> tuple[int, int] | None:
    """Where the final answer stands after the last step."""
    if not trace.answer:
        return None
    start = trace.text.find(trace.answer, trace.steps[-1].end)
    return (start, start + len(trace.answer)) if start >= 0 else None


def rebuilt(trace: Trace, kind: Kind, edits: Sequence[tuple[int, int, str]], first_error: int | None) -> Trace:
    """Apply replacements of spans, each inside one step or the answer, and move the steps' spans along."""
    text, bounds = trace.text, [[step.start, step.end] for step in trace.steps]
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
        shift = len(new) - (end - start)
        for span in bounds:
            span[0] += shift if span[0] >= end else 0
            span[1] += shift if span[1] >= end else 0
    return judged(trace, kind, text, [Step(*span) for span in bounds], first_error)


def reassembled(trace: Trace, kind: Kind, parts: Sequence[str], index: int) -> Trace:
    """Put gaps and steps together again, with the first wrong step at ``index`` unless there is an earlier one."""
    steps, length = [], 0
    for position, part in enumerate(parts):
        if position % 2:
            steps.append(Step(length, length + len(part)))
        length += len(part)
    return judged(trace, kind, "".join(parts), steps, earliest(trace, index))


def judged(trace: Trace, kind: Kind, text: str, steps: Sequence[Step], first_error: int | None) -> Trace:
    """The corrupted trace with what is now known about it; nothing else that was known of the original survives."""
    answer = read_answer(text, trace.problem)
    reference = trace.gold or trace.answer
    return replace(
        trace,
        id=f"{trace.id}/{kind}",
        text=text,
        steps=tuple(steps),
        answer=answer,
        correct=None if reference is None else answers_match(answer, reference),
        first_error=first_error,
        labelled=True,
        source=f"perturbed:{kind}",
        meta={"original": trace.meta.get("original", trace.id)},
    )
