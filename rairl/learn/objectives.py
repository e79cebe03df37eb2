"""Losses of the reward model: pure functions of logits.

Each objective gives one loss per read and class; :func:`balanced` is the one reduction. Divided by global counts, the
shares of several processes add up to the loss of the whole.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from rairl.core.traces import EXPERT, GENERATED

Losses = tuple[Tensor, Tensor]
"""Losses of the expert reads ``(E,)`` and of the generated reads ``(N,)``."""


def bce(expert: Tensor, generated: Tensor, smoothing: float = 0.0) -> Losses:
    """Binary cross-entropy with label smoothing (R-AIRL, arXiv 2510.01857; Goodfellow et al. 2014).

    With smoothing s the targets are 1 - s and s, which bounds the optimal logit to +-log((1 - s) / s).

    Args:
        expert: logits of expert reads, shape ``(E,)``.
        generated: logits of generated reads, shape ``(N,)``.
        smoothing: in [0, 0.5).

    Returns:
        Losses in nats, shapes ``(E,)`` and ``(N,)``.
    """
    return _cross_entropy(expert, abs(EXPERT - smoothing)), _cross_entropy(generated, abs(GENERATED - smoothing))


def relativistic(
    expert: Tensor, generated: Tensor, expert_prompt: Tensor, generated_prompt: Tensor, smoothing: float = 0.0
) -> Losses:
    """Each read against the mean read of the other class on the same prompt (Jolicoeur-Martineau 2018, relativistic
    average; with one read of each class it is Bradley and Terry 1952: softplus(-(expert - generated))).

    What a prompt adds to all of its logits cancels. A read whose prompt has no read of the other class says nothing and
    is left out.

    Args:
        expert: logits of expert reads, shape ``(E,)``.
        generated: logits of generated reads, shape ``(N,)``.
        expert_prompt: number of each expert read's prompt, shape ``(E,)``, int64.
        generated_prompt: the same of the generated reads, shape ``(N,)``.
        smoothing: in [0, 0.5); the target of "the expert's is better" is 1 - smoothing.

    Returns:
        Losses in nats of the reads that have a counterpart, shapes ``(<=E,)`` and ``(<=N,)``.
    """
    same = expert_prompt[:, None] == generated_prompt
    rivals, experts = same.sum(1), same.sum(0)
    paired, matched = rivals > 0, experts > 0
    weights = same.to(expert.dtype)
    ahead = expert[paired] - (weights @ generated)[paired] / rivals[paired]
    behind = (expert @ weights)[matched] / experts[matched] - generated[matched]
    target = abs(EXPERT - smoothing)
    return _cross_entropy(ahead, target), _cross_entropy(behind, target)


def balanced(expert: Tensor, generated: Tensor, totals: tuple[float, float] | None = None) -> Tensor:
    """Half the mean over expert reads plus half the mean over generated reads.

    So the balance of the two classes in a batch doesn't move the optimum.

    Args:
        expert: losses of expert reads, shape ``(E,)``.
        generated: losses of generated reads, shape ``(N,)``.
        totals: counts of both classes over all processes, when these are one process's share; else E and N.

    Returns:
        Scalar loss; a class without reads adds nothing.
    """
    experts, others = totals or (len(expert), len(generated))
    return 0.5 * (expert.sum() / max(experts, 1) + generated.sum() / max(others, 1))


def _cross_entropy(logits: Tensor, target: float) -> Tensor:
    return binary_cross_entropy_with_logits(logits, torch.full_like(logits, target), reduction="none")
