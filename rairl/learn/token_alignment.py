"""Between the policy's tokens and the units that the reward reads: by character positions in the text.

So the reward's tokenizer may differ from the policy's. A token that straddles two units belongs to the later one; what
follows the last unit (the end token) belongs to the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rairl.core.traces import Trace
from rairl.models.likelihood import completion_surprise
from rairl.models.reading import encode, told_apart
from rairl.models.reads import read_tokens
from rairl.models.reward import RewardModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def reads_of(model: RewardModel, traces: Sequence[Trace]) -> list[list[float]]:
    """Per trace the character ends, in its text, of the units that the reward reads."""
    ends = []
    for item, trace in zip(encode(model.tokenizer, traces), traces, strict=True):
        tokens = read_tokens(item, trace, model.params.granularity, model.params.interval)
        ends.append([float(item.ends[token - item.prompt_tokens]) for token in tokens])
    return ends


def units_of(unit_ends: Sequence[float] | np.ndarray, token_ends: Sequence[float] | np.ndarray) -> np.ndarray:
    """Index of the unit each token lies in, shape ``(tokens,)``.

    Args:
        unit_ends: ascending character ends of the units.
        token_ends: character end of each token; several tokens of one character lie at fractions of it.
    """
    return np.minimum(np.searchsorted(unit_ends, told_apart(token_ends), side="left"), len(unit_ends) - 1)


def spread_reads(
    values: np.ndarray, unit_ends: Sequence[float] | np.ndarray, token_ends: Sequence[float]
) -> np.ndarray:
    """One value per unit ``(K,)``, given to the tokens that lie in it; see :func:`units_of`."""
    return values[units_of(unit_ends, token_ends)]


def unit_logprobs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    traces: Sequence[Trace],
    unit_ends: Sequence[Sequence[float]],
    *,
    temperature: float = 1.0,
) -> Tensor:
    """Log-probability of every unit given the prompt and the units before it, in nats: the sum over its tokens.

    Args:
        model: the policy, and ``tokenizer`` its own.
        unit_ends: for each trace, the character ends of its units.
        temperature: the one the policy samples at.

    Returns:
        Shape ``(R,)``, the units of all traces in order; the end token is not counted.
    """
    model.eval()
    found = completion_surprise(model, tokenizer, traces, temperature=temperature)
    sums = [
        np.bincount(units_of(ends, item.ends), surprise[item.prompt_tokens :, 0], minlength=len(ends))
        for (item, surprise), ends in zip(found, unit_ends, strict=True)
    ]
    return torch.from_numpy(np.concatenate(sums)).float()
