"""Tokens and characters agree, likelihoods are right, sampling is exact and repeatable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rairl.datasets import arithmetic
from rairl.errors import RairlError
from rairl.learn.rollouts import character_ends, draw, sample, to_traces
from rairl.models.base import EOS, train_tokenizer
from rairl.models.policy import (
    batches_by_length,
    encode,
    load_policy,
    pad,
    render_prompt,
    step_logprobs,
    token_at,
    token_logprobs,
)
from rairl.traces import Trace

TOKENIZER = train_tokenizer([f"{p}\n{t}" for p, t in arithmetic.corpus(200, 0)], 512)


@given(st.text(max_size=60))
def test_tokenizer_round_trips_any_text(text: str) -> None:
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert TOKENIZER.decode(ids) == text


def test_a_common_number_is_a_token_and_a_long_one_is_read_three_digits_at_a_time() -> None:
    assert TOKENIZER.tokenize("So Ana has 27 + 9 = 36") == ["So", "ĠAna", "Ġhas", "Ġ27", "Ġ+", "Ġ9", "Ġ=", "Ġ36"]
    ids = TOKENIZER("12345678", add_special_tokens=False)
    pieces = TOKENIZER.backend_tokenizer.pre_tokenizer.pre_tokenize_str("12345678")
    assert [piece for piece, _ in pieces] == ["123", "456", "78"] and TOKENIZER.decode(ids["input_ids"]) == "12345678"


def test_tokens_reach_the_characters_they_stand_for(demos: list[Trace]) -> None:
    for trace, item in zip(demos, encode(TOKENIZER, demos), strict=True):
        prompt = render_prompt(TOKENIZER, trace.problem)
        assert TOKENIZER.decode(item.ids[: item.prompt_tokens]) == prompt
        for step in trace.steps:
            upto = TOKENIZER.decode(item.ids[item.prompt_tokens : token_at(item, step.end) + 1])
            assert upto == trace.text[: step.end]


def test_a_token_that_straddles_a_step_end_is_the_one_read() -> None:
    """A tokenizer with '.<newline>' as one token: the step's end lies inside it."""
    trace = Trace("a", "p", "x.\ny", ((arithmetic.locate_steps("x.\ny", ["x.", "y"]))[0],))
    from rairl.models.policy import Encoded

    item = Encoded([1, 2, 3, 4], 1, np.array([1, 3, 4]))
    assert token_at(item, trace.steps[0].end) == 2


def test_token_logprobs_sum_to_the_models_loss(tiny_policy: Path) -> None:
    model, _ = load_policy(tiny_policy)
    ids = torch.tensor([[5, 9, 11, 7, 8]])
    with torch.no_grad():
        mine = token_logprobs(model, ids, torch.ones_like(ids))
        loss = model(input_ids=ids, labels=ids).loss
    assert mine[0, 0] == 0
    assert mine[0, 1:].mean().item() == pytest.approx(-loss.item(), rel=1e-5)


def test_padding_changes_nothing(tiny_policy: Path, demos: list[Trace]) -> None:
    model, tokenizer = load_policy(tiny_policy)
    together = step_logprobs(model, tokenizer, demos)
    alone = [step_logprobs(model, tokenizer, [trace])[0] for trace in demos]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.steps, other.steps, atol=1e-4)
        assert one.total == pytest.approx(other.total, abs=1e-3)
        assert len(one.steps) == len(one.mean_steps)
        assert one.steps.sum() >= one.total  # the tags and the answer come on top


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(50, 200))
def test_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = list(batches_by_length(lengths, budget))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(max(lengths[index] for index in batch) * len(batch) <= budget for batch in batches)


def test_pad_sides() -> None:
    ids, mask = pad([[1, 2], [3]], 0)
    assert ids.tolist() == [[1, 2], [3, 0]] and mask.tolist() == [[1, 1], [1, 0]]
    ids, mask = pad([[1, 2], [3]], 0, left=True)
    assert ids.tolist() == [[1, 2], [0, 3]] and mask.tolist() == [[1, 1], [0, 1]]


def test_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(RairlError, match=r"config\.json is missing"):
        load_policy(tmp_path)


# --- sampling --------------------------------------------------------------------------------------------------------


def test_sampling_repeats_and_reports_the_true_likelihood(tiny_policy: Path, demos: list[Trace]) -> None:
    model, tokenizer = load_policy(tiny_policy)
    problems = [trace.problem for trace in demos[:5]]
    first = sample(model, tokenizer, problems, n=3, max_new_tokens=12, temperature=1.0, seed=7)
    again = sample(model, tokenizer, problems, n=3, max_new_tokens=12, temperature=1.0, seed=7)
    other = sample(model, tokenizer, problems, n=3, max_new_tokens=12, temperature=1.0, seed=8)
    assert first == again and first != other
    assert len(first) == 15
    for item in first:
        ids = torch.tensor([item.prompt_ids + item.ids])
        with torch.no_grad():
            truth = token_logprobs(model, ids, torch.ones_like(ids))[0, len(item.prompt_ids) :]
        np.testing.assert_allclose(item.logprobs, truth.numpy(), atol=1e-4)
        assert item.finished == (item.ids[-1] == tokenizer.eos_token_id)
        assert tokenizer.eos_token_id not in item.ids[:-1]


def test_greedy_equals_transformers_generate(tiny_policy: Path, demos: list[Trace]) -> None:
    model, tokenizer = load_policy(tiny_policy)
    problems = [trace.problem for trace in demos[:4]]
    mine = sample(model, tokenizer, problems, n=1, max_new_tokens=10, temperature=0.0, seed=0)
    for problem, item in zip(problems, mine, strict=True):
        prompt = tokenizer(render_prompt(tokenizer, problem), add_special_tokens=False, return_tensors="pt")
        theirs = model.generate(**prompt, max_new_tokens=10, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        assert item.ids == theirs.tolist()


def test_drawn_frequencies_follow_the_tempered_distribution() -> None:
    logits = torch.log(torch.tensor([[0.7, 0.2, 0.1]])).repeat(20_000, 1)
    for temperature in (1.0, 0.5):
        picked, logprob = draw(logits, temperature, torch.Generator().manual_seed(0))
        expected = np.array([0.7, 0.2, 0.1]) ** (1 / temperature)
        expected /= expected.sum()
        seen = np.bincount(picked.numpy(), minlength=3) / len(picked)
        np.testing.assert_allclose(seen, expected, atol=4 * 0.5 / np.sqrt(len(picked)))  # four standard errors
        np.testing.assert_allclose(logprob[picked == 0].numpy(), np.log(0.7), rtol=1e-5)  # at temperature 1


def test_samples_become_judged_traces(tiny_policy: Path, demos: list[Trace]) -> None:
    from dataclasses import replace

    from rairl.learn.rollouts import Completion

    tokenizer = TOKENIZER
    prompt = replace(demos[0], text="", steps=(), answer=None, correct=None, labelled=False)
    right = tokenizer(demos[0].text, add_special_tokens=False)["input_ids"]
    eos = tokenizer.convert_tokens_to_ids(EOS)
    cut = Completion([1], right, [-0.1] * len(right), False)
    done = Completion([1], [*right, eos], [-0.1] * (len(right) + 1), True)
    whole, short = to_traces([done, cut], [prompt], tokenizer, source="policy", tag="t")
    assert whole.text == demos[0].text and whole.steps == demos[0].steps
    assert whole.correct and whole.labelled and whole.first_error is None
    assert whole.group == prompt.id and whole.id == f"{prompt.id}/t0"
    assert short.correct is False and short.answer is None  # cut off before it ended


@given(st.text(max_size=40))
def test_character_ends_reach_the_text(text: str) -> None:
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    ends = character_ends(TOKENIZER, ids)
    assert len(ends) == len(ids) and (not ends or ends[-1] == len(text))
    assert ends == sorted(ends)
