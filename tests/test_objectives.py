"""Losses: numbers worked by hand, naive references, and the direction of the gradient."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import softplus

from rairl.learn.objectives import balanced, bce, relativistic

READS = st.lists(st.tuples(st.floats(-4, 4), st.integers(0, 3)), min_size=1, max_size=8)


def bce_loss(expert: Tensor, generated: Tensor, smoothing: float = 0.0) -> Tensor:
    return balanced(*bce(expert, generated, smoothing))


def test_bce_at_zero_logits_is_log_two() -> None:
    assert bce_loss(torch.zeros(3), torch.zeros(5), 0.1).item() == pytest.approx(math.log(2))


def test_bce_by_hand() -> None:
    # expert z = 1: -log sigmoid(1) = log(1 + e^-1) = 0.313262; generated z = -2: log(1 + e^-2) = 0.126928
    expert, generated = bce(torch.tensor([1.0]), torch.tensor([-2.0]))
    assert expert.tolist() == pytest.approx([0.313262], abs=1e-6)
    assert generated.tolist() == pytest.approx([0.126928], abs=1e-6)
    assert balanced(expert, generated).item() == pytest.approx(0.5 * (0.313262 + 0.126928), abs=1e-6)


def test_class_sizes_do_not_weigh() -> None:
    one = bce_loss(torch.tensor([0.3]), torch.tensor([0.2]))
    many = bce_loss(torch.tensor([0.3]), torch.full((50,), 0.2))
    assert one.item() == pytest.approx(many.item())


def test_shares_add_up_to_the_whole() -> None:
    expert, generated = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([4.0, 2.0])
    first = balanced(expert[:1], generated[:1], (3, 2))
    second = balanced(expert[1:], generated[1:], (3, 2))
    assert (first + second).item() == pytest.approx(balanced(expert, generated).item()) == pytest.approx(3.0)
    assert balanced(expert, generated[:0]).item() == pytest.approx(1.5)


@pytest.mark.parametrize("smoothing", [0.05, 0.1, 0.3])
def test_smoothing_bounds_the_optimum(smoothing: float) -> None:
    """At z = log((1-s)/s) the expert's gradient vanishes (method: +-log 9 for s = 0.1)."""
    best = math.log((1 - smoothing) / smoothing)
    expert = torch.tensor([best], requires_grad=True)
    generated = torch.tensor([-best], requires_grad=True)
    bce_loss(expert, generated, smoothing).backward()
    assert expert.grad is not None and abs(expert.grad.item()) < 1e-6
    assert generated.grad is not None and abs(generated.grad.item()) < 1e-6


@pytest.mark.parametrize("objective", ["bce", "relativistic"])
def test_gradient_raises_the_expert_and_lowers_the_generated(objective: str) -> None:
    expert = torch.zeros(2, requires_grad=True)
    generated = torch.zeros(4, requires_grad=True)
    losses = {
        "bce": lambda: bce(expert, generated, 0.1),
        "relativistic": lambda: relativistic(expert, generated, torch.tensor([0, 1]), torch.tensor([0, 0, 1, 1]), 0.1),
    }[objective]()
    balanced(*losses).backward()
    assert expert.grad is not None and (expert.grad < 0).all()  # descent raises it
    assert generated.grad is not None and (generated.grad > 0).all()


# --- relativistic ----------------------------------------------------------------------------------------------------


@given(st.floats(-10, 10), st.floats(-10, 10))
def test_one_read_each_is_bradley_terry(expert: float, generated: float) -> None:
    one, other = torch.tensor([expert]), torch.tensor([generated])
    loss = balanced(*relativistic(one, other, torch.tensor([7]), torch.tensor([7])))
    assert loss.item() == pytest.approx(softplus(other - one).item(), abs=1e-5)


def test_relativistic_by_hand() -> None:
    # prompt 0: experts 1 and 3 against a generated 0; prompt 1 has only an expert, prompt 2 only a generated one
    expert, generated = relativistic(
        torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0.0, 7.0]), torch.tensor([0, 0, 1]), torch.tensor([0, 2])
    )
    assert expert.tolist() == pytest.approx([math.log1p(math.exp(-1)), math.log1p(math.exp(-3))])
    assert generated.tolist() == pytest.approx([math.log1p(math.exp(-2))])


@given(READS, READS, st.sampled_from([0.0, 0.1]))
def test_relativistic_equals_a_plain_loop(
    experts: list[tuple[float, int]], others: list[tuple[float, int]], smoothing: float
) -> None:
    def loss(gap: float) -> float:
        return (1 - smoothing) * math.log1p(math.exp(-gap)) + smoothing * math.log1p(math.exp(gap))

    def gaps(ours: list[tuple[float, int]], theirs: list[tuple[float, int]], sign: int) -> list[float]:
        found = []
        for value, prompt in ours:
            rivals = [other for other, its in theirs if its == prompt]
            if rivals:
                found.append(loss(sign * (value - sum(rivals) / len(rivals))))
        return found

    made = relativistic(
        torch.tensor([value for value, _ in experts]),
        torch.tensor([value for value, _ in others]),
        torch.tensor([prompt for _, prompt in experts]),
        torch.tensor([prompt for _, prompt in others]),
        smoothing,
    )
    assert made[0].tolist() == pytest.approx(gaps(experts, others, 1), abs=1e-4)
    assert made[1].tolist() == pytest.approx(gaps(others, experts, -1), abs=1e-4)


@given(READS, READS, st.floats(-5, 5))
def test_what_a_prompt_adds_cancels(
    experts: list[tuple[float, int]], others: list[tuple[float, int]], shift: float
) -> None:
    one, other = torch.tensor([prompt for _, prompt in experts]), torch.tensor([prompt for _, prompt in others])
    high, low = torch.tensor([value for value, _ in experts]), torch.tensor([value for value, _ in others])
    plain = balanced(*relativistic(high, low, one, other))
    moved = balanced(*relativistic(high + shift * one, low + shift * other, one, other))
    assert moved.item() == pytest.approx(plain.item(), abs=1e-4)
