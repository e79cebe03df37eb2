"""The reward inside other libraries: TRL's GRPO trainer, and transformers' generate."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rairl.errors import RairlError
from rairl.models.policy import load_policy
from rairl.models.reward import Calibration, RewardModel, Scores, new_reward
from rairl.params import Params
from rairl.serve import _until_end, guided_decode, reward_function
from rairl.traces import Trace


@pytest.fixture
def reward(tiny_policy: Path, miniature: Params) -> RewardModel:
    """A real reward whose head is not zero."""
    import torch

    model = new_reward(tiny_policy, miniature.reward, seed=0).calibrated(aggregator="mean")
    torch.nn.init.normal_(model.head[-1].weight, generator=torch.Generator().manual_seed(0))
    return model.eval()


# --- a reward function ------------------------------------------------------------------------------------------------


def test_texts_and_conversations_score_alike_and_as_the_model_says(reward: RewardModel, demos: list[Trace]) -> None:
    score = reward_function(reward)
    prompts, texts = [trace.problem for trace in demos[:4]], [trace.text for trace in demos[:4]]
    plain = score(prompts=prompts, completions=texts, completion_ids=[[1]] * 4, anything=["else"] * 4)
    assert plain == pytest.approx([one.steps.mean() for one in reward.score(demos[:4])])
    asked = [[{"role": "system", "content": "s"}, {"role": "user", "content": prompt}] for prompt in prompts]
    said = [[{"role": "assistant", "content": text}] for text in texts]
    assert score(prompts=asked, completions=said) == pytest.approx(plain)
    assert len(set(plain)) == 4


def test_empty_and_odd_completions_have_a_score_and_pictures_have_none(reward: RewardModel) -> None:
    score = reward_function(reward)
    values = score(prompts=["p"] * 4, completions=["", "\n\n", "<think>", "\u202e\U0001f600"])
    assert len(values) == 4 and np.isfinite(values).all()
    with pytest.raises(RairlError, match="reads text, not a message of list"):
        score(prompts=["p"], completions=[[{"role": "assistant", "content": [{"type": "image"}]}]])


def test_trl_trains_with_it(reward: RewardModel, tiny_policy: Path, demos: list[Trace], tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="TRL is an optional extra: pip install 'rairl[trl]'")
    from datasets import Dataset

    policy, tokenizer = load_policy(tiny_policy)
    before = {name: value.clone() for name, value in policy.named_parameters()}
    config = trl.GRPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=12,
        max_steps=2,
        learning_rate=0.1,
        use_cpu=True,
        bf16=False,
        report_to=[],
        logging_steps=1,
        save_strategy="no",
        seed=0,
    )
    trainer = trl.GRPOTrainer(
        model=policy,
        reward_funcs=reward_function(reward),
        args=config,
        train_dataset=Dataset.from_dict({"prompt": [trace.problem for trace in demos[:8]]}),
        processing_class=tokenizer,
    )
    trainer.train()
    logged = [row for row in trainer.state.log_history if "rewards/rairl_reward/mean" in row]
    assert len(logged) == 2
    assert all(np.isfinite(row["rewards/rairl_reward/mean"]) for row in logged)
    assert logged[0]["reward_std"] > 0
    assert any(not value.equal(before[name]) for name, value in policy.named_parameters())


# --- guided decoding --------------------------------------------------------------------------------------------------


class Likes:
    """A reward that counts a letter."""

    calibration = Calibration(aggregator="last")

    def __init__(self, letter: str) -> None:
        self.letter = letter

    def score(self, traces: list[Trace]) -> list[Scores]:
        counts = [float(trace.text.count(self.letter)) for trace in traces]
        return [Scores(np.full(len(trace.steps), n), n) for trace, n in zip(traces, counts, strict=True)]


def decode(policy: Path, reward: Any, **options: Any) -> Trace:
    values: dict[str, Any] = {"k": 4, "max_steps": 6, "max_step_tokens": 10, "seed": 0, **options}
    return guided_decode(*load_policy(policy), reward, "How many are 2 and 2?", **values)


def test_more_choices_please_the_reward_more(tiny_policy: Path) -> None:
    found = [decode(tiny_policy, Likes("e"), k=k).text.count("e") for k in (1, 16)]
    assert found[1] > found[0] + 3


def test_it_is_deterministic_and_counts_what_it_sampled(tiny_policy: Path, reward: RewardModel) -> None:
    import torch

    state = torch.random.get_rng_state()
    first = decode(tiny_policy, reward)
    assert torch.equal(torch.random.get_rng_state(), state)  # nobody else's numbers are used up
    assert first == decode(tiny_policy, reward)
    assert first.text != decode(tiny_policy, reward, seed=1).text
    tokens = len(load_policy(tiny_policy)[1](first.text)["input_ids"])
    assert tokens <= first.meta["tokens"] <= 4 * 6 * 10
    assert decode(tiny_policy, reward, max_steps=1).meta["tokens"] <= 4 * 10


def test_a_row_ends_at_the_end_token_but_not_at_padding_behind_a_line_break() -> None:
    words = {1: "a", 2: "b\n"}
    tokenizer = SimpleNamespace(
        eos_token_id=0, pad_token_id=0, decode=lambda ids, **_: "".join(words[token] for token in ids)
    )
    assert _until_end([1, 1, 0, 0], tokenizer) == ([1, 1], True)  # type: ignore[arg-type]
    assert _until_end([1, 2, 0, 0], tokenizer) == ([1, 2], False)  # type: ignore[arg-type]
    assert _until_end([1, 1], tokenizer) == ([1, 1], False)  # type: ignore[arg-type]
    assert _until_end([0, 0], tokenizer) == ([], True)  # type: ignore[arg-type]
