"""Several processes as one: each takes its share of the work, and gradients are summed before every optimiser step.

Under ``accelerate launch`` every process holds the same weights, optimiser and replay buffer. Losses are written as sums
divided by *global* counts, so the sum of the processes' gradients is the gradient of the whole batch, whatever the
shares. In a single process every function here is the identity.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


def world() -> tuple[int, int]:
    """Rank of this process and number of processes."""
    from accelerate import PartialState

    state = PartialState()
    return state.process_index, state.num_processes


def mine(items: Sequence[T]) -> list[T]:
    """This process's contiguous share; the shares of all processes, in order, are ``items``."""
    rank, size = world()
    return list(items[len(items) * rank // size : len(items) * (rank + 1) // size])


def gather(items: list[T]) -> list[T]:
    """The lists of all processes, concatenated in the order of their ranks."""
    from accelerate.utils import gather_object

    return items if world()[1] == 1 else gather_object(items)


def total(value: float) -> float:
    """Sum of a number over all processes."""
    return float(sum(gather([value])))


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its sum over all processes; a parameter without a gradient here counts as zero."""
    if world()[1] == 1:
        return
    kept = list(parameters)
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in kept])
    summed: Tensor = _all_reduce(flat)
    at = 0
    for parameter in kept:
        parameter.grad = summed[at : at + parameter.numel()].view_as(parameter).clone()
        at += parameter.numel()


def _all_reduce(values: Tensor) -> Tensor:
    torch.distributed.all_reduce(values)
    return values
