"""MMLU-Pro's questions with rationales from elsewhere.

Source: Wang et al. 2024, "MMLU-Pro" (hub TIGER-Lab/MMLU-Pro): ``question_id``, ``question``, ``options``, ``answer`` (a
letter), ``category``. The test questions come without worked solutions, so these are a second file or hub set with
``question_id`` and ``rationale``.
"""

from __future__ import annotations

import random

from rairl.core.dataset_params import MmluProDataset
from rairl.core.errors import RairlError
from rairl.core.traces import Trace
from rairl.datasets import Splits, choice, question_key, selection, source


def build(params: MmluProDataset) -> Splits:
    """Splits ``demos``, ``prompts``, ``dev`` and ``test``.

    Test questions are drawn first, among all, so that they don't depend on who wrote rationales for which. Of questions
    that the benchmark repeats (with other options, say) the first one is used.

    Raises:
        RairlError: for a missing or malformed file (file, line, field), a hub that cannot be reached, or too few rows.
    """
    asked, left_out = questions(params)
    order = list(asked)
    random.Random(f"test/{params.split_seed}").shuffle(order)
    if params.test >= len(order):
        raise RairlError(f"{params.questions} has {len(order)} questions; dataset.test = {params.test} leaves none")
    test, rest = [asked[key] for key in order[: params.test]], set(order[params.test :])
    written = rationales(params)
    experts = []
    for key in sorted(rest & written.keys()):
        prompt = asked[key]
        expert = choice.expert(prompt.id, prompt.problem, prompt.gold or "", written[key])
        if isinstance(expert, str):
            left_out[expert] += 1
        else:
            experts.append(expert)
    left_out["no_rationale"] = len(rest - written.keys())
    return selection.assemble(experts, test, params, left_out)


def questions(params: MmluProDataset) -> tuple[dict[int, Trace], dict[str, int]]:
    """Prompts by ``question_id``, and how many rows were left out."""
    prompts: dict[int, Trace] = {}
    seen: set[str] = set()
    left_out = {"other_category": 0, "repeated_in_benchmark": 0, "contradicts_the_answer": 0, "no_reasoning": 0}
    for row, (key, prompt) in source.read(
        params.questions,
        lambda row, _: (row, question(row)),
        revision=params.questions_revision,
        split="test",
        key="questions",
        revision_key="questions_revision",
    ):
        text = question_key(row["question"])
        if params.category is not None and row.get("category") != params.category:
            left_out["other_category"] += 1
        elif text in seen:
            left_out["repeated_in_benchmark"] += 1
        else:
            seen.add(text)
            prompts[key] = prompt
    return prompts, left_out


def question(row: source.Row) -> tuple[int, Trace]:
    """Id and prompt of a row of the benchmark.

    Raises:
        RairlError: naming the field that is missing or of the wrong type.
    """
    key, options, answer = _id(row), row.get("options"), row.get("answer")
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise RairlError("field 'options' must be a list of strings")
    problem = choice.problem_of(source.text_field(row, "question"), options)
    if not isinstance(answer, str) or answer not in choice.LETTERS[: len(options)] or len(answer) != 1:
        raise RairlError(f"field 'answer' must be the letter of one of {len(options)} options, not {answer!r}")
    return key, Trace(id=f"mmlu-pro-{key}", problem=problem, gold=answer)


def rationales(params: MmluProDataset) -> dict[int, str]:
    """Worked solutions by ``question_id``."""
    return dict(
        source.read(
            params.rationales,
            lambda row, _: (_id(row), source.text_field(row, "rationale")),
            revision=params.rationales_revision,
            split="train",
            key="rationales",
            revision_key="rationales_revision",
        )
    )


def _id(row: source.Row) -> int:
    if not isinstance(row.get("question_id"), int):
        raise RairlError("field 'question_id' must be an integer")
    return row["question_id"]
