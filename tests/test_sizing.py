"""The counts of docs/scaling.md, held against models that really run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from rairl.core.training_params import PolicyParams
from rairl.learn.policy_step import policy_loss
from rairl.models.adapters import add_lora, twin
from rairl.models.reading import SharedPrompts
from rairl.preflight.sizing import (
    FITTING,
    GB,
    LLAMA_8B,
    PUBLISHED,
    Architecture,
    Gpu,
    Plan,
    hours,
    memory,
    seconds,
    table,
)

SMALL = [
    Architecture(hidden=64, intermediate=160, layers=2, heads=4, kv_heads=4, vocabulary=128),
    Architecture(hidden=96, intermediate=320, layers=3, heads=6, kv_heads=2, vocabulary=200, tied=True),
]


def build(it: Architecture) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=it.vocabulary, hidden_size=it.hidden, intermediate_size=it.intermediate,
            num_hidden_layers=it.layers, num_attention_heads=it.heads, num_key_value_heads=it.kv_heads,
            tie_word_embeddings=it.tied, attn_implementation="eager",
        )
    )  # fmt: skip


def count(parameters: Any) -> int:
    return sum(parameter.numel() for parameter in parameters)


def test_the_weights_of_a_model_are_counted_right() -> None:
    assert [it.parameters for it in SMALL] == [count(build(it).parameters()) for it in SMALL]
    assert LLAMA_8B.parameters == 8_030_261_248  # as published


@pytest.mark.parametrize("it", SMALL)
def test_the_adapters_their_gradients_and_adam_take_sixteen_bytes_each(it: Architecture) -> None:
    model = add_lora(build(it), 8, seed=0)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert it.adapters(8) == count(trained)
    optimizer = torch.optim.AdamW(trained)
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = sum(
        value.nbytes for it in optimizer.state.values() for value in it.values() if value.ndim and value.numel() > 1
    )
    assert sum(2 * parameter.nbytes for parameter in trained) + state == 16 * it.adapters(8)


@pytest.mark.parametrize("it", SMALL)
def test_the_cache_of_a_token_is_counted_right(it: Architecture) -> None:
    model = build(it).to(torch.bfloat16)
    cache = DynamicCache(config=model.config)
    model(input_ids=torch.zeros(3, 11, dtype=torch.long), past_key_values=cache)
    measured = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert measured == 33 * it.cache()


def kept(model: LlamaForCausalLM, compute: Callable[[], Any]) -> int:
    """Bytes that autograd keeps for the backward pass, weights left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = compute()
    del result
    return sum(seen.values())


@pytest.mark.parametrize("it", SMALL)
def test_what_the_backward_pass_keeps_of_a_token_is_counted_within_a_tenth(it: Architecture) -> None:
    """In the policy's real loss, with the logits' float32 log-softmax (4 bytes each) as what is kept beyond it."""
    model = build(it).to(torch.bfloat16)
    model.set_attn_implementation("sdpa")
    reference = twin(model)
    add_lora(model, 8, seed=0)
    ids = torch.randint(0, it.vocabulary, (4, 64), generator=torch.Generator().manual_seed(0))
    rows = SharedPrompts.of(ids[:, :1].tolist(), ids[:, 1:].tolist(), 0, ids.device)
    advantages = torch.zeros(4, 64)
    advantages[:, 0] = float("nan")
    measured = kept(
        model,
        lambda: policy_loss(model, reference, rows, advantages, temperature=1.0, kl=0.1),
    )
    assert measured / ids.numel() == pytest.approx(it.activations(8) + 4 * it.vocabulary, rel=0.1)


@pytest.mark.parametrize("it", SMALL)
def test_the_arithmetic_of_a_token_is_counted_within_a_fiftieth(it: Architecture) -> None:
    model = build(it)
    ids = torch.zeros(2, 48, dtype=torch.long)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model(input_ids=ids, use_cache=False)
    assert forward.get_total_flops() / ids.numel() == pytest.approx(it.forward(48), rel=0.02)


def test_a_policy_update_with_frozen_weights_costs_three_forward_passes() -> None:
    """Reference, forward, and back through the activations; the adapters' own share vanishes with the rank."""
    it = SMALL[0]
    model = build(it)
    reference = twin(model)
    add_lora(model, 1, seed=0)
    ids = torch.zeros(2, 48, dtype=torch.long)
    rows = SharedPrompts.of(ids[:, :1].tolist(), ids[:, 1:].tolist(), 0, ids.device)
    advantages = torch.zeros(2, 48)
    advantages[:, 0] = float("nan")
    with FlopCounterMode(display=False) as counter:
        policy_loss(model, reference, rows, advantages, temperature=1.0, kl=0.1).loss.backward()
    # attention's backward pass multiplies both ways: one forward pass more, of attention alone
    attention = 4 * it.layers * it.hidden * 48
    assert counter.get_total_flops() / ids.numel() == pytest.approx(3 * it.forward(48) + attention, rel=0.1)


def test_the_plan_is_what_the_code_does() -> None:
    assert PUBLISHED.rows == 128 and PUBLISHED.tokens == 143_872
    assert PUBLISHED.micro_batch == PolicyParams.model_fields["micro_batch_tokens"].default


def test_memory_is_the_sum_of_what_is_held_and_the_largest_of_what_passes() -> None:
    parts = memory(FITTING, 8)
    held = parts["policy"] + parts["reward"] + parts["adapters, gradients, Adam"]
    passing = max(parts["generate"], parts["update policy"], parts["update reward"])
    assert parts["peak"] == held + passing
    assert parts["policy"] == 2 * LLAMA_8B.parameters
    assert memory(FITTING, 1)["generate"] == pytest.approx(8 * parts["generate"])  # rows are shared
    # 128 completions of 824 tokens and 16 prompts of 300, 131,072 bytes of keys and values each
    assert memory(PUBLISHED, 1)["generate"] == (128 * 824 + 16 * 300) * 131_072
    assert memory(FITTING, 64)["peak"] < Gpu().memory < memory(PUBLISHED, 8)["peak"]


def test_more_gpus_share_all_but_decoding() -> None:
    gpu = Gpu()
    one, eight = seconds(FITTING, 1, gpu), seconds(FITTING, 8, gpu)
    assert eight["generate"] == one["generate"] == FITTING.completion * gpu.per_token
    assert eight["score"] == pytest.approx(one["score"] / 8)
    assert one["sum gradients"] == 0 < eight["sum gradients"]
    assert hours(FITTING, 64, gpu) < hours(FITTING, 8, gpu) < hours(FITTING, 1, gpu)
    slow = replace(gpu, per_token=0.0, bandwidth=gpu.bandwidth / 100)
    assert seconds(FITTING, 1, slow)["generate"] > 10 * one["generate"]  # then the memory is what limits
    longer: Plan = replace(FITTING, iterations=2 * FITTING.iterations, warmup_updates=0)
    assert hours(longer, 1, gpu) == pytest.approx(2 * hours(replace(longer, iterations=FITTING.iterations), 1, gpu))


def test_the_page_shows_what_the_formula_gives() -> None:
    page = (Path(__file__).parents[1] / "docs" / "scaling.md").read_text()
    for plan in (PUBLISHED, FITTING):
        assert table(plan, Gpu()) in page
    assert f"{LLAMA_8B.activations(256) / 1e6:.1f} MB" in page
    assert f"{LLAMA_8B.adapters(256) / GB:.2f} billion" in page
