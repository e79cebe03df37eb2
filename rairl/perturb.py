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
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Literal, get_args

from rairl.answers import NUMBER, answers_match, options_of, read_answer, to_number
from rairl.segment import pieces
from rairl.traces import Step, Trace

Numeric = Literal["operator", "operand", "result", "answer", "dropped", "swapped"]
Choice = Literal["option", "negated", "entity", "contradiction"]
Kind = Numeric | Choice
KINDS: tuple[Numeric, ...] = get_args(Numeric)
CHOICE_KINDS: tuple[Choice, ...] = get_args(Choice)

_TOKEN = re.compile(rf"(?P<number>{NUMBER})|(?P<operator>(?<![A-Za-z])[xX](?![A-Za-z])|[-+*/×÷−–])|(?P<other>[()=])")
_SAME = str.maketrans("xX×÷−–", "***/--")
_GLUE = re.compile(r"[ \t]*%?[ \t]*[$€£]?[ \t]*")
"""What may stand between the parts of an equation: white space, a percent sign, a currency sign."""
_SHIFTS = (1, 2, 3, 5, 10)
_LARGEST = 10**9
_WORDS = {word: Fraction(value) for value, word in enumerate(
    "zero one two three four five six seven eight nine ten eleven twelve".split()
)} | {"once": Fraction(1), "twice": Fraction(2), "double": Fraction(2), "half": Fraction(2), "thrice": Fraction(3),
      "triple": Fraction(3), "third": Fraction(3), "quarter": Fraction(4), "dozen": Fraction(12)}  # fmt: skip
_COMMON = frozenset(map(Fraction, (0, 1, 2, 7, 12, 24, 30, 52, 60, 100, 365, 1000)))
"""Numbers that a step may use without having been told: days, months, hours, per cent."""


@dataclass(frozen=True, slots=True)
class Token:
    """A part of an equation: ``kind`` is ``#`` for a number, else one of ``+ - * / ( ) =``; a span of the text."""

    kind: str
    start: int
    end: int
    value: Fraction = Fraction(0)
    percent: bool = False

    @property
    def worth(self) -> Fraction:
        """The number's value in a calculation: a percentage counts as its hundredth."""
        return self.value / 100 if self.percent else self.value


@dataclass(frozen=True, slots=True)
class Equation:
    """``left = result`` as written: an expression with at least one operator, and a plain number."""

    left: tuple[Token, ...]
    result: Token

    @property
    def holds(self) -> bool:
        """Whether it is true."""
        return evaluate(self.left) == self.result.worth


def tokens(text: str) -> list[Token]:
    """Numbers, operators, brackets and equality signs of ``text``, in order."""
    found = []
    for match in _TOKEN.finditer(text):
        if match["number"]:
            percent = re.match(r"[ \t]*%", text[match.end() : match.end() + 4]) is not None
            found.append(Token("#", *match.span(), Fraction(match[0].replace(",", "")), percent))
        else:
            found.append(Token(match[0].translate(_SAME), *match.span()))
    return found


def equations(text: str) -> list[Equation]:
    """Equations such as ``12 + 5 = 17``, ``12+5=$17``, ``3 x 4 = 12``, ``(1 + 2) * 3 = 9``, ``50% * 8 = 4``.

    The left side is an expression from its beginning (no unit words inside), the right side a single number. In a chain
    ``2 * 3 = 6 + 1 = 7`` only the last link has that form.
    """
    found = []
    for run in _runs(text):
        parts: list[list[Token]] = [[]]
        for token in run:
            if token.kind == "=":
                parts.append([])
            else:
                parts[-1].append(token)
        for left, right in pairwise(parts):
            if len(right) == 1 and right[0].kind == "#" and len(left) > 2 and evaluate(left) is not None:
                found.append(Equation(tuple(left), right[0]))
    return found


def _runs(text: str) -> Iterator[list[Token]]:
    """Tokens with nothing but glue between them."""
    run: list[Token] = []
    for token in tokens(text):
        if run and not _GLUE.fullmatch(text, run[-1].end, token.start):
            yield run
            run = []
        run.append(token)
    if run:
        yield run


def evaluate(expression: Sequence[Token]) -> Fraction | None:
    """The exact value of an expression with the usual precedence; None when it is malformed or divides by zero."""
    rest = list(reversed(expression))

    def factor() -> Fraction:
        token = rest.pop()
        if token.kind == "#":
            return token.worth
        if token.kind != "(":
            raise ValueError
        value = total()
        if rest.pop().kind != ")":
            raise ValueError
        return value

    def product() -> Fraction:
        value = factor()
        while rest and rest[-1].kind in ("*", "/"):
            value = value * factor() if rest.pop().kind == "*" else value / factor()
        return value

    def total() -> Fraction:
        value = product()
        while rest and rest[-1].kind in ("+", "-"):
            value = value + product() if rest.pop().kind == "+" else value - product()
        return value

    try:
        value = total()
    except (IndexError, ValueError, ZeroDivisionError):
        return None
    return None if rest else value


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
        old = _part(trace, index, token)
        for number in _others(token.value, rng, around):
            value = evaluate([replace(part, value=number) if part is token else part for part in equation.left])
            written = _write(number, old)
            if value is not None and value != equation.result.worth and written is not None:
                return _restate(trace, rng, "operand", index, equation, token, written, value)
    return None


def _result(trace: Trace, rng: random.Random) -> Trace | None:
    """Another result, so that the equation is false; the steps after it go on with the old one or with the new one."""
    choices = list(_sound_equations(trace))
    for index, equation in rng.sample(choices, len(choices)):
        for number in _others(equation.result.value, rng, []):
            written = _write(number, _part(trace, index, equation.result))
            if written is not None:
                return _edit_equation(trace, rng, "result", index, equation, [(equation.result, written)], number)
    return None


def _answer(trace: Trace, rng: random.Random) -> Trace | None:
    """Another number in the answer block; every step stays right."""
    span = _answer_span(trace)
    value = to_number(trace.answer or "")
    if span is None or value is None or value < 0:
        return None
    results = sorted({equation.result.value for text in trace.step_texts() for equation in equations(text)})
    reference = trace.gold or trace.answer or ""
    for number in _others(value, rng, results):
        written = _write(number, trace.answer or "")
        if written is not None and not answers_match(written, reference):
            return _rebuilt(trace, "answer", [(*span, written)], trace.first_error)
    return None


def _dropped(trace: Trace, rng: random.Random) -> Trace | None:
    """Without a step whose result the next step uses: that next step is then the first wrong one."""
    choices = [index for index in _open_steps(trace)[:-1] if _depends(trace, index + 1, index)]
    if not choices:
        return None
    index = rng.choice(choices)
    parts = pieces(trace.text, trace.steps)
    return _reassembled(trace, "dropped", parts[: 2 * index + 1] + parts[2 * index + 3 :], index)


def _swapped(trace: Trace, rng: random.Random) -> Trace | None:
    """Two neighbours in the wrong order, where the later one uses the result of the earlier one."""
    choices = [index for index in _open_steps(trace)[:-1] if _depends(trace, index + 1, index)]
    if not choices:
        return None
    index = rng.choice(choices)
    parts = pieces(trace.text, trace.steps)
    first, second = 2 * index + 1, 2 * index + 3
    parts[first], parts[second] = parts[second], parts[first]
    return _reassembled(trace, "swapped", parts, index)


# --- kinds for multiple choice ---------------------------------------------------------------------------------------

_VERB = re.compile(r"\b(?:is|are|was|were|has been|have been|can|will|does|do|causes?|increases?|decreases?)\b")
_TURNED = {
    "can": "cannot", "does": "does not", "do": "do not", "cause": "do not cause", "causes": "does not cause",
    "increase": "decrease", "increases": "decreases", "decrease": "increase", "decreases": "increases",
}  # fmt: skip
_HEDGED = re.compile(
    r"\b(?:not?|nor|never|neither|none|without|unlikely|rather|but|cannot|consider|whether|if|which|option|except|least|"
    r"incorrect|wrong|false|may|might|could|would|should|unless|although|while|however)\b|n't\b|\?",
    re.IGNORECASE,
)
"""Where a finding is weighed, excluded or asked for, its opposite need not be wrong."""


def _option(trace: Trace, rng: random.Random) -> Trace | None:
    """Another option as the answer; every step stays right."""
    span = _answer_span(trace)
    others = [letter for letter in options_of(trace.problem) if letter != trace.answer]
    if span is None or len(others) == len(options_of(trace.problem)) or not others:
        return None
    return _rebuilt(trace, "option", [(*span, rng.choice(others))], trace.first_error)


def _negated(trace: Trace, rng: random.Random) -> Trace | None:
    """A finding stated as its opposite: the one verb of a plain assertion negated or turned round."""
    choices = []
    for index in _open_steps(trace):
        text = trace.step_texts()[index]
        verbs = list(_VERB.finditer(text))
        if len(verbs) == 1 and not _HEDGED.search(text):
            choices.append((index, verbs[0]))
    if not choices:
        return None
    index, verb = rng.choice(choices)
    said = verb[0]
    words = said.split()
    turned = _TURNED.get(said, " ".join([words[0], "not", *words[1:]]))
    start = trace.steps[index].start
    return _rebuilt(trace, "negated", [(start + verb.start(), start + verb.end(), turned)], _earliest(trace, index))


def _entity(trace: Trace, rng: random.Random) -> Trace | None:
    """The right option's words replaced by another option's in a step before the last."""
    found = [place for place in _mentions(trace) if place[0] < len(trace.steps) - 1]
    return None if not found else _replaced(trace, rng, "entity", rng.choice(found))


def _contradiction(trace: Trace, rng: random.Random) -> Trace | None:
    """Another option's words in the last step: the conclusion contradicts the answer given."""
    found = [place for place in _mentions(trace) if place[0] == len(trace.steps) - 1]
    return None if not found else _replaced(trace, rng, "contradiction", found[0])


def _mentions(trace: Trace) -> list[tuple[int, int, int]]:
    """Plain assertions that use the right option's words once: the step's index, and the words' span in it."""
    options = options_of(trace.problem)
    right = options.get(trace.gold or trace.answer or "")
    if right is None:
        return []
    found = []
    for index in _open_steps(trace):
        text = trace.step_texts()[index]
        at = [match.span() for match in re.finditer(rf"(?<!\w){re.escape(right)}(?!\w)", text, re.IGNORECASE)]
        if len(at) == 1 and not _HEDGED.search(text[: at[0][0]] + text[at[0][1] :]):
            found.append((index, *at[0]))
    return found


def _replaced(trace: Trace, rng: random.Random, kind: Choice, place: tuple[int, int, int]) -> Trace | None:
    options = options_of(trace.problem)
    index, start, end = place
    base = trace.steps[index].start
    old = trace.text[base + start : base + end]
    others = [text for text in options.values() if text.casefold() not in (old.casefold(), *_holders(old, options))]
    if not others:
        return None
    new = rng.choice(others)
    if old[:1].islower() and new[1:2].islower():
        new = new[0].lower() + new[1:]
    return _rebuilt(trace, kind, [(base + start, base + end, new)], _earliest(trace, index))


def _holders(words: str, options: Mapping[str, str]) -> list[str]:
    """Options that hold the words or are part of them, and those about all or none: naming them need not be wrong."""
    words = words.casefold()
    texts = [text.casefold() for text in options.values()]
    return [
        text
        for text in texts
        if text in words or words in text or re.search(r"\b(?:above|all|both|none|these)\b", text)
    ]


_KINDS: dict[Kind, Callable[[Trace, random.Random], Trace | None]] = {
    "operator": _operator,
    "operand": _operand,
    "result": _result,
    "answer": _answer,
    "dropped": _dropped,
    "swapped": _swapped,
    "option": _option,
    "negated": _negated,
    "entity": _entity,
    "contradiction": _contradiction,
}


# --- what the kinds share --------------------------------------------------------------------------------------------


def _open_steps(trace: Trace) -> range:
    """Steps that may be corrupted: those after the first wrong one, so that it stays the first."""
    return range(0 if trace.first_error is None else trace.first_error + 1, len(trace.steps))


def _sound_equations(trace: Trace) -> Iterator[tuple[int, Equation]]:
    """True equations of the open steps, each with its step's index; spans relative to the step."""
    texts = trace.step_texts()
    for index in _open_steps(trace):
        for equation in equations(texts[index]):
            if equation.holds:
                yield index, equation


def _part(trace: Trace, index: int, token: Token) -> str:
    start = trace.steps[index].start
    return trace.text[start + token.start : start + token.end]


def _others(value: Fraction, rng: random.Random, known: Sequence[Fraction]) -> list[Fraction]:
    """Plausible other numbers than ``value`` in random order: its neighbours, its digits turned round, known ones."""
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


def _write(value: Fraction, like: str) -> str | None:
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
    written = _write(number, _part(trace, index, equation.result))
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
    return _rebuilt(trace, kind, changes + (follow or []), _earliest(trace, index))


def _earliest(trace: Trace, index: int) -> int:
    return index if trace.first_error is None else trace.first_error


def _carried(trace: Trace, index: int, changed: Equation, number: Fraction) -> list[tuple[int, int, str]] | None:
    """Edits after which the rest of the trace goes on with ``number`` instead of the equation's old result.

    None when that is ambiguous (the old result is also a given number, or another step's result) or impossible (a
    result below zero or without a finite decimal).
    """
    texts = trace.step_texts()
    old = changed.result.value
    earlier = {token.value for text in texts[:index] for token in tokens(text)}
    if old in _given(trace.problem) | earlier | {token.value for token in changed.left}:
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
                written = _write(value, _part(trace, at, equation.result))
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
                written = _write(moved[token.value], _part(trace, at, token))
                if written is None:
                    return None
                edits.append((token.start + trace.steps[at].start, token.end + trace.steps[at].start, written))
    span = _answer_span(trace)
    answer = to_number(trace.answer or "")
    if span is not None and answer in moved:
        written = _write(moved[answer], trace.answer or "")
        if written is None:
            return None
        edits.append((*span, written))
    return edits


def _given(problem: str) -> set[Fraction]:
    """Numbers that a step may use without deriving them: those of the problem, in digits or words, and common ones."""
    words = {_WORDS[word] for word in re.findall(r"[a-z]+", problem.lower()) if word in _WORDS}
    return {token.value for token in tokens(problem) if token.kind == "#"} | words | _COMMON


def _depends(trace: Trace, later: int, earlier: int) -> bool:
    """Whether a step uses a result of an earlier step that it can have from nowhere else."""
    texts = trace.step_texts()
    results = {equation.result.value for equation in equations(texts[earlier]) if equation.holds}
    used = {token.value for equation in equations(texts[later]) for token in equation.left if token.kind == "#"}
    elsewhere = {token.value for at, text in enumerate(texts[:later]) if at != earlier for token in tokens(text)}
    return bool((results & used) - elsewhere - _given(trace.problem))


def _answer_span(trace: Trace) -> tuple[int, int] | None:
    """Where the final answer stands after the last step."""
    if not trace.answer:
        return None
    start = trace.text.find(trace.answer, trace.steps[-1].end)
    return (start, start + len(trace.answer)) if start >= 0 else None


def _rebuilt(trace: Trace, kind: Kind, edits: Sequence[tuple[int, int, str]], first_error: int | None) -> Trace:
    """Apply replacements of spans, each inside one step or the answer, and move the steps' spans along."""
    text, bounds = trace.text, [[step.start, step.end] for step in trace.steps]
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
        shift = len(new) - (end - start)
        for span in bounds:
            span[0] += shift if span[0] >= end else 0
            span[1] += shift if span[1] >= end else 0
    return _judged(trace, kind, text, [Step(*span) for span in bounds], first_error)


def _reassembled(trace: Trace, kind: Kind, parts: Sequence[str], index: int) -> Trace:
    """Put gaps and steps together again, with the first wrong step at ``index`` unless there is an earlier one."""
    steps, at = [], 0
    for position, part in enumerate(parts):
        if position % 2:
            steps.append(Step(at, at + len(part)))
        at += len(part)
    return _judged(trace, kind, "".join(parts), steps, _earliest(trace, index))


def _judged(trace: Trace, kind: Kind, text: str, steps: Sequence[Step], first_error: int | None) -> Trace:
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
