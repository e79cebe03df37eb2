"""From reward reads to advantages: pure functions of arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def group_advantages(rewards: np.ndarray, floor: float, baseline: str = "group") -> np.ndarray:
    """Rewards relative to their group (the samples of one prompt).

    Divided by max(std, floor): a tiny standard deviation would amplify a weak discriminator's noise.

    Args:
        rewards: shape ``(P, G)``.
        floor: smallest divisor, in units of the reward.

    Returns:
        Shape ``(P, G)``; each row has mean 0.
    """
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    return centred / np.maximum(rewards.std(axis=1, keepdims=True), floor)


def returns_to_go(rewards: np.ndarray, discount: float) -> np.ndarray:
    """Discounted sum of this and all later rewards, by backward recursion (no power of the discount is divided by).

    Args:
        rewards: shape ``(K,)``.
        discount: in [0, 1].
    """
    returns = np.zeros(len(rewards))
    running = 0.0
    for index in range(len(rewards) - 1, -1, -1):
        running = rewards[index] + discount * running
        returns[index] = running
    return returns


def increments(reads: np.ndarray) -> np.ndarray:
    """Evidence between successive reads, the first counted from the prior logit 0: shape ``(K,)`` to ``(K,)``."""
    return np.diff(reads, prepend=0.0)


def step_advantages(
    groups: Sequence[Sequence[np.ndarray]], rule: str, discount: float, floor: float, baseline: str = "group"
) -> list[list[np.ndarray]]:
    """One advantage per read: discounted return-to-go of the increments, centred and scaled within the group.

    Args:
        groups: for each prompt, for each of its samples, the logits of all reads, shape ``(K,)``.

    Returns:
        The same shape; over all reads of one group the mean is 0.
    """
    results = []
    for group in groups:
        returns = [returns_to_go(increments(reads), discount) for reads in group]
        pooled = np.concatenate(returns)
        scale = max(float(pooled.std()), floor)
        results.append([(values - pooled.mean()) / scale for values in returns])
    return results
