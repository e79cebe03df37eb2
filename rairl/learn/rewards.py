"""What drives the policy: the interface of a reward, and the outcome reward of the GRPO baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from rairl.core.traces import Trace
from rairl.learn.credit import group_advantages
from rairl.learn.rollouts import Completion

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Metrics = dict[str, float]


@dataclass(frozen=True)
class Batch:
    """Rollouts of one iteration: ``len(completions) = prompts x group``, the samples of a prompt adjacent."""

    prompts: list[Trace]
    completions: list[Completion]
    traces: list[Trace]
    tokenizer: PreTrainedTokenizerBase

    @property
    def group(self) -> int:
        """Samples per prompt."""
        return len(self.traces) // len(self.prompts)


class Reward(Protocol):
    """What drives the policy."""

    def advantages(self, batch: Batch) -> tuple[list[np.ndarray], Metrics]:
        """One advantage per sampled token (shape ``(len(completion.ids),)`` each), and diagnostics."""

    def learn(self, iteration: int, rollout: Callable[[Sequence[Trace], str], list[Trace]]) -> Metrics:
        """Update on fresh rollouts of the current policy (``rollout(prompts, tag)``); returns diagnostics.

        ``iteration`` never comes twice: after a rollback of the guard the numbers go on higher up.
        """

    def state(self, folder: Path) -> dict[str, Any]:
        """What a checkpoint needs beside the policy; large text goes into ``folder``."""

    def restore(self, state: dict[str, Any], folder: Path) -> None:
        """Inverse of :meth:`state`."""


class OutcomeReward:
    """1 for a right answer, else 0: the GRPO baseline (Shao et al. 2024), an upper reference that needs answers."""

    def __init__(self, floor: float) -> None:
        self.floor = floor

    def advantages(self, batch: Batch) -> tuple[list[np.ndarray], Metrics]:
        """The group-relative outcome, the same for every token."""
        rewards = np.array([float(bool(trace.correct)) for trace in batch.traces]).reshape(-1, batch.group)
        values = group_advantages(rewards, self.floor).ravel()
        return spread(values, batch.completions), {"reward/mean": float(rewards.mean())}

    def learn(self, iteration: int, rollout: Callable[[Sequence[Trace], str], list[Trace]]) -> Metrics:
        """Nothing to learn."""
        return {}

    def state(self, folder: Path) -> dict[str, Any]:
        """Nothing to keep."""
        return {}

    def restore(self, state: dict[str, Any], folder: Path) -> None:
        """Nothing to restore."""


def spread(values: np.ndarray, completions: Sequence[Completion]) -> list[np.ndarray]:
    """One value per completion, repeated for each of its tokens."""
    return [np.full(len(item.ids), value) for value, item in zip(values, completions, strict=True)]
