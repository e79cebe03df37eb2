"""The reward on a user's own traces: rows with a score, a ranking or the first wrong step, and what they are worth."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from rairl.core.errors import RairlError
from rairl.core.stats import Estimate, bootstrap_mean, paired_difference, within_auroc
from rairl.core.traces import Trace
from rairl.evaluate.best_of_n import best_of_n, majority_of_n, vote_temperature, vote_weights, weighted_vote_of_n
from rairl.evaluate.candidates import by_question
from rairl.evaluate.first_error import detection_figures, located_figures, step_auc_figures, trivial_predictions
from rairl.models.calibration import competing, first_error, suspicion
from rairl.text.answers import group_answers

if TYPE_CHECKING:
    from rairl.models.calibration import Calibration
    from rairl.models.reward import RewardModel


def score_pieces(pieces: Iterable[Sequence[Trace]], reward: RewardModel, total: int) -> Iterator[dict[str, Any]]:
    """:func:`score_rows` of a file in pieces, of which one is held at a time, under one progress bar.

    Args:
        total: traces in all.
    """
    from tqdm import tqdm

    with tqdm(total=total, desc="scoring", unit="trace") as bar:
        for piece in pieces:
            yield from score_rows(piece, reward, progress=False)
            bar.update(len(piece))


def score_rows(traces: Sequence[Trace], reward: RewardModel, *, progress: bool = True) -> Iterator[dict[str, Any]]:
    """``id``, ``score`` (by the aggregator chosen on dev) and the logit after each step.

    Rows: ``{"id", "group", "score", "steps": [{"text", "score"}, ...]}``, in the order of ``traces``.
    """
    for trace, result in zip(traces, reward.score_traces(traces, progress=progress), strict=True):
        yield {
            "id": trace.id,
            "group": trace.question,
            "score": result.score,
            "steps": [asdict(step) for step in result.steps],
        }


def rerank_rows(traces: Sequence[Trace], reward: RewardModel) -> Iterator[dict[str, Any]]:
    """One row per question: the candidates, best first, and the two ways to choose among them.

    Rows: ``{"group", "best": id, "answer", "vote", "ranking": [{"id", "score"}, ...]}``; candidates without any step
    come last, whatever their score. ``answer`` is that of the best candidate; ``vote`` the one with the largest sum of
    softmax weights, at the temperature chosen on dev, in the words of its best candidate (None where no candidate has
    an answer).
    """
    score = {row["id"]: row["score"] for row in score_rows(traces, reward)}
    temperature = vote_temperature(reward.calibration)
    for group, members in by_question(traces).items():
        rated = {trace.id: competing(score[trace.id], trace.steps) for trace in (traces[at] for at in members)}
        ranked = sorted((traces[at] for at in members), key=lambda trace: (-rated[trace.id], -score[trace.id]))
        weights = vote_weights([rated[trace.id] for trace in ranked], [group] * len(ranked), temperature)
        votes: dict[str, float] = {}
        words: dict[str, str] = {}
        equal = group_answers([trace.answer for trace in ranked])
        for trace, key, weight in zip(ranked, equal, weights, strict=True):
            if key is not None and trace.answer is not None:
                votes[key] = votes.get(key, 0.0) + weight
                words.setdefault(key, trace.answer)
        yield {
            "group": group,
            "best": ranked[0].id,
            "answer": ranked[0].answer,
            "vote": words[max(votes, key=lambda key: votes[key])] if votes else None,
            "ranking": [{"id": trace.id, "score": score[trace.id]} for trace in ranked],
        }


def choice_figures(
    traces: Sequence[Trace], rows: Sequence[Mapping[str, Any]], calibration: Calibration, *, draws: int = 1000
) -> dict[str, Estimate]:
    """What the choices of :func:`rerank_rows` are worth, over the questions whose candidates are all judged.

    Returns:
        Share of right answers by ``reward``, ``reward_vote``, ``majority``, ``shortest``, ``random`` and ``oracle``;
        paired differences ``reward-<other>``; ``auroc``, right over wrong candidates of the same question. The same
        numbers as the rerank stage's where N is the number of candidates. Nothing when no question is judged.
    """
    of = {trace.id: trace for trace in traces}
    temperature = vote_temperature(calibration)
    table: dict[str, list[float]] = {}
    keys: list[str] = []
    ranked: list[tuple[bool, float, str]] = []
    for row in rows:
        members = [of[item["id"]] for item in row["ranking"]]
        if any(trace.correct is None for trace in members):
            continue
        keys.append(row["group"])
        right = [bool(trace.correct) for trace in members]
        scores = [competing(item["score"], of[item["id"]].steps) for item in row["ranking"]]
        answers = group_answers([trace.answer for trace in members])
        weights = vote_weights(scores, [row["group"]] * len(members), temperature)
        n = len(members)
        found = {
            "reward": best_of_n(scores, right, n),
            "reward_vote": weighted_vote_of_n(answers, weights, right, [n])[0],
            "majority": majority_of_n(answers, right, [n])[0],
            "shortest": best_of_n([-len(trace.text) for trace in members], right, n),
            "random": sum(right) / n,
            "oracle": float(any(right)),
        }
        for name, value in found.items():
            table.setdefault(name, []).append(value)
        ranked += [(good, score, row["group"]) for good, score in zip(right, scores, strict=True)]
    if not keys:
        return {}
    figures = {name: bootstrap_mean(values, keys, draws=draws) for name, values in table.items()}
    for name in ("reward_vote", "majority", "shortest", "random"):
        figures[f"reward-{name}"] = paired_difference(table["reward"], table[name], keys, draws=draws)
    figures["auroc"] = within_auroc(*map(list, zip(*ranked, strict=True)), draws=draws)
    return {name: figure for name, figure in figures.items() if figure.n}


def localise_rows(traces: Sequence[Trace], reward: RewardModel) -> Iterator[dict[str, Any]]:
    """Where each trace goes wrong, by the locator and the threshold chosen on dev.

    Rows: ``{"id", "score", "suspect", "suspect_text", "first_error", "steps": [logits]}``. ``suspect`` is the 0-based
    step that is wrong if one is; ``first_error`` is the first step below the threshold, or None. A trace
    of white space has no steps and None for both.

    Raises:
        RairlError: when the reward model has no threshold.
    """
    calibration = reward.calibration
    if calibration.threshold is None:
        raise RairlError(
            "this reward model was not calibrated on dev (it has no threshold); use models/reward of a finished run"
        )
    for trace, result in zip(traces, reward.score_traces(traces, progress=True), strict=True):
        values = [step.score for step in result.steps]
        suspect = first_error(np.array(values), calibration.locator) if values else None
        yield {
            "id": trace.id,
            "score": result.score,
            "suspect": suspect,
            "suspect_text": None if suspect is None else result.steps[suspect].text,
            "first_error": result.first_error,
            "steps": values,
        }


def location_figures(
    traces: Sequence[Trace], rows: Sequence[Mapping[str, Any]], locator: str, *, draws: int = 1000
) -> dict[str, Estimate]:
    """What the rows of :func:`localise_rows` are worth on the traces whose first wrong step is known.

    Returns:
        ``<reward|chance|first|last|longest>.<exact|within1|distance>`` and ``reward-<other>.exact`` on the wrong ones,
        ``reward.<step_auc|step_auc_pooled>``, and ``<reward|chance>.<acc_error|acc_correct|f1>`` on all of them: the
        localise stage's numbers. Nothing when no trace is labelled.
    """
    known = [(trace, row) for trace, row in zip(traces, rows, strict=True) if trace.labelled and trace.steps]
    wrong = [(trace, row) for trace, row in known if trace.first_error is not None]
    sampling = {"draws": draws, "seed": 0}
    figures: dict[str, Estimate] = {}
    if wrong:
        bad = [trace for trace, _ in wrong]
        predictions = {"reward": [row["suspect"] for _, row in wrong]}
        for name in ("first", "last", "longest"):
            predictions[name] = [trivial_predictions(trace)[name] for trace in bad]
        figures |= located_figures(bad, predictions, "", **sampling)
        trusts = {"reward": [suspicion(row["steps"], locator) for _, row in wrong]}
        figures |= step_auc_figures(bad, trusts, "", **sampling)
    if known:
        every = [trace for trace, _ in known]
        hits = [float(row["first_error"] == trace.first_error) for trace, row in known]
        figures |= detection_figures(every, hits, ".reward", **sampling)
        figures |= detection_figures(every, [1 / (len(trace.steps) + 1) for trace in every], ".chance", **sampling)
    return {name.removeprefix("."): figure for name, figure in figures.items() if figure.n}
