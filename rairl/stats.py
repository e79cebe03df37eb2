"""Estimates with their uncertainty: bootstrap over questions, paired comparisons, AUROC."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """A figure with its 95 % interval and the number of questions (or pairs) behind it."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def exact(value: float, n: int = 1) -> Estimate:
    """A figure without sampling error, such as a duration or a count."""
    return Estimate(float(value), float(value), float(value), n)


def bootstrap_mean(
    values: Sequence[float] | np.ndarray, groups: Sequence[str], *, draws: int = 1000, seed: int = 0
) -> Estimate:
    """Mean with a percentile bootstrap interval that resamples whole groups.

    Args:
        values: shape ``(n,)``, one per row.
        groups: shape ``(n,)``; rows of one question share a key and are drawn together.
        draws: number of resamples.
        seed: of the resampling.

    Returns:
        The mean over rows, its interval, and the number of groups; NaN throughout when there are no rows.
    """
    values = np.asarray(values, dtype=float)
    if len(values) != len(groups):
        raise ValueError(f"{len(values)} values but {len(groups)} groups")
    if len(values) == 0:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    _, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    sums = np.bincount(index, weights=values)
    counts = np.bincount(index)
    picks = np.random.default_rng(seed).integers(len(sums), size=(draws, len(sums)))
    means = sums[picks].sum(axis=1) / counts[picks].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(float(values.mean()), float(low), float(high), len(sums))
