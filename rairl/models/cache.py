"""A key-value cache for sampling: the keys and values of a prompt are kept, and read, once for all its samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from transformers import AttentionInterface, Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

SPARE = 4
"""Tokens of room behind a sample's last one whenever its keys are copied, so that one token in five costs a copy.

Not more: the room is a gap between the keys of one head and the next, and a processor's prefetching may break off at
gaps of 8 tokens, which makes reading them three times as slow (docs/performance.md)."""


@dataclass(frozen=True)
class Grid:
    """Samples in the order of their prompts, so that one product serves all samples of a prompt.

    Attributes:
        samples: ``(P, N)``, the samples of each prompt in order; where it has fewer than N, others fill its places.
        places: ``(B,)``, where each sample is in ``samples``, flattened; with none to fill, each is in its own place.
        full: whether every prompt has N samples, so that rows need only another order.
    """

    samples: Tensor
    places: Tensor
    full: bool

    @classmethod
    def of(cls, owner: Tensor) -> Grid:
        """From each sample's prompt ``(B,)``: numbers from 0, none left out, in ascending order."""
        counts = owner.bincount()
        starts = counts.cumsum(0) - counts
        every = torch.arange(len(owner), device=owner.device)
        places = owner * counts.max() + every - starts[owner]
        samples = every.new_zeros(len(counts), int(counts.max()))
        samples.view(-1)[places] = every
        return cls(samples, places, samples.numel() == len(places))

    def spread(self, x: Tensor, heads: int) -> Tensor:
        """``(B * heads, G, E)`` of the samples as ``(P * heads, N * G, E)`` of their prompts."""
        prompts, n = self.samples.shape
        if not self.full:
            x = x.reshape(-1, heads, *x.shape[1:]).index_select(0, self.samples.view(-1))
        rows = x.reshape(prompts, n, heads, -1, x.shape[-1])
        return rows.transpose(1, 2).reshape(prompts * heads, -1, x.shape[-1])

    def gather(self, x: Tensor, heads: int) -> Tensor:
        """``(P * heads, N * G, E)`` of the prompts as ``(B * heads, G, E)`` of their samples."""
        prompts, n = self.samples.shape
        rows = x.reshape(prompts, heads, n, -1, x.shape[-1]).transpose(1, 2)
        if not self.full:
            rows = rows.reshape(-1, heads, *rows.shape[3:]).index_select(0, self.places)
        return rows.reshape(len(self.places) * heads, -1, x.shape[-1])


class SampleLayer(DynamicLayer):
    """A layer of samples: their prompts' keys and values, each once, and those of the tokens drawn since.

    Attributes:
        prompts: keys and values of the prompts, each ``(P, H, L, D)``.
        products: the same as products take them, ``(P * H, D, L)`` and ``(P * H, L, D)``.
        bias: added to what a query says of a prompt's keys, ``(P * H, 1, L)``: -inf where the prompt is padded, else 0.
        grid: which samples are whose.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor, mask: Tensor, grid: Grid) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self._keep(keys, values, mask)
        self.grid = grid
        self.keys, self.values = (part[:1, :, :0].repeat(len(grid.places), 1, 1, 1) for part in (keys, values))
        self.buffers: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Append ``(B, H, 1, D)`` keys and values; returns the layer in their place, as :func:`attend` takes it."""
        seen = self.keys.shape[-2]
        if not self.buffers or seen == self.buffers[0].shape[-2]:
            pairs = ((self.keys, key_states), (self.values, value_states))
            self.buffers = [torch.cat([*pair, pair[1].new_empty(_spare(pair[1]))], dim=-2) for pair in pairs]
        else:
            for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
                buffer[:, :, seen : seen + 1] = states
        self.keys, self.values = (buffer[:, :, : seen + 1] for buffer in self.buffers)
        return self, self

    def select(self, samples: Tensor, prompts: Tensor, mask: Tensor, grid: Grid) -> None:
        """Keep some samples ``(B',)`` and their prompts ``(P',)``, whose masks are given, laid out anew."""
        self.keys, self.values = (part.index_select(0, samples) for part in (self.keys, self.values))
        self.buffers, self.grid = [], grid
        if len(prompts) < len(self.prompts[0]):
            keys, values = (part.index_select(0, prompts) for part in self.prompts)
            self._keep(keys, values, mask)

    def _keep(self, keys: Tensor, values: Tensor, mask: Tensor) -> None:
        padding = keys.new_zeros(mask.shape).masked_fill(mask == 0, float("-inf"))
        self.prompts = keys, values
        self.products = keys.flatten(0, 1).transpose(1, 2), values.flatten(0, 1)
        self.bias = padding.repeat_interleave(keys.shape[1], 0)[:, None]

    def get_seq_length(self) -> int:
        """Tokens that the next one has before it, padding included."""
        return self.prompts[0].shape[-2] + super().get_seq_length()

    def attend(self, query: Tensor, scaling: float) -> Tensor:
        """Softmax attention of queries ``(B, H', 1, D)``, one or more to a key's head, to all that came before."""
        heads, length = self.keys.shape[1], self.bias.shape[-1]
        queries = (query * scaling).reshape(len(query) * heads, -1, query.shape[-1])
        keys, values = self.products
        own_keys, own_values = self.keys.flatten(0, 1), self.values.flatten(0, 1)
        to_prompt = torch.baddbmm(self.bias, self.grid.spread(queries, heads), keys)
        to_own = torch.bmm(queries, own_keys.transpose(1, 2))
        # Side by side where the prompts' samples are together, since there are fewer of a sample's own keys to move.
        weights = torch.cat([to_prompt, self.grid.spread(to_own, heads)], -1).softmax(-1, dtype=torch.float32)
        weights = weights.to(query.dtype)
        of_prompt = self.grid.gather(torch.bmm(weights[..., :length], values), heads)
        of_own = torch.bmm(self.grid.gather(weights[..., length:], heads), own_values)
        return (of_prompt + of_own).reshape(*query.shape[:3], -1)


class SampleCache(Cache):
    """The cache of ``n`` samples of each of the prompts that a cache holds, of ``(P, L)`` tokens by their mask."""

    def __init__(self, prompts: DynamicCache, mask: Tensor, n: int) -> None:
        self.mask = mask
        self.owner = torch.arange(len(mask), device=mask.device).repeat_interleave(n)
        grid = Grid.of(self.owner)
        super().__init__(layers=[SampleLayer(layer.keys, layer.values, mask, grid) for layer in prompts.layers])

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the samples at ``indices``, which ascend, and no prompt that has none left."""
        left, self.owner = self.owner[indices].unique(return_inverse=True)
        self.mask = self.mask[left]
        grid = Grid.of(self.owner)
        for layer in self.layers:
            layer.select(indices, left, self.mask, grid)


def attend(module: Module, query: Tensor, key: Any, value: Any, mask: None, **options: Any) -> tuple[Tensor, None]:
    """The attention of a model whose cache is a :class:`SampleCache`: in place of keys there is the cache's layer.

    Raises:
        ValueError: the model adds to its attention what softmax attention alone doesn't have.
    """
    more = [name for name in ("position_bias", "softcap", "s_aux") if options.get(name) is not None]
    if more:
        raise ValueError(f"the attention of {type(module).__name__} has {more[0]}: sampling doesn't know such models")
    scaling = options.get("scaling")
    return key.attend(query, query.shape[-1] ** -0.5 if scaling is None else scaling).transpose(1, 2), None


SHARED = "shared_prompts"
AttentionInterface.register(SHARED, attend)


@contextmanager
def sampling(model: PreTrainedModel, prompts: DynamicCache, mask: Tensor, n: int) -> Iterator[Cache]:
    """The cache to draw ``n`` samples of each prompt with, made from the prompts' own and their mask ``(P, L)``.

    Where a model's attention isn't torch's own over all that came before (sliding windows, kernels of other libraries,
    keys that are cached compressed) it is the prompts' cache, repeated.
    """
    kept = model.config._attn_implementation
    plain = all(type(layer) is DynamicLayer for layer in prompts.layers)
    compressed = getattr(model.config, "kv_lora_rank", None) is not None
    if kept != "sdpa" or not plain or compressed or not model.is_backend_compatible():
        prompts.batch_repeat_interleave(n)
        yield prompts
        return
    model.set_attn_implementation(SHARED)
    try:
        yield SampleCache(prompts, mask, n)
    finally:
        model.set_attn_implementation(kept)


def _spare(states: Tensor) -> tuple[int, ...]:
    return *states.shape[:2], SPARE, states.shape[-1]
