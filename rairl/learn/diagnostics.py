"""How well the discriminator tells the classes apart: pure functions of its logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def boundary(last: np.ndarray, positive: np.ndarray, objective: str) -> float:
    """The logit that parts the classes: 0 where the objective fixes it, else half-way between the classes' means.

    'bce' makes the logit a log-odds of balanced classes; 'relativistic' leaves a constant free.

    Args:
        last: logit of each trace, shape ``(N,)``.
        positive: whether each counts as expert, shape ``(N,)``, bool.
    """
    if objective == "bce" or positive.all() or not positive.any():
        return 0.0
    return float(last[positive].mean() + last[~positive].mean()) / 2


def hits(last: np.ndarray, positive: np.ndarray, border: float = 0.0) -> np.ndarray:
    """Whether each trace lies on its class's side of the border, shape ``(N,)``, bool; on the border it does not."""
    return np.where(positive, last > border, last < border)


def correlation(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> float:
    """Pearson correlation; 0 when either side is constant."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if x.std() == 0 or y.std() == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def reward_metrics(last: np.ndarray, lengths: np.ndarray, correct: np.ndarray) -> dict[str, float]:
    """What the reward of a batch follows: its mean, its spread within groups, its correlation with length and truth.

    Args:
        last: last read of each sample, shape ``(P, G)``.
        lengths: tokens of each sample, shape ``(P, G)``.
        correct: 1 for a right answer, 0 for a wrong one, NaN when not known, shape ``(P, G)``.
    """
    metrics = {
        "reward/mean": float(last.mean()),
        "reward/std_in_group": float(last.std(axis=1).mean()),
        "reward/corr_length": correlation(last.ravel(), lengths.ravel()),
    }
    if not np.isnan(correct).any():
        metrics["reward/corr_correct"] = correlation(last.ravel(), correct.ravel())
    return metrics


def discriminator_metrics(
    last: np.ndarray, positive: np.ndarray, kinds: Sequence[str], lengths: Sequence[int], border: float
) -> dict[str, float]:
    """How the discriminator sees each kind of trace, by its last read.

    Accuracy per kind, entropy of its decisions in nats, gap between the mean logits of the two classes, and correlation
    of logit and length (a length shortcut shows here).

    Args:
        last: shape ``(N,)``.
        positive: whether a trace counts as expert, shape ``(N,)``, bool.
        kinds: one of expert, policy, replay, perturbed, labelled per trace.
        lengths: characters of each trace.
        border: from :func:`boundary`.
    """
    right = hits(last, positive, border)
    of = np.array(kinds)
    metrics = {f"discriminator/accuracy_{kind}": float(right[of == kind].mean()) for kind in dict.fromkeys(kinds)}
    p = 1 / (1 + np.exp(-np.clip(last - border, -30, 30)))
    entropy = -(p * np.log(p + 1e-12) + (1 - p) * np.log(1 - p + 1e-12))
    if not positive.all():
        metrics["discriminator/gap"] = float(last[positive].mean() - last[~positive].mean())
    return {
        **metrics,
        "discriminator/entropy": float(entropy.mean()),
        "discriminator/corr_length": correlation(last, lengths),
    }
