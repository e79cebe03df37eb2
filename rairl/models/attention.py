"""Attention behind shared prompts: a prompt's keys are kept once, and no mask is made.

A completion looks at all of its prompt and, causally, at itself. Attention over both is the mean of the two parts,
weighted by their normalisers (the blocks of Dao et al. 2022, arXiv 2205.14135, are put together like that): all
completions of a prompt look at it as one long row, and neither part needs a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel
    from transformers.utils import ModelOutput

    from rairl.models.policy import SharedPrompts

VECTOR = 16
"""Rows of attention's weights are this many numbers or a multiple: a processor takes the rest one by one, which makes
158 of them slower than 160."""
_KERNEL = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
"""Attention, and the logarithm of its normaliser, which no public function returns on a processor."""


class PromptReader:
    """Reads completions behind their prompts, batch after batch; prompts that come again are not read again.

    It differs from a read behind transformers' cache in the last digits.
    """

    def __init__(self) -> None:
        self.kept: dict[PreTrainedModel, tuple[Tensor, DynamicCache]] = {}
        self.refused: set[PreTrainedModel] = set()

    def read(
        self, model: PreTrainedModel, rows: SharedPrompts, positions: Tensor, **options: Any
    ) -> ModelOutput | None:
        """What a model says of the rows' tails; None where it can't be had this way.

        That is: with gradients, on another device than a processor, in another type than float32, or when the model's
        attention is not torch's plain one (eager, sliding windows, biases).

        Args:
            rows: in the order of their prompts.
            positions: of the tails' tokens, ``(B, T)``.
            options: of the model's call.
        """
        if model in self.refused or torch.is_grad_enabled() or not _plain(model):
            return None
        heads, cache = self.kept.get(model, (None, None))
        if cache is None or heads is None or not torch.equal(heads, rows.heads):
            cache = rows.read_heads(model)
            self.kept[model] = rows.heads, cache
        with _BehindPrompts(cache, rows.mask.sum(-1).tolist(), rows.owner.bincount().tolist()) as attention:
            out = model(input_ids=rows.tails, position_ids=positions, use_cache=False, **options)
        if attention.complete:
            return out
        self.refused.add(model)
        return None


def _plain(model: PreTrainedModel) -> bool:
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    # A layer of another kind, such as a sliding window, does not look at all of the prompt.
    whole = all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)
    kind = getattr(model.config, "_attn_implementation", None)
    return whole and kind == "sdpa" and model.device.type == "cpu" and model.dtype == torch.float32


class _BehindPrompts(TorchFunctionMode):
    """Inside it, a model's causal attention, layer by layer, also looks at the prompts in a cache.

    Args:
        cache: what the model has read of P prompts, padded on the right.
        lengths: tokens of each prompt.
        counts: rows of each, one prompt's after the other's.
    """

    def __init__(self, cache: DynamicCache, lengths: Sequence[int], counts: Sequence[int]) -> None:
        super().__init__()
        self.layers = iter(cache.layers)
        self.prompts = [
            (slice(index, index + 1), length, slice(end - count, end))
            for index, (length, count, end) in enumerate(zip(lengths, counts, accumulate(counts), strict=True))
            if length
        ]
        self.strange = False

    @property
    def complete(self) -> bool:
        """Whether every layer has looked at the prompts, and nothing else has."""
        return not self.strange and next(self.layers, None) is None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Put the prompts into attention; leave everything else as it is."""
        if func is scaled_dot_product_attention:
            func = self._attend
        return func(*args, **(kwargs or {}))

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        layer = next(self.layers, None)
        causal = attn_mask is None and not dropout_p and (is_causal or query.shape[2] == 1)
        if layer is None or not causal or not _alike(query, key, value, layer.keys, layer.values):
            self.strange = True
            return scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        out, normaliser = _KERNEL(query, key, value, is_causal=True, scale=scale)
        for prompt, length, rows in self.prompts:
            keys, values = (part[prompt, :, :length] for part in (layer.keys, layer.values))
            before, weight = _KERNEL(as_one_row(query[rows]), keys, values, scale=scale)
            share = torch.sigmoid(as_rows(weight[..., None], rows) - normaliser[rows, ..., None])
            out[rows].lerp_(as_rows(before, rows), share)
        return out


def _alike(*states: Tensor) -> bool:
    return all(one.dtype == torch.float32 and one.shape[-1] == states[0].shape[-1] for one in states)


def as_one_row(states: Tensor) -> Tensor:
    """``(B, H, T, D)`` as ``(1, H, B T, D)``, a view where the heads of a token lie side by side."""
    return states.transpose(1, 2).flatten(0, 1)[None].transpose(1, 2)


def as_rows(states: Tensor, rows: slice) -> Tensor:
    """Inverse of :func:`as_one_row` for so many rows."""
    return states[0].transpose(0, 1).unflatten(0, (rows.stop - rows.start, -1)).transpose(1, 2)
