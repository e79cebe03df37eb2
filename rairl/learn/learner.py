"""The optimiser steps of a model, whose weights, gradients and optimiser state may be sharded over the processes.

Whoever generates, scores or saves uses the model itself, which every process holds whole. Only the update reads with
:attr:`Learner.model`. Without sharding the two are one. With it (FSDP) the second is a twin whose trained weights
are split, and the weights that a step has changed are gathered into the first one: as where a separate engine generates
and is given the new weights after each step. What is frozen is never split.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rairl.core.errors import RairlError
from rairl.core.training_params import PolicyParams, RewardParams
from rairl.learn import distributed

T = TypeVar("T")
Optimizers = list[torch.optim.Optimizer]
MAX_NORM = 1.0
"""Gradients are scaled down to this norm."""


class Learner:
    """Takes the optimiser steps of ``model``. Every process holds all weights, gradients and optimiser state.

    Args:
        model: what learns, by its parameters that require a gradient.
        optimizers: over them.

    Attributes:
        model: what an update reads with.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.model, self.optimizers = model, list(optimizers)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.model.zero_grad(set_to_none=True)

    def lockstep(self, parts: Sequence[T], spare: T) -> Iterator[tuple[T, bool]]:
        """This process's micro-batches, each with whether it counts.

        Args:
            spare: a micro-batch that stands in, without counting, where sharding asks for as many as others have.
        """
        missing = self._missing(len(parts))  # asked before any process is ahead
        yield from ((part, True) for part in parts)
        yield from ((spare, False) for _ in range(missing))

    def _missing(self, count: int) -> int:
        return 0

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a micro-batch's share of the loss."""
        loss.backward()

    def step(self, rate: float) -> float:
        """Sum the gradients over the processes, clip their norm, and step; returns the norm before that.

        Nothing is changed when the norm is not a number.

        Args:
            rate: learning rate.
        """
        weights = trained(self.model)
        distributed.sum_gradients(weights)
        norm = float(torch.nn.utils.clip_grad_norm_(weights, MAX_NORM))
        if math.isfinite(norm):
            self._step(rate)
        return norm

    def _step(self, rate: float) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()

    def state(self) -> list[dict[str, Any]]:
        """State of every optimiser, whole: as of one process, whatever the sharding. All processes call it."""
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def restore(self, kept: Sequence[dict[str, Any]]) -> None:
        """Take over a :meth:`state`, and the weights of the whole model, which are restored before."""
        for optimizer, state in zip(self.optimizers, kept, strict=True):
            optimizer.load_state_dict(state)


def trained(model: nn.Module) -> list[nn.Parameter]:
    """Parameters that learn."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def adamw_of(params: PolicyParams | RewardParams) -> Callable[[nn.Module], Optimizers]:
    """Makes AdamW over what learns of a model.

    Raises:
        RairlError: for 8 bits without bitsandbytes, or where the state is to be sharded.
    """
    kind: Any = torch.optim.AdamW
    if params.optimizer == "paged_adamw_8bit":
        if distributed.sharded():
            raise RairlError("optimizer 'paged_adamw_8bit' can't be sharded: use 'adamw', or no FSDP")
        if find_spec("bitsandbytes") is None:
            raise RairlError(
                "optimizer 'paged_adamw_8bit' needs bitsandbytes, which is not installed: "
                "pip install 'rairl[quantised]', or use 'adamw'"
            )
        from bitsandbytes.optim import PagedAdamW8bit

        kind = PagedAdamW8bit
    settings: dict[str, Any] = {
        "lr": params.learning_rate, "betas": (0.9, params.adam_beta2), "weight_decay": params.weight_decay,
    }  # fmt: skip
    return lambda model: [kind(trained(model), **settings)]


def rates(params: PolicyParams | RewardParams, warmup: int, steps: int) -> Callable[[int], float]:
    """The learning rate at each of ``steps`` steps, from 0.

    A function of the step alone, so that a run that is resumed or set back is on the same schedule. It is transformers'
    without its very first step, whose rate is 0, and one step longer, so that the last rate is not 0 either.

    Args:
        warmup: steps over which the rate rises.
    """
    from transformers import get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup

    bearer = torch.optim.SGD([torch.zeros(1)])  # a schedule wants one; its rate is not read
    if params.learning_rate_schedule == "cosine":
        schedule = get_cosine_schedule_with_warmup(bearer, warmup, steps + 1)
    else:
        schedule = get_constant_schedule_with_warmup(bearer, warmup)
    (factor,) = schedule.lr_lambdas
    return lambda step: params.learning_rate * factor(step + 1)
