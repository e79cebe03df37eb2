r"""Final answers: reading them out of a text and grading them.

Two checkers, always reported side by side, because exact matching mixes format with skill: the *lenient* one reads any
common way to mark an answer and compares what the answers say; the *exact* one wants the tags and the very string.
A completion without a readable answer has none (a mistake of form), which is not the same as a wrong one.

The answer of a multiple-choice question is the letter of an option, however it was written down (:func:`read_answer`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from rairl.text.equality import answers_match, group_answers, normalise_answer
from rairl.text.formulas import as_latex
from rairl.text.markup import bare
from rairl.text.options import option_letter, options_of
from rairl.text.quantities import NUMBER, format_number, read_quantity, to_number
from rairl.text.segment import sentences

__all__ = [
    "NUMBER", "answers_match", "extract_answer", "format_number", "grade", "group_answers", "normalise_answer",
    "option_letter", "options_of", "read_answer", "to_number", "well_formed",
]  # fmt: skip

_BLOCK = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_FORM = re.compile(r"<think>\n.*?\n</think>\n<answer>\n([^\n<>]+)\n</answer>\s*", re.DOTALL)
_THINK = re.compile(r"<(/?)think(?:ing)?>")
_HASHES = re.compile(r"^\s*####[ \t]*(.+?)[ \t]*$", re.MULTILINE)
_A_LINE = re.compile(r"^[ \t]*A:[ \t]*(.+?)[ \t]*$", re.MULTILINE)
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*(?:(\{)|([^\s{}\\]+))")
_WORD = r"(?:(?<![^\W_])(?<![</])(?:answers?|ans|antwort|endergebnis|ergebnis|lösung)(?![^\W_]|>)|答案|答(?=[：:]))"
_MARKUP = r"[*_`\"'”’]*[ \t]*[*_`]*"
_SAYS = re.compile(
    rf"{_WORD}{_MARKUP}(?:[ \t]+(?:to|for|of|auf|für)\b[^.:=\n]{{1,60}}?)?(?:[ \t]*\([^()\n]{{1,40}}\))?{_MARKUP}"
    r"(?P<how>[:：=]+|[ \t]+(?:is|are|was|ist|lautet|beträgt|equals|(?:would|should|must|will) be)\b[ \t]*[:：]?|"
    r"\s?(?:应该?|就)?[是为選选][:：]?)[ \t]*",
    re.IGNORECASE,
)
_HEADING = re.compile(
    rf"^(?P<marks>[ \t*_#>`]*)(?:the[ \t]+)?(?:(?:final|correct)[ \t]+|最终|正确)?{_WORD}[ \t*_#`]*$",
    re.IGNORECASE | re.MULTILINE,
)
_FILLER = re.compile(
    r"(?:(?:therefore|thus|hence|then|simply|just|indeed|actually|clearly|equal to|most likely|probably|also|daher|"
    r"somit)\b,?[ \t]*)+",
    re.IGNORECASE,
)
_REASON = re.compile(r",?[ \t]+(?:because|since|as|weil|da|denn)\b|，?因为")
_DENIED = re.compile(r"(?:not|nicht|不是)\b(?!.*\b(?:but|sondern|rather)\b)", re.IGNORECASE)
"""``not 5`` says no answer, ``not B but C`` one."""
_DISPLAY = re.compile(r"\s*(?:\\\[(.+?)\\\]|\$\$(.+?)\$\$)", re.DOTALL)
_CHOSEN = re.compile(
    r"(?:\b(?:it(?:'s|’s| is| must be)|i(?:'d|’d| would)? (?:choose|pick|select|say)|go with|(?:option|choice)(?: is)?)"
    r"|[故应]选|选择?)[\W_]*(?-i:([A-Z]))"
    r"(?=[\W_]*(?:$|\n|because\b|since\b|is correct\b|is the (?:correct|right|best)\b))|"
    r"^[\W_]*(?-i:([A-Z]))[\W_]* is (?:correct|right|the (?:correct|right|best))\b",
    re.IGNORECASE | re.MULTILINE,
)
_LONGEST = 1000
_MOST_WORDS = 5
"""A sentence after a box or ``####`` overrules it only when what it calls the answer is this short."""


class _Mark(NamedTuple):
    """An answer as a text marks it.

    Attributes:
        start: where the mark begins.
        answer: what it says; None where it was cut off.
        prose: it is a sentence, and no sign that stands for an answer only.
        below: the answer stands on the line below the mark.
    """

    start: int
    answer: str | None
    prose: bool = False
    below: bool = False


def extract_answer(text: str, *, choice: bool = False) -> str | None:
    r"""The final answer as written in ``text``, or None when none is marked.

    What was only thought (in a ``<think>`` block) doesn't count where something follows it, and nothing does where the
    block was not finished. Then ``<answer>...</answer>`` comes first, in it and else the last mark wins, whichever it
    is: ``\boxed{...}``, ``#### 42``, a line ``A: 42``, "the answer is 42", "Answer: 42", a heading "Final Answer", and
    the same in German and Chinese. A text that opens ``<answer>`` or its last box without closing it was cut off and
    has no answer.

    Args:
        text: a completion.
        choice: the question has lettered options, so that a line ``A: ...`` is one of them and marks no answer.
    """
    text = _said(text)
    if "<answer>" in text:
        blocks = _BLOCK.findall(text)
        if not blocks or text.rfind("<answer>") > text.rfind("</answer>"):
            return None
        inside = blocks[-1].strip()
        return _marked(inside, choice) or inside or None
    return _marked(text, choice)


def read_answer(text: str, problem: str) -> str | None:
    """The final answer of a completion: the letter for a multiple-choice question, else :func:`extract_answer`.

    An answer that names no option stays as it was written: it was given, and is wrong.
    """
    options = options_of(problem)
    answer = extract_answer(text, choice=bool(options))
    if not options:
        return answer
    if answer is None:
        said = _said(text).strip()
        chosen = [one or other for one, other in _CHOSEN.findall(said)]
        answer = chosen[-1] if chosen else said
        return option_letter(answer, options) if "\n" not in answer else None
    return option_letter(answer, options) or answer


def _said(text: str) -> str:
    """The text after what was only thought."""
    tags = list(_THINK.finditer(text))
    if not tags:
        return text
    if tags[-1][1]:
        return text[tags[-1].end() :] if text[tags[-1].end() :].strip() else text
    open_block = text[tags[-1].end() :]
    return open_block if "<answer>" in open_block else ""


def _marked(text: str, choice: bool) -> str | None:
    """What the last mark says."""
    marks = sorted([*_signs(text, choice), *_sentences(text)])
    marks = [mark for mark in marks if not _DENIED.match(mark.answer or "")] or marks
    if choice:  # a line below a heading is often an option copied out; a sentence that names one counts before it
        marks = [mark for mark in marks if not mark.below] or marks
    while len(marks) > 1 and marks[-1].prose and len((marks[-1].answer or "").split()) > _MOST_WORDS:
        if all(mark.prose for mark in marks):
            break
        marks.pop()
    return marks[-1].answer or None if marks else None


def _signs(text: str, choice: bool) -> Iterator[_Mark]:
    """Boxes, and lines that begin with ``####`` or ``A:``."""
    for box in _BOX.finditer(text):
        yield _Mark(box.start(), _until_closed(text, box.end()) if box[1] else box[2].strip("$.,"))
    for line in (_HASHES,) if choice else (_HASHES, _A_LINE):
        for found in line.finditer(text):
            yield _Mark(found.start(), found[1].strip(" \t*"))


def _until_closed(text: str, start: int) -> str | None:
    depth = 1
    for brace in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[start : brace.start()].strip() or None
    return None


def _sentences(text: str) -> Iterator[_Mark]:
    """Sentences and headings that say what the answer is."""
    for mark in _SAYS.finditer(text):
        end = text.find("\n", mark.end())
        rest = text[mark.end() : len(text) if end < 0 else end][:_LONGEST]
        below = not rest.strip(" \t*_`")
        answer = _below(text, mark.end()) if below else _sentence(text[mark.start() : mark.end()], rest)
        if answer and not _SAYS.search(answer):  # else the inner mark says it
            yield _Mark(mark.start(), answer, mark["how"].strip()[-1] not in ":：=", below)
    for heading in _HEADING.finditer(text):
        answer = _below(text, heading.end()) if heading["marks"].strip() or heading[0].strip()[0].isupper() else None
        if answer:
            yield _Mark(heading.start(), answer, below=True)


def _sentence(mark: str, rest: str) -> str:
    """The answer in the rest of a mark's line: to the end of the sentence, without fillers and reasons."""
    line = mark + re.split(r"(?<=[。！])", rest)[0]
    answer = line[len(mark) : sentences(line)[0].end].strip(" \t*_") if line.strip() else ""
    answer = answer.rstrip(".!。！").strip(" \t*_")
    answer = answer[filler.end() :] if (filler := _FILLER.match(answer)) else answer
    reason = _REASON.search(answer)
    return answer[: reason.start()] if reason and _is_value(answer[: reason.start()]) else answer


def _below(text: str, start: int) -> str | None:
    """The answer on the first line below a mark, if that is the text's last line or holds a value and no more."""
    display = _DISPLAY.match(text, re.compile(r"[\s*_`]*").match(text, start).end())  # type: ignore[union-attr]
    if display is not None:
        return (display[1] or display[2]).strip()
    lines = [line.strip(" \t*_") for line in text[start:].split("\n")[1:] if line.strip(" \t*_")]
    if lines and not _SAYS.search(lines[0]) and (len(lines) == 1 or _is_value(lines[0])):
        return lines[0].rstrip(".。")
    return None


def _is_value(text: str) -> bool:
    """Whether a text is nothing but a number, a formula or a letter."""
    plain = bare(text)
    return read_quantity(plain) is not None or as_latex(plain) is not None or re.fullmatch(r"[A-Z]", plain) is not None


def well_formed(text: str) -> bool:
    """Whether ``text`` is exactly one think block followed by one non-empty answer line in its block."""
    return _FORM.fullmatch(text) is not None and text.count("<answer>") == 1 and text.count("<think>") == 1


def grade(text: str, gold: str, *, exact: bool = False) -> bool:
    """Whether the completion ``text`` ends in the answer ``gold``; when ``exact``, also in the prescribed form."""
    if exact and not well_formed(text):
        return False
    return answers_match(extract_answer(text), gold, exact=exact)
