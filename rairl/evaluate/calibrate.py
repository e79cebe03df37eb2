"""Choices made on dev: how good a reward checkpoint is, its aggregator, its locator and threshold.

Held-out expert traces are all it takes. Verified corruptions of them give first errors for free; rollouts of the SFT
policy on their problems, right or wrong by the expert's own answer, give the comparison that reranking needs.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rairl.evaluate.localise import LOCATORS, choose_threshold, first_error
from rairl.evaluate.rerank import AGGREGATORS, aggregate
from rairl.models.reward import Calibration, RewardModel
from rairl.perturb import perturb
from rairl.traces import Trace

CRITERION = "dev/score"
"""What chooses among reward checkpoints: see :func:`dev_scores`."""


@dataclass(frozen=True)
class Dev:
    """Held-out expert traces, and for each of them its corruptions and some policy's rollouts on the same problem."""

    experts: list[Trace]
    corrupted: list[Trace]
    corrupted_of: list[int]
    rollouts: list[Trace]
    rollouts_of: list[int]


def make_dev(experts: Sequence[Trace], rollouts: Sequence[Trace], *, copies: int, seed: int) -> Dev:
    """Pair held-out experts with ``copies`` corruptions each (first error in a step) and with the given rollouts."""
    rng = random.Random(f"{seed}/dev")
    corrupted, owner = [], []
    for index, expert in enumerate(experts):
        for _ in range(copies):
            bad = perturb(expert, rng)
            if bad is not None and bad.first_error is not None:
                corrupted.append(bad)
                owner.append(index)
    of = {expert.id: index for index, expert in enumerate(experts)}
    mine = [trace for trace in rollouts if trace.question in of]
    return Dev(list(experts), corrupted, owner, mine, [of[trace.question] for trace in mine])


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
    shares = []
    for question in sorted(set(owner)):
        mine = [(score, good) for score, good, of in zip(scores, right, owner, strict=True) if of == question]
        good = np.array([score for score, is_right in mine if is_right is True])
        bad = np.array([score for score, is_right in mine if is_right is False])
        if len(good) and len(bad):
            gap = good[:, None] - bad
            shares.append(np.mean((gap > 0) + 0.5 * (gap == 0)))
    return float(np.mean(shares)) if shares else float("nan")


def dev_scores(model: RewardModel, dev: Dev) -> tuple[dict[str, float], Calibration]:
    """Scores of a checkpoint and the calibration that goes with them.

    Returns:
        ``dev/prefers_corrupted`` (how often the expert wins against its corruption) and ``dev/auroc`` (how often a
        right rollout wins against a wrong one of its problem; absent without such pairs), their mean ``dev/score``
        (the criterion), ``dev/exact`` (first wrong step found in corruptions), and the calibration:
        aggregator with the best ``dev/score``, locator with the best ``dev/exact``, threshold with the best F1.
    """
    scores = model.score([*dev.experts, *dev.corrupted, *dev.rollouts])
    first, second = len(dev.experts), len(dev.experts) + len(dev.corrupted)
    experts, corrupted, rollouts = scores[:first], scores[first:second], scores[second:]
    results = {}
    for how in AGGREGATORS:
        values = [[aggregate(one.steps, one.last, how) for one in part] for part in (experts, corrupted, rollouts)]
        wins = {
            "dev/prefers_corrupted": preference(values[0], values[1], dev.corrupted_of),
            "dev/auroc": within_question(values[2], [trace.correct for trace in dev.rollouts], dev.rollouts_of),
        }
        known = {name: value for name, value in wins.items() if not np.isnan(value)}
        results[how] = {**known, CRITERION: float(np.mean(list(known.values())))}
    how = max(AGGREGATORS, key=lambda one: results[one][CRITERION])
    truth = [int(trace.first_error) for trace in dev.corrupted if trace.first_error is not None]
    exact = {
        locator: float(
            np.mean([first_error(one.steps, locator) == at for one, at in zip(corrupted, truth, strict=True)])
        )
        for locator in LOCATORS
    }
    locator = max(LOCATORS, key=exact.__getitem__)
    reads = [one.steps for one in (*experts, *corrupted)]
    threshold = choose_threshold(reads, [*(None for _ in experts), *truth], locator)
    return {**results[how], "dev/exact": exact[locator]}, Calibration(how, locator, threshold)
