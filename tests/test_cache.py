"""The cache of sampling: what a sample's token attends to is what full keys say, and so the samples are the same."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import examples, small_model
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from transformers import DynamicCache
from transformers.cache_utils import DynamicSlidingWindowLayer

from rairl.core.traces import Trace
from rairl.learn import rollouts
from rairl.models.cache import SPARE, Grid, SampleCache, SampleLayer, sampling
from rairl.models.policy import load_policy


def test_a_grid_by_hand() -> None:
    """Prompts 0, 1 and 2 have two samples, one and three, of two heads: 2 x (1 + 2) places of 18 are filled by others.

    The model's heads are 0 to 11, sample by sample.
    """
    grid = Grid.of(torch.tensor([0, 0, 1, 2, 2, 2]), heads=2)
    assert grid.order.tolist() == [0, 2, 1, 3, 4, 5, 6, 8, 10, 7, 9, 11]
    assert grid.order[grid.back].equal(torch.arange(12))
    assert grid.places.tolist() == [0, 1, 3, 4, 6, 9, 12, 13, 14, 15, 16, 17]
    assert grid.filled is not None and grid.filled[grid.places].equal(torch.arange(12)) and len(grid.filled) == 18
    assert Grid.of(torch.tensor([0, 0, 1, 1]), heads=2).filled is None


@given(counts=st.lists(st.integers(1, 4), min_size=1, max_size=4), heads=st.integers(1, 3), group=st.integers(1, 2))
def test_gathering_undoes_spreading(counts: list[int], heads: int, group: int) -> None:
    owner = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    grid, x = Grid.of(owner, heads), torch.randn(len(owner) * heads, group, 5)
    spread = grid.spread(x, len(counts) * heads)
    assert spread.shape == (len(counts) * heads, max(counts) * group, 5)
    assert grid.gather(spread, group).equal(x)


@examples(40)
@given(
    steps=st.lists(st.sampled_from(["token", "token", "token", "select"]), min_size=1, max_size=16),
    group=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_attention_is_that_over_full_keys(steps: list[str], group: int, seed: int) -> None:
    """Whatever is drawn and dropped: torch's own attention over all keys, the prompt's repeated for each sample."""
    rng = torch.Generator().manual_seed(seed)
    prompts, heads, length, width, n = 3, 2, 5, 4, 3
    read = DynamicCache()
    read.update(*torch.randn(2, prompts, heads, length, width, generator=rng), 0)
    mask = torch.ones(prompts, length, dtype=torch.long)
    mask[1, :2] = 0
    cache = SampleCache(read, mask, n)
    keys, values = (part.repeat_interleave(n, 0) for part in (read.layers[0].keys, read.layers[0].values))
    seen = mask.repeat_interleave(n, 0).bool()
    for step in steps:
        if step == "select":
            keep = (torch.rand(len(keys), generator=rng) < 0.7).nonzero().squeeze(-1)
            if len(keep):
                cache.batch_select_indices(keep)
                keys, values, seen = keys[keep], values[keep], seen[keep]
            continue
        new = torch.randn(2, len(keys), heads, 1, width, generator=rng)
        layer, _ = cache.update(*new, 0)
        keys, values = torch.cat([keys, new[0]], 2), torch.cat([values, new[1]], 2)
        seen = torch.nn.functional.pad(seen, (0, 1), value=True)
        assert cache.get_seq_length() == keys.shape[2]
        query = torch.randn(len(keys), heads * group, 1, width, generator=rng)
        expected = scaled_dot_product_attention(
            query, keys, values, attn_mask=seen[:, None, None], scale=0.5, enable_gqa=True
        )
        found = layer.attend(torch.nn.Module(), query, scaling=0.5)
        torch.testing.assert_close(found, expected.transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_one_token_in_a_few_costs_a_copy() -> None:
    keys = torch.randn(1, 1, 3, 4)
    mask = torch.ones(1, 3)
    layer, copies = SampleLayer(keys, keys, mask, Grid.of(torch.zeros(1, dtype=torch.long), heads=1)), []
    for _ in range(3 * (SPARE + 1)):
        layer.update(*torch.randn(2, 1, 1, 1, 4))
        copies.append(layer.buffers[0].data_ptr())
    assert sum(before != after for before, after in pairwise(copies)) == 2


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma", "phi3", "gpt_neox", "opt", "mixtral"])
@torch.inference_mode()
def test_models_say_of_samples_what_they_say_of_whole_sequences(kind: str) -> None:
    model, read, mask, ids = _prompts(kind)
    rng = torch.Generator().manual_seed(1)
    n = 3
    ids, seen = ids.repeat_interleave(n, 0), mask.repeat_interleave(n, 0)
    with sampling(model, read, mask, n) as cache:
        assert isinstance(cache, SampleCache)
        for step in range(8):
            if step in (0, 4):  # before the first token, and later so that a prompt has none left
                keep = torch.tensor([0, 2, 3, 4, 5, 8]) if step == 0 else torch.tensor([1, 5])
                cache.batch_select_indices(keep)
                ids, seen = ids[keep], seen[keep]
            token = torch.randint(3, 64, (len(ids), 1), generator=rng)
            ids, seen = torch.cat([ids, token], 1), torch.nn.functional.pad(seen, (0, 1), value=1)
            position = seen.cumsum(-1) - 1
            said = model(
                input_ids=token, attention_mask=seen, position_ids=position[:, -1:], past_key_values=cache
            ).logits
    assert model.config._attn_implementation == "sdpa"
    whole = model(input_ids=ids, attention_mask=seen, position_ids=position.clamp(min=0), use_cache=False).logits
    torch.testing.assert_close(said[:, -1], whole[:, -1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["gemma2", "gpt_oss", "bloom", "gemma3_text", "deepseek_v3"])
def test_other_kinds_of_attention_keep_the_cache_of_transformers(kind: str) -> None:
    model, read, mask, _ = _prompts(kind)
    kept, layers = model.config._attn_implementation, [type(layer) for layer in read.layers]
    with sampling(model, read, mask, 2) as cache:
        assert cache is read and [type(layer) for layer in cache.layers] == layers
        assert model.config._attn_implementation == kept
    if kind.startswith("gemma"):
        assert DynamicSlidingWindowLayer in layers


def _prompts(kind: str) -> tuple[Any, DynamicCache, torch.Tensor, torch.Tensor]:
    """A tiny random model, the cache of three prompts, two of them padded, their mask and ids."""
    model = small_model(kind)
    ids = torch.randint(3, 64, (3, 6))
    mask = torch.ones_like(ids)
    mask[0, :3] = mask[2, :1] = 0
    read = DynamicCache(config=model.config)
    position = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.inference_mode():
        model(input_ids=ids, attention_mask=mask, position_ids=position, past_key_values=read)
    return model, read, mask, ids


def test_samples_are_those_drawn_with_the_cache_of_transformers(
    tiny_policy: Path, demos: list[Trace], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load_policy(tiny_policy)
    problems = [trace.problem for trace in demos[:6]]
    options = {"n": 4, "max_new_tokens": 40, "temperature": 1.0, "seed": 5}
    ours = rollouts.sample(model, tokenizer, problems, **options)

    @contextmanager
    def repeated(model: Any, read: DynamicCache, mask: torch.Tensor, n: int) -> Any:
        read.batch_repeat_interleave(n)
        yield read

    monkeypatch.setattr("rairl.models.cache.sampling", repeated)
    theirs = rollouts.sample(model, tokenizer, problems, **options)
    assert [item.ids for item in theirs] == [item.ids for item in ours]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.logprobs == pytest.approx(other.logprobs, abs=1e-5)
