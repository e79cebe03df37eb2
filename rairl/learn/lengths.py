"""Length is the cheapest tell of who wrote a trace: two controls, as pure functions of lengths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def match_lengths(wanted: Sequence[int], pool: Sequence[int]) -> list[int]:
    """For each wanted length, in order, the index of the nearest length in ``pool`` that is not yet taken.

    Equally near ones are taken from the front. When the pool runs out, the rest of ``wanted`` gets none.
    """
    free = list(range(len(pool)))
    taken = []
    for length in wanted[: len(pool)]:
        nearest = min(free, key=lambda index: abs(pool[index] - length))
        free.remove(nearest)
        taken.append(nearest)
    return taken


def length_slope(rewards: np.ndarray, lengths: np.ndarray) -> float:
    """Reward per unit of length, by least squares within groups (each group has its own intercept).

    Args:
        rewards: shape ``(P, G)``.
        lengths: shape ``(P, G)``.

    Returns:
        The slope; 0 when no group has different lengths.
    """
    deviations = _centred(lengths)
    variation = float((deviations**2).sum())
    return float((deviations * _centred(rewards)).sum()) / variation if variation else 0.0


def centre_lengths(rewards: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Rewards without the part that is linear in length (:func:`length_slope`); the mean of every group stays.

    Args:
        rewards: shape ``(P, G)``.
        lengths: shape ``(P, G)``.
    """
    return rewards - length_slope(rewards, lengths) * _centred(lengths)


def _centred(values: np.ndarray) -> np.ndarray:
    return values - values.mean(axis=1, keepdims=True)
