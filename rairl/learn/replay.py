"""Past rollouts kept as negatives: they stop the reward from forgetting mistakes the policy no longer makes."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Container, Sequence

from rairl.core.traces import Trace


class Replay:
    """A bounded first-in-first-out buffer of traces.

    Args:
        capacity: traces kept; 0 keeps none.
    """

    def __init__(self, capacity: int, traces: Sequence[Trace] = ()) -> None:
        self.traces: deque[Trace] = deque(traces, maxlen=capacity)

    def add(self, traces: Sequence[Trace]) -> None:
        """Append traces; the oldest make room."""
        self.traces.extend(traces)

    def draw(self, count: int, rng: random.Random, problems: Container[str] | None = None) -> list[Trace]:
        """Up to ``count`` different traces, uniformly among all, or among those on the given problems."""
        pool = [trace for trace in self.traces if problems is None or trace.problem in problems]
        return rng.sample(pool, min(count, len(pool)))
