"""What one update of the discriminator learns from: experts, rollouts, and verified corruptions of the experts."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Container, Sequence
from dataclasses import dataclass

import numpy as np

from rairl.core.errors import RairlError
from rairl.core.traces import Trace
from rairl.core.training_params import RewardParams
from rairl.text.corrupt import perturb

VARIANTS = 16
"""Different corruptions of one demonstration over a run."""


@dataclass(frozen=True)
class DiscriminatorBatch:
    """The traces of one update.

    Attributes:
        traces: all of them.
        kinds: who wrote each: expert, policy (fresh), replay or perturbed; or labelled, whoever it was.
        positive: whether each counts as expert, shape ``(N,)``, bool.
    """

    traces: list[Trace]
    kinds: list[str]
    positive: np.ndarray

    def since(self, index: int) -> int:
        """From which character of trace ``index`` on its class is known: a reviewer's negative is right before that."""
        trace = self.traces[index]
        if self.kinds[index] != "labelled" or trace.first_error is None:
            return 0
        return trace.steps[trace.first_error].start


class Corruptions:
    """A fixed set of verified corruptions of each demonstration, made once: their reads can be looked up, too.

    Args:
        seed: of the run; it fixes the set.
        depth: corruptions composed in one trace: 1 to this many.
    """

    def __init__(self, seed: int, depth: int) -> None:
        self.seed, self.depth = seed, depth
        self.made: dict[tuple[str, int], Trace | None] = {}

    def draw(self, demo: Trace, rng: random.Random) -> Trace | None:
        """One of the set of ``demo``, uniformly; None where no corruption applies."""
        number = rng.randrange(VARIANTS)
        key = demo.id, number
        if key not in self.made:
            own = random.Random(f"{self.seed}/corrupt/{demo.id}/{number}")
            self.made[key] = perturb(demo, own, n=self.depth)
        return self.made[key]


class Replay:
    """Past rollouts kept as negatives, or the reward would forget mistakes that the policy no longer makes.

    A bounded first-in-first-out buffer.

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


def compose(
    experts: Sequence[Trace],
    fresh: Sequence[Trace],
    replay: Replay,
    corruptions: Corruptions,
    params: RewardParams,
    rng: random.Random,
    labelled: Sequence[Trace] = (),
) -> DiscriminatorBatch:
    """Experts, fresh and replayed rollouts, corruptions of the experts, and traces that a reviewer labelled.

    Args:
        experts: the demonstrations of this update.
        fresh: rollouts of the current policy.
        corruptions: of the experts.
        rng: source of this update's choices.
        labelled: of these as many as there are experts are drawn; with a wrong step they are negatives from there on.

    Raises:
        RairlError: when there is nothing but experts.
    """
    drawn = [corruptions.draw(demo, rng) for demo in experts for _ in range(params.perturbations)]
    corrupted = [bad for bad in drawn if bad is not None]
    # A replayed rollout on a prompt without an expert would tell a comparison within prompts nothing.
    problems = {demo.problem for demo in experts} if params.objective == "relativistic" else None
    replayed = replay.draw(len(experts), rng, problems)
    rollouts = [(trace, "policy") for trace in fresh] + [(trace, "replay") for trace in replayed]
    reviewed = rng.sample(list(labelled), min(len(experts), len(labelled))) if labelled else []
    if not rollouts and not corrupted and all(trace.first_error is None for trace in reviewed):
        raise RairlError("the reward has no negatives: set reward.perturbations, reward.replay_size or sample more")
    rows = [
        *((trace, "expert", True) for trace in experts),
        *((trace, kind, switched(trace, params)) for trace, kind in rollouts),
        *((trace, "perturbed", False) for trace in corrupted),
        *((trace, "labelled", trace.first_error is None) for trace in reviewed),
    ]
    return DiscriminatorBatch([row[0] for row in rows], [row[1] for row in rows], np.array([row[2] for row in rows]))


def switched(trace: Trace, params: RewardParams) -> bool:
    """Whether a rollout counts as expert: with ``reward.switch_labels``, when its answer is right."""
    return params.switch_labels and trace.correct is True
