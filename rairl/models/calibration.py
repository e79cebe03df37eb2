"""What is chosen on dev and shipped with a reward model: how logits become a score and a first wrong step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from rairl.core.errors import RairlError
from rairl.core.traces import Trace

if TYPE_CHECKING:
    from rairl.models.reads import Scores

AGGREGATORS = ("last", "mean", "min", "product", "discounted")
"""How the reads of a trace become its score; chosen on dev, never on the candidates."""
DISCOUNT = 0.5
"""Weight of a read relative to the next one, for ``discounted``: the .95 per token of arXiv 2510.01857's code over a
step of 14 tokens."""
NOTHING = -1e9
"""What a trace without steps competes with, below any other's score: it must not win because nothing in it is wrong."""
LOCATORS = ("drop", "fall", "argmin")
"""How reads become a suspicion per step; chosen on dev."""


@dataclass(frozen=True)
class StepScore:
    """A step and the logit that the text up to its end is an expert's."""

    text: str
    score: float


@dataclass(frozen=True)
class TraceScore:
    """What a reward says of one solution.

    Attributes:
        score: of the whole solution; compare it between solutions of the same problem only.
        steps: each step with its own score; higher is more expert-like.
        first_error: 0-based index of the first wrong step, or None. A reward without a calibrated threshold always
            names the most suspect step.
    """

    score: float
    steps: tuple[StepScore, ...]
    first_error: int | None


@dataclass(frozen=True)
class Calibration:
    """Choices made on dev and shipped with the model.

    Attributes:
        aggregator: how step logits become a trace score, see :func:`aggregate`.
        locator: how the first wrong step is picked, see :func:`suspicion`.
        threshold: a trace whose locator value stays above it has no wrong step; None before calibration.
        selector: ``max`` picks the candidate with the best score, ``vote`` the answer with the largest softmax weight.
        temperatures: of that softmax, per aggregator; empty before calibration.
        slope, intercept: the score's map to a probability of being right, ``sigmoid(slope * score + intercept)`` with
            a slope of at least 0; None where dev has no right and wrong rollouts.
        base: share of right rollouts on dev; None without any.
    """

    aggregator: str = "last"
    locator: str = "drop"
    threshold: float | None = None
    selector: str = "max"
    temperatures: dict[str, float] = field(default_factory=dict)
    slope: float | None = None
    intercept: float | None = None
    base: float | None = None

    def trace_score(self, read: Scores) -> float:
        """The score of a trace from its logits, by the chosen aggregator."""
        return aggregate(read.steps, read.last, self.aggregator)

    def apply(self, trace: Trace, read: Scores) -> TraceScore:
        """The logits of a trace as its score, its steps' scores and its first wrong step."""
        if len(read.steps) == 0:
            wrong = None
        elif self.threshold is None:
            wrong = first_error(read.steps, self.locator)
        else:
            wrong = first_error_or_none(read.steps, self.locator, self.threshold)
        texts = trace.step_texts()
        steps = tuple(StepScore(text, float(value)) for text, value in zip(texts, read.steps, strict=True))
        return TraceScore(self.trace_score(read), steps, wrong)


def aggregate(steps: np.ndarray, last: float, how: str) -> float:
    """Score of a trace from the reward's reads.

    Args:
        steps: ``(n_steps,)``, the logit read at each step's end.
        last: the logit read at the end of the text.
        how: ``last`` is that final logit; ``mean`` and ``min`` go over the steps; ``product`` is the logarithm of the
            product of the steps' probabilities ``sigmoid(z_k)``; ``discounted`` is the mean over the steps with weights
            that halve from each step to the one before it. A trace without steps has one read only, the last, and
            that is its score under every rule.
    """
    if how not in AGGREGATORS:
        raise RairlError(f"aggregator {how!r} is unknown; it is one of {', '.join(AGGREGATORS)}")
    if how == "last" or len(steps) == 0:
        return float(last)
    if how == "product":
        return float(-np.logaddexp(0, -steps).sum())
    if how == "discounted":
        return float(np.average(steps, weights=DISCOUNT ** np.arange(len(steps) - 1, -1, -1)))
    return float(steps.mean() if how == "mean" else steps.min())


def competing(score: float, steps: Sequence[object] | np.ndarray) -> float:
    """The score of a trace among others: its own, or :data:`NOTHING` where there are no steps."""
    return score if len(steps) else NOTHING


def suspicion(reads: np.ndarray, locator: str) -> np.ndarray:
    """How little each step deserves trust: ``(n_steps,)``, the *lowest* is the most suspect.

    Args:
        reads: ``(n_steps,)``, the logit read at each step's end.
        locator: ``drop`` takes the increments ``z_k - z_(k-1)`` with the prior logit 0 before the first step (the best
            logit is a running sum of log-likelihood ratios, so its increment is the step's own evidence); ``fall``
            takes the increments of the probability ``sigmoid(z_k) - sigmoid(z_(k-1))`` with the prior 1/2 (after the
            first wrong step the logit goes on falling as evidence mounts, the probability hardly does); ``argmin``
            takes the logits themselves.
    """
    if locator not in LOCATORS:
        raise RairlError(f"locator {locator!r} is unknown; it is one of {', '.join(LOCATORS)}")
    reads = np.asarray(reads, dtype=float)
    if locator == "fall":
        return np.diff((1 + np.tanh(reads / 2)) / 2, prepend=0.5)  # the sigmoid; np.exp would overflow
    return np.diff(reads, prepend=0.0) if locator == "drop" else reads


def first_error(reads: np.ndarray, locator: str) -> int:
    """The most suspect step, given that one is wrong; the earliest of equals.

    Raises:
        RairlError: when there are no steps.
    """
    if len(reads) == 0:
        raise RairlError("a trace without steps has no first wrong step")
    return int(suspicion(reads, locator).argmin())


def first_error_or_none(reads: np.ndarray, locator: str, threshold: float) -> int | None:
    """The first step whose suspicion lies below ``threshold``, or None when no step's does."""
    below = np.flatnonzero(suspicion(reads, locator) < threshold)
    return int(below[0]) if len(below) else None
