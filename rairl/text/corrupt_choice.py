"""Corruptions of solutions to multiple-choice questions."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rairl.core.traces import Trace
from rairl.text.answers import options_of
from rairl.text.edits import answer_span, earliest, open_steps, rebuilt

if TYPE_CHECKING:
    from rairl.text.edits import Choice


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


def option(trace: Trace, rng: random.Random) -> Trace | None:
    """Another option as the answer; every step stays right."""
    span = answer_span(trace)
    others = [letter for letter in options_of(trace.problem) if letter != trace.answer]
    if span is None or len(others) == len(options_of(trace.problem)) or not others:
        return None
    return rebuilt(trace, "option", [(*span, rng.choice(others))], trace.first_error)


def negated(trace: Trace, rng: random.Random) -> Trace | None:
    """A finding stated as its opposite: the one verb of a plain assertion negated or reversed."""
    choices = []
    for index in open_steps(trace):
        text = trace.step_texts()[index]
        verbs = list(_VERB.finditer(text))
        if len(verbs) == 1 and not _HEDGED.search(text):
            choices.append((index, verbs[0]))
    if not choices:
        return None
    index, verb = rng.choice(choices)
    written = verb[0]
    words = written.split()
    turned = _TURNED.get(written, " ".join([words[0], "not", *words[1:]]))
    start = trace.steps[index].start
    return rebuilt(trace, "negated", [(start + verb.start(), start + verb.end(), turned)], earliest(trace, index))


def entity(trace: Trace, rng: random.Random) -> Trace | None:
    """The right option's words replaced by another option's in a step before the last."""
    places = [place for place in mentions(trace) if place[0] < len(trace.steps) - 1]
    return None if not places else replaced(trace, rng, "entity", rng.choice(places))


def contradiction(trace: Trace, rng: random.Random) -> Trace | None:
    """Another option's words in the last step: the conclusion contradicts the answer given."""
    places = [place for place in mentions(trace) if place[0] == len(trace.steps) - 1]
    return None if not places else replaced(trace, rng, "contradiction", places[0])


def mentions(trace: Trace) -> list[tuple[int, int, int]]:
    """Plain assertions that use the right option's words once: the step's index, and the words' span in it."""
    options = options_of(trace.problem)
    right = options.get(trace.gold or trace.answer or "")
    if right is None:
        return []
    places = []
    for index in open_steps(trace):
        text = trace.step_texts()[index]
        spans = [match.span() for match in re.finditer(rf"(?<!\w){re.escape(right)}(?!\w)", text, re.IGNORECASE)]
        if len(spans) == 1 and not _HEDGED.search(text[: spans[0][0]] + text[spans[0][1] :]):
            places.append((index, *spans[0]))
    return places


def replaced(trace: Trace, rng: random.Random, kind: Choice, place: tuple[int, int, int]) -> Trace | None:
    options = options_of(trace.problem)
    index, start, end = place
    base = trace.steps[index].start
    old = trace.text[base + start : base + end]
    others = [text for text in options.values() if text.casefold() not in (old.casefold(), *holders(old, options))]
    if not others:
        return None
    new = rng.choice(others)
    if old[:1].islower() and new[1:2].islower():
        new = new[0].lower() + new[1:]
    return rebuilt(trace, kind, [(base + start, base + end, new)], earliest(trace, index))


def holders(words: str, options: Mapping[str, str]) -> list[str]:
    """Options that hold the words or are part of them, and those about all or none: naming them need not be wrong."""
    words = words.casefold()
    texts = [text.casefold() for text in options.values()]
    return [
        text
        for text in texts
        if text in words or words in text or re.search(r"\b(?:above|all|both|none|these)\b", text)
    ]
