"""What big models need, on tiny ones: bfloat16, gradient checkpointing, one body for policy and reward."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tuned
from torch import nn
from transformers import PreTrainedModel

from rairl.core.errors import RairlError
from rairl.core.params import Params
from rairl.core.traces import Trace, write_traces
from rairl.learn.language_model import examples, lm_loss
from rairl.learn.learned_reward import LearnedReward
from rairl.learn.learner import Learner, trained
from rairl.learn.policy_step import policy_loss, policy_step
from rairl.learn.rollouts import Completion, sample
from rairl.models.adapters import twin
from rairl.models.base import load_source, new_model
from rairl.models.likelihood import step_logprobs
from rairl.models.policy import load_policy, make_trainable, mixed, save_policy
from rairl.models.reading import SharedPrompts, encode
from rairl.models.reward import RewardModel, new_reward, reward_on
from rairl.tracking.run import NullRun

IDS = torch.arange(40)[None]


@pytest.fixture(scope="session")
def half(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny policy in bfloat16, as a stage of ``base.dtype: bfloat16`` leaves it."""
    folder = tmp_path_factory.mktemp("half") / "policy"
    save_policy(folder, *load_source("base.source", str(tiny_policy), None, dtype="bfloat16"))
    return folder


def dtypes(model: nn.Module) -> set[torch.dtype]:
    return {value.dtype for value in model.parameters()}


def rows_of(folder: Path, demos: list[Trace]) -> tuple[list[Completion], list[np.ndarray]]:
    rows = encode(load_policy(folder)[1], demos)
    completions = [Completion(row.ids[: row.prompt_tokens], row.ids[row.prompt_tokens :], [], True) for row in rows]
    return completions, [np.linspace(-1, 1, len(item.ids)) for item in completions]


def stepped(
    model: PreTrainedModel, reference: PreTrainedModel, folder: Path, demos: list[Trace], params: Params
) -> float:
    """A step of the policy loop; returns the KL before it."""
    learner = Learner(
        model, [torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=0.01)]
    )
    completions, advantages = rows_of(folder, demos)
    return policy_step(learner, reference, completions, advantages, params.policy, rate=0.01)["policy/kl"]


# --- bfloat16 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", ["full", "lora"])
def test_a_policy_of_bfloat16_learns_in_float32_and_is_saved_as_it_was(
    train: str, half: Path, miniature: Params, demos: list[Trace], tmp_path: Path
) -> None:
    params = tuned(miniature, policy={"train": train, "lora_rank": 4})
    model, tokenizer = load_policy(half)
    assert dtypes(model) == {torch.bfloat16} == {model(IDS).logits.dtype}
    reference = make_trainable(model, params.policy, seed=0)
    learning = [value for value in model.parameters() if value.requires_grad]
    assert {value.dtype for value in learning} == {torch.float32}
    assert dtypes(reference) == ({torch.float32} if train == "full" else {torch.bfloat16})
    assert model(IDS).logits.dtype == reference(IDS).logits.dtype == torch.bfloat16  # still the products' type
    before = [value.detach().clone() for value in learning]
    # The reference computes as the policy does; a processor with products of its own for bfloat16 takes another kernel
    # where gradients are wanted, which moves last digits.
    assert stepped(model, reference, half, demos[:4], params) == pytest.approx(0, abs=1e-5)
    assert stepped(model, reference, half, demos[:4], params) > 1e-3
    assert any(not torch.equal(one, other) for one, other in zip(learning, before, strict=True))

    completions, advantages = rows_of(half, demos[:2])
    rows = SharedPrompts.of([it.prompt_ids for it in completions], [it.ids for it in completions], 0, IDS.device)
    values = torch.full(rows.tails.shape, float("nan"))
    values[0, 1 : len(advantages[0]) + 1] = 1.0
    losses = policy_loss(model, reference, rows, values, temperature=1.0, kl=0.1)
    assert {part.dtype for part in losses} == {torch.float32}
    assert lm_loss(model, examples(tokenizer, demos[:2]), 0).dtype == torch.float32
    assert all(isinstance(value, float) for value in sample_of(model, tokenizer).logprobs)

    save_policy(tmp_path, model, tokenizer)
    assert {value.dtype for value in model.parameters() if value.requires_grad} == {torch.float32}  # training goes on
    again, _ = load_policy(tmp_path)
    assert (
        dtypes(again) == {torch.bfloat16} and json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    )
    model.eval()
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits, atol=0.15, rtol=0)


def sample_of(model: PreTrainedModel, tokenizer: object) -> Completion:
    return sample(model, tokenizer, ["1 + 1"], n=1, max_new_tokens=3, temperature=1.0, seed=0)[0]  # type: ignore[arg-type]


def test_small_steps_are_not_lost_in_bfloat16(half: Path) -> None:
    """A step of a thousandth of a weight rounds to nothing in bfloat16; in :func:`mixed` it adds up."""
    plain, _ = load_policy(half)
    learning = mixed(load_policy(half)[0])
    for model in (plain, learning):
        weight = model.model.layers[0].mlp.up_proj.weight
        with torch.no_grad():
            weight.fill_(1.0)
            for _ in range(8):
                weight += 0.001
    assert plain.model.layers[0].mlp.up_proj.weight.mean().item() == 1.0
    assert learning.model.layers[0].mlp.up_proj.weight.mean().item() == pytest.approx(1.008)


def test_copies_of_a_model_that_learns_compute_with_their_own_weights(half: Path) -> None:
    model = mixed(load_policy(half)[0])
    copied, shared = copy.deepcopy(model), twin(model)
    with torch.no_grad():
        model.model.norm.weight.zero_()
    assert not model(IDS).logits.any() and not shared(IDS).logits.any() and copied(IDS).logits.any()


def test_the_built_in_model_is_trained_in_float32_and_stored_as_asked(
    tiny_policy: Path, miniature: Params, tmp_path: Path
) -> None:
    tokenizer = load_policy(tiny_policy)[1]
    params = tuned(miniature, base={"dtype": "bfloat16"}, reward={"dtype": "bfloat16"})
    model = new_model(params.base, tokenizer, max_tokens=400, seed=0)
    same = new_model(miniature.base, tokenizer, max_tokens=400, seed=0)
    assert dtypes(model) == dtypes(same) == {torch.float32}
    assert model(IDS).logits.dtype == torch.bfloat16 and same(IDS).logits.dtype == torch.float32
    torch.testing.assert_close(model(IDS).logits.float(), same(IDS).logits, atol=0.15, rtol=0)
    for _ in range(2):  # as the stage sft does, of the last epoch and of the best
        save_policy(tmp_path / "half", model, tokenizer)
        save_policy(tmp_path / "exact", same, tokenizer)
    assert dtypes(load_policy(tmp_path / "half")[0]) == {torch.bfloat16}
    assert dtypes(load_policy(tmp_path / "exact")[0]) == {torch.float32}


def test_bfloat16_says_nearly_what_float32_says(half: Path, tiny_policy: Path, demos: list[Trace]) -> None:
    one, other = (step_logprobs(*load_policy(folder), demos[:4]) for folder in (half, tiny_policy))
    for mine, exact in zip(one, other, strict=True):
        assert mine.total == pytest.approx(exact.total, rel=0.01)


REWARDS = {
    "head": {"head": "surprisal", "train": "head"},
    "lora": {"head": "surprisal", "train": "lora"},
    "linear lora": {"head": "linear", "train": "lora"},
    "linear full": {"head": "linear", "train": "full"},
}


@pytest.mark.parametrize("kind", REWARDS)
def test_a_reward_of_bfloat16_keeps_head_and_features_in_float32(
    kind: str, half: Path, miniature: Params, demos: list[Trace], tmp_path: Path
) -> None:
    params = tuned(miniature, reward={**REWARDS[kind], "dtype": "bfloat16", "lora_rank": 4, "learning_rate": 0.01})
    reward = LearnedReward(new_reward(half, params.reward, seed=1), demos, params.reward, 0.5, seed=0)
    model = reward.model
    assert dtypes(model.head) == {torch.float32} and model.read(demos[:2]).features.dtype == torch.float32
    assert {value.dtype for value in trained(model)} == {torch.float32}
    before = [one.last for one in model.step_logits(demos)]
    losses = [reward.update([], str(update))["discriminator/loss"] for update in range(4)]
    assert np.isfinite(losses).all() and [one.last for one in model.step_logits(demos)] != before
    model.save_pretrained(tmp_path)
    again = RewardModel.from_pretrained(tmp_path)
    assert dtypes(again.backbone) == {torch.bfloat16} and dtypes(again.head) == {torch.float32}
    assert torch.equal(again.head[-1].weight, model.eval().head[-1].weight)
    for one, other in zip(model.step_logits(demos), again.step_logits(demos), strict=True):
        np.testing.assert_allclose(one.steps, other.steps, atol=0.05)
    if params.reward.head == "linear":
        from transformers import AutoModelForTokenClassification

        assert AutoModelForTokenClassification.from_pretrained(tmp_path).dtype == torch.bfloat16


def test_a_body_in_another_type_than_the_policys_is_converted(half: Path, miniature: Params) -> None:
    reward = new_reward(half, tuned(miniature, reward={"dtype": "float32"}).reward, seed=0)
    assert dtypes(reward.backbone) == {torch.float32}


# --- the start of the policy -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["sft", "base"])
def test_the_policy_starts_where_it_is_told(
    start: str,
    tiny_policy: Path,
    miniature: Params,
    demos: list[Trace],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At a rate of next to nothing it ends there, too."""
    from rairl.stages.grpo import grpo

    monkeypatch.setenv("RAIRL_CHECKPOINTS", str(tmp_path / "work"))
    policy = {"start": start, "iterations": 1, "warmup_iterations": 0, "learning_rate": 1e-30, "max_new_tokens": 4}
    params = tuned(miniature, policy=policy)
    tokenizer = load_policy(tiny_policy)[1]
    folders = {"sft": tiny_policy, "base": tmp_path / "base"}
    save_policy(folders["base"], new_model(params.base, tokenizer, max_tokens=400, seed=5), tokenizer)
    (tmp_path / "data").mkdir()
    write_traces(tmp_path / "data" / "prompts.jsonl", demos[:4])
    (tmp_path / "data" / "card.json").write_text("{}")
    out = {"model": tmp_path / "grpo", "history": tmp_path / "history"}
    grpo(params, NullRun(), data=tmp_path / "data", **folders, **out)
    logits = {name: load_policy(folder)[0](IDS).logits for name, folder in folders.items()}
    assert torch.equal(load_policy(out["model"])[0](IDS).logits, logits[start])
    assert not torch.equal(logits["sft"], logits["base"])


# --- gradient checkpointing of the policy ----------------------------------------------------------------------------


@pytest.mark.parametrize("train", ["full", "lora"])
def test_checkpointing_changes_what_is_kept_and_not_the_gradients(
    train: str, tiny_policy: Path, miniature: Params, demos: list[Trace]
) -> None:
    gradients, kept = [], []
    for checkpointing in (False, True):
        params = tuned(miniature, policy={"train": train, "gradient_checkpointing": checkpointing})
        model, tokenizer = load_policy(tiny_policy)
        reference = make_trainable(model, params.policy, seed=0)
        for name, value in model.named_parameters():
            if "lora_B" in name:  # or the first matrices get no gradient
                nn.init.constant_(value, 0.01)
        own = {value.untyped_storage().data_ptr() for value in model.parameters()}
        seen: dict[int, int] = {}

        def pack(tensor: torch.Tensor, own: set[int] = own, seen: dict[int, int] = seen) -> torch.Tensor:
            if tensor.untyped_storage().data_ptr() not in own:
                seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            stepped(model, reference, tiny_policy, demos[:4], params)
        gradients.append([value.grad.clone() for value in model.parameters() if value.grad is not None])
        kept.append(sum(seen.values()))
        assert model.training and len(sample_of(model, tokenizer).ids)  # sampling goes through the cache all the same
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert len(gradients[0]) > 10 and any(value.abs().max() > 1e-4 for value in gradients[0])
    assert kept[1] < 0.8 * kept[0]


# --- one frozen body -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["surprisal", "linear"])
def test_a_shared_body_gives_what_two_copies_give_in_half_the_memory(
    head: str, tiny_policy: Path, miniature: Params, demos: list[Trace]
) -> None:
    """Three turns of policy and reward learning, on one body and on two."""
    params = tuned(
        miniature,
        policy={"train": "lora", "lora_rank": 4},
        reward={"head": head, "train": "lora", "lora_rank": 4, "learning_rate": 0.03},
    )
    results, sizes = [], []
    for shared in (True, False):
        policy, tokenizer = load_policy(tiny_policy)
        reference = make_trainable(policy, params.policy, seed=0)
        body = reference if shared else load_policy(tiny_policy)[0]
        reward = LearnedReward(reward_on(body, tokenizer, params.reward, seed=1), demos, params.reward, 0.5, seed=0)
        tensors = {
            value.data_ptr(): value.nbytes
            for model in (policy, reference, reward.model)
            for value in model.parameters()
            if not value.requires_grad
        }
        sizes.append(sum(tensors.values()))
        for turn in range(3):
            stepped(policy, reference, tiny_policy, demos[:4], params)
            reward.update([], str(turn))
        results.append((policy(IDS).logits, [one.last for one in reward.model.step_logits(demos)]))
    assert torch.equal(results[0][0], results[1][0]) and results[0][1] == results[1][1]
    body_size = sum(value.nbytes for value in load_policy(tiny_policy)[0].model.parameters())
    assert sizes[0] == pytest.approx(body_size) and sizes[1] == 2 * body_size


def test_a_shared_body_of_two_types_is_refused(miniature: Params) -> None:
    with pytest.raises(RairlError, match=r"reward\.dtype to base"):
        tuned(miniature, reward={"backbone": "shared", "dtype": "bfloat16"}, policy={"train": "lora"})


# --- attention -------------------------------------------------------------------------------------------------------


def test_attention_is_torchs_fused_one(tiny_policy: Path) -> None:
    """Which picks the flash kernel where GPU and shapes allow it; nothing needs to be installed or set for it."""
    assert load_policy(tiny_policy)[0].config._attn_implementation == "sdpa"
    assert load_source("base.source", str(tiny_policy), None)[0].config._attn_implementation == "sdpa"
