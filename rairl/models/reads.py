"""The places where a trace is read, and what is known there."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rairl.core.section import Granularity
from rairl.core.traces import Trace
from rairl.models.reading import Encoded, token_at


@dataclass(frozen=True)
class Scores:
    """What the reward says of one trace.

    Attributes:
        steps: logit at the end of each step, shape ``(n_steps,)``.
        last: logit at the end of the text.
    """

    steps: np.ndarray
    last: float


@dataclass(frozen=True)
class Reads:
    """Features of the places where a batch of traces is read.

    Attributes:
        features: shape ``(R, F)``, float32, one row per read.
        trace: shape ``(R,)``, index of the trace each read belongs to; ascending.
        token: shape ``(R,)``, index of the token read, within prompt + completion.
    """

    features: Tensor
    trace: Tensor
    token: Tensor


class TokenReads(NamedTuple):
    """Where a trace is read and what is said there, ``(reads,)`` each.

    Attributes:
        tokens: indices in its completion, from 0.
        ends: where these tokens end in its text, in characters, see :class:`rairl.models.reading.Encoded`.
        logits: float64.
    """

    tokens: np.ndarray
    ends: np.ndarray
    logits: np.ndarray


def joined(reads: Sequence[tuple[Tensor, list[int]]]) -> Reads:
    """The reads of several traces as one, from each one's features ``(K, F)`` and token indices."""
    counts = torch.tensor([len(tokens) for _, tokens in reads])
    return Reads(
        torch.cat([features for features, _ in reads]),
        torch.arange(len(reads)).repeat_interleave(counts),
        torch.tensor([token for _, tokens in reads for token in tokens]),
    )


def split_reads(values: np.ndarray, reads: Reads, count: int) -> list[np.ndarray]:
    """Values of all reads ``(R,)`` as one array per trace, of ``count``."""
    bounds = np.searchsorted(reads.trace.numpy(), np.arange(1, count))
    return np.split(values, bounds)


INTERVAL = 15
"""Tokens between reads of granularity ``interval``, as published."""


def read_tokens(encoded: Encoded, trace: Trace, granularity: Granularity) -> list[int]:
    """Token indices (in prompt + completion, ascending, without repeats) where the logit is trained and read.

    sparse: the last token. step: the last token of every step, and of the text. interval: every 15th
    completion token, counted from the first one in training and scoring alike, and the last. dense: all of them.
    """
    first, last = encoded.prompt_tokens, len(encoded.ids) - 1
    if granularity == "sparse":
        reads = []
    elif granularity == "step":
        reads = [token_at(encoded, step.end) for step in trace.steps]
    else:
        stride = INTERVAL if granularity == "interval" else 1
        reads = list(range(first + stride - 1, last + 1, stride))
    return sorted({*reads, last})


class Memo:
    """Reads of a frozen backbone, looked up by problem and text, within a budget of bytes (oldest out first).

    A backbone that learns must not be given one: its features change with every update.
    """

    def __init__(self, budget: int = 2**29) -> None:
        self.budget, self.size = budget, 0
        self.rows: OrderedDict[tuple[str, str], tuple[Tensor, list[int]]] = OrderedDict()

    def get(self, trace: Trace) -> tuple[Tensor, list[int]] | None:
        """The reads of a trace, or None."""
        return self.rows.get((trace.problem, trace.text))

    def put(self, trace: Trace, reads: tuple[Tensor, list[int]]) -> None:
        """Keep the reads of a trace."""
        key = (trace.problem, trace.text)
        if key in self.rows:
            return
        # A copy: a slice would keep the whole batch it was cut from alive.
        self.rows[key] = (reads[0].clone(), reads[1])
        self.size += reads[0].nbytes
        while self.size > self.budget:
            self.size -= self.rows.popitem(last=False)[1][0].nbytes


def units(places: Sequence[Sequence[int]], width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Where each read stands, and the unit (the tokens since the read before it) every token belongs to.

    Args:
        places: per row the tokens that are read, where token 0 is the prompt's last one.

    Returns:
        Row and token index of each read, both ``(R,)``, and ``(B, T)`` with the read's number for each token of its
        unit; tokens of no unit (prompt, padding) have R.
    """
    counts = [len(place) for place in places]
    total = sum(counts)
    unit = np.full((len(places), width), total)
    read = 0
    for index, place in enumerate(places):
        start = 1
        for end in place:
            unit[index, start : end + 1] = read
            start = end + 1
            read += 1
    row = torch.arange(len(places)).repeat_interleave(torch.tensor(counts))
    token = torch.tensor([end for place in places for end in place])
    return row.to(device), token.to(device), torch.from_numpy(unit).to(device)


def unit_means(values: Tensor, unit: Tensor, count: int) -> Tensor:
    """Mean of ``(B, T, F)`` values over each unit: ``(count, F)``."""
    flat = unit.flatten()
    sums = values.new_zeros(count + 1, values.shape[-1]).index_add(0, flat, values.flatten(0, 1))
    sizes = torch.bincount(flat, minlength=count + 1)
    return (sums / sizes.clamp(min=1)[:, None])[:count]


def unit_minimum(values: Tensor, unit: Tensor, count: int) -> Tensor:
    """Lowest of ``(B, T)`` values in each unit: ``(count,)``."""
    lowest = values.new_zeros(count + 1).scatter_reduce(0, unit.flatten(), values.flatten(), "amin", include_self=False)
    return lowest[:count]


def completion_so_far(surprise: Tensor) -> Tensor:
    """Mean and lowest log-probability and mean entropy of the completion up to each token: ``(B, T, 3)``.

    Args:
        surprise: ``(B, T, 2)``, where token 0 is the prompt's last one.
    """
    inside = torch.nn.functional.pad(surprise[:, 1:], (0, 0, 1, 0))  # the prompt's own token counts for nothing
    counts = torch.arange(surprise.shape[1], device=surprise.device).clamp(min=1)[:, None]
    sums = inside.cumsum(1) / counts
    lowest = inside[..., 0].cummin(1).values
    return torch.stack([sums[..., 0], lowest, sums[..., 1]], -1)
