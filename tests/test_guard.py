"""The collapse guard: each sign by hand-made histories, and silence on a healthy one."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rairl.core.training_params import GuardParams
from rairl.learn.collapse_guard import begun, collapse, fall, unfit

PARAMS = GuardParams(
    action="stop", patience=3, length_ratio=2.0, min_entropy=0.2, saturation=0.95, hacking=0.1, min_auroc=0.8
)


def history(count: int = 12, **series: list[float]) -> list[dict[str, float]]:
    """A healthy run of ``count`` iterations; a series replaces the last values of a metric (``_`` stands for ``/``)."""
    healthy = {
        "rollout/tokens": 20.0,
        "rollout/entropy": 1.0,
        "discriminator/accuracy_expert": 0.8,
        "discriminator/accuracy_policy": 0.7,
        "reward/mean": 0.0,
    }
    rows = [{"step": float(step), **healthy} for step in range(count)]
    for name, values in series.items():
        for row, value in zip(rows[-len(values) :], values, strict=True):
            row[name.replace("_", "/", 1)] = value
    return rows


def params(**changes: Any) -> GuardParams:
    return GuardParams(**{**PARAMS.model_dump(), **changes})


def test_a_healthy_run_shows_no_sign() -> None:
    assert collapse([], PARAMS) is None and not begun([], PARAMS)
    for count in (1, 3, 4, 12):
        assert collapse(history(count), PARAMS) is None and not begun(history(count), PARAMS)


SIGNS = {
    "long": ({"rollout_tokens": [41.0] * 3}, r"length \(41.0 tokens, 20.0 .* outside 10.0 to 40.0 for 3 iterations"),
    "short": ({"rollout_tokens": [9.0] * 3}, r"length \(9.0 tokens"),
    "mixed": ({"rollout_tokens": [9.0, 41.0, 9.0]}, r"length"),
    "entropy": ({"rollout_entropy": [0.19] * 3}, r"entropy \(0.19 nats per token, 1 .* below 0.2 for 3"),
    "saturated": (
        {"discriminator_accuracy_expert": [0.99] * 3, "discriminator_accuracy_policy": [0.96] * 3},
        r"accuracy on experts and on fresh rollouts was above 0.95 for 3",
    ),
}


@pytest.mark.parametrize("name", SIGNS)
def test_each_sign_counts_once_it_has_lasted(name: str) -> None:
    series, reason = SIGNS[name]
    found = collapse(history(**series), PARAMS)
    assert found is not None and re.search(reason, found), found
    shorter = {key: values[:2] for key, values in series.items()}
    assert collapse(history(**shorter), PARAMS) is None and begun(history(**shorter), PARAMS)
    assert collapse(history(**shorter), params(patience=2)) is not None
    over = history(**series) + history(1)
    assert collapse(over, PARAMS) is None and not begun(over, PARAMS)


def test_each_threshold_decides() -> None:
    lengths = history(rollout_tokens=[41.0] * 3)
    assert collapse(lengths, params(length_ratio=2.1)) is None
    assert collapse(history(rollout_entropy=[0.19] * 3), params(min_entropy=0.18)) is None
    certain = history(discriminator_accuracy_expert=[0.99] * 3, discriminator_accuracy_policy=[0.96] * 3)
    assert collapse(certain, params(saturation=0.97)) is None
    assert collapse(history(discriminator_accuracy_expert=[0.99] * 3), PARAMS) is None  # one class is not both


RISING = [0.1, 0.2, 0.3, 0.4, 0.5]


def test_hacking_is_a_reward_that_rises_while_dev_falls() -> None:
    rows = history(reward_mean=RISING)
    rows[4]["dev/score"], rows[8]["dev/score"], rows[9]["dev/score"] = 0.8, 0.75, 0.65
    assert fall(rows, "dev/score") == pytest.approx(0.15)
    assert begun(rows, PARAMS)
    assert "0.4 over 3 iterations) while the dev score has fallen 0.15" in str(collapse(rows, PARAMS))
    assert collapse(rows, params(hacking=0.2)) is None and not begun(rows, params(hacking=0.2))
    assert collapse([*rows, *history(2, reward_mean=[0.0, 0.0])], PARAMS) is None  # the reward is past its highest
    assert collapse(rows[:2] + rows[-1:], PARAMS) is None  # too few iterations to say what is high


def test_a_policy_that_solves_fewer_dev_problems_has_collapsed_whatever_its_reward_does() -> None:
    rows = history(reward_mean=[0.0, -0.1])
    start = {"dev/correct": 0.6}
    rows[4]["dev/correct"], rows[9]["dev/correct"] = 0.65, 0.54
    assert "solves 0.540 of the dev problems, 0.11 below its best" in str(collapse(rows, PARAMS, start))
    assert begun(rows, PARAMS, start)
    rows[9]["dev/correct"] = 0.56
    assert collapse(rows, PARAMS, start) is None and not begun(rows, PARAMS, start)
    # The start counts among the best, and a run that was not measured since shows nothing.
    assert "0.14 below" in str(collapse(rows, PARAMS, {"dev/correct": 0.7}))
    assert collapse(history(), PARAMS, {"dev/correct": 0.7}) is None


def test_a_reward_that_cannot_tell_right_from_wrong_is_unfit() -> None:
    reason = str(unfit({"dev/auroc": 0.735, "dev/score": 0.9}, PARAMS))
    assert "AUROC of 0.735 only (guard.min_auroc 0.8)" in reason and "dataset.demos" in reason
    assert unfit({"dev/auroc": 0.8}, PARAMS) is None
    assert unfit({"dev/auroc": 0.735}, params(min_auroc=0.7)) is None
    assert unfit({"dev/prefers_corrupted": 0.5}, PARAMS) is None  # no dev problem has a right and a wrong rollout


def test_a_reward_without_updates_is_not_saturated() -> None:
    rows = [{key: value for key, value in row.items() if "accuracy" not in key} for row in history()]
    assert collapse(rows, PARAMS) is None and not begun(rows, PARAMS)


@given(st.lists(st.sampled_from([1.0, 20.0, 100.0]), min_size=1, max_size=15), st.integers(1, 4))
def test_what_has_collapsed_had_begun_for_as_long(lengths: list[float], patience: int) -> None:
    rows = history(3) + history(len(lengths), rollout_tokens=lengths)
    guard = params(patience=patience)
    if collapse(rows, guard):
        assert all(begun(rows[: len(rows) - back], guard) for back in range(patience))
