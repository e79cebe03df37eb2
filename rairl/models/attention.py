"""Attention in place of torch's own: completions and the prompts they share, in one pass over both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import Module
from transformers import AttentionInterface, Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

BLOCK = 32
"""Queries of a block: as many as torch's kernel for processors takes at a time (docs/performance.md)."""
BY_CACHE = "by_cache"


class States(Protocol):
    """What a cache of ours gives a layer in place of keys and values: they know how to be attended to."""

    def attend(self, module: Module, query: Tensor, **options: Any) -> Tensor:
        """What queries ``(B, A, T, D)`` find, ``(B, T, A, D)``; options are those of torch's own attention."""


def attend(
    module: Module, query: Tensor, key: States, value: States, mask: None, **options: Any
) -> tuple[Tensor, None]:
    """The attention of a model whose cache is one of ours.

    Raises:
        ValueError: the model adds to its attention what softmax attention alone doesn't have.
    """
    more = [name for name in ("position_bias", "softcap", "s_aux") if options.get(name) is not None]
    if more:
        raise ValueError(f"the attention of {type(module).__name__} has {more[0]}, which rairl doesn't know")
    return key.attend(module, query, **options), None


AttentionInterface.register(BY_CACHE, attend)


def replaceable(model: PreTrainedModel) -> bool:
    """Whether a model's layers attend by torch's own attention to all that came before, so that ours can stand in.

    Others have sliding windows, a state of their own, keys that are cached compressed, or kernels of other libraries.
    """
    compressed = getattr(model.config, "kv_lora_rank", None) is not None
    if model.config._attn_implementation != "sdpa" or compressed or not model.is_backend_compatible():
        return False
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


@contextmanager
def by_cache(model: PreTrainedModel) -> Iterator[None]:
    """Let a model that attends by torch's own attention do so by the cache that it is called with, which is ours."""
    model.set_attn_implementation(BY_CACHE)
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")


class OnePass(Cache):
    """No cache but a layout: prompts' heads ``(P, H)``, then completions' tails ``(B, T)``, all in one row of tokens.

    Args:
        heads, tails: the two shapes.
        owner: ``(B,)``, index of each tail's head.
        look: where tails look, ``(B, 1, T, H + T)``, causal.
    """

    def __init__(self, heads: tuple[int, int], tails: tuple[int, int], owner: Tensor, look: Tensor) -> None:
        super().__init__(layers=[])
        self.heads, self.tails, self.owner, self.look = heads, tails, owner, look

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """What stands in for keys and values, each ``(1, A, P * H + B * T, D)``; nothing is kept."""
        states = RowStates(self, key_states, value_states)
        return states, states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Nothing came before."""
        return 0

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Heads ``(P, A, H, D)`` and tails ``(B, A, T, D)`` of ``(1, A, P * H + B * T, D)``."""
        parts = x[0].split([prod(self.heads), prod(self.tails)], 1)
        head, tail = (part.unflatten(1, shape) for part, shape in zip(parts, (self.heads, self.tails), strict=True))
        return head.transpose(0, 1), tail.transpose(0, 1)


@dataclass(frozen=True)
class RowStates:
    """Keys and values of one row, ``(1, A, P * H + B * T, D)``."""

    row: OnePass
    keys: Tensor
    values: Tensor

    def attend(self, module: Module, query: Tensor, **options: Any) -> Tensor:
        """Torch's attention of heads to themselves, and of tails to their heads and themselves."""
        (head, tail), keys, values = self.row.split(query), self.row.split(self.keys), self.row.split(self.values)
        of_heads, _ = sdpa_attention_forward(module, head, keys[0], values[0], None, **options)
        seen, said = (
            torch.cat([of_head.index_select(0, self.row.owner), of_tail], 2) for of_head, of_tail in (keys, values)
        )
        of_tails = attend_in_blocks(module, tail, seen, said, self.row.look, **options)
        return torch.cat([of_heads.flatten(0, 1), of_tails.flatten(0, 1)])[None]


def attend_in_blocks(module: Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **options: Any) -> Tensor:
    """Torch's attention of ``(B, A, T, D)`` queries to ``(B, A', L, D)`` keys, whose last T tokens they are.

    Under a mask torch's kernel for processors computes every pair. In blocks of queries, each over no keys behind it,
    it computes half as many; a GPU would get many small kernels, and gradients as many small sums.

    Args:
        mask: causal, ``(B, 1, T, L)``; true where a query looks.
    """
    length, before = query.shape[2], key.shape[2] - query.shape[2]
    size = length if torch.is_grad_enabled() or query.device.type != "cpu" else BLOCK
    parts = []
    for start in range(0, length, size):
        end = before + start + size
        block = query[:, :, start : start + size], key[:, :, :end], value[:, :, :end]
        parts.append(sdpa_attention_forward(module, *block, mask[:, :, start : start + size, :end], **options)[0])
    return torch.cat(parts, 1) if len(parts) > 1 else parts[0]
