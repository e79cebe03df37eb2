"""The collapse guard: pure functions of the history that say whether training still makes sense.

The published runs collapse in several settings (method: lengths run away, the policy goes deterministic, the
discriminator separates perfectly and its reward says nothing, the policy finds traces that only the reward likes).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import takewhile

import numpy as np

FIRST = 3
"""Iterations whose mean is what length and entropy are compared with."""
PATIENCE = 5
"""Iterations in a row that a sign must last: a batch may be odd, a policy that is lost stays lost."""
LENGTH_RATIO = 2.0
"""Mean length above this multiple of the first iterations', or below its inverse: no better answer needs that."""
MIN_ENTROPY = 0.2
"""Entropy below this share of the first iterations': the samples of a prompt are alike then, and advantages noise."""
SATURATION = 0.99
"""Discriminator accuracy on experts and on fresh rollouts, both above this: it knows the author, not the quality."""
HACKING = 0.1
"""Fall below its best of the share of dev problems that the policy solves; or of the reward's dev score, while the
learned reward is at its highest. Four standard errors of a count of 400 samples (docs/log.md)."""
MIN_AUROC = 0.75
"""No policy is trained on a warmed-up reward that tells right from wrong rollouts on dev less surely than this (AUROC
within a problem; .5 is chance). With .735 a policy lost, with .779 one gained (docs/log.md)."""

MAX_ROLLBACKS = 3
"""After so many the run stops: a setting that collapses again at an eighth of the learning rate won't mend."""

Row = Mapping[str, float]


def unfit(dev: Row) -> str | None:
    """Why a warmed-up reward is not to train a policy, in plain words with the numbers, or None.

    A reward that can't tell right from wrong moves the policy towards whatever else it likes, and then there is nothing
    to go back to: the start was the best.

    Args:
        dev: its scores on dev; without ``dev/auroc`` (no problem has a right and a wrong rollout) nothing is known.
    """
    found = dev.get("dev/auroc", 1.0)
    if found >= MIN_AUROC:
        return None
    return (
        f"the reward tells right from wrong rollouts on dev with an AUROC of {found:.3f} only, and {MIN_AUROC:g} is "
        "wanted; the policy was not trained on it. More demonstrations (dataset.demos) or a backbone that knows more "
        "(reward.backbone) make a better one; guard.action 'off' trains on this one"
    )


def collapse(history: Sequence[Row], start: Row | None = None) -> str | None:
    """Why the run has collapsed, in plain words with the numbers, or None.

    Degenerate length, lost entropy and a saturated discriminator must each have lasted ``PATIENCE`` iterations in a
    row. Reward hacking: the policy solves fewer of the dev problems than at its best, by more than ``HACKING``; or the
    learned reward, averaged over ``PATIENCE`` iterations, is at its highest so far while its own dev score lies more
    than ``HACKING`` below its best.

    Args:
        history: one row of metrics per iteration, oldest first. Read are ``rollout/tokens``, ``rollout/entropy``,
            ``discriminator/accuracy_expert``, ``discriminator/accuracy_policy``, ``reward/mean`` and, in the rows that
            hold them, ``dev/score`` and ``dev/correct``; a row without a metric shows no sign in it.
        start: the dev metrics before the first iteration, where they are known.
    """
    for lasted, reason in _signs(history):
        if lasted >= PATIENCE:
            return f"{reason} for {lasted} iterations in a row"
    measured = [start or {}, *history]
    lost = fall(measured, "dev/correct")
    if lost > HACKING:
        last = _series(measured, "dev/correct")[-1]
        return f"the policy solves {last:.3f} of the dev problems, {lost:.3g} below its best"
    fallen = fall(measured, "dev/score")
    if fallen > HACKING and _at_its_highest(_series(history, "reward/mean"), PATIENCE):
        reward = float(np.mean(_series(history, "reward/mean")[-PATIENCE:]))
        return (
            f"the learned reward is at its highest ({reward:.3g} over {PATIENCE} iterations) while the dev "
            f"score has fallen {fallen:.3g} below its best"
        )
    return None


def begun(history: Sequence[Row], start: Row | None = None) -> bool:
    """Whether any sign of collapse shows in the last row, however short: such a checkpoint is not a good one."""
    measured = [start or {}, *history]
    fallen = any(fall(measured, key) > HACKING for key in ("dev/correct", "dev/score"))
    return fallen or any(lasted for lasted, _ in _signs(history))


def fall(rows: Sequence[Row], key: str) -> float:
    """How far the last value of a metric lies below the best one; 0 without any."""
    values = _series(rows, key)
    return max(values) - values[-1] if values else 0.0


def _signs(history: Sequence[Row]) -> Iterator[tuple[int, str]]:
    """For how many iterations in a row, up to the last, each sign has lasted, and what it is."""
    start, later = history[:FIRST], history[FIRST:]
    if not later:
        return
    last = later[-1]
    tokens, entropy = (float(np.mean([row[key] for row in start])) for key in ("rollout/tokens", "rollout/entropy"))
    low, high = tokens / LENGTH_RATIO, tokens * LENGTH_RATIO
    yield (
        _streak(later, lambda row: not low <= row["rollout/tokens"] <= high),
        f"the mean length ({last['rollout/tokens']:.1f} tokens, {tokens:.1f} in the first {FIRST} iterations) was "
        f"outside {low:.1f} to {high:.1f}",
    )
    least = MIN_ENTROPY * entropy
    yield (
        _streak(later, lambda row: row["rollout/entropy"] < least),
        f"the policy's entropy ({last['rollout/entropy']:.3g} nats per token, {entropy:.3g} in the first {FIRST} "
        f"iterations) was below {least:.3g}",
    )
    accuracies = ("discriminator/accuracy_expert", "discriminator/accuracy_policy")
    yield (
        _streak(history, lambda row: min(row.get(key, 0.0) for key in accuracies) > SATURATION),
        f"the discriminator's accuracy on experts and on fresh rollouts was above {SATURATION:g}",
    )


def _streak(history: Sequence[Row], holds: Callable[[Row], bool]) -> int:
    return sum(1 for _ in takewhile(holds, reversed(history)))


def _at_its_highest(values: Sequence[float], window: int) -> bool:
    """Whether the mean of the last ``window`` values is the highest of all such means, of which there are several."""
    means = np.convolve(values, np.full(window, 1 / window), "valid") if len(values) > window else np.zeros(0)
    return bool(len(means)) and bool(means[-1] >= means.max())


def _series(history: Sequence[Row], key: str) -> list[float]:
    return [row[key] for row in history if key in row]
