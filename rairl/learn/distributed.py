"""Several processes as one: each takes its share of the work, and gradients are summed before every optimiser step.

Under ``accelerate launch`` or ``torchrun`` every process holds the same weights, optimiser (unless sharded, see
:mod:`rairl.learn.learner`) and replay buffer. Losses
are written as sums divided by *global* counts, so the sum of the processes' gradients is the gradient of the whole
batch, whatever the shares. In a single process every function here is the identity.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from rairl.core.errors import RairlError

if TYPE_CHECKING:
    from accelerate import PartialState

T = TypeVar("T")

TIMEOUT = timedelta(hours=1)
"""How long a process waits for the others: longer than what one of them does alone (scoring on dev, saving)."""


def world() -> tuple[int, int]:
    """Rank of this process and number of processes."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    state = _state()
    return state.process_index, state.num_processes


def sharded() -> bool:
    """Whether ``accelerate launch`` is configured to split weights, gradients and optimiser state by FSDP.

    Raises:
        RairlError: when it is configured for DeepSpeed.
    """
    if world()[1] > 1 and os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        raise RairlError("DeepSpeed is not supported; use rairl/kubeflow/accelerate/fsdp.yaml")
    return world()[1] > 1 and os.environ.get("ACCELERATE_USE_FSDP") == "true"


@cache
def _state() -> PartialState:
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=TIMEOUT)
    atexit.register(state.destroy_process_group)  # a process that leaves with gloo's threads alive may abort
    return state


def mine(items: Sequence[T]) -> list[T]:
    """This process's contiguous share; the shares of all processes, in order, are ``items``."""
    rank, size = world()
    return list(items[len(items) * rank // size : len(items) * (rank + 1) // size])


def gather(items: list[T]) -> list[T]:
    """The lists of all processes, concatenated in the order of their ranks."""
    if world()[1] == 1:
        return items
    from accelerate.utils import gather_object

    return gather_object(items)


def total(value: float) -> float:
    """Sum of a number over all processes."""
    return float(sum(gather([value])))


def barrier() -> None:
    """Wait until every process is here."""
    gather([])


def by_first(make: Callable[[], T]) -> T:
    """``make()``, called by the first process alone: what writes files. All get the result, and wait for it."""
    return gather([make()] if world()[0] == 0 else [])[0]


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its sum over all processes; a parameter without a gradient here counts as zero."""
    kept = list(parameters)
    if world()[1] == 1 or not kept:
        return
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in kept])
    summed = _all_reduce(flat)
    at = 0
    for parameter in kept:
        parameter.grad = summed[at : at + parameter.numel()].view_as(parameter).clone()
        at += parameter.numel()


def _all_reduce(values: Tensor) -> Tensor:
    there = values.to(_state().device)  # NCCL moves tensors of its own device only
    torch.distributed.all_reduce(there)
    return there.to(values.device)
