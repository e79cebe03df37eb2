"""Credit: numbers worked by hand, naive references, and what must hold whatever the rewards."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rairl.learn.credit import (
    below_all,
    group_advantages,
    increments,
    minimum_to_go,
    returns_to_go,
    step_advantages,
)

VALUES = st.floats(-5, 5)
REWARDS = arrays(np.float64, st.integers(1, 12), elements=VALUES)
GROUPS = st.lists(st.lists(REWARDS, min_size=2, max_size=4), min_size=1, max_size=3)
TABLES = arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(2, 5)), elements=VALUES)
RULES = st.sampled_from(["return", "difference", "min"])


# --- one reward per trace --------------------------------------------------------------------------------------------


def test_group_advantages_by_hand() -> None:
    # row 1: mean 2, std 1 -> (-1, 1); row 2: equal rewards carry no signal
    values = group_advantages(np.array([[1.0, 3.0], [4.0, 4.0]]), floor=0.5)
    np.testing.assert_allclose(values, [[-1.0, 1.0], [0.0, 0.0]])


def test_floor_keeps_small_differences_small() -> None:
    values = group_advantages(np.array([[0.0, 0.02]]), floor=0.5)
    np.testing.assert_allclose(values, [[-0.02, 0.02]])


@given(TABLES, VALUES)
def test_a_constant_changes_nothing_and_the_mean_is_zero(rewards: np.ndarray, constant: float) -> None:
    values = group_advantages(rewards, 0.5)
    np.testing.assert_allclose(values.mean(axis=1), 0, atol=1e-9)
    np.testing.assert_allclose(group_advantages(rewards + constant, 0.5), values, atol=1e-9)


# --- one reward per read ---------------------------------------------------------------------------------------------


def test_returns_survive_a_long_trace() -> None:
    """0.9 ** 20000 underflows; the backward recursion never forms it."""
    returns = returns_to_go(np.ones(20_000), 0.9)
    assert np.isfinite(returns).all() and returns[0] == pytest.approx(10.0)


@given(REWARDS)
def test_increments_telescope(reads: np.ndarray) -> None:
    np.testing.assert_allclose(np.cumsum(increments(reads)), reads, atol=1e-9)


def test_minimum_to_go_by_hand() -> None:
    assert minimum_to_go(np.array([2.0, -1.0, 3.0, 0.5])).tolist() == [-1, -1, 0.5, 0.5]


GROUP = [np.array([1.0, 3.0]), np.array([1.0, 0.0])]
"""Reads whose increments are (1, 2) and (1, -1)."""


@pytest.mark.parametrize(
    ("rule", "credits"),
    [("return", [[2, 2], [0.5, -1]]), ("difference", [[1, 2], [1, -1]]), ("min", [[1, 2], [-1, -1]])],
)  # the returns with discount 0.5
def test_step_advantages_by_hand(rule: str, credits: list[list[float]]) -> None:
    scale = np.std(np.ravel(credits))
    found = step_advantages([GROUP], rule, 0.5, floor=0.1)[0]
    np.testing.assert_allclose(found, [(np.array(values) - np.mean(credits)) / scale for values in credits])


@given(GROUPS, RULES, st.floats(0, 1))
def test_step_advantages_equal_the_naive_sums(groups: list[list[np.ndarray]], rule: str, discount: float) -> None:
    for group, found in zip(groups, step_advantages(groups, rule, discount, 0.3), strict=True):
        credits = [naive(reads, rule, discount) for reads in group]
        pooled = [value for values in credits for value in values]
        scale = max(np.std(pooled), 0.3)
        for sample, values in enumerate(found):
            expected = [(value - np.mean(pooled)) / scale for value in credits[sample]]
            np.testing.assert_allclose(values, expected, atol=1e-8)


def naive(reads: np.ndarray, rule: str, discount: float) -> list[float]:
    """Credit of every read by the definition: a sum or a minimum over what is still to come."""
    reward = [reads[0], *(late - early for early, late in itertools.pairwise(reads))]
    to_come = [range(at, len(reads)) for at in range(len(reads))]
    if rule == "difference":
        return reward
    if rule == "min":
        return [min(reward[later] for later in rest) for rest in to_come]
    return [sum(discount ** (later - at) * reward[later] for later in rest) for at, rest in enumerate(to_come)]


@given(GROUPS, RULES, st.floats(0, 1))
def test_the_pooled_mean_of_a_group_is_zero(groups: list[list[np.ndarray]], rule: str, discount: float) -> None:
    for values in step_advantages(groups, rule, discount, 0.5):
        assert np.concatenate(values).mean() == pytest.approx(0, abs=1e-9)


def test_step_credit_blames_the_step_that_fell() -> None:
    good, bad = np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, -1.0])
    for_good, for_bad = step_advantages([[good, bad]], "difference", 0.0, 0.5)[0]
    assert for_bad[2] < for_bad[1]
    np.testing.assert_allclose(for_good[:2], for_bad[:2])
    # the worst step to come weighs on all that lead to it, and a good step before it can't pay for it
    _, for_bad = step_advantages([[good, bad]], "min", 0.0, 0.5)[0]
    assert for_bad[0] == for_bad[2] < for_good[0]


# --- who says nothing ------------------------------------------------------------------------------------------------


def test_below_all_by_hand() -> None:
    silent = np.array([False, True, False, True])
    # the others are 1 and 3, their std is 1
    assert below_all(np.array([1.0, 9.0, 3.0, -5.0]), silent, 0.5).tolist() == [1, 0, 3, -5]
    assert below_all(np.array([1.0, 9.0, 1.0, 1.0]), silent, 0.5).tolist() == [1, 0.5, 1, 0.5]
    for none in (np.zeros(2, bool), np.ones(2, bool)):
        assert below_all(np.array([1.0, 2.0]), none, 0.5).tolist() == [1, 2]


@given(TABLES, st.integers(0, 2**5 - 1))
def test_a_silent_sample_has_the_lowest_advantage(rewards: np.ndarray, bits: int) -> None:
    silent = np.array([[bool(bits >> at & 1) for at in range(rewards.shape[1])]] * len(rewards))
    values = group_advantages(rewards, 0.5, silent)
    np.testing.assert_allclose(values.mean(axis=1), 0, atol=1e-9)
    for row, quiet in zip(values, silent, strict=True):
        if quiet.any() and not quiet.all():
            assert row[quiet].max() < row[~quiet].min()
    if not silent.any() or silent.all():
        np.testing.assert_array_equal(values, group_advantages(rewards, 0.5))


@given(GROUPS, RULES, st.integers(0, 15))
def test_every_read_of_a_silent_sample_has_the_lowest_advantage(
    groups: list[list[np.ndarray]], rule: str, bits: int
) -> None:
    silent = [[bool(bits >> at & 1) for at in range(len(group))] for group in groups]
    values = step_advantages(groups, rule, 0.9, 0.5, silent=silent)  # type: ignore[arg-type]
    plain = step_advantages(groups, rule, 0.9, 0.5)  # type: ignore[arg-type]
    for group, quiet, before in zip(values, silent, plain, strict=True):
        if any(quiet) and not all(quiet):
            said = min(row.min() for row, one in zip(group, quiet, strict=True) if not one)
            assert max(row.max() for row, one in zip(group, quiet, strict=True) if one) < said
        else:
            assert all(np.array_equal(*pair) for pair in zip(group, before, strict=True))
