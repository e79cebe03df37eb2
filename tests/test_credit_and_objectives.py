"""Losses: numbers worked by hand and the direction of the gradient."""

from __future__ import annotations

import math

import pytest
import torch

from rairl.learn.objectives import bce_loss


def test_bce_at_zero_logits_is_log_two() -> None:
    loss = bce_loss(torch.zeros(3), torch.zeros(5), smoothing=0.1)
    assert loss.item() == pytest.approx(math.log(2))


def test_bce_by_hand() -> None:
    # expert z = 1: -log sigmoid(1) = log(1 + e^-1) = 0.313262; generated z = -2: log(1 + e^-2) = 0.126928; half each
    loss = bce_loss(torch.tensor([1.0]), torch.tensor([-2.0]))
    assert loss.item() == pytest.approx(0.5 * (0.313262 + 0.126928), abs=1e-6)


def test_class_sizes_do_not_weigh() -> None:
    one = bce_loss(torch.tensor([0.3]), torch.tensor([0.2]))
    many = bce_loss(torch.tensor([0.3]), torch.full((50,), 0.2))
    assert one.item() == pytest.approx(many.item())


@pytest.mark.parametrize("smoothing", [0.05, 0.1, 0.3])
def test_smoothing_bounds_the_optimum(smoothing: float) -> None:
    """At z = log((1-s)/s) the expert's gradient vanishes (method: +-log 9 for s = 0.1)."""
    best = math.log((1 - smoothing) / smoothing)
    expert = torch.tensor([best], requires_grad=True)
    generated = torch.tensor([-best], requires_grad=True)
    bce_loss(expert, generated, smoothing).backward()
    assert expert.grad is not None and abs(expert.grad.item()) < 1e-6
    assert generated.grad is not None and abs(generated.grad.item()) < 1e-6


def test_gradient_raises_the_expert_and_lowers_the_generated() -> None:
    expert = torch.zeros(2, requires_grad=True)
    generated = torch.zeros(4, requires_grad=True)
    bce_loss(expert, generated, 0.1).backward()
    assert expert.grad is not None and (expert.grad < 0).all()  # descent raises it
    assert generated.grad is not None and (generated.grad > 0).all()
