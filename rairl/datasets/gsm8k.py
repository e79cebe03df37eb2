"""GSM8K from a local file or from the hub: people's solutions, or those of a stronger model, as expert traces.

Source: Cobbe et al. 2021, "Training Verifiers to Solve Math Word Problems" (MIT licence); each row holds a ``question``
and an ``answer`` with one step a line, calculator marks ``<<48/2=24>>`` and a last line ``#### 72``. In a set of
distilled solutions the ``answer`` is a ``<think>`` block and a ``\\boxed{72}``.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from rairl.core.dataset_params import Gsm8kDataset
from rairl.core.errors import RairlError
from rairl.core.traces import Trace
from rairl.datasets import Splits, files, selection, source
from rairl.text.answers import NUMBER, format_number, normalise_answer
from rairl.text.segment import compose

_MARK = re.compile(r"<<.*?(?:>>|$)")
_UNICODE = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "−": "-", "×": "x", "÷": "/", "\xa0": " "})


def build(params: Gsm8kDataset) -> Splits:
    """Splits ``demos``, ``prompts`` (their questions), ``dev`` and ``test``, GSM8K's own.

    Raises:
        RairlError: for a missing or malformed file (file, line, field), an unreachable hub, or too few traces.
    """
    experts = load(params.demos, revision=params.demos_revision, revision_key="demos_revision")
    test = load(params.test, revision=params.test_revision, split="test", key="test", revision_key="test_revision")
    return selection.assemble(experts, [selection.prompt(trace) for trace in test], params)


def plain_step(line: str) -> str:
    """A solution line in the one written form that people's and models' lines share.

    Meant to leave nothing but the reasoning for a reward to go by, without altering what is said:

    - calculator marks ``<<...>>`` go, also one that was cut off;
    - curly quotes, long dashes, ``×``, ``÷`` and hard spaces become their plain counterparts;
    - numbers take one form: no thousands commas, no zeros at the end of decimals, a digit before the point. Models that
      wrote with a calculator have ``5.0`` in up to 14 % of their lines, people in 0.01 %;
    - ``$ 5`` becomes ``$5``, runs of white space one space, and a full stop at the end of the line goes.

    Not touched, since it is part of what the author did: the choice of words, rounding, long decimals, spaces around
    operators, ``x`` or ``*`` for times.
    """
    line = _MARK.sub("", line).translate(_UNICODE)
    line = re.sub(rf"(?<![\d.,]){NUMBER}(?![.,]?\d)", lambda match: _plain_number(match[0]), line)
    line = re.sub(r"\$ (?=\d)", "$", " ".join(line.split()))
    return re.sub(r"(?<![.\s])\.$", "", line)


def _plain_number(text: str) -> str:
    return format_number(Fraction(text.replace(",", ""))) if len(text) <= 30 and re.search(r"[.,]", text) else text


def split_solution(text: str, mark: str) -> tuple[list[str], str | None]:
    """Steps and answer of a solution whose last line is ``<mark> <answer>`` (``####`` or ``A:``).

    The steps are in their plain form, blank ones left out; the answer is None when there is no such line.
    """
    lines = text.split("\n")
    marked = [line for line in lines if line.startswith(mark)]
    answer = normalise_answer(marked[-1].removeprefix(mark)) if marked else None
    steps = [plain_step(line) for line in lines if not line.startswith(mark)]
    return [step for step in steps if step], answer or None


def expert(row: dict[str, Any], key: str) -> Trace:
    """An expert trace from a row with ``question`` and ``answer``.

    People's lines are brought to their plain form; a distilled solution keeps the words of its think block.

    Raises:
        RairlError: naming the field that is missing, of the wrong type, or without a step or an answer.
    """
    question, solution = (source.text_field(row, name) for name in ("question", "answer"))
    steps, answer = split_solution(solution, "####")
    if answer is None and "<think>" in solution:
        return files.expert(Trace(key, question.strip(), solution), "field 'answer'")
    if answer is None:
        raise RairlError("field 'answer' has no last line '#### <answer>'")
    if not steps:
        raise RairlError("field 'answer' has no step before its '####' line")
    text, spans = compose(steps, answer)
    return Trace(key, question.strip(), text, spans, answer, answer, True, source="expert")


def load(
    name: str,
    *,
    revision: str | None = None,
    split: str = "train",
    key: str = "demos",
    revision_key: str = "revision",
) -> list[Trace]:
    """Expert traces from a JSON-lines file or from a hub data set such as ``openai/gsm8k``; see :func:`source.read`."""
    return source.read(
        name,
        lambda row, number: expert(row, f"gsm8k-{split}-{number}"),
        revision=revision,
        split=split,
        config="main",
        key=key,
        revision_key=revision_key,
    )
