"""The cache of sampling holds what transformers' own holds, to the last digit, and so the samples are the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, LlamaConfig, Qwen2Config
from transformers.cache_utils import DynamicSlidingWindowLayer

from rairl.learn.rollouts import sample
from rairl.models import cache as module
from rairl.models.cache import SPARE, SpareLayer, sampling_cache
from rairl.models.policy import load_policy
from rairl.traces import Trace


@settings(deadline=None, max_examples=30)
@given(steps=st.lists(st.sampled_from(["token", "token", "token", "prompt", "repeat", "select"]), max_size=14))
def test_it_holds_what_the_cache_of_transformers_holds(steps: list[str]) -> None:
    config = LlamaConfig(num_hidden_layers=2, hidden_size=8, num_attention_heads=2)
    ours, theirs = sampling_cache(config), DynamicCache(config=config)
    rng = torch.Generator().manual_seed(0)
    rows, given_out = 3, []
    for step in ["prompt", *steps]:
        if step == "repeat" and rows < 50:
            rows *= 2
            for each in (ours, theirs):
                each.batch_repeat_interleave(2)
        elif step == "select":
            keep = torch.arange(0, rows, 2)
            rows = len(keep)
            for each in (ours, theirs):
                each.batch_select_indices(keep)
        else:
            for layer in range(2):
                new = torch.randn(2, rows, 2, 5 if step == "prompt" else 1, 4, generator=rng)
                mine, expected = ours.update(*new, layer), theirs.update(*new, layer)
                assert all(a.equal(b) for a, b in zip(mine, expected, strict=True))
                given_out.append((mine[0], mine[0].clone()))
        assert ours.get_seq_length() == theirs.get_seq_length()
    assert all(view.equal(copy) for view, copy in given_out)  # what was given out is never written to again


def test_one_token_in_three_costs_a_copy() -> None:
    layer, copies = SpareLayer(), []
    for _ in range(9):
        layer.update(*torch.randn(2, 1, 1, 1, 4))
        copies.append(layer.buffers[0].data_ptr())
    assert len(set(copies)) == 9 // (SPARE + 1)


def test_layers_with_a_sliding_window_stay_those_of_transformers() -> None:
    config = Qwen2Config(num_hidden_layers=2, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    kinds = [type(layer) for layer in sampling_cache(config).layers]
    assert kinds == [SpareLayer, DynamicSlidingWindowLayer]


def test_samples_are_the_same_to_the_last_digit(
    tiny_policy: Path, demos: list[Trace], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load_policy(tiny_policy)
    problems = [trace.problem for trace in demos[:6]]
    options = {"n": 4, "max_new_tokens": 40, "temperature": 1.0, "seed": 5}
    ours = sample(model, tokenizer, problems, **options)
    monkeypatch.setattr(module, "sampling_cache", lambda config: DynamicCache(config=config))
    assert sample(model, tokenizer, problems, **options) == ours
