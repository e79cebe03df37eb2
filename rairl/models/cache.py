"""A key-value cache for sampling: transformers' own copies all of itself for every token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

SPARE = 2
"""Tokens of room behind a layer's last one whenever it is copied, so that one token in three costs a copy.

Not more: the room is a gap between the keys of one head and the next, and with 8 tokens of it or more a processor's
prefetching breaks off at each gap, which makes reading them three times as slow (docs/performance.md)."""


class SpareLayer(DynamicLayer):
    """A layer whose keys and values are the front of buffers with room for the next tokens."""

    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.buffers: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append ``(B, H, T, D)`` keys and values; returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        seen = self.get_seq_length()
        end = seen + key_states.shape[-2]
        if self.buffers and end <= self.buffers[0].shape[-2]:
            for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
                buffer[:, :, seen:end] = states
        else:
            pairs = ((self.keys, key_states), (self.values, value_states))
            self.buffers = [torch.cat([*pair, pair[1].new_empty(_spare(pair[1]))], dim=-2) for pair in pairs]
        self.keys, self.values = (buffer[:, :, :end] for buffer in self.buffers)
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row ``repeats`` times."""
        super().batch_repeat_interleave(repeats)
        self.buffers = []

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows at ``indices``."""
        super().batch_select_indices(indices)
        self.buffers = []


def _spare(states: Tensor) -> tuple[int, ...]:
    return *states.shape[:2], SPARE, states.shape[-1]


def sampling_cache(config: PreTrainedConfig) -> DynamicCache:
    """An empty cache; layers of other kinds, such as sliding windows, are those of transformers."""
    cache = DynamicCache(config=config)
    cache.layers = [SpareLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
