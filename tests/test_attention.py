"""Reading prompts and completions in one pass, in every kind of model that takes it, says what whole rows say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import examples, small_model
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel

from rairl.models import attention
from rairl.models.reading import SharedPrompts


@examples(40)
@given(
    before=st.integers(0, 9),
    length=st.integers(1, 3 * attention.BLOCK),
    window=st.integers(1, 200),
    group=st.integers(1, 2),
)
def test_blocks_attend_as_the_whole_does(before: int, length: int, window: int, group: int) -> None:
    """Padded prompts and sliding windows are masks like any other; several queries may share a key's head."""
    rng = torch.Generator().manual_seed(0)
    query = torch.randn(3, 2 * group, length, 4, generator=rng)
    key, value = torch.randn(2, 3, 2, before + length, 4, generator=rng)
    module = torch.nn.Module()
    module.num_key_value_groups = group  # type: ignore[assignment]
    at, of = torch.arange(before + length), torch.arange(before, before + length)[:, None]
    mask = ((at <= of) & (at > of - window)).repeat(3, 1, 1, 1)
    mask[1, ..., : before // 2] = False
    mask |= at == of  # no query looks at nothing
    with torch.no_grad():
        found = attention.attend_in_blocks(module, query, key, value, mask, scaling=0.4)
    expected = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.4, enable_gqa=True)
    torch.testing.assert_close(found, expected.transpose(1, 2), atol=1e-5, rtol=1e-5)


KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"head_dim": 8},
    "gpt_neox": {},
    "opt": {},
    "mixtral": {},
}
OTHERS: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 20},
    "gemma3_text": {"head_dim": 8, "sliding_window": 20},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "deepseek_v3": {},
    "bloom": {},
}
"""Kinds in whose place our attention can't stand, so that each row reads its own prompt."""


@pytest.mark.parametrize("kind", [*KINDS, *OTHERS])
@torch.inference_mode()
def test_models_say_of_rows_that_share_prompts_what_they_say_of_each_alone(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model(kind, max_position_embeddings=128, **{**KINDS, **OTHERS}[kind])
    kept, passes, calls = model.config._attn_implementation, _passes(model), _count(monkeypatch)
    out = _rows().read(model, output_hidden_states=True)
    assert model.config._attn_implementation == kept
    # In each of two layers the prompts, and three blocks of the completions.
    assert (len(passes), len(calls)) == (1, 2 * 4 if kind in KINDS else 0)
    for row, (prompt, rest) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        alone = model(input_ids=torch.tensor([prompt + rest]), use_cache=False, output_hidden_states=True)
        width, tail = len(rest) + 1, slice(len(prompt) - 1, None)
        torch.testing.assert_close(out.logits[row, :width], alone.logits[0, tail], atol=1e-5, rtol=1e-4)
        for one, other in zip(out.hidden_states, alone.hidden_states, strict=True):
            torch.testing.assert_close(one[row, :width], other[0, tail], atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_a_model_with_adapters_reads_in_one_pass_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = get_peft_model(small_model("llama", max_position_embeddings=128), LoraConfig(target_modules=["q_proj"]))
    passes, calls = _passes(model.get_base_model()), _count(monkeypatch)
    _rows().read(model)
    assert (passes, len(calls)) == ([1], 2 * 4)


def test_with_gradients_completions_are_no_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _count(monkeypatch)
    assert _rows().read(small_model("llama", max_position_embeddings=128)).logits.requires_grad
    assert calls == 2 * [8, 81]


def test_logits_that_nobody_wants_are_not_made() -> None:
    out = _rows().read(small_model("llama", max_position_embeddings=128), output_hidden_states=True, logits_to_keep=1)
    assert out.logits.shape == (1, 1, 64) and out.hidden_states[-1].shape == (4, 81, 32)


def test_attention_with_more_than_softmax_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear has softcap"):
        attention.attend(torch.nn.Linear(1, 1), torch.zeros(1, 1, 1, 1), None, None, None, softcap=50.0)  # type: ignore[arg-type]


def test_a_model_attends_by_torch_again_when_a_read_fails() -> None:
    model = small_model("llama", max_position_embeddings=128)
    with pytest.raises(TypeError):
        _rows().read(model, input_ids=None)
    assert model.config._attn_implementation == "sdpa"


def _passes(model: PreTrainedModel) -> list[int]:
    """Calls of the model from here on, by the number of rows."""
    calls: list[int] = []
    model.register_forward_pre_hook(lambda _, args, options: calls.append(len(options["input_ids"])), with_kwargs=True)
    return calls


def _count(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of queries in each of our calls of torch's attention from here on."""
    calls: list[int] = []
    plain = attention.sdpa_attention_forward

    def counted(module: Any, query: torch.Tensor, *args: Any, **options: Any) -> Any:
        calls.append(query.shape[2])
        return plain(module, query, *args, **options)

    monkeypatch.setattr(attention, "sdpa_attention_forward", counted)
    return calls


def _tokens(*lengths: int) -> list[list[int]]:
    rng = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(3, 64, (length,), generator=rng).tolist() for length in lengths]


PROMPTS = [*(prompts := _tokens(4, 9, 6)), prompts[0]]
COMPLETIONS = _tokens(80, 70, 12, 79)


def _rows() -> SharedPrompts:
    """Completions of three blocks behind prompts of three lengths."""
    return SharedPrompts.of(PROMPTS, COMPLETIONS, 0, torch.device("cpu"))
