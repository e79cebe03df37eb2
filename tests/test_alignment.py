"""Tokens and units meet by character positions, whatever the tokenizers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import token_logprobs

from rairl.core.params import Params
from rairl.core.traces import Trace
from rairl.datasets import arithmetic
from rairl.learn.token_alignment import reads_of, spread_reads, unit_logprobs, units_of
from rairl.models.base import train_tokenizer
from rairl.models.likelihood import step_logprobs
from rairl.models.policy import load_policy
from rairl.models.reading import encode
from rairl.models.reward import new_reward


def test_step_values_land_on_the_tokens_of_their_step() -> None:
    # units end at characters 3 and 7; tokens end at 1, 3, 4 (straddles nothing), 7, and the end token at 7
    values = spread_reads(np.array([10.0, 20.0]), [3, 7], [1, 3, 4, 7, 9])
    assert values.tolist() == [10, 10, 20, 20, 20]


@pytest.mark.parametrize("granularity", ["step", "interval", "dense"])
def test_log_probabilities_of_units_equal_a_plain_loop(
    granularity: str, tiny_policy: Path, miniature: Params, demos: list[Trace]
) -> None:
    """The reward's tokenizer cuts the text otherwise than the policy's; nothing is lost or counted twice."""
    model = new_reward(tiny_policy, miniature.reward.model_copy(update={"granularity": granularity}), seed=0)
    model.tokenizer = train_tokenizer([f"{p}\n{t}" for p, t in arithmetic.corpus(50, 1)], 290)
    policy, tokenizer = load_policy(tiny_policy)
    traces = demos[:3]
    ends = reads_of(model, traces)
    made = unit_logprobs(policy, tokenizer, traces, ends, temperature=0.7)
    assert len(made) == sum(len(one) for one in ends)
    at = 0
    for trace, bounds in zip(traces, ends, strict=True):
        item = encode(tokenizer, [trace])[0]
        ids = torch.tensor([item.ids])
        with torch.no_grad():
            row = token_logprobs(policy, ids, 0.7)[0, item.prompt_tokens :].double().numpy()
        expected = np.zeros(len(bounds))
        for value, end in zip(row, item.ends, strict=True):
            unit = next((index for index, bound in enumerate(bounds) if end <= bound), len(bounds) - 1)
            expected[unit] += value
        np.testing.assert_allclose(made[at : at + len(bounds)], expected, atol=1e-3)
        at += len(bounds)


def test_units_add_up_to_the_trace(tiny_policy: Path, miniature: Params, demos: list[Trace]) -> None:
    model = new_reward(tiny_policy, miniature.reward, seed=0)
    policy, tokenizer = load_policy(tiny_policy)
    made = unit_logprobs(policy, tokenizer, demos[:1], reads_of(model, demos[:1]))
    assert made.sum().item() == pytest.approx(step_logprobs(policy, tokenizer, demos[:1])[0].total, abs=1e-3)


def test_tokens_of_one_character_have_units_of_their_own() -> None:
    # "a✅b" in five tokens, the emoji in three; the reward reads every token, with the same tokenizer or another one
    tokens = [1, 2, 2, 2, 3]
    same = [1, 1 + 1 / 3, 1 + 2 / 3, 2, 3]
    assert units_of(same, tokens).tolist() == [0, 1, 2, 3, 4]
    assert units_of([1, 1.5, 2, 3], tokens).tolist() == [0, 1, 2, 2, 3]
    assert units_of([2, 3], tokens).tolist() == [0, 0, 0, 0, 1]
    assert units_of([1, 2, 3], [1, 2, 3]).tolist() == [0, 1, 2]


def test_what_follows_the_last_unit_belongs_to_it() -> None:
    assert units_of([2, 4], [1, 2, 3, 4, 5, 6]).tolist() == [0, 0, 1, 1, 1, 1]
