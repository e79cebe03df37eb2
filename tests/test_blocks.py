"""Attention in blocks says what attention over all keys says, in every kind of model that takes it."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from conftest import small_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel

from rairl.models import blocks
from rairl.models.policy import SharedPrompts


@settings(deadline=None, max_examples=40)
@given(
    before=st.integers(0, 9),
    length=st.integers(1, 3 * blocks.BLOCK),
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
    found, _ = blocks.attend_in_blocks(module, query, key, value, mask, scaling=0.4)
    expected = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.4, enable_gqa=True)
    torch.testing.assert_close(found, expected.transpose(1, 2), atol=1e-5, rtol=1e-5)


KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"head_dim": 8},
    "gpt_neox": {},
    "opt": {},
    "mistral": {"sliding_window": 20},
    "gemma3_text": {"head_dim": 8, "sliding_window": 20},
    "mixtral": {},
    "deepseek_v3": {},
    "bloom": {},
}


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_models_say_in_blocks_what_they_say_at_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = _model(kind), _rows()
    kept = model.config._attn_implementation
    calls = _count(monkeypatch)
    found = rows.read(model, output_hidden_states=True)
    assert model.config._attn_implementation == kept
    # Bloom adds to its scores what torch's attention does not know, and has its own.
    assert len(calls) == (0 if kind == "bloom" else 2 * 3)
    monkeypatch.setattr(blocks, "in_blocks", lambda model: nullcontext())
    expected = rows.read(model, output_hidden_states=True)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-4)
    for one, other in zip(found.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_gradients_go_through_torchs_own_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _count(monkeypatch)
    assert _rows().read(_model("llama")).logits.requires_grad and not calls


def _count(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of queries in each of the blocks that are computed from here on."""
    calls: list[int] = []
    plain = blocks.sdpa_attention_forward

    def counted(module: Any, query: torch.Tensor, *args: Any, **options: Any) -> Any:
        calls.append(query.shape[2])
        return plain(module, query, *args, **options)

    monkeypatch.setattr(blocks, "sdpa_attention_forward", counted)
    return calls


def _model(kind: str) -> PreTrainedModel:
    return small_model(kind, max_position_embeddings=128, **KINDS[kind])


def _rows() -> SharedPrompts:
    """Completions of three blocks behind prompts of three lengths."""
    rng = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 64, (length,), generator=rng).tolist() for length in (4, 9, 6)]
    completions = [torch.randint(3, 64, (length,), generator=rng).tolist() for length in (80, 70, 12, 79)]
    return SharedPrompts.of([*prompts, prompts[0]], completions, 0, torch.device("cpu"))
