"""Choices made on dev: how good a reward checkpoint is, its aggregator and selector, its locator and threshold, and the
map from its scores to probabilities.

Held-out expert traces are all it takes. Verified corruptions of them give first errors for free; rollouts of the SFT
policy on their problems, right or wrong by the expert's own answer, give the comparison that reranking needs, and the
steps in which the wrong ones part from the expert are natural first errors. Those matter: a corruption breaks a step
that the context asked for otherwise, and is so easy to find that it tells locators hardly apart.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from rairl.core.stats import within_pairs
from rairl.core.traces import Trace
from rairl.evaluate.best_of_n import expected_accuracy, vote_weights
from rairl.evaluate.first_error import choose_threshold
from rairl.evaluate.probability import fit_map
from rairl.models.calibration import AGGREGATORS, LOCATORS, NOTHING, Calibration, aggregate, competing, first_error
from rairl.models.reward import RewardModel
from rairl.text.corrupt import perturb
from rairl.text.equations import equations

CRITERION = "dev/score"
"""What chooses among reward checkpoints: see :func:`dev_scores`."""
TEMPERATURES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Temperatures of the weighted vote to choose from, in units of the score."""


@dataclass(frozen=True)
class Dev:
    """Held-out expert traces, and for each of them its corruptions and some policy's rollouts on the same problem.

    Attributes:
        corrupted_of, rollouts_of: per corruption and rollout, the index of its expert.
        rollouts_part: per rollout with a wrong answer the step in which it parts from its expert, see :func:`parting`;
            None for the others.
        labelled: traces whose first wrong step a reviewer marked.
    """

    experts: list[Trace]
    corrupted: list[Trace]
    corrupted_of: list[int]
    rollouts: list[Trace]
    rollouts_of: list[int]
    rollouts_part: list[int | None]
    labelled: list[Trace] = field(default_factory=list)


def make_dev(
    experts: Sequence[Trace], rollouts: Sequence[Trace], *, copies: int, seed: int, labelled: Sequence[Trace] = ()
) -> Dev:
    """Pair held-out experts with ``copies`` corruptions each (first error in a step) and with the given rollouts."""
    rng = random.Random(f"{seed}/dev")
    corrupted, owner = [], []
    for index, expert in enumerate(experts):
        for _ in range(copies):
            bad = perturb(expert, rng)
            if bad is not None and bad.first_error is not None:
                corrupted.append(bad)
                owner.append(index)
    expert_index = {expert.id: index for index, expert in enumerate(experts)}
    on_dev = [trace for trace in rollouts if trace.question in expert_index]
    owners = [expert_index[trace.question] for trace in on_dev]
    parts = [
        parting(experts[index], trace) if trace.correct is False else None
        for trace, index in zip(on_dev, owners, strict=True)
    ]
    return Dev(list(experts), corrupted, owner, on_dev, owners, parts, list(labelled))


def parting(expert: Trace, other: Trace) -> int | None:
    """The first step of ``other`` (0-based) that is not the expert's, or None when all of them are.

    Steps are the same when they state the same equations, the words around them aside, or without any, the same words.
    A step after the expert's last is not the expert's; to stop early is not to part.
    """
    expert_steps = [_content(step) for step in expert.step_texts()]
    for index, step in enumerate(other.step_texts()):
        if index >= len(expert_steps) or _content(step) != expert_steps[index]:
            return index
    return None


def _content(step: str) -> tuple[object, ...]:
    """What a step says: per equation its numbers and operators in order; else its words."""
    return tuple(
        (token.kind, token.worth) for equation in equations(step) for token in (*equation.left, equation.result)
    ) or tuple(step.split())


def preference(expert: Sequence[float], other: Sequence[float], owner: Sequence[int]) -> float:
    """How often an expert trace scores above another trace of its problem; ties count half. NaN without pairs."""
    if not owner:
        return float("nan")
    gap = np.asarray(expert)[list(owner)] - np.asarray(other)
    return float(np.mean((gap > 0) + 0.5 * (gap == 0)))


def within_question(scores: Sequence[float], right: Sequence[bool | None], owner: Sequence[int]) -> float:
    """Mean over questions of the share of (right, wrong) pairs in which the right one scores higher; ties count half.

    NaN when no question has both.
    """
    judged = [index for index, good in enumerate(right) if good is not None]
    wins, pairs = within_pairs(
        [right[index] is True for index in judged],
        [scores[index] for index in judged],
        [str(owner[index]) for index in judged],
    )
    shares = [wins[question] / count for question, count in pairs.items() if count]
    return float(np.mean(shares)) if shares else float("nan")


def dev_scores(model: RewardModel, dev: Dev) -> tuple[dict[str, float], Calibration]:
    """Scores of a checkpoint and the calibration that goes with them.

    Returns:
        ``dev/prefers_corrupted`` (how often the expert wins against its corruption) and ``dev/auroc`` (how often a
        right rollout wins against a wrong one of its problem; absent without such pairs), their mean ``dev/score``
        (the criterion), ``dev/exact`` (first wrong step found in corruptions), ``dev/exact_rollouts`` (the same in
        rollouts with a wrong answer, where they part from the expert; absent without such), ``dev/exact_labelled`` (in
        the traces that a reviewer marked; absent without any), and the calibration:
        aggregator with the best ``dev/score``, selector, temperatures and map to probabilities as :func:`selection`
        chooses them, locator with the best mean of the ``dev/exact*``, threshold with
        the best F1 over experts, corruptions, those rollouts and the reviewer's traces, right ones included.
    """
    scores = model.step_logits([*dev.experts, *dev.corrupted, *dev.rollouts, *dev.labelled])
    first, second = len(dev.experts), len(dev.experts) + len(dev.corrupted)
    third = second + len(dev.rollouts)
    experts, corrupted, rollouts = scores[:first], scores[first:second], scores[second:third]
    labelled = [(read.steps, trace.first_error) for read, trace in zip(scores[third:], dev.labelled, strict=True)]
    results, rated = {}, {}
    for how in AGGREGATORS:
        values = [
            [competing(aggregate(read.steps, read.last, how), read.steps) for read in part]
            for part in (experts, corrupted, rollouts)
        ]
        wins = {
            "dev/prefers_corrupted": preference(values[0], values[1], dev.corrupted_of),
            "dev/auroc": within_question(values[2], [trace.correct for trace in dev.rollouts], dev.rollouts_of),
        }
        rated[how] = values[2]
        known = {name: value for name, value in wins.items() if not np.isnan(value)}
        results[how] = {**known, CRITERION: float(np.mean(list(known.values())))}
    how = max(AGGREGATORS, key=lambda name: results[name][CRITERION])
    wrong = {
        "dev/exact": [
            (read.steps, trace.first_error)
            for read, trace in zip(corrupted, dev.corrupted, strict=True)
            if trace.first_error is not None
        ],
        "dev/exact_rollouts": [
            (read.steps, error) for read, error in zip(rollouts, dev.rollouts_part, strict=True) if error is not None
        ],
        "dev/exact_labelled": [(steps, error) for steps, error in labelled if error is not None],
    }
    exact = {locator: located(wrong, locator) for locator in LOCATORS}
    locator = max(LOCATORS, key=lambda name: float(np.mean(list(exact[name].values()))))
    flawed = [pair for pairs in wrong.values() for pair in pairs]
    sound = [*(read.steps for read in experts), *(steps for steps, error in labelled if error is None)]
    rows = [*sound, *(steps for steps, _ in flawed)]
    threshold = choose_threshold(rows, [*(None for _ in sound), *(error for _, error in flawed)], locator)
    chosen = Calibration(aggregator=how, locator=locator, threshold=threshold)
    return {**results[how], **exact[locator]}, selection(dev.rollouts, rated, chosen)


def selection(rollouts: Sequence[Trace], scores: Mapping[str, Sequence[float]], chosen: Calibration) -> Calibration:
    """Add to a calibration what judged rollouts decide; without any it stays as it is.

    The temperature of each aggregator's weighted vote, and then, for the chosen aggregator, whether a vote or the best
    score selects: by the expected accuracy among all rollouts of a question (or as many as the scarcest one has). Of
    equals the best score and the lowest temperature. The map to probabilities is fitted to the same rollouts.

    Args:
        rollouts: of the SFT policy on dev problems.
        scores: per aggregator one score per rollout.
        chosen: with its aggregator.
    """
    rows = [row for row, trace in enumerate(rollouts) if trace.correct is not None]
    if not rows:
        return chosen
    judged, groups = [rollouts[row] for row in rows], [rollouts[row].question for row in rows]
    rated = {how: [values[row] for row in rows] for how, values in scores.items()}
    n = min(Counter(groups).values())
    weights = {
        f"{how} {temperature}": vote_weights(rated[how], groups, temperature)
        for how in rated
        for temperature in TEMPERATURES
    }
    table = expected_accuracy(judged, {"max": rated[chosen.aggregator]}, [n], weights)
    accuracy = {name: float(values[n].mean()) for name, values in table.items()}
    best = {how: max(TEMPERATURES, key=lambda temperature: accuracy[f"{how} {temperature}"]) for how in rated}
    votes = accuracy[f"{chosen.aggregator} {best[chosen.aggregator]}"]
    scored = [(score, trace.correct is True) for score, trace in zip(rated[chosen.aggregator], judged, strict=True)]
    said = [pair for pair in scored if pair[0] > NOTHING]  # what says nothing has no place on the scale
    fitted = fit_map([score for score, _ in said], [right for _, right in said])
    return replace(
        chosen,
        selector="vote" if votes > accuracy["max"] else "max",
        temperatures=best,
        slope=fitted and fitted[0],
        intercept=fitted and fitted[1],
        base=float(np.mean([trace.correct is True for trace in judged])),
    )


def located(wrong: Mapping[str, Sequence[tuple[np.ndarray, int]]], locator: str) -> dict[str, float]:
    """Per set of (reads ``(n_steps,)``, first wrong step), how often the locator points at it; empty sets left out."""
    return {
        name: float(np.mean([first_error(reads, locator) == error for reads, error in pairs]))
        for name, pairs in wrong.items()
        if pairs
    }
