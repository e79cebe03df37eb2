"""Steps of a text, as character spans, for each way that data sets mark them.

Every function returns ascending spans without surrounding white space; nothing but white space and markup lies between
them, so the text can be put together again from the gaps and the steps (:func:`pieces`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from rairl.core.errors import RairlError
from rairl.core.traces import Step, Trace, locate_steps

How = Literal["lines", "sentences", "numbered", "tags"]

NUMBERED = re.compile(r"[ \t]*(?:\*\*|#+[ \t]*)?Step[ \t]*(?P<number>\d+)\b", re.IGNORECASE)
"""The head of a numbered step: ``Step 3:``, ``**Step 3.``, ``## Step 3``."""
_OUTCOME = re.compile(r"[ \t]*Solution\b", re.IGNORECASE)
_END = re.compile(r"[.!?]+[\"')\]”’]*(?=\s)")
_ABBREVIATIONS = frozenset(
    (
        "mr mrs ms dr prof st jr sr vs etc e.g i.e eg ie cf al approx fig no vol dept est "
        "min max hr hrs ft in oz lb lbs a.m p.m"
    ).split()
)
_NEED_CAPITAL = frozenset("etc no in min max hr hrs ft oz lb lbs a.m p.m".split())
"""Abbreviations that may also end a sentence (or are words): a capital after them starts a new one."""


def segment(text: str, how: How) -> tuple[Step, ...]:
    """Steps of ``text``: ``lines``, ``sentences``, ``numbered`` (Step 1, Step 2, ...) or ``tags`` (think block)."""
    return {"lines": lines, "sentences": sentences, "numbered": numbered, "tags": think_lines}[how](text)


def guess(text: str) -> How:
    """How the steps of ``text`` are marked: by tags, else by numbers, else by lines, else one sentence each."""
    if "<think>" in text or "<answer>" in text:
        return "tags"
    if sum(NUMBERED.match(line) is not None for line in text.splitlines()) >= 2:
        return "numbered"
    return "lines" if len(lines(text)) > 1 else "sentences"


def lines(text: str, start: int = 0, end: int | None = None) -> tuple[Step, ...]:
    """One step per line of ``text[start:end]`` that is not blank."""
    stop = len(text) if end is None else end
    spans = []
    for match in re.compile(r"[^\n\r]+").finditer(text, start, stop):
        spans += _trim(text, match.start(), match.end())
    return tuple(spans)


def think_lines(text: str) -> tuple[Step, ...]:
    """One step per line of the think block.

    Works on whatever a policy writes: without ``<think>`` the block starts at the beginning, without ``</think>`` it
    ends at ``<answer>`` or at the end.
    """
    opened = text.find("<think>")
    start = 0 if opened < 0 else opened + len("<think>")
    ends = [at for tag in ("</think>", "<answer>") if (at := text.find(tag, start)) >= 0]
    return lines(text, start, min(ends, default=len(text)))


def sentences(text: str) -> tuple[Step, ...]:
    """One step per sentence; a line break also ends one. Decimals, abbreviations, initials and ``1.`` stay whole."""
    spans: list[Step] = []
    for line in lines(text):
        start = line.start
        for match in _END.finditer(text, line.start, line.end):
            if not _ends_sentence(text[start : match.end()], text[match.end() : line.end].lstrip()):
                continue
            spans += _trim(text, start, match.end())
            start = match.end()
        spans += _trim(text, start, line.end)
    return tuple(spans)


def _ends_sentence(before: str, after: str) -> bool:
    if not before.endswith("."):
        return True
    words = before.split()
    word = words[-1].lstrip("(\"'[").rstrip(".")
    capital = after[:1].isupper()
    if len(words) == 1 and re.fullmatch(r"\d+|[A-Za-z]", word):
        return False  # a list marker: "1. ", "a. "
    if word.lower() in _NEED_CAPITAL:
        return capital
    if word.lower() in _ABBREVIATIONS:
        return False
    if len(word) == 1 and word.isupper():
        return len(words) > 1 and words[-2][:1].islower()  # "J. Smith", but "the answer is B. Then"
    return True


def numbered(text: str) -> tuple[Step, ...]:
    """One step per numbered head (``Step k``), with the unnumbered lines after it.

    Lines before the first head belong to the first step. A last part that begins with ``Solution`` is a step of its
    own. Without any head the steps are the lines.
    """
    spans = lines(text)
    merged = merge_numbered([text[span.start : span.end] for span in spans])
    return tuple(Step(spans[part[0]].start, spans[part[-1]].end) for part in merged)


def merge_numbered(items: Sequence[str]) -> list[list[int]]:
    """Indices of the items that make up each step, as in MR-Ben, whose items are lines rather than steps.

    Each item without a ``Step k`` head goes to the head before it, those before the first head to the first one; the
    items from a ``Solution`` after the last head on are kept apart, as one last part. Items without any head stay as
    they are.
    """
    heads = [index for index, item in enumerate(items) if NUMBERED.match(item)]
    if not heads:
        return [[index] for index in range(len(items))]
    outcome = next((at for at in range(heads[-1] + 1, len(items)) if _OUTCOME.match(items[at])), len(items))
    starts = [0, *heads[1:], outcome, len(items)]
    return [list(range(start, end)) for start, end in pairwise(starts) if end > start]


def solved(key: str, problem: str, solution: str | Sequence[str]) -> Trace:
    """A trace of a solution in plain text, whose steps are found, or of one given as a list of its steps.

    Args:
        key: the trace's id, which errors name.

    Raises:
        RairlError: when the solution is of another type, a step is blank, or the text can't be written as UTF-8.
    """
    try:
        if isinstance(solution, str):
            text, spans = solution, segment(solution, guess(solution))
        elif isinstance(solution, Sequence) and all(isinstance(step, str) for step in solution):
            text = "\n".join(solution)
            spans = locate_steps(text, solution)
        else:
            raise RairlError("a solution is a text or a list of its steps")
        (problem + text).encode()
    except UnicodeEncodeError as error:
        raise RairlError(
            f"trace {key!r}: half of a surrogate pair is no character; decode the text as UTF-8"
        ) from error
    except RairlError as error:
        raise RairlError(f"trace {key!r}: {error}") from error
    return Trace(id=key, problem=problem, text=text, steps=spans)


def pieces(text: str, steps: Sequence[Step]) -> list[str]:
    """Gap, step, gap, ..., step, gap: ``2 n + 1`` strings whose concatenation is ``text``."""
    parts, end = [], 0
    for step in steps:
        parts += [text[end : step.start], text[step.start : step.end]]
        end = step.end
    return [*parts, text[end:]]


def compose(steps: Sequence[str], answer: str | None) -> tuple[str, tuple[Step, ...]]:
    """The canonical text of a solution, and the spans of its steps.

    ``<think>``, one step a line, ``</think>``, then the answer in its block; no block when ``answer`` is None. White
    space inside a step, line breaks included, becomes single spaces.

    Raises:
        RairlError: when there is no step, or one is blank or holds one of the tags.
    """
    text, spans = "<think>\n", []
    for index, step in enumerate(steps):
        line = " ".join(step.split())
        if not line or re.search(r"</?(?:think|answer)>", line):
            raise RairlError(
                f"steps[{index}] is {line[:40]!r}; a step must hold text and none of the think/answer tags"
            )
        spans.append(Step(len(text), len(text) + len(line)))
        text += line + "\n"
    if not spans:
        raise RairlError("a solution needs at least one step")
    text += "</think>"
    if answer is not None:
        text += f"\n<answer>\n{answer}\n</answer>"
    return text, tuple(spans)


def _trim(text: str, start: int, end: int) -> list[Step]:
    """The span without the white space at its ends; nothing when it is blank."""
    body = text[start:end].strip()
    if not body:
        return []
    first = text.index(body, start)
    return [Step(first, first + len(body))]
