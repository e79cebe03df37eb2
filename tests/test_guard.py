"""The collapse guard: each sign by hand-made histories, and silence on a healthy one."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rairl.learn import collapse_guard
from rairl.learn.collapse_guard import begun, collapse, fall, unfit


@pytest.fixture(autouse=True)
def three_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short histories are enough."""
    monkeypatch.setattr(collapse_guard, "PATIENCE", 3)


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


def test_a_healthy_run_shows_no_sign() -> None:
    assert collapse([]) is None and not begun([])
    for count in (1, 3, 4, 12):
        assert collapse(history(count)) is None and not begun(history(count))


SIGNS = {
    "long": ({"rollout_tokens": [41.0] * 3}, r"length \(41.0 tokens, 20.0 .* outside 10.0 to 40.0 for 3 iterations"),
    "short": ({"rollout_tokens": [9.0] * 3}, r"length \(9.0 tokens"),
    "mixed": ({"rollout_tokens": [9.0, 41.0, 9.0]}, r"length"),
    "entropy": ({"rollout_entropy": [0.19] * 3}, r"entropy \(0.19 nats per token, 1 .* below 0.2 for 3"),
    "saturated": (
        {"discriminator_accuracy_expert": [0.999] * 3, "discriminator_accuracy_policy": [0.995] * 3},
        r"accuracy on experts and on fresh rollouts was above 0.99 for 3",
    ),
}


@pytest.mark.parametrize("name", SIGNS)
def test_each_sign_counts_once_it_has_lasted(name: str) -> None:
    series, reason = SIGNS[name]
    found = collapse(history(**series))
    assert found is not None and re.search(reason, found), found
    shorter = {key: values[:2] for key, values in series.items()}
    assert collapse(history(**shorter)) is None and begun(history(**shorter))
    over = history(**series) + history(1)
    assert collapse(over) is None and not begun(over)


def test_each_threshold_decides() -> None:
    assert collapse(history(rollout_tokens=[39.0] * 3)) is None
    assert collapse(history(rollout_entropy=[0.21] * 3)) is None
    certain = history(discriminator_accuracy_expert=[0.999] * 3, discriminator_accuracy_policy=[0.985] * 3)
    assert collapse(certain) is None  # one class is not both


RISING = [0.1, 0.2, 0.3, 0.4, 0.5]


def test_hacking_is_a_reward_that_rises_while_dev_falls() -> None:
    rows = history(reward_mean=RISING)
    rows[4]["dev/score"], rows[8]["dev/score"], rows[9]["dev/score"] = 0.8, 0.75, 0.65
    assert fall(rows, "dev/score") == pytest.approx(0.15)
    assert begun(rows)
    assert "0.4 over 3 iterations) while the dev score has fallen 0.15" in str(collapse(rows))
    rows[9]["dev/score"] = 0.71
    assert collapse(rows) is None and not begun(rows)
    rows[9]["dev/score"] = 0.65
    assert collapse([*rows, *history(2, reward_mean=[0.0, 0.0])]) is None  # the reward is past its highest
    assert collapse(rows[:2] + rows[-1:]) is None  # too few iterations to say what is high


def test_a_policy_that_solves_fewer_dev_problems_has_collapsed_whatever_its_reward_does() -> None:
    rows = history(reward_mean=[0.0, -0.1])
    start = {"dev/correct": 0.6}
    rows[4]["dev/correct"], rows[9]["dev/correct"] = 0.65, 0.54
    assert "solves 0.540 of the dev problems, 0.11 below its best" in str(collapse(rows, start))
    assert begun(rows, start)
    rows[9]["dev/correct"] = 0.56
    assert collapse(rows, start) is None and not begun(rows, start)
    # The start counts among the best, and a run that was not measured since shows nothing.
    assert "0.14 below" in str(collapse(rows, {"dev/correct": 0.7}))
    assert collapse(history(), {"dev/correct": 0.7}) is None


def test_a_reward_that_cannot_tell_right_from_wrong_is_unfit() -> None:
    reason = str(unfit({"dev/auroc": 0.735, "dev/score": 0.9}))
    assert "AUROC of 0.735 only, and 0.75 is wanted" in reason and "dataset.demos" in reason
    assert unfit({"dev/auroc": 0.75}) is None
    assert unfit({"dev/prefers_corrupted": 0.5}) is None  # no dev problem has a right and a wrong rollout


def test_a_reward_without_updates_is_not_saturated() -> None:
    rows = [{key: value for key, value in row.items() if "accuracy" not in key} for row in history()]
    assert collapse(rows) is None and not begun(rows)


@given(st.lists(st.sampled_from([1.0, 20.0, 100.0]), min_size=1, max_size=15))
def test_what_has_collapsed_had_begun_for_as_long(lengths: list[float]) -> None:
    rows = history(3) + history(len(lengths), rollout_tokens=lengths)
    if collapse(rows):
        assert all(begun(rows[: len(rows) - back]) for back in range(collapse_guard.PATIENCE))
