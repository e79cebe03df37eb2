"""Credit: numbers worked by hand and naive references."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rairl.learn.credit import group_advantages, increments, returns_to_go, step_advantages

REWARDS = arrays(np.float64, st.integers(1, 12), elements=st.floats(-5, 5))


def test_group_advantages_by_hand() -> None:
    # row 1: mean 2, std 1 -> (-1, 1); row 2: equal rewards carry no signal
    values = group_advantages(np.array([[1.0, 3.0], [4.0, 4.0]]), floor=0.5)
    np.testing.assert_allclose(values, [[-1.0, 1.0], [0.0, 0.0]])


def test_floor_keeps_small_differences_small() -> None:
    values = group_advantages(np.array([[0.0, 0.02]]), floor=0.5)
    np.testing.assert_allclose(values, [[-0.02, 0.02]])


@given(REWARDS, st.floats(0, 1))
def test_returns_equal_the_double_sum(rewards: np.ndarray, discount: float) -> None:
    naive = [
        sum(discount ** (later - at) * rewards[later] for later in range(at, len(rewards)))
        for at in range(len(rewards))
    ]
    np.testing.assert_allclose(returns_to_go(rewards, discount), naive, atol=1e-9)


def test_returns_survive_a_long_trace() -> None:
    """0.9 ** 20000 underflows; the backward recursion never forms it."""
    returns = returns_to_go(np.ones(20_000), 0.9)
    assert np.isfinite(returns).all() and returns[0] == pytest.approx(10.0)


@given(REWARDS)
def test_increments_telescope(reads: np.ndarray) -> None:
    np.testing.assert_allclose(np.cumsum(increments(reads)), reads, atol=1e-9)


def test_step_advantages_by_hand() -> None:
    # reads (1, 3) and (1, 0): increments (1, 2) and (1, -1); discount 0.5: returns (2, 2) and (0.5, -1); mean 0.875
    group = [[np.array([1.0, 3.0]), np.array([1.0, 0.0])]]
    first, second = step_advantages(group, "return", 0.5, floor=0.1)[0]
    scale = np.std([2.0, 2.0, 0.5, -1.0])
    np.testing.assert_allclose(first, np.array([1.125, 1.125]) / scale)
    np.testing.assert_allclose(second, np.array([-0.375, -1.875]) / scale)


def test_step_credit_blames_the_step_that_fell() -> None:
    good, bad = np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, -1.0])
    for_good, for_bad = step_advantages([[good, bad]], "return", 0.0, 0.5)[0]
    assert for_bad[2] < for_bad[1]
    np.testing.assert_allclose(for_good[:2], for_bad[:2])
