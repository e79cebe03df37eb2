"""Losses of the reward model: pure functions of logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from rairl.traces import EXPERT, GENERATED


def bce_loss(expert: Tensor, generated: Tensor, smoothing: float = 0.0) -> Tensor:
    """Balanced binary cross-entropy with label smoothing (R-AIRL, arXiv 2510.01857; Goodfellow et al. 2014).

    Half the mean over expert reads plus half the mean over generated reads, so that the balance of the two classes in a
    batch doesn't move the optimum. With smoothing s the targets are 1 - s and s, which bounds the optimal logit to
    +-log((1 - s) / s).

    Args:
        expert: logits of expert reads, shape ``(E,)``.
        generated: logits of generated reads, shape ``(N,)``.
        smoothing: in [0, 0.5).

    Returns:
        Scalar loss in nats.
    """
    expert_target = torch.full_like(expert, abs(EXPERT - smoothing))
    generated_target = torch.full_like(generated, abs(GENERATED - smoothing))
    return 0.5 * (
        binary_cross_entropy_with_logits(expert, expert_target)
        + binary_cross_entropy_with_logits(generated, generated_target)
    )
