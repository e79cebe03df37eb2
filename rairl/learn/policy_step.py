"""The policy's update: its loss, and one step on a batch of rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rairl.core.errors import RairlError
from rairl.core.training_params import PolicyParams
from rairl.learn.distributed import mine, total
from rairl.learn.learner import Learner
from rairl.learn.rollouts import Completion
from rairl.models.reading import SharedPrompts, batches_by_length

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rairl.learn.rewards import Metrics


class LossSums(NamedTuple):
    """Scalars summed over the completion tokens of a batch: what is minimised, and parts of it in nats."""

    loss: Tensor
    kl: Tensor
    entropy: Tensor


def policy_loss(
    model: nn.Module,
    reference: nn.Module,
    rows: SharedPrompts,
    advantages: Tensor,
    *,
    temperature: float,
    kl: float,
) -> LossSums:
    """Policy-gradient loss with a KL penalty.

    The samples are from the current policy, so the importance ratio is 1 and needs no clipping. KL(policy || reference)
    is estimated per token by exp(d) - d - 1 with d = log ref - log policy (Schulman 2020: unbiased, never negative).
    The entropy is exact: over the whole vocabulary, of the distribution (at ``temperature``) each token was drawn from.

    Args:
        rows: ``B`` completions of ``T - 1`` tokens at most, with their prompts.
        advantages: ``(B, T)``, one per token of ``rows.tails``; NaN on the prompt's token and on padding.
        kl: weight of the penalty in the loss.
    """
    taken = ~advantages.isnan()
    before = taken.flatten().nonzero().squeeze(-1) - 1  # the place that each token was drawn from

    def logprobs_of(it: nn.Module) -> Tensor:
        """Log-probabilities of the whole vocabulary at each completion token: ``(N, V)``."""
        logits = rows.read(it).logits.flatten(0, 1).index_select(0, before).float()
        # At temperature 1 the very same: a copy of all logits takes time.
        return (logits if temperature == 1 else logits / temperature).log_softmax(-1)

    drawn = rows.tails[taken][:, None]
    distribution = logprobs_of(model)
    logprobs = distribution.gather(-1, drawn).squeeze(-1)
    with torch.no_grad():
        expected = logprobs_of(reference).gather(-1, drawn).squeeze(-1)
    difference = expected - logprobs
    divergence = (difference.exp() - difference - 1).sum()
    with torch.no_grad():
        entropy = token_entropy(distribution).sum()
    loss = -(advantages[taken] * logprobs).sum() + kl * divergence
    return LossSums(loss, divergence.detach(), entropy)


def token_entropy(logprobs: Tensor) -> Tensor:
    """Entropy in nats of each of ``(N, V)`` log-probabilities: ``(N,)``."""
    return -torch.linalg.vecdot(logprobs.exp(), logprobs)


def policy_step(
    learner: Learner,
    reference: PreTrainedModel,
    completions: Sequence[Completion],
    advantages: Sequence[np.ndarray],
    params: PolicyParams,
    *,
    rate: float,
) -> Metrics:
    """One optimiser step on all completions, in micro-batches; the loss is a mean over completion tokens.

    Args:
        learner: of the policy.
        rate: learning rate.

    Raises:
        RairlError: when an advantage, the loss or the gradient is not a number; the weights are left as they were.
    """
    if not all(np.isfinite(values).all() for values in advantages):
        raise RairlError("an advantage is not a number: the reward model has diverged; lower reward.learning_rate")
    learner.model.train()
    device = next(reference.parameters()).device
    tokens = sum(len(item.ids) for item in completions)
    share = mine(range(len(completions)))
    lengths = [len(completions[index].prompt_ids) + len(completions[index].ids) for index in share]
    batches = [[share[at] for at in batch] for batch in batches_by_length(lengths, params.micro_batch_tokens)]
    learner.zero_grad()
    sums = np.zeros(3)
    for chosen, counts in learner.lockstep(batches, [0]):
        items = [completions[index] for index in chosen]
        rows = SharedPrompts.of([item.prompt_ids for item in items], [item.ids for item in items], 0, device)
        values = torch.full(rows.tails.shape, float("nan"))
        for row, index in enumerate(chosen):
            values[row, 1 : len(advantages[index]) + 1] = torch.from_numpy(advantages[index]).float()
        parts = policy_loss(
            learner.model,
            reference,
            rows,
            values.to(device),
            temperature=params.temperature,
            kl=params.kl,
        )
        learner.backward(parts.loss / tokens if counts else parts.loss * 0)
        sums += [part.item() * counts for part in parts]
    loss, divergence, entropy = (total(value) / tokens for value in sums)
    norm = learner.step(rate) if np.isfinite(loss) else loss
    if not np.isfinite(norm):
        raise RairlError("the policy's loss or gradient is not a number; lower policy.learning_rate")
    return {
        "policy/loss": loss,
        "policy/kl": divergence,
        "policy/entropy": entropy,
        "policy/grad_norm": norm,
    }
