"""The reward on a user's own traces: a score, a ranking, the first wrong step. One JSON object per row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rairl.core.errors import RairlError
from rairl.core.stats import Estimate, bootstrap_mean, paired_difference, within_auroc
from rairl.core.traces import Trace, read_traces
from rairl.evaluate.best_of_n import (
    aggregate,
    best_of_n,
    competing,
    majority_of_n,
    vote_temperature,
    vote_weights,
    weighted_vote_of_n,
)
from rairl.evaluate.candidates import by_question
from rairl.evaluate.first_error import (
    detection_figures,
    first_error,
    first_error_or_none,
    located_figures,
    step_auc_figures,
    suspicion,
    trivial_predictions,
)
from rairl.text.answers import normalise_answer

if TYPE_CHECKING:
    from rairl.models.calibration import Calibration
    from rairl.models.reads import Scores
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
    for trace, scores in _scored(traces, reward, progress):
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
        for trace, weight in zip(ranked, weights, strict=True):
            if trace.answer is not None:
                key = normalise_answer(trace.answer)
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
        answers = [None if trace.answer is None else normalise_answer(trace.answer) for trace in members]
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
    for trace, scores in _scored(traces, reward):
        suspect = first_error(scores.steps, calibration.locator) if trace.steps else None
        yield {
            "id": trace.id,
            "score": aggregate(scores.steps, scores.last, calibration.aggregator),
            "suspect": suspect,
            "suspect_text": None if suspect is None else trace.step_texts()[suspect],
            "first_error": first_error_or_none(scores.steps, calibration.locator, calibration.threshold),
            "steps": [float(value) for value in scores.steps],
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


def traces_page(
    traces: Sequence[Trace], rows: Sequence[Mapping[str, Any]], locator: str, title: str, *, review: bool = False
) -> str:
    """The traces as one self-contained HTML page to page through: each step coloured by its reward, the suspected and,
    where it is known, the true first wrong step marked.

    Args:
        rows: of :func:`localise_rows`.
        review: let the reader mark the first wrong steps and download them as labels for :func:`with_labels`.
    """
    from rairl.evaluate.scores import Saved
    from rairl.report.page import render_traces
    from rairl.report.viewer import every_row

    saved = Saved(Path(title), locator, {row["id"]: dict(row) for row in rows})
    shown = every_row(traces, saved)
    if review:
        # Without meta, which is the file's own business and may be anything; the label is matched by id.
        shown = [
            {**row, "group": trace.question, "trace": replace(trace, meta={}).to_json()}
            for row, trace in zip(shown, traces, strict=True)
        ]
    return render_traces(title, shown, review=review)


def with_labels(traces: Sequence[Trace], path: Path) -> list[Trace]:
    """The traces with the first wrong steps that a reviewer gave; a trace without a label keeps what it had.

    Args:
        path: a file of traces such as the review page's download; rows without a label are passed over.

    Raises:
        RairlError: when a label is for a trace that is not there, or for other steps than it has.
    """
    known = {trace.id: trace for trace in traces}
    given: dict[str, Trace] = {}

    def check(label: Trace) -> None:
        trace = known.get(label.id)
        if trace is None:
            raise RairlError(f"field 'id': no trace {label.id!r} is in the file that the labels are for")
        if (label.text, label.steps) != (trace.text, trace.steps):
            raise RairlError(f"field 'steps': trace {label.id!r} was labelled with another text or other steps")
        if label.labelled:
            given[label.id] = label

    read_traces(path, check=check)
    return [
        replace(trace, first_error=given[trace.id].first_error, labelled=True) if trace.id in given else trace
        for trace in traces
    ]


def _scored(traces: Sequence[Trace], reward: RewardModel, progress: bool = True) -> Iterator[tuple[Trace, Scores]]:
    return zip(traces, reward.score(traces, progress=progress), strict=True)
