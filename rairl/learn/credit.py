"""From reward reads to advantages: pure functions of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

Rule = Literal["return", "difference", "min"]


def below_all(rewards: np.ndarray, silent: np.ndarray, floor: float) -> np.ndarray:
    """Rewards of a group in which samples that say nothing lie below all others: nothing in them is wrong either.

    Args:
        rewards: shape ``(G,)``.
        silent: whether each says nothing, shape ``(G,)``, bool.
        floor: of the gap to the lowest of the others, which is their standard deviation.
    """
    if silent.all() or not silent.any():
        return rewards
    said = rewards[~silent]
    return np.where(silent, np.minimum(rewards, said.min() - max(float(said.std()), floor)), rewards)


def group_advantages(rewards: np.ndarray, floor: float, silent: np.ndarray | None = None) -> np.ndarray:
    """Rewards relative to the mean of their group (the samples of one prompt; GRPO, Shao et al. 2024).

    Divided by max(std of the group, floor): a tiny standard deviation would amplify a weak discriminator's noise.

    Args:
        rewards: shape ``(P, G)``.
        floor: smallest divisor, in units of the reward.
        silent: which samples say nothing, shape ``(P, G)``, bool; see :func:`below_all`.

    Returns:
        Shape ``(P, G)``; each row has mean 0.
    """
    if silent is not None:
        rewards = np.stack([below_all(*row, floor) for row in zip(rewards, silent, strict=True)])
    return (rewards - rewards.mean(axis=1, keepdims=True)) / np.maximum(rewards.std(axis=1, keepdims=True), floor)


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


def minimum_to_go(rewards: np.ndarray) -> np.ndarray:
    """The lowest of this and all later rewards: shape ``(K,)`` to ``(K,)``.

    The min-form of PURE (Cheng et al. 2025): a chain is worth its worst step, so good steps can't pay for a bad one, as
    they can in a sum.
    """
    return np.minimum.accumulate(rewards[::-1])[::-1]


def increments(reads: np.ndarray) -> np.ndarray:
    """Evidence between successive reads, the first counted from the prior logit 0: shape ``(K,)`` to ``(K,)``."""
    return np.diff(reads, prepend=0.0)


def step_advantages(
    groups: Sequence[Sequence[np.ndarray]],
    rule: Rule,
    discount: float,
    floor: float,
    silent: Sequence[Sequence[bool]] | None = None,
) -> list[list[np.ndarray]]:
    """One advantage per read, centred and scaled within the group of one prompt.

    Args:
        groups: for each prompt, for each of its samples, the logits of all reads, shape ``(K,)``.
        rule: what a read is credited with: ``difference``: its own increment; ``return``: the discounted return-to-go
            of the increments; ``min``: the lowest increment from it to the end.
        discount: of rule ``return``, in [0, 1].
        floor: smallest divisor, in units of the reward; else the standard deviation over all reads of the group.
        silent: for each prompt, which samples say nothing: every read of theirs is credited below all others of the
            group, see :func:`below_all`.

    Returns:
        The shape of ``groups``; the mean over all reads of a group is 0.
    """
    results = []
    for number, group in enumerate(groups):
        credits = [_credits(increments(reads), rule, discount) for reads in group]
        pooled = np.concatenate(credits)
        if silent is not None:
            lengths = [len(values) for values in credits]
            pooled = below_all(pooled, np.repeat(np.array(silent[number]), lengths), floor)
            credits = np.split(pooled, np.cumsum(lengths)[:-1])
        scale = max(float(pooled.std()), floor)
        results.append([(values - pooled.mean()) / scale for values in credits])
    return results


def _credits(rewards: np.ndarray, rule: Rule, discount: float) -> np.ndarray:
    if rule == "return":
        return returns_to_go(rewards, discount)
    return minimum_to_go(rewards) if rule == "min" else rewards
