"""Tokens and characters agree, likelihoods are right."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from conftest import examples, token_logprobs
from hypothesis import given
from hypothesis import strategies as st

from rairl.core.errors import RairlError
from rairl.core.traces import Trace, locate_steps
from rairl.datasets import arithmetic
from rairl.models.base import train_tokenizer
from rairl.models.likelihood import step_logprobs, token_surprise
from rairl.models.policy import load_policy
from rairl.models.reading import (
    SharedPrompts,
    batches_by_length,
    encode,
    encode_prompts,
    end_tokens,
    first_token_of,
    pad,
    render_prompt,
    token_at,
    told_apart,
)
from rairl.models.reads import read_tokens
from rairl.text.segment import compose, guess, segment

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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
    trace = Trace("a", "p", "x.\ny", ((locate_steps("x.\ny", ["x.", "y"]))[0],))
    from rairl.models.reading import Encoded

    item = Encoded([1, 2, 3, 4], 1, np.array([1, 3, 4]))
    assert token_at(item, trace.steps[0].end) == 2


ODD_ENDS = [
    "3 + 4 = 7 ✅\n7 * 1 = 7 ✅",
    "3 + 4 = 7 👨‍👩‍👧\n7 * 1 = 7 ✔️",
    "第一步算3+4=7。\n然后乘以2得14。",
    "Es gilt 3 + 4 = 7 für alle ß\nalso größer als Ä",
    "∴ x = 7 ∎\n∵ y ≥ 0 √",
    "🏴󠁧󠁢󠁥󠁮󠁧󠁿 wins 🏴󠁧󠁢󠁥󠁮󠁧󠁿\n🙂🙂",
    "e\u0301\nо́",
    "plain\ntext.",
]


@pytest.mark.parametrize("text", ODD_ENDS)
@pytest.mark.parametrize("prompt", ["p", "p ✅"])
def test_a_step_is_read_where_all_bytes_of_its_last_character_are(prompt: str, text: str) -> None:
    trace = Trace("a", prompt, text, segment(text, guess(text)))
    [item] = encode(TOKENIZER, [trace])
    assert len(trace.steps) == 2
    own = item.ids[item.prompt_tokens :]
    assert TOKENIZER.decode(own) == text and (np.diff(item.ends) > 0).all()
    for step in trace.steps:
        first, last = first_token_of(item, step.start), token_at(item, step.end)
        assert TOKENIZER.decode(item.ids[first : last + 1]).strip() == text[step.start : step.end]
        assert TOKENIZER.decode(item.ids[item.prompt_tokens : last + 1]) == text[: step.end]
    last = len(item.ids) - 1
    assert read_tokens(item, trace, "step") == [token_at(item, trace.steps[0].end), last]


def test_bytes_of_two_characters_in_one_token() -> None:
    """A tokenizer that cuts "a✅b" into "a" with a first byte, a second byte, and a last byte with "b"."""
    from rairl.models.reading import Encoded, _ends

    ends = _ends(np.array([[0, 2], [1, 2], [1, 3]]))
    np.testing.assert_allclose(ends, [1 + 1 / 3, 1 + 2 / 3, 3])
    item = Encoded([9, 1, 2, 3], 1, ends)
    assert [token_at(item, end) for end in (1, 2, 3)] == [1, 3, 3]
    assert [first_token_of(item, start) for start in (0, 1, 2)] == [1, 1, 3]
    assert _ends(np.array([[0, 1], [2, 4], [4, 4]])).tolist() == [1, 4, 4]  # white space left out of the offsets


def test_tokens_of_one_character_are_told_apart_in_thirds() -> None:
    assert told_apart([2, 3, 3, 3, 4]).tolist() == [2, 2 + 1 / 3, 2 + 2 / 3, 3, 4]
    assert told_apart([]).tolist() == [] and told_apart([1, 2]).tolist() == [1, 2]


# --- control tokens in somebody's text -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        "<|end|>",
        "a <|end|> b",
        "<|pad|><|end|>",
        "</think>",
        "x<|end|><|en<|end|>d|>",
        "\ue000<|end|>\ue001 ✅",
        "<|end|>\n<answer>",
    ],
)
def test_a_control_token_in_a_users_text_is_plain_text(said: str) -> None:
    special = {
        TOKENIZER.convert_tokens_to_ids(token) for token in ("<|pad|>", "<|end|>", "<think>", "</think>", "<answer>")
    }
    prompt = encode_prompts(TOKENIZER, [said, "p"])
    assert (
        not special & set(prompt[0]) and TOKENIZER.decode(prompt[0]) == said.translate({0xE000: "", 0xE001: ""}) + "\n"
    )
    assert prompt[1] == TOKENIZER("p\n")["input_ids"]
    text, steps = compose([f"3 + 4 = 7 {said.replace('</think>', 'x').replace('<answer>', 'y')}", "so 7"], "7")
    trace = Trace("a", f"Say {said}.", text, steps, source="expert")
    [item] = encode(TOKENIZER, [trace])
    own = item.ids[item.prompt_tokens :]
    assert TOKENIZER.decode(own) == text
    assert not {TOKENIZER.pad_token_id, TOKENIZER.eos_token_id} & set(item.ids)
    # The blocks of the solution are what they are in training.
    assert [own.count(TOKENIZER.convert_tokens_to_ids(mark)) for mark in ("<think>", "</think>", "<answer>")] == [
        1,
        1,
        1,
    ]
    for step in steps:
        assert TOKENIZER.decode(own[: token_at(item, step.end) - item.prompt_tokens + 1]) == text[: step.end]


def test_what_a_policy_wrote_is_read_as_it_wrote_it() -> None:
    text = "<think>\na<|pad|>b\n</think>"
    whole = TOKENIZER(f"p\n{text}")["input_ids"]
    assert encode(TOKENIZER, [Trace("a", "p", text, source="policy:sft")])[0].ids == whole
    assert TOKENIZER.pad_token_id in whole
    assert TOKENIZER.pad_token_id not in encode(TOKENIZER, [Trace("a", "p", text, source="expert")])[0].ids


def test_the_templates_own_control_tokens_stay_and_transformers_agrees(tiny_policy: Path) -> None:
    from tokenizers import AddedToken

    tokenizer = load_policy(tiny_policy)[1]
    tokenizer.add_tokens([AddedToken("<turn>", special=False, normalized=False)])
    tokenizer.chat_template = (
        "<|pad|>{% for message in messages %}<turn>{{ message['content'] | trim }}<|end|>{% endfor %}<turn>"
    )
    for problem in ["1 + 1?", "1 <|end|><|pad|> 1?", "<|end|>"]:
        asked = [{"role": "user", "content": problem}]
        theirs = tokenizer.apply_chat_template(asked, sanitize_control_tokens=True)["input_ids"]
        assert encode_prompts(tokenizer, [problem]) == [theirs]
        assert theirs.count(tokenizer.eos_token_id) == 1
    [ids] = encode_prompts(tokenizer, ["a <turn> b"])
    assert ids.count(tokenizer.convert_tokens_to_ids("<turn>")) == 2 and "a <turn> b" in tokenizer.decode(ids)


# --- a think block that the template opens, and the end ---------------------------------------------------------------


@pytest.mark.parametrize("opening", ["<think>\n", "<think>", "<think>\n\n", "<|end|>\n<think>\n"])
@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("<think>\na b\n</think>", "a b\n</think>"),
        ("<think>a b\n</think>", "a b\n</think>"),
        (" <think>\na b\n</think>", "a b\n</think>"),
        ("a b\n</think>", "a b\n</think>"),
        ("a <think> b", "a <think> b"),
        ("<think>\n", "<think>"),
    ],
)
def test_think_is_read_once(tiny_policy: Path, opening: str, text: str, kept: str) -> None:
    tokenizer = load_policy(tiny_policy)[1]
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['content'] }}\n{% endfor %}{{ '" + opening + "' }}"
    )
    steps = segment(text, "tags")
    [item] = encode(tokenizer, [Trace("a", "p", text, steps)])
    own = tokenizer.decode(item.ids[item.prompt_tokens :])
    assert own.strip() == kept
    assert tokenizer.decode(item.ids[: item.prompt_tokens]) == render_prompt(tokenizer, "p")
    for step in steps:
        upto = tokenizer.decode(item.ids[item.prompt_tokens : token_at(item, step.end) + 1])
        assert text[: step.end].endswith(upto)


@pytest.mark.parametrize(
    ("configured", "ends"), [(None, [1]), (1, [1]), (7, [7]), ([1, 7], [1, 7]), ([7, 1, 7], [1, 7]), ([7, 8], [7, 8])]
)
def test_the_end_tokens_are_those_of_generate(tiny_policy: Path, configured: object, ends: list[int]) -> None:
    model, tokenizer = load_policy(tiny_policy)
    assert tokenizer.eos_token_id == 1
    model.generation_config.eos_token_id = configured
    assert end_tokens(model, tokenizer) == ends


def test_token_logprobs_sum_to_the_models_loss(tiny_policy: Path) -> None:
    model, _ = load_policy(tiny_policy)
    ids = torch.tensor([[5, 9, 11, 7, 8]])
    with torch.no_grad():
        mine = token_logprobs(model, ids)
        loss = model(input_ids=ids, labels=ids).loss
    assert mine[0, 0] == 0
    assert mine[0, 1:].mean().item() == pytest.approx(-loss.item(), rel=1e-5)


ARCHITECTURES = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 8}),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@given(
    prompts=st.lists(st.lists(st.integers(1, 49), min_size=1, max_size=6), min_size=1, max_size=4),
    rows=st.lists(
        st.tuples(st.integers(0, 3), st.lists(st.integers(1, 49), min_size=1, max_size=7)), min_size=1, max_size=6
    ),
)
@examples(15)
def test_shared_prompts_read_as_whole_rows_do(
    architecture: str, prompts: list[list[int]], rows: list[tuple[int, list[int]]]
) -> None:
    """Logits, hidden states and gradients equal those of each row alone, whatever prompts they share."""
    model = small(architecture)
    pairs = [(prompts[at % len(prompts)], rest) for at, rest in rows]
    shared = SharedPrompts.of([prompt for prompt, _ in pairs], [rest for _, rest in pairs], 0, torch.device("cpu"))
    assert len(shared.heads) == len({tuple(prompt) for prompt, _ in pairs})
    out = shared.read(model, output_hidden_states=True)
    mine, theirs = [], []
    for row, (prompt, rest) in enumerate(pairs):
        whole = model(input_ids=torch.tensor([prompt + rest]), use_cache=False, output_hidden_states=True)
        tail = slice(len(prompt) - 1, None)
        assert shared.tails[row, : len(rest) + 1].tolist() == [prompt[-1], *rest]
        torch.testing.assert_close(out.logits[row, : len(rest) + 1], whole.logits[0, tail], atol=1e-5, rtol=1e-4)
        for one, other in zip(out.hidden_states, whole.hidden_states, strict=True):
            torch.testing.assert_close(one[row, : len(rest) + 1], other[0, tail], atol=1e-5, rtol=1e-4)
        mine.append(out.logits[row, : len(rest) + 1].square().mean())
        theirs.append(whole.logits[0, tail].square().mean())
    weights = list(model.parameters())
    for one, other in zip(
        torch.autograd.grad(sum(mine), weights), torch.autograd.grad(sum(theirs), weights), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


def test_a_model_whose_layers_are_recomputed_reads_each_row_with_its_prompt() -> None:
    rows = SharedPrompts.of([[5, 6, 7], [5, 6, 7], [8, 9]], [[1, 2], [3], [4, 5, 6]], 0, torch.device("cpu"))
    plain = rows.read(small("llama"), output_hidden_states=True)
    model = copy.deepcopy(small("llama")).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    out = rows.read(model, output_hidden_states=True)
    for row, length in enumerate((3, 2, 4)):
        torch.testing.assert_close(out.logits[row, :length], plain.logits[row, :length], atol=1e-5, rtol=1e-4)
        for one, other in zip(out.hidden_states, plain.hidden_states, strict=True):
            torch.testing.assert_close(one[row, :length], other[row, :length], atol=1e-5, rtol=1e-4)
    model.eval()
    torch.testing.assert_close(rows.read(model).logits, plain.logits, atol=1e-5, rtol=1e-4)


def test_a_long_trace_alone_is_read_without_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    model = copy.deepcopy(small("llama"))
    calls: list[dict[str, object]] = []
    model.register_forward_pre_hook(lambda _, args, options: calls.append(options), with_kwargs=True)
    rows = SharedPrompts.of([[5, 6, 7]], [[1, 2]], 0, torch.device("cpu"))
    plain = rows.read(model, output_hidden_states=True)
    monkeypatch.setattr("rairl.models.reading.LONG", 4)  # the trace has five tokens
    out = rows.read(model, output_hidden_states=True)
    assert ["past_key_values" in call for call in calls] == [True, False]
    torch.testing.assert_close(out.logits, plain.logits, atol=1e-5, rtol=1e-4)
    for one, other in zip(out.hidden_states, plain.hidden_states, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1, 7), (16, 158, 512), (5, 400, 900)])
def test_surprise_of_some_rows_at_a_time_has_the_same_bits(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    logits, ids = torch.randn(shape) * 5, torch.randint(0, shape[-1], shape[:2])
    whole = token_surprise(logits.requires_grad_(), ids)  # with gradients nothing is taken apart
    with torch.no_grad():
        assert torch.equal(token_surprise(logits, ids), whole)


@cache
def small(architecture: str) -> PreTrainedModel:
    import transformers

    name, extra = ARCHITECTURES[architecture]
    config = getattr(transformers, name)(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True, **extra,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


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
