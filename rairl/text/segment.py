"""Steps of a text, as character spans, for each way that data sets mark them.

Every function returns ascending spans without surrounding white space; nothing but white space and markup lies between
them (:mod:`rairl.core.blanks`), so the text can be put together again from the gaps and the steps (:func:`pieces`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from rairl.core.blanks import body, is_markup
from rairl.core.errors import RairlError
from rairl.core.traces import Step, Trace, locate_steps

How = Literal["lines", "sentences", "numbered", "tags"]

NUMBERED = re.compile(r"[ \t]*(?:\*\*|#+[ \t]*)?Step[ \t]*(?P<number>\d+)\b", re.IGNORECASE)
"""The head of a numbered step: ``Step 3:``, ``**Step 3.``, ``## Step 3``."""
_LINE = re.compile(r"[^\n\r\u2028\u2029]+")
_OUTCOME = re.compile(r"[ \t]*Solution\b", re.IGNORECASE)
_END = re.compile(r"[.!?]+[\"')\]”’»*_$]*(?=\s)|[。｡！？।॥۔؟]+[\"')\]”’»」』】）》*_]*")
"""Where a sentence may end: Chinese, Hindi and Urdu put no space behind their marks."""
_CLOSING, _OPENING = "\"')]”’»*_$", "\"'([“‘«*_$"
_NEVER = frozenset(
    (
        "mr mrs ms dr prof st jr sr messrs vs cf viz e.g i.e eg ie approx fig figs eq eqs dept est "
        "z.b d.h u.a o.ä bzw vgl ggf evtl bspw sog inkl zzgl nr"
    ).split()
)
"""Abbreviations that never end a sentence."""
_BEFORE_CAPITAL = frozenset(
    "etc no in min max hr hrs yr yrs wk wks ft oz lb lbs pts tsp tbsp neg pos a.m p.m usw insg gem".split()
)
"""Abbreviations that end one where a capital follows (or are words themselves)."""
_BEFORE_NUMBER = frozenset("art arts app ex exh ch pt para paras p pp s n c id".split())
"""Words and letters that are an abbreviation before a number: "p. 5", "Art. IV", "§"."""
_BEFORE_STARTER = frozenset(
    (
        "jan feb mar apr jun jul aug sep sept oct nov dec sec secs cl chap exh subd reg regs tit amend stat supp cir "
        "ct dist fed civ crim proc evid ibid seq op cit al rev hon gen col sgt capt lt maj gov sen rep eds trans vol "
        "vols ann assn bros univ inst natl intl inc corp co ltd llc plc temp abs ca rn"
    ).split()
)
"""Abbreviations that names and numbers follow: they end a sentence only where a word that begins one does."""
_STARTERS = frozenset(
    (
        "then so the it this that these those thus therefore hence we he she they you our his her its their but if in "
        "on at as since because however finally next now after before when while first second let here there for from "
        "with by to an also again given using consider note what which who how why where each every all both moreover "
        "furthermore instead otherwise similarly likewise consequently additionally although though thereby "
        "substituting adding dividing multiplying subtracting solving "
        "dann also daher somit damit das die der es wir nun jetzt dies diese im aus folglich deshalb danach zuerst"
    ).split()
)
"""Words that a sentence begins with, and a name hardly ever."""
_NAMED = frozenset(
    (
        "to by for of from with and via per like about against under between versus near behind judge justice attorney "
        "counsel plaintiff defendant author poet president professor director sued met saw called named thanked told "
        "asked said wrote paid gave"
    ).split()
)
"""Words that the initial of a name follows; behind others a letter is a label: "is B. Glucose", "type B. One"."""
_LABEL = re.compile(r"(?<![\w.])(?:[B-HJ-Z]|A(?=,| and\b| or\b))(?![\w.'’])")
"""Another letter that stands for something, as in "A, B, C and D"."""
_HEAD = re.compile(
    r"(?:step|case|part|problem|question|example|figure|table|claim|theorem|lemma|section|schritt|fall)\s+[\d.]+",
    re.IGNORECASE,
)
_INITIALS = re.compile(r"(?:[^\W\d_]{1,2}\.)+[^\W\d_]{1,3}")
_GERMAN_ORDINAL = frozenset("am im der die das dem den des vom zum beim ein einen einem jeder".split())


def segment(text: str, how: How) -> tuple[Step, ...]:
    """Steps of ``text``: ``lines``, ``sentences``, ``numbered`` (Step 1, Step 2, ...) or ``tags`` (think block)."""
    return {"lines": lines, "sentences": sentences, "numbered": numbered, "tags": think_lines}[how](text)


def guess(text: str) -> How:
    """How the steps of ``text`` are marked: by tags, else by numbers, else by lines, else one sentence each."""
    if any(tag in text for tag in ("<think>", "</think>", "<answer>")):
        return "tags"
    if sum(NUMBERED.match(line) is not None for line in text.splitlines()) >= 2:
        return "numbered"
    return "lines" if len(lines(text)) > 1 else "sentences"


def lines(text: str, start: int = 0, end: int | None = None) -> tuple[Step, ...]:
    """One step per line of ``text[start:end]`` that shows something: no blank line, and none that only marks a block.

    The fences of code, the delimiters of a formula on a line of their own, rules and the like are no steps; what stands
    between them is.
    """
    stop = len(text) if end is None else end
    spans = []
    for match in _LINE.finditer(text, start, stop):
        spans += [step for step in _trim(text, *match.span()) if not is_markup(text[step.start : step.end])]
    return tuple(spans)


def think_lines(text: str) -> tuple[Step, ...]:
    """One step per line of the think block.

    Works on whatever a policy writes: without ``<think>`` (a chat template may have written it already) the block
    starts at the beginning, without ``</think>`` it ends at ``<answer>`` or at the end. Where the block is there and
    says nothing, the steps are the lines after it.
    """
    opened, closed = text.find("<think>"), text.find("</think>")
    start = opened + len("<think>") if opened >= 0 and not 0 <= closed < opened else 0
    ends = [at for tag in ("</think>", "<answer>") if (at := text.find(tag, start)) >= 0]
    found = lines(text, start, min(ends, default=len(text)))
    if found or closed < 0:
        return found
    after = closed + len("</think>")
    answered = text.find("<answer>", after)
    return lines(text, after, len(text) if answered < 0 else answered)


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
    """Whether a sentence ends between two parts of a line, of which the first ends in a mark."""
    said = before.rstrip(_CLOSING)
    if not after or said[-1:] not in (".", "!", "?"):
        return True
    if after[0] in ",;:)]}=<>≤≥≠":
        return False
    following = after.lstrip(_OPENING)
    small = following[:1].islower()
    # “Stop!” he said; (why?) because; (Prod. by Ann)
    if small and (said != before or before.count("(") > before.count(")")):
        return False
    if said[-1] != ".":
        factorial = re.search(r"(?:[\d)]|\b[a-z])!$", said) is not None
        return not (factorial and (small or after[0] in "+-*/^×·÷%"))
    if said.endswith(".."):
        return not small
    return not _stays(said.split(), following, small)


def _stays(words: Sequence[str], following: str, small: bool) -> bool:
    """Whether the full stop behind the last of a sentence's words so far belongs to that word."""
    word = words[-1].lstrip(_OPENING).rstrip(".")
    known, capital = word.lower(), following[:1].isupper()
    opening = re.match(r"[^\W\d_]+(?![.\w])", following)
    starter = opening is not None and capital and opening[0].lower() in _STARTERS
    if len(words) == 1 and re.fullmatch(r"\d+|[^\W\d_]|[ivx]+", word):
        return True  # a list marker: "1. ", "a. "
    if _HEAD.fullmatch(" ".join(words).lstrip(_OPENING).rstrip(".")):
        return True  # "Step 1. Add"
    if known in _NEVER:
        return True
    if known in _BEFORE_CAPITAL:
        return not capital
    if known in _BEFORE_NUMBER and re.match(r"[\d§¶(]|(?:[IVXLC]+|at)\b|[A-Z](?=[,;:)])", following):
        return True
    if known in _BEFORE_STARTER or _INITIALS.fullmatch(word):
        return not starter
    if re.fullmatch(r"[^\W\d_]", word):
        return _is_initial(words, word, following, starter)
    if word.isdigit() and len(words) > 1 and words[-2].lower() in _GERMAN_ORDINAL and words[-3:-2] != ["I"]:
        return capital and not starter  # "am 3. Mai"
    return small and word[:1].isupper() and word.isalpha()  # no sentence ends "Univ." and goes on in small letters


def _is_initial(words: Sequence[str], letter: str, following: str, starter: bool) -> bool:
    """Whether a single letter with a full stop is a part of a name or an abbreviation."""
    before = words[-2] if len(words) > 1 else ""
    if re.match(r"[^\W\d_]\.", following):
        return True  # the first of several: "J. R. Smith", "z. B."
    if re.fullmatch(r"\W*[^\W\d_]\.", before):
        return not starter  # the last of several
    if letter.islower():
        return letter == "v" and before[:1].isupper()  # "Smith v. The Queen"
    # "Harry S. Truman", "to J. Smith", but "the answer is B. Glucose"
    named = not before[:1].islower() or (before in _NAMED and not _LABEL.search(" ".join(words[:-1])))
    return following[:1].islower() or (named and not starter)  # "E. coli"


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


def solved(key: str, problem: str, solution: str | Sequence[str], *, source: str = "") -> Trace:
    """A trace of a solution in plain text, whose steps are found, or of one given as a list of its steps.

    Args:
        key: the trace's id, which errors name.
        source: ``policy`` for what a policy wrote: control tokens in it are its own.

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
    return Trace(id=key, problem=problem, text=text, steps=spans, source=source)


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
        shown = body(line, 0, len(line))
        line = "" if shown is None else line[slice(*shown)]
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
    """The span without white space and invisible characters at its ends; nothing when there is no more to it."""
    found = body(text, start, end)
    return [] if found is None else [Step(*found)]
