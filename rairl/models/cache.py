"""A key-value cache for sampling: the keys and values of a prompt are kept, and read, once for all its samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from rairl.models.attention import by_cache, replaceable

SPARE = 4
"""Tokens of room behind a sample's last one whenever its keys are copied, so that one token in five costs a copy.

Not more: the room is a gap between the keys of one head and the next, and a processor's prefetching may break off at
gaps of 8 tokens, which makes reading them three times as slow (docs/performance.md)."""


@dataclass(frozen=True)
class Grid:
    """Samples' heads in the order of their prompts' heads, so that one product serves all samples of a prompt.

    A model gives heads sample by sample, ``(B, H)``; here they are in the order of prompt, head, sample. Products with
    prompts' keys want N samples of each prompt, ``(P * H, N)``, so where some have fewer, others fill their places.

    Attributes:
        order: ``(B * H,)``, which of the model's heads comes where in this order.
        back: ``(B * H,)``, where each of the model's heads is in this order.
        filled: ``(P * H * N,)``, which one of this order is in each place; None where all prompts have N samples.
        places: ``(B * H,)``, the place of each one of this order.
    """

    order: Tensor
    back: Tensor
    filled: Tensor | None
    places: Tensor

    @classmethod
    def of(cls, owner: Tensor, heads: int) -> Grid:
        """From each sample's prompt ``(B,)``: numbers from 0, none left out, in ascending order."""
        counts = owner.bincount()
        n = int(counts.max())
        every, head = (torch.arange(size, device=owner.device) for size in (len(owner), heads))
        rank = every - (counts.cumsum(0) - counts)[owner]
        places, order = ((owner[:, None] * heads + head) * n + rank[:, None]).flatten().sort()
        if len(places) == len(counts) * heads * n:
            return cls(order, order.argsort(), None, places)
        filled = order.new_zeros(len(counts) * heads * n)
        filled[places] = torch.arange(len(places), device=owner.device)
        return cls(order, order.argsort(), filled, places)

    def spread(self, x: Tensor, prompts: int) -> Tensor:
        """``(B * H, G, E)`` in this order as ``(P * H, N * G, E)``, by the number of prompts' heads."""
        rows = x if self.filled is None else x.index_select(0, self.filled)
        return rows.reshape(prompts, -1, x.shape[-1])

    def gather(self, x: Tensor, group: int) -> Tensor:
        """``(P * H, N * G, E)`` as ``(B * H, G, E)`` in this order, by the number of queries to a head."""
        rows = x.view(-1, group, x.shape[-1])
        return rows if self.filled is None else rows.index_select(0, self.places)


class SampleLayer(DynamicLayer):
    """A layer of samples: their prompts' keys and values, each once, and those of the tokens drawn since.

    Attributes:
        prompts: keys and values of the prompts, each ``(P, H, L, D)``.
        products: the same as products take them, ``(P * H, D, L)`` and ``(P * H, L, D)``.
        bias: added to what a query says of a prompt's keys, ``(P * H, 1, L)``: -inf where the prompt is padded, else 0.
        grid: which samples are whose.
        keys, values: of the tokens drawn since, in the grid's order, ``(B * H, T, D)`` and ``(B * H, D, T)``: torch's
            products of few and small matrices run along the second one's rows, so those are to be the long ones.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor, mask: Tensor, grid: Grid) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self._keep(keys, values, mask)
        self.grid = grid
        self.keys = keys.new_empty(len(grid.order), 0, keys.shape[-1])
        self.values = values.new_empty(len(grid.order), values.shape[-1], 0)
        self.buffers: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Append ``(B, H, 1, D)`` keys and values; returns the layer in their place, as our attention takes it."""
        seen = self.keys.shape[1]
        key, value = self._ordered(key_states)[:, None], self._ordered(value_states)[..., None]
        if not self.buffers or seen == self.buffers[0].shape[1]:
            self.buffers = [
                torch.cat([self.keys, key.expand(-1, SPARE + 1, -1)], 1),
                torch.cat([self.values, value.expand(-1, -1, SPARE + 1)], 2),
            ]
        else:
            self.buffers[0][:, seen : seen + 1] = key
            self.buffers[1][:, :, seen : seen + 1] = value
        self.keys, self.values = self.buffers[0][:, : seen + 1], self.buffers[1][:, :, : seen + 1]
        return self, self

    def select(self, samples: Tensor, prompts: Tensor, mask: Tensor, grid: Grid) -> None:
        """Keep some samples ``(B',)`` and their prompts ``(P',)``, whose masks are given, laid out anew."""
        heads = self.prompts[0].shape[1]
        left = self.grid.back.view(-1, heads)[samples].flatten()[grid.order]
        self.keys, self.values = (part.index_select(0, left) for part in (self.keys, self.values))
        self.buffers, self.grid = [], grid
        if len(prompts) < len(self.prompts[0]):
            keys, values = (part.index_select(0, prompts) for part in self.prompts)
            self._keep(keys, values, mask)

    def _keep(self, keys: Tensor, values: Tensor, mask: Tensor) -> None:
        padding = keys.new_zeros(mask.shape).masked_fill(mask == 0, float("-inf"))
        self.prompts = keys, values
        self.products = keys.flatten(0, 1).transpose(1, 2), values.flatten(0, 1)
        self.bias = padding.repeat_interleave(keys.shape[1], 0)[:, None]

    def _ordered(self, states: Tensor) -> Tensor:
        """``(B, H * G, 1, D)`` as ``(B * H, G * D)`` in the grid's order."""
        return states.reshape(len(self.grid.order), -1).index_select(0, self.grid.order)

    def get_seq_length(self) -> int:
        """Tokens that the next one has before it, padding included."""
        return self.prompts[0].shape[-2] + self.keys.shape[1]

    def attend(self, module: Module, query: Tensor, *, scaling: float | None = None, **options: Any) -> Tensor:
        """Softmax attention of queries ``(B, H', 1, D)``, one or more to a key's head, to all that came before."""
        keys, values = self.products
        prompts, width, length = keys.shape
        queries = (self._ordered(query) * (width**-0.5 if scaling is None else scaling)).view(len(self.keys), -1, width)
        to_prompt = torch.baddbmm(self.bias, self.grid.spread(queries, prompts), keys)
        to_own = torch.bmm(queries, self.keys.transpose(1, 2))
        weights = torch.cat([self.grid.gather(to_prompt, queries.shape[1]), to_own], -1)
        weights = weights.softmax(-1, dtype=torch.float32).to(query.dtype)
        of_prompt = torch.bmm(self.grid.spread(weights[..., :length], prompts), values)
        of_own = torch.bmm(weights[..., length:], self.values.transpose(1, 2))
        seen = self.grid.gather(of_prompt, queries.shape[1]) + of_own
        return seen.flatten(1).index_select(0, self.grid.back).view(len(query), 1, query.shape[1], -1)


class SampleCache(Cache):
    """The cache of ``n`` samples of each of the prompts that a cache holds, of ``(P, L)`` tokens by their mask."""

    def __init__(self, prompts: DynamicCache, mask: Tensor, n: int) -> None:
        self.mask = mask
        self.owner = torch.arange(len(mask), device=mask.device).repeat_interleave(n)
        kept = [(layer.keys, layer.values) for layer in prompts.layers]
        grids = self._grids([keys for keys, _ in kept])
        super().__init__(layers=[SampleLayer(*pair, mask, grid) for pair, grid in zip(kept, grids, strict=True)])

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the samples at ``indices``, which ascend, and no prompt that has none left."""
        left, self.owner = self.owner[indices].unique(return_inverse=True)
        self.mask = self.mask[left]
        grids = self._grids([layer.prompts[0] for layer in self.layers])
        for layer, grid in zip(self.layers, grids, strict=True):
            layer.select(indices, left, self.mask, grid)

    def _grids(self, keys: Sequence[Tensor]) -> list[Grid]:
        """Of each layer's keys ``(P, H, L, D)``; layers with as many heads, which most models' have, share one."""
        made = {heads: Grid.of(self.owner, heads) for heads in {key.shape[1] for key in keys}}
        return [made[key.shape[1]] for key in keys]


@contextmanager
def sampling(model: PreTrainedModel, prompts: DynamicCache, mask: Tensor, n: int) -> Iterator[Cache]:
    """The cache to draw ``n`` samples of each prompt with, made from the prompts' own and their mask ``(P, L)``.

    Where our attention can't stand in for a model's, it is the prompts' cache, repeated.
    """
    if not replaceable(model):
        prompts.batch_repeat_interleave(n)
        yield prompts
        return
    with by_cache(model):
        yield SampleCache(prompts, mask, n)
