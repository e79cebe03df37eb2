"""Verified corruptions of a right trace: each differs from the original, and its first wrong step is known.

Corruptions are cheap negatives for the reward and, since the wrong step is known, a development set for localisation
that needs no answers and no annotators. Known pitfalls are excluded by construction: ``2 * 2`` turned into ``2 + 2``
still holds and is rejected, hyphens and slashes outside equations are not operators, a text is never returned
unchanged, and every random choice comes from the generator passed in.

Why the labels hold, given that the original is right: a step that states an equation is wrong when the equation is
false, and also when it is true but its result is another than before, since the words around it still name the same
quantity. A step that uses a result nobody has derived yet is wrong where it does so.

Traces on multiple-choice questions have kinds of their own (:data:`CHOICE_KINDS`), which need no numbers. What a step
says in words can't be checked as an equation can: those kinds only touch plain assertions, and their labels are as good
as that rule.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, get_args

from rairl.core.traces import Trace
from rairl.text.answers import answers_match, options_of, to_number
from rairl.text.corrupt_choice import contradiction, entity, negated, option
from rairl.text.edits import (
    Choice,
    Numeric,
    answer_span,
    earliest,
    given,
    open_steps,
    others,
    part,
    reassembled,
    rebuilt,
    write,
)
from rairl.text.equations import equations, evaluate, tokens
from rairl.text.segment import pieces

if TYPE_CHECKING:
    from rairl.text.edits import Kind
    from rairl.text.equations import Equation, Token

KINDS: tuple[Numeric, ...] = get_args(Numeric)
CHOICE_KINDS: tuple[Choice, ...] = get_args(Choice)


# --- the kinds -------------------------------------------------------------------------------------------------------


def perturb(trace: Trace, rng: random.Random, kinds: Sequence[Kind] | None = None, n: int = 1) -> Trace | None:
    """A corrupted copy of a right trace: 1 to ``n`` corruptions of random kinds, each after the first wrong step.

    Args:
        trace: a right trace, or one whose first wrong step is known.
        rng: source of every choice.
        kinds: the kinds to choose from; by default :data:`KINDS`, and :data:`CHOICE_KINDS` too where the problem has
            options.
        n: the most corruptions to compose.

    Returns:
        A trace with another id and text, ``labelled`` and its ``first_error`` (the earliest; None when only the answer
        is wrong), ``correct`` by its own answer, and source ``perturbed:<kind>`` (``+`` between composed kinds). None
        when no kind applies.
    """
    if kinds is None:
        kinds = (*KINDS, *CHOICE_KINDS) if options_of(trace.problem) else KINDS
    current, done = trace, []
    for _ in range(rng.randint(1, n)):
        for kind in rng.sample(list(kinds), len(kinds)):
            changed = perturb_once(current, rng, kind)
            if changed is not None:
                current = changed
                done.append(kind)
                break
    if current.text == trace.text:
        return None
    key = f"{trace.id}/{'+'.join(done)}-{rng.getrandbits(32):08x}"
    return replace(current, id=key, source=f"perturbed:{'+'.join(done)}")


def perturb_once(trace: Trace, rng: random.Random, kind: Kind) -> Trace | None:
    """One corruption of the given kind, or None when it does not apply; see :func:`perturb`."""
    if not trace.steps or (trace.correct is False and not trace.labelled):
        return None
    return _KINDS[kind](trace, rng)


def _operator(trace: Trace, rng: random.Random) -> Trace | None:
    """Another operator, which changes the value; the result stays (a false equation) or follows."""
    choices = [
        (index, equation, token, kind)
        for index, equation in _sound_equations(trace)
        for token in equation.left
        if token.kind in "+-*/"
        for kind in "+-*/"
        if kind != token.kind
    ]
    for index, equation, token, kind in rng.sample(choices, len(choices)):
        value = evaluate([replace(part, kind=kind) if part is token else part for part in equation.left])
        if value is not None and value != equation.result.worth:
            return _restate(trace, rng, "operator", index, equation, token, kind, value)
    return None


def _operand(trace: Trace, rng: random.Random) -> Trace | None:
    """Another number on the left side, which changes the value; the result stays or follows."""
    choices = [
        (index, equation, token)
        for index, equation in _sound_equations(trace)
        for token in equation.left
        if token.kind == "#"
    ]
    around = sorted({token.value for token in tokens(trace.problem + "\n" + trace.text) if token.value > 0})
    for index, equation, token in rng.sample(choices, len(choices)):
        old = part(trace, index, token)
        for number in others(token.value, rng, around):
            value = evaluate([replace(part, value=number) if part is token else part for part in equation.left])
            written = write(number, old)
            if value is not None and value != equation.result.worth and written is not None:
                return _restate(trace, rng, "operand", index, equation, token, written, value)
    return None


def _result(trace: Trace, rng: random.Random) -> Trace | None:
    """Another result, so that the equation is false; the steps after it go on with the old one or with the new one."""
    choices = list(_sound_equations(trace))
    for index, equation in rng.sample(choices, len(choices)):
        for number in others(equation.result.value, rng, []):
            written = write(number, part(trace, index, equation.result))
            if written is not None:
                return _edit_equation(trace, rng, "result", index, equation, [(equation.result, written)], number)
    return None


def _answer(trace: Trace, rng: random.Random) -> Trace | None:
    """Another number in the answer block; every step stays right."""
    span = answer_span(trace)
    value = to_number(trace.answer or "")
    if span is None or value is None or value < 0:
        return None
    results = sorted({equation.result.value for text in trace.step_texts() for equation in equations(text)})
    reference = trace.gold or trace.answer or ""
    for number in others(value, rng, results):
        written = write(number, trace.answer or "")
        if written is not None and not answers_match(written, reference):
            return rebuilt(trace, "answer", [(*span, written)], trace.first_error)
    return None


def _dropped(trace: Trace, rng: random.Random) -> Trace | None:
    """Without a step whose result the next step uses: that next step is then the first wrong one."""
    choices = [index for index in open_steps(trace)[:-1] if _depends(trace, index + 1, index)]
    if not choices:
        return None
    index = rng.choice(choices)
    parts = pieces(trace.text, trace.steps)
    return reassembled(trace, "dropped", parts[: 2 * index + 1] + parts[2 * index + 3 :], index)


def _swapped(trace: Trace, rng: random.Random) -> Trace | None:
    """Two neighbours in the wrong order, where the later one uses the result of the earlier one."""
    choices = [index for index in open_steps(trace)[:-1] if _depends(trace, index + 1, index)]
    if not choices:
        return None
    index = rng.choice(choices)
    parts = pieces(trace.text, trace.steps)
    first, second = 2 * index + 1, 2 * index + 3
    parts[first], parts[second] = parts[second], parts[first]
    return reassembled(trace, "swapped", parts, index)


_KINDS: dict[Kind, Callable[[Trace, random.Random], Trace | None]] = {
    "operator": _operator,
    "operand": _operand,
    "result": _result,
    "answer": _answer,
    "dropped": _dropped,
    "swapped": _swapped,
    "option": option,
    "negated": negated,
    "entity": entity,
    "contradiction": contradiction,
}


def _sound_equations(trace: Trace) -> Iterator[tuple[int, Equation]]:
    """True equations of the open steps, each with its step's index; spans relative to the step."""
    texts = trace.step_texts()
    for index in open_steps(trace):
        for equation in equations(texts[index]):
            if equation.holds:
                yield index, equation


def _restate(
    trace: Trace,
    rng: random.Random,
    kind: Kind,
    index: int,
    equation: Equation,
    token: Token,
    new: str,
    value: Fraction,
) -> Trace:
    """Replace ``token`` of the left side; in half of the cases, where it can be written, the result follows."""
    edits = [(token, new)]
    number = value * 100 if equation.result.percent else value
    written = write(number, part(trace, index, equation.result))
    if written is None or rng.random() < 0.5:
        return _edit_equation(trace, rng, kind, index, equation, edits, None)
    return _edit_equation(trace, rng, kind, index, equation, [*edits, (equation.result, written)], number)


def _edit_equation(
    trace: Trace,
    rng: random.Random,
    kind: Kind,
    index: int,
    equation: Equation,
    edits: Sequence[tuple[Token, str]],
    number: Fraction | None,
) -> Trace:
    """Apply ``edits`` to the equation. With a new result ``number``, half of the time everything after follows it."""
    base = trace.steps[index].start
    changes = [(base + token.start, base + token.end, new) for token, new in edits]
    follow = None
    if number is not None and rng.random() < 0.5:
        follow = _carried(trace, index, equation, number)
    return rebuilt(trace, kind, changes + (follow or []), earliest(trace, index))


def _carried(trace: Trace, index: int, changed: Equation, number: Fraction) -> list[tuple[int, int, str]] | None:
    """Edits after which the rest of the trace goes on with ``number`` instead of the equation's old result.

    None when that is ambiguous (the old result is also a given number, or another step's result) or impossible (a
    result below zero or without a finite decimal).
    """
    texts = trace.step_texts()
    old = changed.result.value
    earlier = {token.value for text in texts[:index] for token in tokens(text)}
    if old in given(trace.problem) | earlier | {token.value for token in changed.left}:
        return None
    moved = {old: number}
    edits: list[tuple[int, int, str]] = []
    for at in range(index, len(texts)):
        done = {changed.result, *changed.left} if at == index else set()
        parsed = equations(texts[at])
        for equation in parsed:
            if not equation.holds or (at == index and equation == changed):
                continue
            left = [replace(part, value=moved.get(part.value, part.value)) for part in equation.left]
            value = evaluate(left)
            if value is None:
                return None
            value = value * 100 if equation.result.percent else value
            if value != equation.result.value:
                written = write(value, part(trace, at, equation.result))
                if written is None:
                    return None
                moved[equation.result.value] = value
                edits.append(
                    (
                        equation.result.start + trace.steps[at].start,
                        equation.result.end + trace.steps[at].start,
                        written,
                    )
                )
            done.add(equation.result)
        for token in tokens(texts[at]):
            if token.kind == "#" and token not in done and token.value in moved:
                written = write(moved[token.value], part(trace, at, token))
                if written is None:
                    return None
                edits.append((token.start + trace.steps[at].start, token.end + trace.steps[at].start, written))
    span = answer_span(trace)
    answer = to_number(trace.answer or "")
    if span is not None and answer in moved:
        written = write(moved[answer], trace.answer or "")
        if written is None:
            return None
        edits.append((*span, written))
    return edits


def _depends(trace: Trace, later: int, earlier: int) -> bool:
    """Whether a step uses a result of an earlier step that it can have from nowhere else."""
    texts = trace.step_texts()
    results = {equation.result.value for equation in equations(texts[earlier]) if equation.holds}
    used = {token.value for equation in equations(texts[later]) for token in equation.left if token.kind == "#"}
    elsewhere = {token.value for at, text in enumerate(texts[:later]) if at != earlier for token in tokens(text)}
    return bool((results & used) - elsewhere - given(trace.problem))
