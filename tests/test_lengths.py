"""Length controls: numbers by hand and invariants."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rairl.learn.lengths import centre_lengths, length_slope, match_lengths

GROUPS = arrays(np.float64, (3, 4), elements=st.floats(-5, 5))
LENGTHS = arrays(np.int64, (3, 4), elements=st.integers(1, 60))


def test_each_wanted_length_takes_the_nearest_free_one() -> None:
    # 10 takes the 11 before the equally near 9 (it stands first), the next 10 the 9, 100 the 40
    assert match_lengths([10, 10, 100], [11, 9, 40, 12]) == [0, 1, 2]
    assert match_lengths([5, 5, 5], [4, 9]) == [0, 1]
    assert match_lengths([5], []) == []


@given(st.lists(st.integers(0, 50), max_size=8), st.lists(st.integers(0, 50), max_size=12))
def test_nothing_is_taken_twice(wanted: list[int], pool: list[int]) -> None:
    taken = match_lengths(wanted, pool)
    assert len(set(taken)) == len(taken) == min(len(wanted), len(pool))
    free = set(range(len(pool)))
    for length, index in zip(wanted, taken, strict=False):
        assert abs(pool[index] - length) == min(abs(pool[other] - length) for other in free)
        free.remove(index)


def test_slope_by_hand() -> None:
    # within groups: deviations of length (-1, 1) and (-2, 2), of reward (-1, 1) and (-4, 4): (2 + 16) / (2 + 8)
    rewards, lengths = np.array([[0.0, 2.0], [10.0, 18.0]]), np.array([[1.0, 3.0], [50.0, 54.0]])
    assert length_slope(rewards, lengths) == pytest.approx(1.8)
    np.testing.assert_allclose(centre_lengths(rewards, lengths), [[1.8, 0.2], [13.6, 14.4]])
    assert length_slope(rewards, np.ones((2, 2))) == 0.0


@given(GROUPS, LENGTHS, st.floats(-3, 3))
def test_what_length_explains_is_gone(rewards: np.ndarray, lengths: np.ndarray, price: float) -> None:
    kept = centre_lengths(rewards, lengths)
    np.testing.assert_allclose(kept.mean(1), rewards.mean(1), atol=1e-9)
    assert length_slope(kept, lengths) == pytest.approx(0.0, abs=1e-9)
    paid = rewards + price * (lengths - lengths.mean(1, keepdims=True))
    np.testing.assert_allclose(centre_lengths(paid, lengths), kept, atol=1e-6)
