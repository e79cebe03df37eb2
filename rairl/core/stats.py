"""Estimates with their uncertainty: bootstrap over questions, paired comparisons, AUROC.

The unit of resampling is the question: all its candidates are drawn together. Bootstraps work on per-question
sums, so a thousand resamples cost one matrix product, whatever the statistic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from rairl.core.errors import RairlError

Values = Sequence[float] | np.ndarray


class Estimate(NamedTuple):
    """A figure with its 95 % interval and the number of questions (or pairs) behind it."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


NOTHING = Estimate(float("nan"), float("nan"), float("nan"), 0)
"""The figure of an empty set."""


def exact(value: float, n: int = 1) -> Estimate:
    """A figure without sampling error, such as a duration or a count."""
    return Estimate(float(value), float(value), float(value), n)


def to_json(figures: Mapping[str, Estimate]) -> dict[str, dict[str, float]]:
    """Figures as ``{name: {"value", "low", "high", "n"}}``."""
    return {name: figure._asdict() for name, figure in figures.items()}


def from_json(rows: Mapping[str, Mapping[str, float]]) -> dict[str, Estimate]:
    """Inverse of :func:`to_json`."""
    return {name: Estimate(row["value"], row["low"], row["high"], int(row["n"])) for name, row in rows.items()}


def group_sums(columns: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Sum the rows ``(n, m)`` of each group: ``(G, m)``, groups in sorted order."""
    columns = np.asarray(columns, dtype=float)
    if len(columns) != len(groups):
        raise ValueError(f"{len(columns)} values but {len(groups)} groups")
    _, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    return np.stack([np.bincount(index, weights=column) for column in columns.T], axis=1)


def bootstrap(
    columns: np.ndarray,
    groups: Sequence[str],
    statistic: Callable[[np.ndarray], np.ndarray],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Estimate:
    """A statistic of column sums, with a percentile bootstrap interval that resamples whole groups.

    Args:
        columns: ``(n, m)``, one row per observation.
        groups: ``(n,)``; rows of one question share a key and are drawn together.
        statistic: maps sums ``(..., m)`` to values ``(...)``.
        draws: number of resamples.
        seed: of the resampling.

    Returns:
        The statistic of all rows, the 2.5 % and 97.5 % percentiles over resamples (those for which it is undefined left
        out), and the number of groups; :data:`NOTHING` when there are no rows.
    """
    if len(groups) == 0:
        return NOTHING
    sums = group_sums(columns, groups)
    size = len(sums)
    counts = _resamples(size, draws, seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(statistic(sums.sum(axis=0)))
        resampled = np.asarray(statistic(counts @ sums), dtype=float)
    resampled = resampled[~np.isnan(resampled)]
    if np.isnan(value) or not len(resampled):
        return NOTHING
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Estimate(value, float(low), float(high), size)


@lru_cache(maxsize=4)  # the figures of a stage are over the same few numbers of questions
def _resamples(size: int, draws: int, seed: int) -> np.ndarray:
    """How often each of ``size`` groups is drawn in each resample: ``(draws, size)``.

    Drawing with replacement is a multinomial count per group; counts @ sums are all the resampled sums at once.
    """
    return np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), size=draws)


def ratio(sums: np.ndarray) -> np.ndarray:
    """First column over second: ``(..., 2)`` to ``(...)``; NaN where the second is 0."""
    return sums[..., 0] / sums[..., 1]


def hierarchical_bootstrap(
    runs: Sequence[np.ndarray],
    statistic: Callable[[np.ndarray], np.ndarray],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Estimate:
    """A statistic of figures that are means over training runs, with an interval for both sources of chance.

    Every resample draws runs with replacement, then questions within each drawn run (the two-stage bootstrap of Davison
    and Hinkley 1997, section 3.8). With few runs the interval is rough, and rather too narrow than too wide.

    Args:
        runs: per training run ``(questions, m, 2)``: numerator and denominator of m figures for each question.
        statistic: maps the figures' means over runs ``(..., m)`` to values ``(...)``.
        draws: number of resamples.
        seed: of the resampling.

    Returns:
        The statistic, the 2.5 % and 97.5 % percentiles over resamples (undefined ones left out), and the number of
        questions of all runs; :data:`NOTHING` without any, or where the statistic is undefined.
    """
    runs = [np.asarray(run, dtype=float) for run in runs]
    if not runs or not all(len(run) for run in runs):
        return NOTHING
    rng = np.random.default_rng(seed)
    resampled = np.zeros((draws, runs[0].shape[1]))
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(statistic(np.mean([ratio(run.sum(axis=0)) for run in runs], axis=0)))
        for drawn in rng.integers(len(runs), size=(len(runs), draws)):
            for number, run in enumerate(runs):
                mine = drawn == number
                counts = rng.multinomial(len(run), np.full(len(run), 1 / len(run)), size=int(mine.sum()))
                resampled[mine] += ratio(np.tensordot(counts, run, axes=1)) / len(runs)
        values = np.asarray(statistic(resampled), dtype=float)
    values = values[np.isfinite(values)]
    if not np.isfinite(value) or not len(values):
        return NOTHING
    low, high = np.percentile(values, [2.5, 97.5])
    return Estimate(value, float(low), float(high), sum(map(len, runs)))


def bootstrap_mean(values: Values, groups: Sequence[str], *, draws: int = 1000, seed: int = 0) -> Estimate:
    """Mean over rows with a percentile bootstrap interval that resamples whole groups.

    Args:
        values: shape ``(n,)``, one per row.
        groups: shape ``(n,)``; rows of one question share a key and are drawn together.
        draws: number of resamples.
        seed: of the resampling.

    Returns:
        The mean over rows, its interval, and the number of groups; :data:`NOTHING` when there are no rows.
    """
    values = np.asarray(values, dtype=float)
    return bootstrap(np.stack([values, np.ones_like(values)], axis=1), groups, ratio, draws=draws, seed=seed)


def paired_difference(
    first: Values, second: Values, groups: Sequence[str], *, draws: int = 1000, seed: int = 0
) -> Estimate:
    """Mean of ``first - second`` on the same rows, with its bootstrap interval over groups."""
    return bootstrap_mean(_difference(first, second), groups, draws=draws, seed=seed)


def paired_permutation_p(
    first: Values, second: Values, groups: Sequence[str], *, draws: int = 9999, seed: int = 0
) -> Estimate:
    """Two-sided p-value of the paired permutation test: under the null the two methods are exchangeable per question.

    The sign of each group's total difference is flipped at random (``scipy.stats.permutation_test``, exact when there
    are at most ``draws`` sign patterns). The value has no interval: low = high = value.
    """
    from scipy.stats import permutation_test

    difference = _difference(first, second)
    if not len(difference):
        return NOTHING
    totals = group_sums(difference[:, None], groups)[:, 0]
    if not totals.any():
        return exact(1.0, len(totals))
    if len(totals) == 1:  # both signs are equally likely, and scipy refuses a single pair
        return exact(1.0, 1)
    result = permutation_test(
        (totals,),
        lambda x, axis: x.sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=draws,
        rng=np.random.default_rng(seed),
    )
    return exact(result.pvalue, len(totals))


def _difference(first: Values, second: Values) -> np.ndarray:
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if first.shape != second.shape:
        raise ValueError(f"a paired comparison needs equally many values, not {first.shape} and {second.shape}")
    return first - second


def pooled_auroc(
    labels: Sequence[bool], scores: Values, groups: Sequence[str], *, draws: int = 1000, seed: int = 0
) -> Estimate:
    """Probability that a random right row outscores a random wrong one, over all questions; ties count 1/2.

    Mixes the reward's ranking within a question with the question's difficulty: see :func:`within_auroc`.
    """
    from sklearn.metrics import roc_auc_score

    right = np.asarray(labels, dtype=bool)
    if right.all() or not right.any():
        return NOTHING
    value = float(roc_auc_score(right, _finite(scores)))
    _, rank = np.unique(np.asarray(scores, dtype=float), return_inverse=True)
    names, group = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    rng = np.random.default_rng(seed)
    resampled = []
    for _ in range(draws):
        weight = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))[group]
        won, lost = (np.bincount(rank, weights=weight * part) for part in (right, ~right))
        if won.any() and lost.any():
            resampled.append(won @ (lost.cumsum() - lost / 2) / (won.sum() * lost.sum()))
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Estimate(value, float(low), float(high), len(names))


def within_auroc(
    labels: Sequence[bool], scores: Values, groups: Sequence[str], *, draws: int = 1000, seed: int = 0
) -> Estimate:
    """Share of (right, wrong) pairs of the *same* question that the scores order right; ties count 1/2.

    Returns:
        The share over all pairs, its interval over questions, and the number of questions with both kinds (the others
        have no pairs and are left out).
    """
    wins, pairs = within_pairs(labels, scores, groups)
    mixed = [question for question in wins if pairs[question]]
    columns = np.array([[wins[question], pairs[question]] for question in mixed])
    return bootstrap(columns, mixed, ratio, draws=draws, seed=seed)


def within_agreement(
    first: Values, second: Values, groups: Sequence[str], *, draws: int = 1000, seed: int = 0
) -> Estimate:
    """Share of pairs of the same question that two scores put in the same order; a tie in one of them counts 1/2.

    Pairs tied in both are left out; .5 is what unrelated scores give.
    """
    columns, keys = [], []
    for key, rows in members_of(groups).items():
        gaps = [np.subtract.outer(_finite(values)[rows], _finite(values)[rows]) for values in (first, second)]
        upper = np.triu_indices(len(rows), 1)
        a, b = (np.sign(gap[upper]) for gap in gaps)
        counted = (a != 0) | (b != 0)
        if counted.any():
            columns.append([float((a == b)[counted].sum() + ((a * b) == 0)[counted].sum() / 2), float(counted.sum())])
            keys.append(key)
    return bootstrap(np.array(columns), keys, ratio, draws=draws, seed=seed)


def within_correlation(
    first: Values, second: Values, units: Sequence[str], groups: Sequence[str], *, draws: int = 1000, seed: int = 0
) -> Estimate:
    """Pearson correlation of what is left of two quantities after their means per unit.

    Args:
        first, second: ``(n,)`` each.
        units: ``(n,)``; means are taken off within a unit (a trace, or a question).
        groups: ``(n,)``; rows of one question are drawn together.
    """
    a, b = (centred(values, units) for values in (first, second))
    columns = np.stack([a * b, a * a, b * b], axis=1)
    return bootstrap(
        columns,
        groups,
        lambda sums: sums[..., 0] / np.sqrt(sums[..., 1] * sums[..., 2]),
        draws=draws,
        seed=seed,
    )


def centred(values: Values, units: Sequence[str]) -> np.ndarray:
    """``(n,)`` values minus the mean of their unit."""
    _, index = np.unique(np.asarray(units, dtype=str), return_inverse=True)
    array = np.asarray(values, dtype=float)
    return array - (np.bincount(index, weights=array) / np.bincount(index))[index]


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """p-values adjusted for their number by Holm's step-down procedure (1979): rejecting those at most alpha keeps the
    chance of any false rejection among them at most alpha.

    The smallest is multiplied by their number m, the next by m - 1, and so on; never above 1, never below one that was
    smaller before.
    """
    adjusted, floor = {}, 0.0
    for rank, name in enumerate(sorted(values, key=lambda name: values[name])):
        floor = max(floor, min(1.0, (len(values) - rank) * values[name]))
        adjusted[name] = floor
    return {name: adjusted[name] for name in values}


def members_of(groups: Sequence[str]) -> dict[str, list[int]]:
    """Indices of each group's rows, in order of first appearance."""
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    return members


def within_pairs(
    labels: Sequence[bool], scores: Values, groups: Sequence[str]
) -> tuple[dict[str, float], dict[str, int]]:
    """Per question, how many (right, wrong) pairs the scores order right (ties 1/2), and how many pairs there are."""
    scores = _finite(scores)
    wins: dict[str, float] = {}
    pairs: dict[str, int] = {}
    for group, rows in members_of(groups).items():
        right = scores[[row for row in rows if labels[row]]]
        wrong = scores[[row for row in rows if not labels[row]]]
        margin = right[:, None] - wrong[None, :]
        wins[group] = float((margin > 0).sum() + (margin == 0).sum() / 2)
        pairs[group] = margin.size
    return wins, pairs


def _finite(scores: Values) -> np.ndarray:
    values = np.asarray(scores, dtype=float)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise RairlError(
            f"score {values[bad[0]]} of row {bad[0]} is not a finite number; the model that made it is broken"
        )
    return values


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased probability that at least one of ``k`` samples is right, from ``n`` samples of which ``correct`` are.

    ``1 - C(n - c, k) / C(n, k)`` (Chen et al. 2021, arXiv 2107.03374, equation 1).

    Raises:
        RairlError: when k exceeds n, where no unbiased estimate exists.
    """
    from math import comb

    if not 1 <= k <= n:
        raise RairlError(f"pass@{k} needs at least {k} samples per question, but there are {n}; lower k or draw more")
    if not 0 <= correct <= n:
        raise ValueError(f"{correct} of {n} samples cannot be right")
    return 1 - comb(n - correct, k) / comb(n, k)
