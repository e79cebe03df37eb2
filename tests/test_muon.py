"""Muon in the weights' own precision: torch's steps within bfloat16's, and singular values near 1."""

from __future__ import annotations

import copy

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rairl.learn.muon import Muon, orthogonalised

SHAPES = [(8, 8), (8, 24), (24, 8), (8, 8), (24, 8)]


def matrices(seed: int = 0) -> nn.ParameterList:
    generator = torch.Generator().manual_seed(seed)
    return nn.ParameterList(torch.randn(shape, generator=generator) for shape in SHAPES)


def give_gradients(weights: nn.ParameterList, seed: int) -> None:
    for weight, gradient in zip(weights, matrices(seed), strict=True):
        weight.grad = gradient.detach().clone()


def test_it_takes_the_steps_of_torchs_own_but_for_bfloat16() -> None:
    ours, theirs = matrices(), matrices()
    mine = Muon(ours, lr=0.1, momentum=0.9, weight_decay=0.5)
    reference = torch.optim.Muon(theirs, lr=0.1, momentum=0.9, weight_decay=0.5, adjust_lr_fn="match_rms_adamw")
    for number in range(1, 5):
        before = [weight.detach().clone() for weight in theirs]
        for weights, optimizer in ((ours, mine), (theirs, reference)):
            give_gradients(weights, number)
            optimizer.step()
        for one, other, start in zip(ours, theirs, before, strict=True):
            assert (one - other).norm() < 0.03 * number * (other - start).norm()


def test_a_matrix_of_one_singular_value_is_stepped_by_hand() -> None:
    weight = nn.Parameter(torch.zeros(2, 3))
    weight.grad = torch.tensor([[4.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    Muon([weight], lr=0.5, momentum=0.9, weight_decay=0.0).step()
    value = 1.0  # the norm of a matrix with one singular value is that value
    for _ in range(5):
        value = 3.4445 * value - 4.7750 * value**3 + 2.0315 * value**5
    wanted = torch.zeros(2, 3)
    wanted[0, 0] = -0.5 * 0.2 * 3**0.5 * value
    torch.testing.assert_close(weight.detach(), wanted)


def test_decay_comes_first_and_does_not_touch_the_step() -> None:
    weight, twin = (nn.Parameter(torch.full((2, 3), 2.0)) for _ in range(2))
    weight.grad = twin.grad = torch.tensor([[4.0, 1.0, 0.0], [0.0, 3.0, 2.0]])
    Muon([weight], lr=0.5, weight_decay=0.1).step()
    Muon([twin], lr=0.5, weight_decay=0.0).step()
    torch.testing.assert_close(weight.detach(), twin.detach() - 0.5 * 0.1 * 2.0)


def test_bfloat16_weights_stay_so_and_step_as_torchs() -> None:
    ours, theirs = matrices().bfloat16(), matrices().bfloat16()
    how = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.5}
    for weights, optimizer in (
        (ours, Muon(ours, **how)),
        (theirs, torch.optim.Muon(theirs, **how, adjust_lr_fn="match_rms_adamw")),
    ):
        for weight, gradient in zip(weights, matrices(1), strict=True):
            weight.grad = gradient.detach().bfloat16()
        optimizer.step()
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == torch.bfloat16
        assert (one - other).norm() < 0.02 * other.norm()


@settings(deadline=None)
@given(rows=st.integers(1, 12), more=st.integers(0, 12), seed=st.integers(0, 999))
def test_singular_values_come_near_one(rows: int, more: int, seed: int) -> None:
    x = torch.randn(3, rows, rows + more, generator=torch.Generator().manual_seed(seed))
    before, after = torch.linalg.svdvals(x), torch.linalg.svdvals(orthogonalised(x))
    large = before > 0.05 * x.norm(dim=(1, 2))[:, None]
    assert ((after[large] > 0.6) & (after[large] < 1.3)).all()
    for index in range(3):  # however many there are at once
        torch.testing.assert_close(orthogonalised(x[index : index + 1])[0], orthogonalised(x)[index], atol=1e-3, rtol=0)


def test_a_weight_without_a_gradient_stays_and_a_restored_state_goes_on() -> None:
    weights = matrices()
    optimizer = Muon(weights, lr=0.1)
    give_gradients(weights, 1)
    weights[1].grad = None
    start = weights[1].detach().clone()
    optimizer.step()
    assert torch.equal(weights[1], start)
    others = copy.deepcopy(weights)
    resumed = Muon(others, lr=0.1)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for parts, one in ((weights, optimizer), (others, resumed)):
        give_gradients(parts, 2)
        one.step()
    for left, right in zip(weights, others, strict=True):
        assert torch.equal(left, right)


def test_a_zero_gradient_changes_nothing_without_decay() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.zeros(2, 2)
    Muon([weight], weight_decay=0.0).step()
    assert torch.equal(weight.detach(), torch.ones(2, 2))
