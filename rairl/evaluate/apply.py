"""The reward on a user's own traces: a score, a ranking, the first wrong step. One JSON object per row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rairl.answers import answers_match, extract_answer
from rairl.errors import RairlError
from rairl.evaluate.candidates import by_question
from rairl.evaluate.localise import first_error, first_error_or_none
from rairl.evaluate.rerank import aggregate
from rairl.segment import guess, segment
from rairl.traces import Trace, read_traces

if TYPE_CHECKING:
    from rairl.models.reward import RewardModel, Scores


def read_own(path: Path, *, skip_bad: list[str] | None = None) -> list[Trace]:
    """Read solved traces, and fill in what is not given.

    Steps are found in the text (by tags, numbers, lines or sentences), and so is the final answer; ``correct`` follows
    from the answer where there is a ``gold``.

    Args:
        path: the file.
        skip_bad: when given, malformed lines are left out and their messages appended here instead of raised.

    Raises:
        RairlError: as :func:`rairl.traces.read_traces`, and for a row without text.
    """
    traces = []
    for trace in read_traces(path, skip_bad=skip_bad):
        if not trace.text:
            message = f"{path}: trace {trace.id!r} has no 'text' to score"
            if skip_bad is None:
                raise RairlError(message)
            skip_bad.append(message)
            continue
        traces.append(_completed(trace))
    return traces


def _completed(trace: Trace) -> Trace:
    answer = trace.answer or extract_answer(trace.text)
    judged = trace.correct
    if judged is None and trace.gold is not None:
        judged = answers_match(answer, trace.gold)
    steps = trace.steps or segment(trace.text, guess(trace.text))
    return replace(trace, steps=steps, answer=answer, correct=judged)


def score_rows(traces: Sequence[Trace], reward: RewardModel) -> Iterator[dict[str, Any]]:
    """``id``, ``score`` (by the aggregator chosen on dev) and the logit after each step.

    Rows: ``{"id", "group", "score", "steps": [{"text", "score"}, ...]}``, in the order of ``traces``.
    """
    for trace, scores in _scored(traces, reward):
        yield {
            "id": trace.id,
            "group": trace.question,
            "score": aggregate(scores.steps, scores.last, reward.calibration.aggregator),
            "steps": [
                {"text": text, "score": float(value)}
                for text, value in zip(trace.step_texts(), scores.steps, strict=True)
            ],
        }


def rerank_rows(traces: Sequence[Trace], reward: RewardModel) -> Iterator[dict[str, Any]]:
    """One row per question: ``{"group", "best": id, "answer", "ranking": [{"id", "score"}, ...]}``, best first."""
    score = {row["id"]: row["score"] for row in score_rows(traces, reward)}
    for group, members in by_question(traces).items():
        ranked = sorted((traces[index] for index in members), key=lambda trace: -score[trace.id])
        yield {
            "group": group,
            "best": ranked[0].id,
            "answer": ranked[0].answer,
            "ranking": [{"id": trace.id, "score": score[trace.id]} for trace in ranked],
        }


def rerank_accuracy(traces: Sequence[Trace], rows: Sequence[Mapping[str, Any]]) -> tuple[float, float, int] | None:
    """Accuracy of the chosen candidates and of a random choice, over the questions whose candidates are all judged.

    Returns:
        ``(chosen, random, number of questions)``, or None when no question is judged.
    """
    correct = {trace.id: trace.correct for trace in traces}
    chosen, chance = [], []
    for row in rows:
        judged = [correct[item["id"]] for item in row["ranking"]]
        if None not in judged:
            chosen.append(float(bool(judged[0])))
            chance.append(sum(map(bool, judged)) / len(judged))
    if not chosen:
        return None
    return sum(chosen) / len(chosen), sum(chance) / len(chance), len(chosen)


def localise_rows(traces: Sequence[Trace], reward: RewardModel) -> Iterator[dict[str, Any]]:
    """Where each trace goes wrong, by the locator and the threshold chosen on dev.

    Rows: ``{"id", "suspect", "suspect_text", "first_error", "steps": [logits]}``. ``suspect`` is the 0-based step
    that is wrong if one is; ``first_error`` is the first step below the threshold, or None. A trace
    of white space has no steps and None for both.

    Raises:
        RairlError: when the reward model has no threshold.
    """
    calibration = reward.calibration
    if calibration.threshold is None:
        raise RairlError(
            "this reward model was not calibrated on dev (it has no threshold); use models/reward of a finished run"
        )
    for trace, scores in _scored(traces, reward):
        suspect = first_error(scores.steps, calibration.locator) if trace.steps else None
        yield {
            "id": trace.id,
            "suspect": suspect,
            "suspect_text": None if suspect is None else trace.step_texts()[suspect],
            "first_error": first_error_or_none(scores.steps, calibration.locator, calibration.threshold),
            "steps": [float(value) for value in scores.steps],
        }


def _scored(traces: Sequence[Trace], reward: RewardModel) -> Iterator[tuple[Trace, Scores]]:
    return zip(traces, reward.score(traces, progress=True), strict=True)
