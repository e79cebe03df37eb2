"""Learning a reward offline: GSM8K's human solutions against other models' logged solutions of GSM8K test questions.

The questions of the logged file are split once, by question:

- *held out* (a random share): their candidates are reranked, and never seen in training;
- *negatives*: the other questions, without those of the labelled sets, whose human labels are for evaluation only;
- *unused*: the questions of the labelled sets that were not held out.

People's and models' lines are brought to the same written form (:func:`rairl.datasets.gsm8k.plain_step`) and laid out
alike, so that punctuation, number format and markup do not tell them apart. What is left of style is measured, not
removed: choice of words and length still separate them a little, which is why name-only and length-only baselines
stand beside every figure.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rairl.core.dataset_params import LoggedDataset
from rairl.core.errors import RairlError
from rairl.core.traces import Trace, relabel
from rairl.datasets import Splits, gsm8k, labelled, question_key, source
from rairl.text.answers import answers_match, normalise_answer
from rairl.text.segment import compose


def build(params: LoggedDataset, seed: int) -> Splits:
    """Splits ``demos``, ``dev``, ``logged_train``, ``test``, ``logged_test`` and, with labels, ``labelled_<set>``.

    ``test`` holds the held-out questions with their answers, ``logged_test`` the candidates for them. There is no
    ``prompts`` split, as no policy learns.

    Raises:
        RairlError: for a missing or malformed file (file, line, field), or sizes that leave a split empty.
    """
    experts = gsm8k.load(params.demos, revision=params.revision)
    random.Random(f"gsm8k-logged/{seed}/experts").shuffle(experts)
    if len(experts) <= params.dev:
        raise RairlError(
            f"{params.demos} has {len(experts)} traces; dataset.dev = {params.dev} leaves none for training"
        )
    end = None if params.max_demos is None else params.dev + params.max_demos
    candidates = load_candidates(params.logged)
    labels = [labelled.load(path) for path in params.labelled]
    names = [file.name for file in labels]
    if len(set(names)) < len(names):
        raise RairlError(f"dataset.labelled names two files of one format: {', '.join(params.labelled)}; name one")
    reserved = {question_key(trace.problem) for file in labels for trace in file.traces}

    questions = list(dict.fromkeys(question_key(trace.problem) for trace in candidates))
    random.Random(f"gsm8k-logged/{seed}/questions").shuffle(questions)
    count = round(params.held_out * len(questions))
    held_out = set(questions[:count])
    training = set(questions[count:]) - reserved
    if not held_out or not training:
        raise RairlError(
            f"{params.logged} has {len(questions)} questions; dataset.held_out = {params.held_out} leaves "
            f"{len(held_out)} to rerank and {len(training)} as negatives (without the labelled ones); both need some"
        )
    logged = [trace for trace in candidates if question_key(trace.problem) in training]
    negatives = _distinct(logged)
    tested = [trace for trace in candidates if question_key(trace.problem) in held_out]
    traces = {
        "demos": experts[params.dev : end],
        "dev": experts[: params.dev],
        "logged_train": negatives,
        "test": [prompt(trace) for trace in tested if trace.id.endswith("/0")],
        "logged_test": tested,
    }
    notes: dict[str, Any] = {
        "questions": {
            "logged": len(questions),
            "held_out": len(held_out),
            "negatives": len(training),
            "unused": len(questions) - len(held_out) - len(training),
            "labelled": len(reserved),
            "labelled_and_held_out": len(reserved & held_out),
        },
        "identical_negatives_left_out": len(logged) - len(negatives),
        "models": {name: _accuracy(name, tested) for name in sorted({trace.source for trace in tested})},
    }
    for file in labels:
        traces[f"labelled_{file.name}"] = [plain(trace) for trace in file.traces]
    if labels:
        notes["labelled_left_out"] = {file.name: file.left_out for file in labels}
    return Splits(traces, notes)


def load_candidates(path: str | Path) -> list[Trace]:
    """All candidates of a file of model solutions, question by question.

    Each row has ``question``, ``ground_truth`` (last line ``A: <answer>``) and per model a field with its name: an
    object with ``solution`` (a step a line, last line ``A: <answer>``) and ``is_correct``. A solution without that line
    has no answer and is wrong.

    Raises:
        RairlError: naming file, line and field.
    """
    traces, seen = [], dict[str, int]()
    for number, row in source.read_rows(path):
        try:
            candidates = _candidates(row, f"gsm8k-test-{number - 1}")
            key = question_key(candidates[0].problem)
            if key in seen:
                raise RairlError(f"field 'question': the same question already stands on line {seen[key]}")
        except RairlError as error:
            raise RairlError(f"{path}, line {number}: {error}") from error
        seen[key] = number
        traces += candidates
    return traces


def _candidates(row: dict[str, Any], key: str) -> list[Trace]:
    problem = source.text_field(row, "question").strip()
    _, gold = gsm8k.split_solution(source.text_field(row, "ground_truth"), "A:")
    if gold is None:
        raise RairlError("field 'ground_truth' has no line 'A: <answer>'")
    models = [name for name, value in row.items() if isinstance(value, dict)]
    if len(models) < 2:
        raise RairlError("at least two models' solutions are needed, each a field with 'solution' and 'is_correct'")
    return [_candidate(row[name], name, problem, gold, key, index) for index, name in enumerate(models)]


def _candidate(entry: dict[str, Any], name: str, problem: str, gold: str, key: str, index: int) -> Trace:
    if not isinstance(entry.get("is_correct"), bool):
        raise RairlError(f"field '{name}.is_correct' must be true or false")
    try:
        steps, answer = gsm8k.split_solution(source.text_field(entry, "solution"), "A:")
        text, spans = compose(steps, answer)
    except RairlError as error:
        raise RairlError(f"field '{name}.solution': {error}") from error
    correct = entry["is_correct"]
    if correct and not answers_match(answer, gold):
        raise RairlError(f"field '{name}.is_correct' is true but its answer {answer!r} is not {gold!r}")
    return Trace(f"{key}/{index}", problem, text, spans, answer, gold, correct, source=name, group=key)


def prompt(candidate: Trace) -> Trace:
    """The question of a candidate, with its answer and without a solution."""
    return Trace(id=candidate.group, problem=candidate.problem, gold=candidate.gold)


def plain(trace: Trace) -> Trace:
    """A labelled trace in the written form of the training text; its steps and label stay what they are."""
    answer = None if trace.answer is None else normalise_answer(trace.answer)
    text, spans = compose([gsm8k.plain_step(step) or step for step in trace.step_texts()], answer)
    return relabel(trace, text=text, steps=spans, answer=answer)


def _distinct(traces: Sequence[Trace]) -> list[Trace]:
    """Without a later candidate that repeats an earlier one of the same question word for word."""
    return list({(trace.group, trace.text): trace for trace in reversed(traces)}.values())[::-1]


def _accuracy(name: str, traces: Sequence[Trace]) -> float:
    counts = Counter(trace.correct for trace in traces if trace.source == name)
    return round(counts[True] / counts.total(), 4)
