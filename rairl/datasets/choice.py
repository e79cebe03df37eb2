"""Multiple choice: a question with its options as a problem, and a rationale as an expert trace.

The answer is the option's letter, in problem, target and matching alike. The published targets held "B. text" while the
prompt forbade the letter; one convention for both is easier to learn and to check.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rairl.core.errors import RairlError
from rairl.core.traces import Trace
from rairl.text.answers import options_of, read_answer
from rairl.text.segment import compose, guess, segment

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_OPENING = re.compile(r"\s*(?:A:\s*)?(?:Let's think step by step\.?\s*)?")
_CONCLUSION = re.compile(
    r"(?:(?:so|thus|hence|therefore|in conclusion|conclusion|final answer)\b[,:]?\s*)*(?:the\s+)?"
    r"(?:(?:final|correct|right|best)\s+)?answer\s*(?:is\b|:)(?!.*\b(?:because|since)\b).{0,200}",
    re.IGNORECASE | re.DOTALL,
)
_MARKUP = re.compile(r"^[ \t]*#+[ \t]*|\*\*|</?answer>", re.MULTILINE)


def problem_of(question: str, options: Sequence[str]) -> str:
    """The question, a blank line, and the options on a line each: ``A. text``.

    Raises:
        RairlError: for fewer than two options, too many of them, or an empty one.
    """
    lines = [" ".join(option.split()) for option in options]
    if not 2 <= len(lines) <= len(LETTERS) or not all(lines):
        raise RairlError(f"field 'options' must hold 2 to {len(LETTERS)} non-empty options")
    listed = "\n".join(f"{letter}. {line}" for letter, line in zip(LETTERS, lines, strict=False))
    return f"{question.strip()}\n\n{listed}"


def steps_of(rationale: str) -> list[str]:
    """The steps of a rationale: its think block's lines, numbered steps, or sentences.

    Markdown marks go; a heading on a line of its own (``Reasoning:``) joins the step after it; a last step that does
    nothing but name the answer is left out, since it belongs into the answer block.
    """
    text = _MARKUP.sub("", rationale[_OPENING.match(rationale).end() :])  # type: ignore[union-attr]
    steps: list[str] = []
    heading = ""
    how = guess(text)
    for span in segment(text, "sentences" if how == "lines" else how):  # a line may be a whole paragraph
        step = f"{heading} {text[span.start : span.end]}".strip()
        heading = step if step.endswith(":") else ""
        if not heading:
            steps.append(step)
    while steps and _CONCLUSION.fullmatch(steps[-1]):
        steps.pop()
    return steps


def expert(key: str, problem: str, gold: str, rationale: str) -> Trace | str:
    """An expert trace, or in a word why the rationale gives none: its own conclusion is another option, or it only
    names the answer.

    Args:
        gold: letter of the right option.
    """
    concluded = read_answer(rationale, problem)
    if concluded in options_of(problem) and concluded != gold:
        return "contradicts_the_answer"
    steps = steps_of(rationale)
    if not steps:
        return "no_reasoning"
    text, spans = compose(steps, gold)
    return Trace(key, problem, text, spans, gold, gold, True, source="expert")
