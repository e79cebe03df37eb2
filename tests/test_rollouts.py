"""Sampling is exact, repeatable and the same however the problems are split; samples become judged traces."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import token_logprobs
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from rairl.core.traces import Trace
from rairl.datasets import arithmetic
from rairl.learn.rollouts import Completion, character_ends, draw, sample, to_traces, uniforms
from rairl.models.base import EOS, train_tokenizer
from rairl.models.policy import load_policy
from rairl.models.reading import render_prompt

TOKENIZER = train_tokenizer([f"{p}\n{t}" for p, t in arithmetic.corpus(200, 0)], 512)


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
            truth = token_logprobs(model, ids)[0, len(item.prompt_ids) :]
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


@pytest.mark.parametrize("extra", ["list", "another", "tokenizers"])
def test_sampling_ends_where_generate_does(extra: str, tiny_policy: Path, demos: list[Trace]) -> None:
    """The end tokens are those of the generation configuration: frequent ones here, so that most rows end."""
    model, tokenizer = load_policy(tiny_policy)
    problems = [trace.problem for trace in demos[:6]]
    free = sample(model, tokenizer, problems, n=1, max_new_tokens=12, temperature=0.0, seed=0)
    frequent = [token for item in free for token in item.ids[3:6] if token != tokenizer.eos_token_id]
    others = list(dict.fromkeys(frequent))[:4]
    ends = {"list": [tokenizer.eos_token_id, *others], "another": others[0], "tokenizers": tokenizer.eos_token_id}[
        extra
    ]
    model.generation_config.eos_token_id = ends
    mine = sample(model, tokenizer, problems, n=1, max_new_tokens=12, temperature=0.0, seed=0)
    last = np.atleast_1d(ends).tolist()
    for problem, item in zip(problems, mine, strict=True):
        prompt = tokenizer(render_prompt(tokenizer, problem), add_special_tokens=False, return_tensors="pt")
        theirs = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        assert item.ids == theirs.tolist()
        assert item.finished == (item.ids[-1] in last) and not set(item.ids[:-1]) & set(last)
    assert any(item.finished for item in mine) or extra == "tokenizers"
    for item, trace in zip(mine, to_traces(mine, demos[:6], tokenizer, source="policy"), strict=True):
        assert trace.meta["finished"] == item.finished
        assert trace.text == (tokenizer.decode(item.ids[:-1] if item.finished else item.ids) or "\n")


def test_a_share_of_the_problems_gets_what_the_whole_list_gets(tiny_policy: Path, demos: list[Trace]) -> None:
    """Neither the split nor the size of the batches shows in the samples."""
    model, tokenizer = load_policy(tiny_policy)
    problems = [trace.problem for trace in demos[:7]]
    options = {"n": 3, "max_new_tokens": 16, "temperature": 1.0, "seed": 3}
    whole = sample(model, tokenizer, problems, **options)
    parts = sample(model, tokenizer, problems[:3], **options)
    parts += sample(model, tokenizer, problems[3:], first=3, rows_per_batch=6, **options)
    assert [item.ids for item in parts] == [item.ids for item in whole]
    assert len({tuple(item.ids) for item in whole}) == len(whole)
    assert sample(model, tokenizer, [], **options) == []


def test_a_uniform_number_picks_the_token_its_interval_belongs_to() -> None:
    # probabilities 0.7, 0, 0.2, 0.1; at temperature 0.5 their squares: 0.49, 0, 0.04, 0.01 of 0.54
    logits = torch.log(torch.tensor([[0.7, 0.0, 0.2, 0.1]])).repeat(6, 1)
    uniform = torch.tensor([0.0, 0.69, 0.71, 0.89, 0.91, np.nextafter(1.0, 0.0)], dtype=torch.float64)
    picked, logprob = draw(logits, 1.0, uniform)
    assert picked.tolist() == [0, 0, 2, 2, 3, 3]
    np.testing.assert_allclose(logprob.numpy(), np.log([0.7, 0.7, 0.2, 0.2, 0.1, 0.1]), rtol=1e-5)
    picked, logprob = draw(logits, 0.5, torch.tensor([0.90, 0.91, 0.98, 0.99, 0.0, 0.5], dtype=torch.float64))
    assert picked.tolist() == [0, 2, 2, 3, 0, 0]
    np.testing.assert_allclose(logprob[0].item(), np.log(0.7), rtol=1e-5)  # at temperature 1


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_drawn_frequencies_follow_the_tempered_distribution(temperature: float) -> None:
    logits = torch.log(torch.tensor([[0.5, 0.2, 0.2, 0.1]])).repeat(20_000, 1)
    uniform = torch.from_numpy(np.concatenate([uniforms(5, prompt, (4, 50)) for prompt in range(100)]).ravel())
    seen = np.bincount(draw(logits, temperature, uniform)[0].numpy(), minlength=4)
    expected = np.array([0.5, 0.2, 0.2, 0.1]) ** (1 / temperature)
    assert chisquare(seen, len(uniform) * expected / expected.sum()).pvalue > 0.001


def test_samples_become_judged_traces(tiny_policy: Path, demos: list[Trace]) -> None:
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


@given(st.lists(st.text(max_size=40), min_size=1, max_size=4))
def test_character_ends_reach_the_text(texts: list[str]) -> None:
    every = [TOKENIZER(text, add_special_tokens=False)["input_ids"] for text in texts]
    for text, ids, ends in zip(texts, every, character_ends(TOKENIZER, every), strict=True):
        assert len(ends) == len(ids) and (not ends or ends[-1] == len(text))
        assert ends == sorted(ends)
        heads = [TOKENIZER.decode(ids[: at + 1], skip_special_tokens=False) for at in range(len(ids))]
        assert ends == [len(head) for head in heads]
