"""Scores as probabilities of being right: a monotone map fitted on dev, and how far it can be trusted on test.

A reward has no scale of its own, so it is calibrated by Platt's map ``sigmoid(slope * score + intercept)`` with a slope
of at least 0 (Platt 1999; Niculescu-Mizil and Caruana 2005). Judged on other questions by the Brier score and by the
expected calibration error (Guo et al. 2017, arXiv 1706.04599; here over bins of equal mass instead of width).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rairl.core.stats import Estimate, Values, bootstrap, bootstrap_mean

BINS = 10
"""Bins of the expected calibration error, each with as many candidates."""


def fit_map(scores: Values, right: Sequence[bool]) -> tuple[float, float] | None:
    """Slope (at least 0) and intercept of the map from score to probability; for dev data only.

    Where the scores run against the truth the slope is 0 and the probability everywhere the share of right ones.

    Args:
        scores: ``(n,)``.
        right: ``(n,)``.

    Returns:
        None unless there are right and wrong rows.
    """
    from sklearn.linear_model import LogisticRegression

    truth = np.asarray(right, dtype=bool)
    if truth.all() or not truth.any():
        return None
    fitted = LogisticRegression().fit(np.asarray(scores, dtype=float)[:, None], truth)
    if fitted.coef_[0, 0] > 0:
        return float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
    return 0.0, float(np.log(truth.mean() / (1 - truth.mean())))


def probabilities(scores: Values, slope: float, intercept: float) -> np.ndarray:
    """``(n,)`` scores as probabilities, by the map of :func:`fit_map`."""
    return (1 + np.tanh((slope * np.asarray(scores, dtype=float) + intercept) / 2)) / 2  # the sigmoid, without overflow


def equal_mass_bins(values: Values, bins: int = BINS) -> np.ndarray:
    """The bin of each value, ``(n,)`` integers from 0: about as many values in each, equal values in one."""
    values = np.asarray(values, dtype=float)
    edges = np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1])
    return np.searchsorted(edges, values, side="left")


def _bin_columns(predicted: np.ndarray, truth: np.ndarray, bins: np.ndarray) -> np.ndarray:
    """Per row, for each bin: whether it is in there, and if so its probability and its truth: ``(n, 3 * bins)``."""
    inside = bins[:, None] == np.arange(BINS)
    return np.concatenate([inside, inside * predicted[:, None], inside * truth[:, None]], axis=1).astype(float)


def ece(sums: np.ndarray) -> np.ndarray:
    """Expected calibration error from the sums over rows of counts, probabilities and truths per bin: ``(..., 3 B)``.

    Mean over bins, weighted by their counts, of |mean probability - share right|.
    """
    counts, predicted, right = np.split(sums, 3, axis=-1)
    return np.abs(predicted - right).sum(axis=-1) / counts.sum(axis=-1)


def calibration_figures(
    predicted: Values, right: Sequence[bool], groups: Sequence[str], prefix: str, *, base: float, draws: int, seed: int
) -> dict[str, Estimate]:
    """``<prefix>.<brier|brier_base|ece>`` of probabilities of being right, lower is better.

    ``brier_base`` is the Brier score of always saying ``base``, the share of right rollouts on dev. The ECE of a finite
    sample is above 0 even for true probabilities, and a resample's more so: its interval lies rather high.

    Args:
        predicted: ``(n,)`` probabilities.
        right: ``(n,)``.
        groups: ``(n,)``, the question of each.
        prefix: of the names.
        base: a probability.
        draws, seed: of the bootstrap over questions.
    """
    chance, truth = np.asarray(predicted, dtype=float), np.asarray(right, dtype=float)
    columns = _bin_columns(chance, truth, equal_mass_bins(chance))
    return {
        f"{prefix}.brier": bootstrap_mean((chance - truth) ** 2, groups, draws=draws, seed=seed),
        f"{prefix}.brier_base": bootstrap_mean((base - truth) ** 2, groups, draws=draws, seed=seed),
        f"{prefix}.ece": bootstrap(columns, groups, ece, draws=draws, seed=seed),
    }


def reliability(
    predicted: Values, right: Sequence[bool], groups: Sequence[str], *, draws: int, seed: int
) -> dict[float, Estimate]:
    """Mean probability of each bin that has rows, to the share of right ones in it; arguments as above."""
    chance, truth = np.asarray(predicted, dtype=float), np.asarray(right, dtype=float)
    bins = equal_mass_bins(chance)
    curve = {}
    for at in range(BINS):
        rows = np.flatnonzero(bins == at).tolist()
        if rows:
            mean = float(chance[rows].mean())
            curve[mean] = bootstrap_mean(truth[rows], [groups[row] for row in rows], draws=draws, seed=seed)
    return curve
