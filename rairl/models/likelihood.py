"""Log-probabilities of completions, by token and by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from rairl.core.traces import Trace
from rairl.models.reading import SharedPrompts, batches_by_length, encode, first_token_of, token_at

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rairl.models.reading import Encoded


AT_ONCE = 2**18
"""Logits that are turned into probabilities at a time on a processor."""


def token_surprise(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probability of each token and entropy of what it was drawn from: ``(B, T, 2)``; token 0 has zeros."""
    if logits.device.type == "cpu" and not torch.is_grad_enabled():
        # Some rows at a time: three more copies of all logits leave the cache, and are fresh pages of memory each time.
        rows = max(1, AT_ONCE // logits[0].numel())
        parts = zip(logits.split(rows), ids.split(rows), strict=True)
        return torch.cat([_token_surprise(*part) for part in parts])
    return _token_surprise(logits, ids)


def _token_surprise(logits: Tensor, ids: Tensor) -> Tensor:
    # One exponential a token serves both; the vocabulary is the long axis here.
    logits = logits[:, :-1].float()
    shifted = logits - logits.detach().amax(-1, keepdim=True)
    likelihoods = shifted.exp()
    total = likelihoods.sum(-1)
    picked = shifted.gather(-1, ids[:, 1:, None]).squeeze(-1) - total.log()
    entropy = total.log() - torch.linalg.vecdot(likelihoods, shifted) / total
    return torch.nn.functional.pad(torch.stack([picked, entropy], -1), (0, 0, 1, 0))


class LogProbs(NamedTuple):
    """What a policy says of a trace, in nats, end token excluded.

    Attributes:
        steps, mean_steps: log-probability of each step, and the same per token: ``(n_steps,)``.
        total: log-probability of the whole completion.
        tokens: of the completion.
        entropies: mean entropy of the policy where it read each step's tokens: ``(n_steps,)``.
        entropy: the same over the whole completion.
    """

    steps: np.ndarray
    mean_steps: np.ndarray
    total: float
    tokens: int
    entropies: np.ndarray
    entropy: float

    @property
    def per_token(self) -> float:
        """Log-probability per token of the completion."""
        return self.total / max(self.tokens, 1)


@torch.inference_mode()
def completion_surprise(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    traces: Sequence[Trace],
    *,
    batch_tokens: int = 4096,
    progress: bool = False,
) -> list[tuple[Encoded, np.ndarray]]:
    """Each trace's tokens, and log-probability and entropy, in nats, of the completion's: ``(T, 2)``, else NaN."""
    encoded = encode(tokenizer, traces)
    found: dict[int, np.ndarray] = {}
    device = next(model.parameters()).device
    bar = tqdm(total=len(traces), desc="log-probabilities", unit="trace", disable=not progress)
    for batch in batches_by_length([row.tail for row in encoded], batch_tokens):
        rows = SharedPrompts.of_encoded([encoded[index] for index in batch], tokenizer.pad_token_id or 0, device)
        surprise = token_surprise(rows.read(model).logits, rows.tails).cpu().double().numpy()
        for index, read in zip(batch, surprise, strict=True):
            item = encoded[index]
            found[index] = np.full((len(item.ids), 2), np.nan)
            found[index][item.prompt_tokens :] = read[1 : item.tail]
        bar.update(len(batch))
    bar.close()
    return [(item, found[index]) for index, item in enumerate(encoded)]


def step_logprobs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, traces: Sequence[Trace], *, progress: bool = False
) -> list[LogProbs]:
    """Log-probability and entropy of every step and of the whole completion."""
    found = completion_surprise(model, tokenizer, traces, progress=progress)
    return [by_step(trace, *one) for trace, one in zip(traces, found, strict=True)]


def by_step(trace: Trace, item: Encoded, surprise: np.ndarray) -> LogProbs:
    """A trace's surprise ``(T, 2)``, as :func:`completion_surprise` gives it, step by step."""
    bounds = [(first_token_of(item, step.start), token_at(item, step.end) + 1) for step in trace.steps]
    sums = np.array([surprise[start:end].sum(axis=0) for start, end in bounds]).reshape(-1, 2)
    means = sums / np.maximum([end - start for start, end in bounds], 1).reshape(-1, 1)
    whole = surprise[item.prompt_tokens :]
    total, entropy = float(whole[:, 0].sum()), float(whole[:, 1].sum()) / max(len(whole), 1)
    return LogProbs(sums[:, 0], means[:, 0], total, len(whole), means[:, 1], entropy)
