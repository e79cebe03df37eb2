"""Policy, reference and reward on one copy of the weights: each learns what it should, and none disturbs another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tuned as change
from torch import nn

from rairl.core.errors import RairlError
from rairl.core.params import Params
from rairl.core.traces import Trace, write_traces
from rairl.learn.learned_reward import LearnedReward
from rairl.learn.learner import Learner
from rairl.learn.policy_loop import PolicyLoop
from rairl.learn.policy_step import policy_step
from rairl.learn.rollouts import Completion, sample
from rairl.models.adapters import add_lora, merged, twin
from rairl.models.base import new_model, train_tokenizer
from rairl.models.policy import load_policy, make_trainable, save_policy
from rairl.models.reading import encode
from rairl.models.reward import RewardModel, reward_on
from rairl.stages.rairl import rairl
from rairl.tracking.run import NullRun


@pytest.fixture
def lora(miniature: Params) -> Params:
    return change(miniature, policy={"train": "lora", "lora_rank": 4})


def completions_of(folder: Path, demos: list[Trace]) -> list[Completion]:
    rows = encode(load_policy(folder)[1], demos)
    return [Completion(row.ids[: row.prompt_tokens], row.ids[row.prompt_tokens :], [], True) for row in rows]


def logits_of(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(40)[None]).logits


def values_of(*modules: nn.Module) -> dict[str, torch.Tensor]:
    return {
        f"{index}.{name}": value.detach().clone()
        for index, module in enumerate(modules)
        for name, value in module.named_parameters()
    }


def moved(before: dict[str, torch.Tensor], *modules: nn.Module) -> set[str]:
    return {name for name, value in values_of(*modules).items() if not torch.equal(value, before[name])}


def move(model: nn.Module, reference: nn.Module, folder: Path, demos: list[Trace], params: Params, steps: int) -> None:
    """Steps of the policy loop's own optimiser at a rate of 0.1."""
    completions = completions_of(folder, demos)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.0)
    advantages = [np.linspace(-1, 1, len(item.ids)) for item in completions]
    for _ in range(steps):
        policy_step(
            Learner(model, [optimizer]),
            reference,
            completions,
            advantages,
            params.policy,
            rate=0.1,
        )


# --- one model -------------------------------------------------------------------------------------------------------


def test_a_twin_shares_weights_and_nothing_else(tiny_policy: Path) -> None:
    model, _ = load_policy(tiny_policy)
    other = twin(model)
    assert [id(value) for value in model.parameters()] == [id(value) for value in other.parameters()]
    assert other.get_input_embeddings().weight is other.get_output_embeddings().weight  # still tied
    add_lora(other, 4, seed=0)
    assert not any("lora" in name for name, _ in model.named_modules())
    assert not hasattr(model, "peft_config")


def test_fresh_adapters_change_nothing_and_their_seed_is_all_they_depend_on(tiny_policy: Path) -> None:
    model, _ = load_policy(tiny_policy)
    one, same, different = (twin(model) for _ in range(3))
    for each, seed in ((one, 1), (same, 1), (different, 2)):
        add_lora(each, 4, seed=seed)
        torch.testing.assert_close(logits_of(each), logits_of(model), rtol=0, atol=0)
    for (name, value), other, third in zip(
        one.named_parameters(), same.parameters(), different.parameters(), strict=True
    ):
        assert torch.equal(value, other)
        assert torch.equal(value, third) == ("lora_A" not in name)


def test_merging_by_hand(tiny_policy: Path) -> None:
    """W + alpha/rank B A, with alpha twice the rank."""
    model, _ = load_policy(tiny_policy)
    adapted = twin(model)
    add_lora(adapted, 4, seed=0)
    layer = adapted.model.layers[0].mlp.up_proj
    nn.init.normal_(layer.lora_B["default"].weight)
    expected = layer.weight + 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    plain = merged(adapted)
    torch.testing.assert_close(plain.model.layers[0].mlp.up_proj.weight, expected)
    torch.testing.assert_close(logits_of(plain), logits_of(adapted))
    assert type(plain.model.layers[0].mlp.up_proj) is nn.Linear and set(plain.state_dict()) == set(model.state_dict())
    assert merged(model) is model


def test_an_architecture_without_the_known_projections_is_named() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(RairlError, match="train 'lora' does not fit a GPT2LMHeadModel"):
        add_lora(model, 2, seed=0)


# --- the policy ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", ["full", "lora"])
def test_exactly_what_should_learn_gets_gradients_and_moves(
    train: str, tiny_policy: Path, lora: Params, demos: list[Trace]
) -> None:
    params = change(lora, policy={"train": train})
    policy, _ = load_policy(tiny_policy)
    reference = make_trainable(policy, params.policy, seed=0)
    torch.testing.assert_close(logits_of(policy), logits_of(reference), rtol=0, atol=0)
    kept, before = logits_of(reference), values_of(policy)
    move(policy, reference, tiny_policy, demos[:4], params, steps=3)
    intended = {name for name in before if train == "full" or "lora_" in name}
    assert moved(before, policy) == intended
    assert {f"0.{name}" for name, value in policy.named_parameters() if value.grad is not None} == intended
    assert {value.shape[0] for name, value in before.items() if "lora_A" in name} == ({4} if train == "lora" else set())
    torch.testing.assert_close(logits_of(reference), kept, rtol=0, atol=0)
    assert not torch.allclose(logits_of(policy), kept)


def test_a_policy_with_adapters_is_saved_as_a_plain_model(
    tiny_policy: Path, lora: Params, demos: list[Trace], tmp_path: Path
) -> None:
    policy, tokenizer = load_policy(tiny_policy)
    reference = make_trainable(policy, lora.policy, seed=0)
    move(policy, reference, tiny_policy, demos[:4], lora, steps=2)
    before, names = logits_of(policy), values_of(policy, reference)
    save_policy(tmp_path, policy, tokenizer)
    assert moved(names, policy, reference) == set() and torch.equal(logits_of(policy), before)  # training may go on
    again, _ = load_policy(tmp_path)
    torch.testing.assert_close(logits_of(again), before)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in tiny_policy.iterdir()}
    assert not hasattr(again, "peft_config")


# --- policy and reward on one body -----------------------------------------------------------------------------------

SHARED = {
    "head": {"head": "surprisal", "train": "head"},
    "lora": {"head": "surprisal", "train": "lora"},
    "linear lora": {"head": "linear", "train": "lora"},
}


@pytest.mark.parametrize("kind", SHARED)
def test_policy_and_reward_share_a_body_and_leave_each_other_alone(
    kind: str, tiny_policy: Path, lora: Params, demos: list[Trace], tmp_path: Path
) -> None:
    params = change(lora, reward={**SHARED[kind], "backbone": "shared", "learning_rate": 0.03})
    policy, tokenizer = load_policy(tiny_policy)
    weights = sum(value.numel() for value in policy.parameters())
    reference = make_trainable(policy, params.policy, seed=0)
    reward = LearnedReward(reward_on(reference, tokenizer, params.reward, seed=1), demos, params.reward, 0.5, seed=0)
    model = reward.model
    assert (reward.discriminator.memo is not None) == (kind == "head")  # reads of a body that learns must not be kept

    tensors = {value.data_ptr(): value for each in (policy, reference, model) for value in each.parameters()}
    added = sum(value.numel() for value in tensors.values() if value.requires_grad)
    assert sum(value.numel() for value in tensors.values()) == weights + added  # one copy in memory

    body, start = logits_of(reference), values_of(policy, model)
    for turn in range(3):
        before, scores = values_of(policy, model), [one.last for one in model.step_logits(demos)]
        move(policy, reference, tiny_policy, demos[:4], params, steps=3)
        learned = {f"0.{name}" for name, value in policy.named_parameters() if value.requires_grad}
        assert moved(before, policy, model) == learned and all("lora_" in name for name in learned)
        assert [one.last for one in model.step_logits(demos)] == scores

        before, said = values_of(policy, model), logits_of(policy)
        for update in range(3):
            reward.update([], f"{turn}/{update}")
        learned = {f"1.{name}" for name, value in model.named_parameters() if value.requires_grad}
        assert moved(before, policy, model) == learned
        assert any("lora_" in name for name in learned) == (kind != "head")
        assert torch.equal(logits_of(policy), said)
    assert torch.equal(logits_of(reference), body)
    assert all(("lora_" in name or "head." in name) for name in moved(start, policy, model))

    model.save_pretrained(tmp_path)
    again = RewardModel.from_pretrained(tmp_path)
    for one, other in zip(model.step_logits(demos), again.step_logits(demos), strict=True):
        np.testing.assert_allclose(one.steps, other.steps, atol=1e-5)


def test_a_shared_body_needs_a_policy_that_leaves_it_alone(miniature: Params) -> None:
    with pytest.raises(RairlError, match=r"reward\.backbone 'shared' .* policy\.train 'full'"):
        change(miniature, reward={"backbone": "shared"})
    change(miniature, reward={"backbone": "shared"}, policy={"train": "lora"})


# --- the stage -------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path, demos: list[Trace]) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    write_traces(folder / "demos.jsonl", demos[:8])
    write_traces(folder / "dev.jsonl", demos[8:12])
    bare = [replace(demo, text="", steps=(), answer=None, correct=None, labelled=False) for demo in demos[12:]]
    write_traces(folder / "prompts.jsonl", bare)
    (folder / "card.json").write_text("{}")
    return folder


def test_sft_with_adapters_gives_a_plain_model_whose_projections_moved(
    tiny_policy: Path, miniature: Params, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rairl.stages.sft import sft

    monkeypatch.setenv("RAIRL_CHECKPOINTS", str(tmp_path / "work"))
    params = change(miniature, sft={"train": "lora", "lora_rank": 4, "epochs": 1})
    sft(params, NullRun(), data=data, base=tiny_policy, model=tmp_path / "sft", last=tmp_path / "last")
    before, after = load_policy(tiny_policy)[0], load_policy(tmp_path / "sft")[0]
    changed = moved(values_of(before), after)
    assert changed and all("_proj.weight" in name for name in changed)
    assert not hasattr(after, "peft_config")


def foreign(folder: Path, params: Params, demos: list[Trace]) -> Path:
    """Another model, on a tokenizer that cuts elsewhere."""
    tokenizer = train_tokenizer([f"{demo.problem}\n{demo.text}" for demo in demos], 300)
    save_policy(folder, new_model(params.base, tokenizer, max_tokens=600, seed=5), tokenizer)
    return folder


@pytest.mark.parametrize("backbone", ["sft", "base", "second_model", "shared", "folder"])
def test_the_stage_runs_on_every_backbone(
    backbone: str,
    tiny_policy: Path,
    lora: Params,
    demos: list[Trace],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAIRL_CHECKPOINTS", str(tmp_path / "work"))
    other = foreign(tmp_path / "other", lora, demos)
    source = str(other) if backbone == "folder" else backbone
    params = change(
        lora,
        reward={"backbone": source, "train": "lora", "credit": "return", "warmup_updates": 2, "warmup_rollouts": 1},
        policy={"iterations": 2, "max_new_tokens": 20, "checkpoint_every": 1},
    )
    folders = {name: tmp_path / name for name in ("policy", "reward", "checkpoints", "rollouts", "history")}
    base = other if backbone == "base" else tiny_policy
    second_model = other if backbone == "second_model" else tmp_path / "none"
    figures = rairl(params, NullRun(), data=data, base=base, sft=tiny_policy, second_model=second_model, **folders)
    assert "rairl.train_correct" in figures
    policy, tokenizer = load_policy(folders["policy"])
    assert not hasattr(policy, "peft_config") and len(tokenizer) == len(load_policy(tiny_policy)[1])
    sample(policy, tokenizer, ["1 + 1"], n=1, max_new_tokens=2, temperature=1.0, seed=0)
    model = RewardModel.from_pretrained(folders["reward"])
    body = other if backbone in ("base", "second_model", "folder") else tiny_policy
    assert torch.equal(logits_of(model.backbone), logits_of(load_policy(body)[0]))
    assert len(model.tokenizer) == len(load_policy(body)[1])
    assert len(model.step_logits(demos)) == len(demos)


def test_a_resumed_run_with_adapters_takes_the_same_numbers(
    tiny_policy: Path, lora: Params, demos: list[Trace], tmp_path: Path
) -> None:
    params = change(
        lora,
        reward={"backbone": "shared", "train": "lora", "dropout": 0.2},
        policy={"iterations": 3, "max_new_tokens": 12, "checkpoint_every": 1},
    )

    def loop(folder: Path, iterations: int) -> PolicyLoop:
        policy, tokenizer = load_policy(tiny_policy)
        reference = make_trainable(policy, params.policy, seed=0)
        model = reward_on(reference, tokenizer, params.reward, seed=1)
        return PolicyLoop(
            policy=policy,
            reference=reference,
            tokenizer=tokenizer,
            prompts=[replace(demo, text="", steps=(), answer=None, correct=None, labelled=False) for demo in demos],
            reward=LearnedReward(model, demos, params.reward, 0.5, seed=0),
            params=change(params, policy={"iterations": iterations}).policy,
            seed=0,
            checkpoints=folder,
            rollouts=None,
            on_metrics=lambda iteration, metrics: None,
        )

    whole = loop(tmp_path / "whole", 3)
    whole.run("whole")
    first = loop(tmp_path / "parts", 2)
    first.run("first")
    first.save()
    second = loop(tmp_path / "parts", 3)
    second.run("second")
    for one, other in ((whole.policy, second.policy), (whole.reward.model, second.reward.model)):  # type: ignore[attr-defined]
        for (name, value), again in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
            assert torch.equal(value, again), name
