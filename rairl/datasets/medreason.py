"""MedReason: medical questions with options and worked reasoning.

Source: Wu et al. 2025, "MedReason" (hub UCSC-VLAA/MedReason): ``question``, ``options`` (a string, a line each),
``reasoning``, ``answer`` (the option's text, and often an explanation after it), ``dataset_name``. The field types are
as reported: no copy of the data was at hand, and the tests use rows made in its form.
"""

from __future__ import annotations

import random
from collections import Counter

from rairl.core.dataset_params import MedReasonDataset
from rairl.core.errors import RairlError
from rairl.core.traces import Trace
from rairl.datasets import Splits, choice, question_key, selection, source
from rairl.text.answers import option_letter, options_of

EXPLANATION = ". Explanation:"
"""What follows it in ``answer`` says why, not what."""


def build(params: MedReasonDataset) -> Splits:
    """Splits ``demos``, ``prompts``, ``dev`` and ``test``; rows that can't be used are left out, with a count each.

    Raises:
        RairlError: for a missing or malformed file (file, line, field), a hub that cannot be reached, or too few rows.
    """
    experts: dict[str, Trace] = {}
    left_out: Counter[str] = Counter()

    def parse(row: source.Row, number: int) -> tuple[str, Trace | str]:
        if row.get("dataset_name") not in params.sources:
            return "", "other_source"
        expert = expert_of(row, f"medreason-{number:05d}")
        return question_key(row["question"]), expert

    for question, expert in source.read(
        params.demos,
        parse,
        revision=params.demos_revision,
        split="train",
        key="demos",
        revision_key="demos_revision",
    ):
        if isinstance(expert, str):
            left_out[expert] += 1
        elif experts.setdefault(question, expert) is not expert:
            left_out["repeated_question_text"] += 1
    traces = sorted(experts.values(), key=lambda trace: trace.id)
    random.Random(f"test/{params.split_seed}").shuffle(traces)
    test = [selection.prompt(trace) for trace in traces[: params.test]]
    return selection.assemble(traces[params.test :], test, params, dict(sorted(left_out.items())))


def expert_of(row: source.Row, key: str) -> Trace | str:
    """An expert trace, or in a word why the row has none.

    Raises:
        RairlError: naming the field that is missing or of the wrong type.
    """
    question, reasoning, answer = (source.text_field(row, name) for name in ("question", "reasoning", "answer"))
    if not isinstance(row.get("options"), str):
        raise RairlError("field 'options' must be a string with a line per option")
    options = options_of(row["options"])
    if not options:
        return "no_options"
    gold = option_letter(answer.partition(EXPLANATION)[0], options)
    if gold is None:
        return "answer_is_no_option"
    problem = choice.problem_of(question, list(options.values()))
    return choice.expert(key, problem, gold, reasoning)
