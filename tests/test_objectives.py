"""Losses: numbers worked by hand, naive references, and the direction of the gradient."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import softplus

from rairl.learn.objectives import airl_logits, balanced, bce, gradient_penalty, relativistic, wgan
from rairl.models.reads import running_sum

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


@pytest.mark.parametrize("objective", ["bce", "wgan", "relativistic"])
def test_gradient_raises_the_expert_and_lowers_the_generated(objective: str) -> None:
    expert = torch.zeros(2, requires_grad=True)
    generated = torch.zeros(4, requires_grad=True)
    losses = {
        "bce": lambda: bce(expert, generated, 0.1),
        "wgan": lambda: wgan(expert, generated),
        "relativistic": lambda: relativistic(expert, generated, torch.tensor([0, 1]), torch.tensor([0, 0, 1, 1]), 0.1),
    }[objective]()
    balanced(*losses).backward()
    assert expert.grad is not None and (expert.grad < 0).all()  # descent raises it
    assert generated.grad is not None and (generated.grad > 0).all()


def test_wgan_by_hand() -> None:
    # half of the mean of (-1, -3) plus half of the mean of (2) is 0
    assert balanced(*wgan(torch.tensor([1.0, 3.0]), torch.tensor([2.0]))).item() == pytest.approx(0.0)


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


# --- AIRL ------------------------------------------------------------------------------------------------------------


def test_airl_logits_by_hand() -> None:
    # trace 0: 1 + 0.9 * 0.5 - 0 + 1 = 2.45, then 2 + 0.9 * 0 - 0.5 + 2 = 3.5; trace 1, one read: 3 + 0 - 0 + 3 = 6
    terms = torch.tensor([[1.0, 0.5], [2.0, 9.0], [3.0, 9.0]])
    logits = airl_logits(terms, torch.tensor([0, 0, 1]), torch.tensor([-1.0, -2.0, -3.0]), 0.9)
    assert logits.tolist() == pytest.approx([2.45, 3.5, 6.0])


@given(
    st.lists(st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), min_size=1, max_size=5), min_size=1, max_size=4)
)
def test_shaping_telescopes_to_nothing(traces: list[list[tuple[float, float]]]) -> None:
    terms = torch.tensor([pair for trace in traces for pair in trace])
    owner = torch.tensor([index for index, trace in enumerate(traces) for _ in trace])
    sums = running_sum(airl_logits(terms, owner, torch.zeros(len(owner)), 1.0), owner)
    last = torch.cat([owner[1:] != owner[:-1], torch.tensor([True])])
    assert sums[last].tolist() == pytest.approx([sum(g for g, _ in trace) for trace in traces], abs=1e-4)


def test_no_gradient_flows_into_the_policy() -> None:
    logprobs = torch.zeros(2, requires_grad=True)
    terms = torch.zeros(2, 2, requires_grad=True)
    airl_logits(terms, torch.tensor([0, 0]), logprobs, 0.9).sum().backward()
    assert logprobs.grad is None and terms.grad is not None


# --- gradient penalty ------------------------------------------------------------------------------------------------


def test_the_penalty_of_a_linear_head_is_known() -> None:
    # the gradient of w . x is w, here of length 5, wherever it is taken: (5 - 1)^2, with gradient 2 * 4 * w / 5
    head = nn.Linear(2, 1)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[3.0, 4.0]]))
    rng = torch.Generator().manual_seed(0)
    penalty = gradient_penalty(head, torch.randn(3, 2), torch.randn(5, 2), rng)
    assert penalty.tolist() == pytest.approx([16.0] * 3, rel=1e-5)
    penalty.mean().backward()
    assert head.weight.grad is not None
    assert head.weight.grad[0].tolist() == pytest.approx([8 * 0.6, 8 * 0.8], rel=1e-5)


def test_the_points_lie_between_real_and_fake() -> None:
    class Recorder(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.points = x.detach()
            return x.square().sum(-1, keepdim=True)

    head = Recorder()
    real, fake = torch.zeros(50, 1), torch.tensor([[1.0], [2.0]])
    gradient_penalty(head, real, fake, torch.Generator().manual_seed(0))
    assert head.points.min() > 0 and 1 < head.points.max() < 2
    first = head.points
    gradient_penalty(head, real, fake, torch.Generator().manual_seed(0))
    assert torch.equal(first, head.points)


def test_the_penalty_of_a_head_of_zeros_has_a_gradient_and_no_fakes_mean_no_penalty() -> None:
    head = nn.Linear(2, 1)
    nn.init.zeros_(head.weight)
    rng = torch.Generator().manual_seed(0)
    gradient_penalty(head, torch.randn(3, 2), torch.randn(3, 2), rng).sum().backward()
    assert head.weight.grad is not None and torch.isfinite(head.weight.grad).all()
    assert len(gradient_penalty(head, torch.randn(3, 2), torch.zeros(0, 2), rng)) == 0
