"""What potential shaping does to each use of the reward: it is not identified beyond it (Ng et al. 1999).

Rewards that differ by a potential of the state explain the same behaviour, so a use that such a potential upsets rests
on a convention. A random potential of the size of the reward's own increments is added to every read; it is 0 at the
end of the trace, as the whole trace's reward is what behaviour does identify.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rairl.core.traces import Trace

if TYPE_CHECKING:
    from torch import Tensor


def shaped(traces: Sequence[Trace], reads: Sequence[np.ndarray], seed: int) -> list[np.ndarray]:
    """The reads with a random potential added: ``(n_steps,)`` per trace.

    The potential is normal with the standard deviation of all increments, one draw per state, that is per problem and
    text so far: traces that begin alike are moved alike. The last step's is 0 where the text ends with it or with the
    answer only: the read at the end of the text does not move.

    Args:
        traces: with their steps.
        reads: the logits at their ends.
        seed: of the potential.
    """
    increments = np.concatenate([np.diff(row, prepend=0.0) for row in reads]) if reads else np.zeros(0)
    size = float(increments.std()) if len(increments) else 0.0
    found = []
    for trace, row in zip(traces, reads, strict=True):
        moves = [size * potential(trace.problem, trace.text[: step.end], seed) for step in trace.steps[:-1]]
        found.append(np.asarray(row, dtype=float) + np.array([*moves, *([0.0] if len(row) else [])]))
    return found


def potential(problem: str, prefix: str, seed: int) -> float:
    """A standard normal number that belongs to a state."""
    key = hashlib.sha256(f"{seed}\n{problem}\n{prefix}".encode()).digest()
    return float(np.random.default_rng(int.from_bytes(key[:8], "big")).standard_normal())


def learned_sums(terms: Tensor, trace: Tensor, discount: float) -> dict[str, list[float]]:
    """What form ``airl`` learned, summed over each trace: the reward ``g``, and ``f`` with the shaping beside it.

    ``f_k = g_k + discount * h_k - h_{k-1}`` (Fu et al. 2018, equation 4), h 0 before the first read and at the last
    one. So with discount 1 both sums agree; with a smaller one they differ by (1 - discount) times the sum of h over
    all reads but the last.

    Args:
        terms: g and h at every read, shape ``(R, 2)``.
        trace: index of the trace each read belongs to, ascending from 0 without gaps, shape ``(R,)``.
        discount: gamma.

    Returns:
        ``g`` and ``f``, one sum per trace each.
    """
    import torch

    from rairl.learn.objectives import airl_logits

    size = int(trace[-1]) + 1 if len(trace) else 0
    shaped_terms = airl_logits(terms, trace, torch.zeros(len(trace)), discount)
    return {
        name: torch.zeros(size).index_add(0, trace, values).tolist()
        for name, values in (("g", terms[:, 0]), ("f", shaped_terms))
    }
