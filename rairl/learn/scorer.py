"""What stands between the reward that learns and the reward that is paid: a lagging copy, and a running scale."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn


class LaggingCopy:
    """Exponential moving average of parameters: ``copy = decay * copy + (1 - decay) * parameter`` at every update.

    It lags about 1 / (1 - decay) updates behind, so a single update moves the policy's target little.

    Args:
        parameters: what is averaged, by name; the copy starts equal to it.
        decay: in [0, 1); with 0 the copy equals the parameters after every update.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = dict(parameters), decay
        self.values = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the copy towards the parameters."""
        for name, parameter in self.parameters.items():
            self.values[name].lerp_(parameter, 1 - self.decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The parameters hold the copy's values inside this context, and their own again after it."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.data, self.values[name] = self.values[name], parameter.data

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Take over the values of another copy of the same parameters."""
        for name, value in values.items():
            self.values[name].copy_(value)


class RunningStd:
    """Standard deviation of all numbers seen so far (Welford 1962, in batches by Chan et al. 1983)."""

    def __init__(self, count: int = 0, mean: float = 0.0, squares: float = 0.0) -> None:
        self.count, self.mean, self.squares = count, mean, squares

    def add(self, values: Sequence[float] | np.ndarray) -> None:
        """Count in ``values``, shape ``(N,)``."""
        if not len(values):
            return
        new, mean = len(values), float(np.mean(values))
        total, gap = self.count + new, mean - self.mean
        self.squares += float(np.square(np.asarray(values) - mean).sum()) + gap**2 * self.count * new / total
        self.mean += gap * new / total
        self.count = total

    @property
    def std(self) -> float:
        """Population standard deviation; 0 before any number."""
        return (self.squares / self.count) ** 0.5 if self.count else 0.0

    def state(self) -> list[float]:
        """What the constructor takes."""
        return [self.count, self.mean, self.squares]
