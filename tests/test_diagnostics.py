"""What the discriminator's logits say of it: numbers by hand."""

from __future__ import annotations

import numpy as np
import pytest

from rairl.learn.diagnostics import boundary, correlation, discriminator_metrics, hits, reward_metrics


def test_the_border_is_free_where_the_objective_leaves_it_free() -> None:
    last, positive = np.array([5.0, 7.0, 1.0, 3.0]), np.array([True, True, False, False])
    assert boundary(last, positive, "bce") == 0.0
    assert boundary(last, positive, "relativistic") == 4.0
    assert boundary(last, np.ones(4, dtype=bool), "relativistic") == 0.0
    assert hits(last, positive, 4.0).all()
    assert hits(last, positive, 0.0).tolist() == [True, True, False, False]
    assert not hits(np.zeros(2), np.array([True, False])).any()


def test_metrics_by_hand() -> None:
    last = np.array([2.0, -1.0, -2.0, 3.0])
    made = discriminator_metrics(
        last, np.array([True, True, False, True]), ["expert", "expert", "policy", "policy"], [1, 1, 1, 1], 0.0
    )
    assert made["discriminator/accuracy_expert"] == 0.5
    assert made["discriminator/accuracy_policy"] == 1.0  # the right one counts as expert and lies above
    assert made["discriminator/gap"] == pytest.approx(4 / 3 + 2)
    assert made["discriminator/corr_length"] == 0.0
    assert "discriminator/gap" not in discriminator_metrics(np.ones(1), np.array([True]), ["expert"], [1], 0.0)


def test_reward_metrics_by_hand() -> None:
    last = np.array([[0.0, 2.0], [1.0, 1.0]])
    made = reward_metrics(last, np.array([[1.0, 3.0], [2.0, 2.0]]), np.array([[0.0, 1.0], [1.0, np.nan]]))
    assert made == {"reward/mean": 1.0, "reward/std_in_group": 0.5, "reward/corr_length": pytest.approx(1.0)}
    assert reward_metrics(last, last, np.array([[0.0, 1.0], [0.0, 1.0]]))["reward/corr_correct"] > 0.5


def test_correlation_of_a_constant_is_zero() -> None:
    assert correlation([1, 1, 1], [1, 2, 3]) == 0.0
    assert correlation([1, 2, 3], [2, 4, 6]) == pytest.approx(1.0)
