"""What is chosen on dev and shipped with a reward model."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Calibration:
    """Choices made on dev and shipped with the model.

    Attributes:
        aggregator: how step logits become a trace score, see :func:`rairl.evaluate.best_of_n.aggregate`.
        locator: how the first wrong step is picked, see :func:`rairl.evaluate.first_error.suspicion`.
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
