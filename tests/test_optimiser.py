"""Learning-rate schedule and optimiser of policy and reward: by hand, each key acting, and through a resume."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conftest import spied_rates, tuned
from test_adversarial import make_loop, untimed
from torch import nn

from rairl.core.errors import RairlError
from rairl.core.params import Params
from rairl.core.traces import Trace
from rairl.core.training_params import PolicyParams
from rairl.learn import checkpoints, distributed
from rairl.learn.learned_reward import LearnedReward
from rairl.learn.learner import Learner, adamw_of, rates
from rairl.learn.policy_loop import PolicyLoop
from rairl.models.reward import new_reward


def policy_of(params: Params, **changes: object) -> PolicyParams:
    return tuned(params, policy=changes).policy


def rates_of(params: Params, warmup: int, steps: int, **changes: object) -> list[float]:
    rate = rates(policy_of(params, **changes), warmup, steps)
    return [rate(step) for step in range(steps)]


# --- the schedule ----------------------------------------------------------------------------------------------------


def test_the_schedules_by_hand(miniature: Params) -> None:
    assert rates_of(miniature, 4, 6, learning_rate=0.1) == [0.025, 0.05, 0.1 * 0.75, 0.1, 0.1, 0.1]
    cosine = rates_of(miniature, 2, 5, learning_rate=0.1, learning_rate_schedule="cosine")
    quarters = [0.1 * 0.5 * (1 + math.cos(math.pi * part / 4)) for part in (1, 2, 3)]
    assert cosine == pytest.approx([0.05, 0.1, *quarters])
    assert cosine[3] == pytest.approx(0.05)  # half-way down
    assert cosine[-1] > 0  # no update is wasted


def test_a_constant_rate_is_to_the_last_bit_what_it_was(miniature: Params) -> None:
    for rate, warmup in ((3e-4, 0), (5e-4, 7), (1e-3, 13)):
        before = [rate * min(1.0, (step + 1) / max(1, warmup)) for step in range(20)]
        assert rates_of(miniature, warmup, 20, learning_rate=rate) == before


PUBLISHED = {"learning_rate_schedule": "cosine", "adam_beta2": 0.99, "weight_decay": 0.1}


def loop_of(policy: Path, params: Params, demos: Sequence[Trace], folder: Path, optimizer: str) -> PolicyLoop:
    changes = {**PUBLISHED, "optimizer": optimizer}
    small = tuned(params, reward={**changes, "updates_per_iteration": 0, "warmup_updates": 0})
    return make_loop(
        policy, small, list(demos), folder, iterations=4, warmup_iterations=1, checkpoint_every=2, **changes
    )


def optimizers() -> list[object]:
    """Both kinds, that of bitsandbytes where it is installed."""
    without = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
    return ["adamw", pytest.param("paged_adamw_8bit", marks=without)]


@pytest.mark.parametrize("optimizer", optimizers())
def test_a_resumed_policy_continues_on_the_same_schedule(
    optimizer: str,
    tiny_policy: Path,
    miniature: Params,
    demos: list[Trace],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = spied_rates(monkeypatch)["LlamaForCausalLM"]
    whole = loop_of(tiny_policy, miniature, demos, tmp_path / "whole", optimizer)
    expected = whole.run("whole")
    factors = [1.0, *(0.5 * (1 + math.cos(math.pi * part / 4)) for part in (1, 2, 3))]
    assert seen == pytest.approx([miniature.policy.learning_rate * factor for factor in factors])

    def stop(iteration: int) -> None:
        if iteration == 2:
            raise KeyboardInterrupt

    cut = loop_of(tiny_policy, miniature, demos, tmp_path / "cut", optimizer)
    cut.on_metrics = lambda iteration, metrics: stop(iteration)
    with pytest.raises(KeyboardInterrupt):
        cut.run("cut")
    again = loop_of(tiny_policy, miniature, demos, tmp_path / "cut", optimizer)
    at = len(seen)
    assert untimed(again.run("cut")) == untimed(expected)
    assert seen[at:] == seen[2:4]
    for one, other in zip(whole.policy.parameters(), again.policy.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("optimizer", optimizers())
def test_a_resumed_reward_continues_on_the_same_schedule(
    optimizer: str,
    tiny_policy: Path,
    miniature: Params,
    demos: list[Trace],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Over warm-up and iterations alike: 2 + 2 x 2 updates."""
    seen = spied_rates(monkeypatch)["RewardModel"]
    params = tuned(
        miniature, reward={**PUBLISHED, "optimizer": optimizer, "warmup_updates": 2, "updates_per_iteration": 2}
    ).reward

    def made() -> LearnedReward:
        return LearnedReward(new_reward(tiny_policy, params, seed=0), demos, params, 0.5, seed=0, iterations=2)

    def learn(reward: LearnedReward, iteration: int) -> dict[str, float]:
        return reward.learn(iteration, lambda problems, tag: [])

    whole = made()
    whole.warm_up([], lambda metrics: None)
    learn(whole, 0)
    checkpoints.save(tmp_path, 1, lambda folder: whole.state(folder))
    last = learn(whole, 1)
    assert seen == pytest.approx(
        [params.learning_rate * 0.5 * (1 + math.cos(math.pi * part / 7)) for part in range(1, 7)]
    )
    again = made()
    found = checkpoints.load(tmp_path)
    assert found is not None
    again.restore(*found)
    assert learn(again, 1) == last and seen[6:] == seen[4:6]
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


# --- the optimiser ---------------------------------------------------------------------------------------------------


def walked(params: PolicyParams, width: int = 8, steps: int = 3) -> nn.Linear:
    """A layer after steps along gradients that change from step to step."""
    torch.manual_seed(0)
    layer = nn.Linear(width, width, bias=False)
    learner = Learner(layer, adamw_of(params)(layer))
    for step in range(steps):
        learner.zero_grad()
        learner.backward((layer(torch.full((1, width), 1.0 + step)) ** 2).sum())
        learner.step(0.1)
    return layer


def test_the_keys_of_the_optimiser_act(miniature: Params) -> None:
    params = policy_of(miniature)
    plain = walked(params).weight
    torch.manual_seed(0)
    layer = nn.Linear(8, 8, bias=False)
    before = torch.optim.AdamW(layer.parameters(), lr=params.learning_rate, weight_decay=0.0)
    (made,) = adamw_of(params)(layer)
    assert type(made) is torch.optim.AdamW and made.defaults == before.defaults  # as it was without the keys
    for change in ({"adam_beta2": 0.9}, {"weight_decay": 0.5}):
        assert not torch.allclose(walked(policy_of(miniature, **change)).weight, plain)
    layer = nn.Linear(2, 2, bias=False)
    nn.init.ones_(layer.weight)
    learner = Learner(layer, adamw_of(policy_of(miniature, weight_decay=0.5))(layer))
    layer.weight.grad = torch.zeros(2, 2)
    learner.step(0.1)
    torch.testing.assert_close(layer.weight, torch.full((2, 2), 0.95))  # decoupled: 1 - rate * decay


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_eight_bits_without_bitsandbytes_say_what_to_install(miniature: Params) -> None:
    with pytest.raises(RairlError, match=r"pip install 'rairl\[quantised\]', or use 'adamw'"):
        adamw_of(policy_of(miniature, optimizer="paged_adamw_8bit"))


def test_eight_bits_are_not_sharded(miniature: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "sharded", lambda: True)
    with pytest.raises(RairlError, match="can't be sharded: use 'adamw'"):
        adamw_of(policy_of(miniature, optimizer="paged_adamw_8bit"))


def test_eight_bits_on_a_cpu(miniature: Params) -> None:
    """A matrix of 4,096 weights or more has its state in bytes, and goes nearly where it would in 32 bits."""
    pytest.importorskip("bitsandbytes")
    params = policy_of(miniature, optimizer="paged_adamw_8bit", adam_beta2=0.99)
    layer = nn.Linear(64, 64, bias=False)
    (optimizer,) = adamw_of(params)(layer)
    assert optimizer.is_paged and optimizer.defaults["betas"] == (0.9, 0.99)  # type: ignore[attr-defined]
    layer(torch.ones(1, 64)).sum().backward()
    optimizer.step()
    assert {optimizer.state[layer.weight][key].dtype for key in ("state1", "state2")} == {torch.uint8}
    start = walked(params, 64, 0).weight
    exact = walked(policy_of(miniature, adam_beta2=0.99), 64).weight - start
    coarse = walked(params, 64).weight - start
    assert (coarse - exact).norm() < 0.05 * exact.norm()
    assert not torch.equal(coarse, exact)
