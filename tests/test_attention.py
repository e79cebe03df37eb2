"""Scoring with prompt and completion attended to apart: the same scores as behind transformers' cache."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

from rairl.models.attention import PromptReader, as_one_row, as_rows
from rairl.models.base import train_tokenizer
from rairl.models.policy import SharedPrompts, _token_surprise, batches_by_prompt, token_surprise
from rairl.models.reward import RewardModel
from rairl.params import Params, RewardParams
from rairl.traces import Step, Trace

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 2000,
}
KINDS = {
    "llama": lambda words, **more: LlamaForCausalLM(LlamaConfig(**SIZES, vocab_size=words, **more)),
    "llama-gqa": lambda words, **more: LlamaForCausalLM(
        LlamaConfig(**SIZES, vocab_size=words, num_key_value_heads=2, **more)
    ),
    "qwen2-mqa": lambda words, **more: Qwen2ForCausalLM(
        Qwen2Config(**SIZES, vocab_size=words, num_key_value_heads=1, **more)
    ),
}


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return train_tokenizer(["Ann has 3 eggs and buys 4.\n3 + 4 = 7\n"], 300)


def reward(model: torch.nn.Module, tokenizer: object, params: RewardParams, **changes: object) -> RewardModel:
    torch.manual_seed(1)
    return RewardModel(model.eval(), tokenizer, params.model_copy(update=changes)).eval()


def trace(number: int, problem: str, words: int) -> Trace:
    text = "\n".join(f"{at} + {number} = {at + number}" for at in range(words))
    ends = [at for at, sign in enumerate(text) if sign == "\n"] + [len(text)]
    steps = tuple(Step(start, end) for start, end in zip([0, *(end + 1 for end in ends[:-1])], ends, strict=True))
    return Trace(str(number), problem, text, steps)


def both(model: RewardModel, traces: list[Trace]) -> tuple[np.ndarray, np.ndarray]:
    """All logits, read apart and as in training."""
    apart, plain = (model.score(traces, as_in_training=how) for how in (False, True))
    return tuple(np.concatenate([[*one.steps, one.last] for one in read]) for read in (apart, plain))  # type: ignore[return-value]


PROBLEMS = {
    "one prompt": ["Ann has 3 eggs. How many?"] * 5,
    "several prompts, mixed": ["A?", "Ann has 3 eggs and buys 4 more. How many?", "A?", "Bo?", "Bo?"],
    "each its own": [f"Ann has {'3 ' * at}eggs?" for at in range(5)],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("problems", PROBLEMS.values(), ids=list(PROBLEMS))
@pytest.mark.parametrize("granularity", ["step", "dense"])
def test_the_scores_are_those_of_the_plain_path(
    kind: str, problems: list[str], granularity: str, tokenizer: object, miniature: Params
) -> None:
    torch.manual_seed(0)
    model = reward(KINDS[kind](len(tokenizer)), tokenizer, miniature.reward, granularity=granularity)
    traces = [trace(at, problem, 1 + 7 * at % 5) for at, problem in enumerate(problems)]
    with patch.object(PromptReader, "read", autospec=True, side_effect=PromptReader.read) as read:
        apart, plain = both(model, traces)
    assert read.call_count
    np.testing.assert_allclose(apart, plain, atol=1e-5)


@pytest.mark.parametrize(("head", "form"), [("linear", "logit"), ("surprisal", "airl")])
def test_other_heads_and_forms(head: str, form: str, tokenizer: object, miniature: Params) -> None:
    torch.manual_seed(0)
    model = KINDS["llama-gqa"](len(tokenizer))
    body = model.base_model if head == "linear" else model
    model = reward(body, tokenizer, miniature.reward, head=head, form=form)
    if head == "linear":
        torch.nn.init.normal_(model.head[-1].weight)
    apart, plain = both(model, [trace(at, "A?", 2 + at) for at in range(4)])
    assert np.ptp(plain) > 0.1
    np.testing.assert_allclose(apart, plain, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 70)), min_size=1, max_size=6))
def test_hidden_states_at_any_lengths(lengths: list[tuple[int, int]]) -> None:
    """Prompts from one token on, several completions of the same prompt, more and fewer than a vector's tokens."""
    torch.manual_seed(0)
    model = KINDS["llama-gqa"](50).eval()
    lengths.sort()
    prompts = [[1 + at % 49 for at in range(prompt)] for prompt, _ in lengths]
    tails = [[1 + (at * at + row) % 49 for at in range(tail)] for row, (_, tail) in enumerate(lengths)]
    with torch.no_grad():
        apart = SharedPrompts.of(prompts, tails, 0, torch.device("cpu"), PromptReader()).read(model).logits
        for row, (prompt, tail) in enumerate(zip(prompts, tails, strict=True)):
            whole = model(torch.tensor([prompt + tail])).logits[0, len(prompt) - 1 :]
            torch.testing.assert_close(apart[row, : len(whole)], whole, atol=1e-5, rtol=1e-4)


def _calls(model: torch.nn.Module, batches: int = 1) -> tuple[int, PromptReader, list[Tensor]]:
    """How often a model is called for so many batches of one prompt, and what they say."""
    reader = PromptReader()
    found = []
    with torch.no_grad(), patch.object(type(model), "forward", autospec=True, side_effect=type(model).forward) as run:
        for _ in range(batches):
            rows = SharedPrompts.of([[1, 2, 3]] * 2, [[4, 5], [6]], 0, torch.device("cpu"), reader)
            found.append(rows.read(model).logits)
    return run.call_count, reader, found


def test_a_prompt_that_comes_again_is_not_read_again() -> None:
    calls, _, (first, second) = _calls(KINDS["llama"](50).eval(), batches=2)
    assert calls == 3
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("make", "calls"),
    [
        (lambda: KINDS["llama"](50, attn_implementation="eager"), 2),
        (lambda: MistralForCausalLM(MistralConfig(**SIZES, vocab_size=50, num_key_value_heads=2, sliding_window=2)), 2),
        (lambda: KINDS["llama"](50).double(), 2),
    ],
    ids=["eager", "sliding window", "float64"],
)
def test_what_it_cannot_read_is_read_the_plain_way(make: object, calls: int) -> None:
    torch.manual_seed(0)
    model = make().eval()  # type: ignore[operator]
    count, reader, (found,) = _calls(model)
    assert (count, reader.kept) == (calls, {})
    with torch.no_grad():
        whole = model(torch.tensor([[1, 2, 3, 4, 5]])).logits[0, 2:]
    torch.testing.assert_close(found[0, :3], whole, atol=1e-5, rtol=1e-4)


def test_attention_it_does_not_know_is_refused_once_and_read_the_plain_way() -> None:
    """A model that brings a mask of its own looks at something other than its prompt and itself."""
    torch.manual_seed(0)
    model = KINDS["llama"](50).eval()
    attention = torch.nn.functional.scaled_dot_product_attention

    def masked(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: object) -> Tensor:
        options["is_causal"] = False
        own = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril(key.shape[2] - query.shape[2])
        return attention(query, key, value, attn_mask=own if attn_mask is None else attn_mask, **options)

    with patch("torch.nn.functional.scaled_dot_product_attention", masked):
        count, reader, found = _calls(model, batches=2)
    assert count == 6 and reader.refused == {model}  # prompt, refused, prompt, tails; then prompt, tails
    with torch.no_grad():
        whole = model(torch.tensor([[1, 2, 3, 4, 5]])).logits[0, 2:]
    torch.testing.assert_close(found[0][0, :3], whole, atol=1e-5, rtol=1e-4)


def test_with_gradients_nothing_is_read_apart() -> None:
    model = KINDS["llama"](50).eval()
    reader = PromptReader()
    rows = SharedPrompts.of([[1, 2, 3]], [[4, 5]], 0, torch.device("cpu"), reader)
    assert rows.read(model).logits.requires_grad
    assert not reader.kept


def test_one_row_and_back() -> None:
    states = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)  # (B, H, T, D)
    row = as_one_row(states)
    assert row.shape == (1, 3, 8, 5)
    assert torch.equal(row[0, :, 4:], states[1])
    assert torch.equal(as_rows(row, slice(7, 9)), states)


def test_batches_of_whole_prompts() -> None:
    batches = batches_by_prompt(["a", "b", "a", "c", "b"], [3, 9, 2, 4, 8], 12)
    assert list(batches) == [[2, 0, 3], [4], [1]]  # a and c: 3 rows of 4; b does not fit, nor in one of its own
    assert list(batches_by_prompt(["a"] * 5, [4, 4, 4, 4, 4], 12)) == [[0, 1, 2], [3, 4]]
    assert list(batches_by_prompt(["a", "b"], [50, 60], 12)) == [[0], [1]]


@pytest.mark.parametrize("shape", [(1, 1, 7), (16, 158, 512), (5, 400, 900)])
def test_surprise_in_parts_has_the_same_bits(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    logits, ids = torch.randn(shape) * 5, torch.randint(0, shape[-1], shape[:2])
    with torch.no_grad():
        assert torch.equal(token_surprise(logits, ids), _token_surprise(logits, ids))
