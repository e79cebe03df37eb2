"""The reward inside other libraries: TRL's GRPO trainer, and decoding with transformers' generate."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rairl.core.errors import RairlError
from rairl.core.params import Params
from rairl.core.traces import Trace
from rairl.models.calibration import TraceScore
from rairl.models.policy import load_policy
from rairl.models.reward import RewardModel, new_reward
from rairl.use.trl import content, reward_function, token_advantages, token_level, token_rewards


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
    assert plain == pytest.approx([one.steps.mean() for one in reward.step_logits(demos[:4])])
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


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ([], r"a list of messages, not \[\]"),
        ((), "a list of messages"),
        (None, "not None"),
        ({"role": "user", "content": "p"}, "a list of messages"),
        ([{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}], "without 'content'"),
        ([{"role": "assistant", "content": None}], "without 'content'"),
        ([{"role": "assistant", "content": 7}], "of int"),
        ([{"role": "assistant", "content": [{"type": "image"}]}], "of list"),
        ([{"role": "assistant", "content": []}], "of list"),
        (["p"], "of str"),
        ([None], "without 'content'"),
        (7, "a list of messages, not 7"),
    ],
)
def test_a_message_without_text_is_a_named_error(reward: RewardModel, message: Any, said: str) -> None:
    with pytest.raises(RairlError, match=said):
        reward_function(reward)(prompts=["p"], completions=[message])
    with pytest.raises(RairlError, match=said):
        content(message)


@pytest.mark.parametrize(
    "message",
    [
        "t u",
        [{"role": "assistant", "content": "t u"}],
        ({"content": "t u"},),
        [{"role": "assistant", "tool_calls": []}, {"role": "tool", "content": "9"}, {"content": "t u"}],
        [{"role": "assistant", "content": [{"type": "text", "text": "t "}, {"type": "text", "text": "u"}]}],
    ],
)
def test_the_text_of_the_last_message_is_read(message: Any) -> None:
    assert content(message) == "t u"


EMPTY = [
    "",
    "\n",
    " \n\t",
    "\u200b",
    "<think>\n</think>",
    "<think>\n</think>\n<answer>\n7\n</answer>",
    "---",
    "```\n```",
]


@pytest.mark.parametrize("empty", EMPTY)
def test_a_completion_that_says_nothing_is_the_worst_of_its_prompt(
    empty: str, reward: RewardModel, tiny_policy: Path, demos: list[Trace]
) -> None:
    texts = [trace.text for trace in demos[:8]]
    prompts = ["p"] * 5 + ["q"] * 5
    said = [*texts[:4], empty, empty, *texts[4:8]]
    scores = reward_function(reward)(prompts=prompts, completions=said)
    assert scores[4] < min(scores[:4]) and scores[5] < min(scores[6:])
    assert np.ptp(scores) < 100  # in the unit of the others: nothing that would drown their differences
    _, tokenizer = load_policy(tiny_policy)
    ids = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in said[:5]]
    for rule in ("difference", "return", "min"):
        rows = token_advantages(reward, tokenizer, ["p"] * 5, ids, group=5, rule=rule)  # type: ignore[arg-type]
        assert rows[4][: len(ids[4])].max() < min(
            row[: len(one)].min() for row, one in zip(rows[:4], ids, strict=False)
        )


def test_an_end_token_of_the_generation_configuration_is_no_text(reward: RewardModel, tiny_policy: Path) -> None:
    _, tokenizer = load_policy(tiny_policy)
    ids = tokenizer("2 + 2 = 4")["input_ids"]
    end = tokenizer.convert_tokens_to_ids("</answer>")
    plain = token_rewards(reward, tokenizer, ["p"], [[*ids, tokenizer.eos_token_id]])
    assert token_rewards(reward, tokenizer, ["p"], [[*ids, end]], ends=[end]).allclose(plain)
    assert not token_rewards(reward, tokenizer, ["p"], [[*ids, end]]).allclose(plain)


def test_the_evidence_of_a_step_that_ends_in_an_emoji_stands_at_its_last_byte(
    reward: RewardModel, tiny_policy: Path
) -> None:
    _, tokenizer = load_policy(tiny_policy)
    text = "3 + 4 = 7 ✅\n7 * 1 = 7 ✅"
    ids = tokenizer(text)["input_ids"]
    [row] = token_rewards(reward, tokenizer, ["p"], [ids])
    complete = [at for at in range(len(ids)) if tokenizer.decode(ids[: at + 1]) in (text[:11], text)]
    assert row.nonzero().ravel().tolist() == complete


def in_trl(
    trainer: type, reward: RewardModel, policy: Any, tokenizer: Any, demos: list[Trace], folder: Path, **options: Any
) -> Any:
    """A GRPO trainer of TRL's on eight problems, with the reward as its ``reward_funcs``: two steps of four samples."""
    import trl
    from datasets import Dataset

    config = trl.GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        max_steps=2,
        learning_rate=0.1,
        use_cpu=True,
        bf16=False,
        report_to=[],
        logging_steps=1,
        save_strategy="no",
        seed=0,
        **options,
    )
    return trainer(
        model=policy,
        reward_funcs=reward_function(reward),
        args=config,
        train_dataset=Dataset.from_dict({"prompt": [trace.problem for trace in demos[:8]]}),
        processing_class=tokenizer,
    )


def test_trl_trains_with_it(reward: RewardModel, tiny_policy: Path, demos: list[Trace], tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="TRL is an optional extra: pip install 'rairl[trl]'")
    policy, tokenizer = load_policy(tiny_policy)
    before = {name: value.clone() for name, value in policy.named_parameters()}
    trainer = in_trl(
        trl.GRPOTrainer, reward, policy, tokenizer, demos, tmp_path, num_generations=4, max_completion_length=12
    )
    trainer.train()
    logged = [row for row in trainer.state.log_history if "rewards/rairl_reward/mean" in row]
    assert len(logged) == 2
    assert all(np.isfinite(row["rewards/rairl_reward/mean"]) for row in logged)
    assert logged[0]["reward_std"] > 0
    assert any(not value.equal(before[name]) for name, value in policy.named_parameters())


def test_trl_trains_on_token_level_advantages(
    reward: RewardModel, tiny_policy: Path, demos: list[Trace], tmp_path: Path
) -> None:
    trl = pytest.importorskip("trl", reason="TRL is an optional extra: pip install 'rairl[trl]'")
    policy, tokenizer = load_policy(tiny_policy)
    before = {name: value.clone() for name, value in policy.named_parameters()}
    seen: list[dict[str, Any]] = []

    class Watched(trl.GRPOTrainer):  # type: ignore[name-defined,misc]
        def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
            seen.append({name: inputs[name] for name in ("advantages", "completion_ids", "completion_mask")})
            return super()._compute_loss(model, inputs)

    trainer = in_trl(
        token_level(Watched, reward), reward, policy, tokenizer, demos, tmp_path,
        num_generations=2, max_completion_length=24, shuffle_dataset=False,
    )  # fmt: skip
    trainer.train()
    assert len(seen) == 2
    for batch in seen:
        assert batch["advantages"].shape == batch["completion_ids"].shape
        assert batch["advantages"].isfinite().all()
        assert not batch["advantages"][batch["completion_mask"] == 0].any()
    rows = [row[row != 0] for batch in seen for row in batch["advantages"]]
    assert any(len(row.unique()) > 1 for row in rows)  # steps of one completion differ
    assert any(not value.equal(before[name]) for name, value in policy.named_parameters())


# --- token by token ---------------------------------------------------------------------------------------------------


def test_the_evidence_of_a_step_stands_at_its_last_token(
    reward: RewardModel, tiny_policy: Path, demos: list[Trace]
) -> None:
    _, tokenizer = load_policy(tiny_policy)
    ids = [[*tokenizer(trace.text)["input_ids"], tokenizer.eos_token_id] for trace in demos[:2]]
    rewards = token_rewards(reward, tokenizer, [trace.problem for trace in demos[:2]], ids)
    assert rewards.shape == (2, max(map(len, ids)))
    for trace, one, row, scores in zip(demos, ids, rewards, reward.step_logits(demos[:2]), strict=False):
        at = row.nonzero().ravel().tolist()
        assert row.sum().item() == pytest.approx(scores.last, abs=1e-4)
        # Up to the token that ends step k the rewards have summed up to the logit read there.
        for step, logit in zip(trace.steps, scores.steps, strict=True):
            place = next(at for at in range(len(one)) if len(tokenizer.decode(one[: at + 1])) >= step.end)
            assert row[: place + 1].sum().item() == pytest.approx(logit, abs=1e-4)
            assert place in at
        assert len(at) <= len(trace.steps) + 1


def test_advantages_are_centred_in_the_group_and_alike_within_a_step(
    reward: RewardModel, tiny_policy: Path, demos: list[Trace]
) -> None:
    _, tokenizer = load_policy(tiny_policy)
    ids = [tokenizer(trace.text)["input_ids"] for trace in demos[:4]]
    problems = [demos[0].problem] * 4
    values = token_advantages(reward, tokenizer, problems, ids, group=4)
    units = [value for row in values for value in row[row != 0].unique_consecutive().tolist()]
    assert sum(units) == pytest.approx(0, abs=1e-4)
    assert all(not row[len(one) :].any() for row, one in zip(values, ids, strict=True))
    later = token_advantages(reward, tokenizer, problems, ids, group=4, rule="return", discount=0.5)
    assert not values.equal(later)
    with pytest.raises(RairlError, match="4 completions are no whole groups of 3"):
        token_advantages(reward, tokenizer, problems, ids, group=3)


def test_an_empty_completion_has_a_reward_at_its_end_token(reward: RewardModel, tiny_policy: Path) -> None:
    _, tokenizer = load_policy(tiny_policy)
    rewards = token_rewards(reward, tokenizer, ["p", "p"], [[tokenizer.eos_token_id], tokenizer("2 + 2")["input_ids"]])
    assert rewards[0, 0] != 0 and not rewards[0, 1:].any()


# --- the script that measures guided decoding -------------------------------------------------------------------------


def test_guided_decoding_is_deterministic_and_follows_the_reward(
    tiny_policy: Path, reward: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scripts.guided_decoding import guided_decode

    def letters(traces: list[Trace]) -> list[TraceScore]:
        return [TraceScore(float(trace.text.count("e")), (), None) for trace in traces]

    def decode(k: int) -> Trace:
        options: dict[str, Any] = {"k": k, "max_steps": 6, "max_step_tokens": 10}
        return guided_decode(*load_policy(tiny_policy), reward, "How many are 2 and 2?", **options)

    assert decode(2) == decode(2)
    monkeypatch.setattr(reward, "score_traces", letters)
    assert decode(16).text.count("e") > decode(1).text.count("e") + 3


def test_a_row_ends_at_an_end_token_but_not_at_padding_behind_a_line_break() -> None:
    from scripts.guided_decoding import _until_end

    words = {1: "a", 2: "b\n"}
    tokenizer = SimpleNamespace(pad_token_id=0, decode=lambda ids, **_: "".join(words[token] for token in ids))
    assert _until_end([1, 1, 0, 0], tokenizer, [0]) == ([1, 1], True)  # type: ignore[arg-type]
    assert _until_end([1, 2, 0, 0], tokenizer, [0]) == ([1, 2], False)  # type: ignore[arg-type]
    assert _until_end([1, 1], tokenizer, [0]) == ([1, 1], False)  # type: ignore[arg-type]
    assert _until_end([0, 0], tokenizer, [0]) == ([], True)  # type: ignore[arg-type]
    assert _until_end([1, 1, 2], tokenizer, [0, 2]) == ([1, 1], True)  # type: ignore[arg-type]
    assert _until_end([1, 3, 1], tokenizer, [3]) == ([1], True)  # type: ignore[arg-type]


def test_guided_decoding_ends_at_any_end_token_and_prefers_a_step_to_a_blank_line(
    tiny_policy: Path, reward: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scripts.guided_decoding import guided_decode

    def shorter_is_better(traces: list[Trace]) -> list[TraceScore]:
        return [TraceScore(float(-len(trace.text)), (), None) for trace in traces]

    monkeypatch.setattr(reward, "score_traces", shorter_is_better)
    options: dict[str, Any] = {"max_step_tokens": 10, "seed": 0}
    model, tokenizer = load_policy(tiny_policy)
    problem = "How many are 2 and 2?"
    assert guided_decode(model, tokenizer, reward, problem, k=16, max_steps=2, **options).steps
    [line] = tokenizer("\n")["input_ids"]
    model.generation_config.eos_token_id = [token for token in range(len(tokenizer)) if token not in (2, line)]
    found = guided_decode(model, tokenizer, reward, problem, k=2, max_steps=6, **options)
    assert found.meta["finished"] and not found.text.replace("<think>", "").strip()
