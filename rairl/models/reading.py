"""Traces as tokens, and a model that reads each prompt once for all its completions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from rairl.core.traces import Trace

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.utils import ModelOutput


Take = Callable[[Tensor], Tensor]
LONG = 1024
"""Tokens from which on a trace that is alone is read in one pass without a mask, whose size is their square."""


def recomputes(model: nn.Module) -> bool:
    """Whether :func:`checkpoint_gradients` was called on a model, or transformers' own switch is on."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def render_prompt(tokenizer: PreTrainedTokenizerBase, problem: str) -> str:
    """The problem as the model reads it, through the tokenizer's chat template."""
    messages = [{"role": "user", "content": problem}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


@dataclass(frozen=True)
class Encoded:
    """A prompt and completion as token ids, with the completion's character offsets.

    Attributes:
        ids: token ids of prompt and completion, without end token.
        prompt_tokens: how many of them belong to the prompt.
        ends: for each completion token, the end of its characters in ``Trace.text``; ascending.
    """

    ids: list[int]
    prompt_tokens: int
    ends: np.ndarray

    @property
    def tail(self) -> int:
        """Tokens from the prompt's last one on."""
        return len(self.ids) - self.prompt_tokens + 1


def encode(tokenizer: PreTrainedTokenizerBase, traces: Sequence[Trace]) -> list[Encoded]:
    """Tokenise rendered prompt + text as one string; positions come from character offsets, never from counting.

    A token belongs to the completion when it ends inside it: one that straddles the border is read with the completion.
    """
    rendered = {problem: render_prompt(tokenizer, problem) for problem in {trace.problem for trace in traces}}
    prompts = [rendered[trace.problem] for trace in traces]
    batch = tokenizer(
        [prompt + trace.text for prompt, trace in zip(prompts, traces, strict=True)],
        add_special_tokens=False,
        return_offsets_mapping=True,
    )
    rows = []
    for prompt, ids, offsets in zip(prompts, batch["input_ids"], batch["offset_mapping"], strict=True):
        ends = np.array([end for _, end in offsets], dtype=int) - len(prompt)
        count = int(np.searchsorted(ends, 0, side="right"))
        rows.append(Encoded(ids, count, ends[count:]))
    return rows


def token_at(encoded: Encoded, character: int) -> int:
    """Index (in the whole sequence) of the token that holds completion character ``character - 1``, i.e. a span's end.

    Works whatever the tokenizer: the first completion token whose characters reach ``character``.
    """
    return encoded.prompt_tokens + int(np.searchsorted(encoded.ends, character))


def pad(rows: Sequence[Sequence[int]], value: int, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Stack ragged ids: ``(ids, mask)``, both int64 of shape ``(B, T)``; mask is 1 on real tokens."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), value, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        at = slice(width - len(row), width) if left else slice(0, len(row))
        ids[index, at] = torch.tensor(row, dtype=torch.long)
        mask[index, at] = 1
    return ids, mask


def batches_by_length(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Indices in batches of similar length whose padded size stays within ``tokens`` (at least one row each)."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and lengths[index] * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@dataclass(frozen=True)
class SharedPrompts:
    """Rows of prompt and completion whose distinct prompts are read once, however many completions each has.

    A row's *tail* is the prompt's last token and the completion: the model's output there covers the place that each
    completion token was drawn from, and the token itself. Everything is padded on the right, where causal attention
    never looks.

    Attributes:
        heads, mask: ``(P, H)``, the distinct prompts without their last token.
        owner: ``(B,)``, index of each row's prompt.
        tails: ``(B, T)``.
    """

    heads: Tensor
    mask: Tensor
    owner: Tensor
    tails: Tensor

    @classmethod
    def of(
        cls, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad_id: int, device: torch.device
    ) -> SharedPrompts:
        """From the token ids of each row's prompt (at least one) and completion."""
        number: dict[tuple[int, ...], int] = {}
        owner = [number.setdefault(tuple(prompt), len(number)) for prompt in prompts]
        heads, mask = pad([prompt[:-1] for prompt in number], pad_id)
        tails, _ = pad([[prompt[-1], *rest] for prompt, rest in zip(prompts, completions, strict=True)], pad_id)
        return cls(heads.to(device), mask.to(device), torch.tensor(owner, device=device), tails.to(device))

    @classmethod
    def of_encoded(cls, rows: Sequence[Encoded], pad_id: int, device: torch.device) -> SharedPrompts:
        """From encoded traces."""
        prompts = [row.ids[: row.prompt_tokens] for row in rows]
        return cls.of(prompts, [row.ids[row.prompt_tokens :] for row in rows], pad_id, device)

    def read(self, model: PreTrainedModel, **options: Any) -> ModelOutput:
        """What the model says of the tails, ``(B, T, ...)`` in every field; gradients flow through the prompts, too.

        Args:
            options: of the model's call, such as ``output_hidden_states``. Logits are as the model gives them where
                they say how many to keep.
        """
        from rairl.models.attention import replaceable

        if not self.heads.shape[1]:
            return model(input_ids=self.tails, use_cache=False, **options)
        # The mask of a long trace is large, and a layer that is recomputed would not find our attention in place.
        alone = len(self.heads) == len(self.tails) == 1 and self.heads.shape[1] + self.tails.shape[1] > LONG
        whole = alone or (model.training and recomputes(model)) or not replaceable(model)
        out, tails_of = (self._read_whole if whole else self._read_in_one_pass)(model, options)
        for name, value in out.items():
            if isinstance(value, tuple):
                out[name] = tuple(tails_of(part) for part in value)
            elif isinstance(value, Tensor) and (name != "logits" or "logits_to_keep" not in options):
                out[name] = tails_of(value)
        return out

    def _read_in_one_pass(self, model: PreTrainedModel, options: dict[str, Any]) -> tuple[ModelOutput, Take]:
        """All heads, then all tails in one row; returns what the model says of it, and what takes the tails of that."""
        from rairl.models.attention import OnePass, by_cache

        seen, (rows, width) = self.mask[self.owner], self.tails.shape
        look = torch.cat([seen, torch.ones_like(self.tails)], -1).bool()[:, None, None].repeat(1, 1, width, 1)
        look[..., -width:] = look.new_ones(width, width).tril()
        before = torch.arange(self.heads.shape[1], device=seen.device).repeat(len(self.heads))
        after = seen.sum(-1, keepdim=True) + torch.arange(width, device=seen.device)
        keep = {} if model.get_output_embeddings() is None else {"logits_to_keep": rows * width}
        with by_cache(model):
            out = model(
                input_ids=torch.cat([self.heads.flatten(), self.tails.flatten()])[None],
                position_ids=torch.cat([before, after.flatten()])[None],
                past_key_values=OnePass(tuple(self.heads.shape), (rows, width), self.owner, look),
                use_cache=False,
                **{**keep, **options},
            )
        return out, lambda value: value[0, -rows * width :].unflatten(0, (rows, width))

    def _read_whole(self, model: PreTrainedModel, options: dict[str, Any]) -> tuple[ModelOutput, Take]:
        """Each tail behind its own head, right for any causal model: there is no gap, and padding is on the right."""
        before = self.mask[self.owner].sum(-1, keepdim=True)
        heads, rows = self.heads.shape[1], torch.cat([self.heads[self.owner], self.tails], -1)
        at = torch.arange(rows.shape[1], device=rows.device).expand_as(rows)
        ids = rows.gather(1, torch.where(at < before, at, at + heads - before).clamp(max=rows.shape[1] - 1))
        tails = before + torch.arange(self.tails.shape[1], device=rows.device)
        each = torch.arange(len(rows), device=rows.device)[:, None]
        return model(input_ids=ids, use_cache=False, **options), lambda value: value[each, tails]
