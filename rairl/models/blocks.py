"""Attention of a long completion in blocks, each of which leaves out the keys behind it that a causal mask drops."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

BLOCK = 32
"""Queries of a block: as many as torch's kernel for processors takes at a time (docs/performance.md)."""
BLOCKED = "blocked_queries"


def attend_in_blocks(
    module: Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Torch's attention of ``(B, H, T, D)`` queries to ``(B, H, L, D)`` keys, whose last T tokens they are.

    Torch's kernel skips what is behind a query only without a mask, which completions behind padded prompts need.

    Args:
        mask: causal, ``(B, 1, T, L)``; true where a query looks.
    """
    length, before = query.shape[2], key.shape[2] - query.shape[2]
    if mask is None or length <= BLOCK:
        return sdpa_attention_forward(module, query, key, value, mask, **options)
    parts = []
    for start in range(0, length, BLOCK):
        end = before + start + BLOCK
        block = query[:, :, start : start + BLOCK], key[:, :, :end], value[:, :, :end]
        parts.append(sdpa_attention_forward(module, *block, mask[:, :, start : start + BLOCK, :end], **options)[0])
    return torch.cat(parts, 1), None


AttentionInterface.register(BLOCKED, attend_in_blocks)
AttentionMaskInterface.register(BLOCKED, sdpa_mask)


@contextmanager
def in_blocks(model: PreTrainedModel) -> Iterator[None]:
    """Let a model on a processor and on torch's attention read in blocks, without gradients; others stay as they are.

    A GPU would get many small kernels for few products saved.
    """
    settled = torch.is_grad_enabled() or model.device.type != "cpu" or not model.is_backend_compatible()
    if settled or model.config._attn_implementation != "sdpa":
        yield
        return
    model.set_attn_implementation(BLOCKED)
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")
