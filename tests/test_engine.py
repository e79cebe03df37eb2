"""Rollouts by vLLM, against a stand-in with its interface: what is asked, what comes back, and whose weights it has."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import tuned

from rairl.core.errors import RairlError
from rairl.core.params import Params
from rairl.core.traces import Trace
from rairl.learn.engine import Engine, new_engine
from rairl.learn.policy_loop import PolicyLoop
from rairl.learn.rewards import OutcomeReward
from rairl.models.adapters import merged
from rairl.models.policy import load_policy, make_trainable
from rairl.models.reading import render_prompt


@dataclass
class SamplingParams:
    """The options that rairl uses, with vLLM's names."""

    n: int
    temperature: float
    max_tokens: int
    seed: int
    logprobs: int
    stop_token_ids: list[int]
    detokenize: bool


class LLM:
    """A model that samples one token after the other, without a cache."""

    def __init__(self, *, model: str, gpu_memory_utilization: float, generation_config: str) -> None:
        self.model = load_policy(model)[0].requires_grad_(False)
        self.model.load_weights = lambda pairs: self.model.load_state_dict(dict(pairs), strict=True)
        self.options, self.resets = (gpu_memory_utilization, generation_config), 0

    def apply_model(self, func: Any) -> list[Any]:
        return [func(self.model)]

    def reset_prefix_cache(self) -> bool:
        self.resets += 1
        return True

    def generate(
        self, prompts: list[dict[str, list[int]]], params: list[SamplingParams], *, use_tqdm: bool
    ) -> list[Any]:
        return [
            SimpleNamespace(outputs=[self._one(prompt["prompt_token_ids"], how, index) for index in range(how.n)])
            for prompt, how in zip(prompts, params, strict=True)
        ]

    @torch.no_grad()
    def _one(self, prompt: list[int], how: SamplingParams, index: int) -> Any:
        rng, ids, places = torch.Generator().manual_seed(how.seed * 1000 + index), [], []
        while len(ids) < how.max_tokens and not (ids and ids[-1] in how.stop_token_ids):
            raw = self.model(torch.tensor([[*prompt, *ids]])).logits[0, -1].log_softmax(-1)
            ids.append(int(torch.multinomial((raw / how.temperature).softmax(-1), 1, generator=rng)))
            places.append({ids[-1]: SimpleNamespace(logprob=raw[ids[-1]].item())})
        return SimpleNamespace(token_ids=tuple(ids), logprobs=places)


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("vllm")
    module.__spec__ = ModuleSpec("vllm", None)
    module.LLM, module.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")


@pytest.mark.parametrize("train", ["full", "lora"])
def test_the_engine_samples_with_the_weights_that_the_policy_has_learned(
    train: str, vllm: None, tiny_policy: Path, miniature: Params, demos: list[Trace], tmp_path: Path
) -> None:
    params = tuned(
        miniature,
        policy={
            "train": train, "rollouts": "vllm", "iterations": 2, "max_new_tokens": 8, "learning_rate": 0.01,
            "prompts_per_iteration": 2, "kl": 0.5, "checkpoint_every": 1,
        },
    )  # fmt: skip
    policy, tokenizer = load_policy(tiny_policy)
    engine = new_engine(params.policy, tiny_policy)
    assert isinstance(engine, Engine) and engine.llm.options == (0.4, "vllm")
    loop = PolicyLoop(
        policy=policy,
        reference=make_trainable(policy, params.policy, seed=0),
        tokenizer=tokenizer,
        prompts=[replace(demo, text="", steps=(), answer=None, correct=None, labelled=False) for demo in demos],
        reward=OutcomeReward(0.5),
        params=params.policy,
        seed=0,
        checkpoints=tmp_path,
        rollouts=None,
        on_metrics=lambda iteration, metrics: None,
        engine=engine,
    )
    first, _ = loop.rollout(loop.prompts[:2], 3, "try", "")
    problems = [render_prompt(tokenizer, trace.problem) for trace in loop.prompts[:2]]
    asked = tokenizer(problems, add_special_tokens=False)["input_ids"]
    assert [item.prompt_ids for item in first] == [asked[0]] * 3 + [asked[1]] * 3
    assert first == loop.rollout(loop.prompts[:2], 3, "try", "")[0] and len({tuple(item.ids) for item in first}) > 3
    for item in first:
        assert item.finished == (item.ids[-1] == tokenizer.eos_token_id) and len(item.ids) == len(item.logprobs) <= 8

    ids = torch.arange(30)[None]
    monitored = loop.reward.advantages

    def uneven(batch: Any) -> Any:  # an untrained policy is never right: without this nothing would be learned
        values, metrics = monitored(batch)
        return [value + (-1) ** index for index, value in enumerate(values)], metrics

    loop.reward.advantages = uneven  # type: ignore[method-assign]
    before = policy(ids).logits
    loop.run("engine")
    assert engine.llm.resets == 3  # before the first iteration and after each of two
    after = merged(policy.eval())(ids).logits
    assert not torch.allclose(after, before)
    torch.testing.assert_close(engine.llm.model(ids).logits, after)
    policy.load_state_dict(load_policy(tiny_policy)[0].state_dict(), strict=False)
    assert loop.resume() == 1  # a checkpoint's weights reach the engine, too
    torch.testing.assert_close(engine.llm.model(ids).logits, merged(policy.eval())(ids).logits)


def test_what_is_missing_is_named(tiny_policy: Path, miniature: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    assert new_engine(miniature.policy, tiny_policy) is None
    if find_spec("vllm") is None:
        with pytest.raises(RairlError, match=r"policy\.rollouts 'vllm' needs vLLM"):
            Engine(tiny_policy, 0.4)


def test_several_processes_are_refused(vllm: None, tiny_policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rairl.learn.distributed.world", lambda: (0, 2))
    with pytest.raises(RairlError, match="one process"):
        Engine(tiny_policy, 0.4)
