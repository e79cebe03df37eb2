"""Intervals, paired tests and AUROC, against scipy, scikit-learn and numbers worked by hand."""

import itertools

import numpy as np
import pytest
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap as scipy_bootstrap
from scipy.stats import kendalltau, mannwhitneyu, pearsonr
from sklearn.metrics import roc_auc_score

from rairl.core.errors import RairlError
from rairl.core.stats import (
    NOTHING,
    Estimate,
    bootstrap_mean,
    centred,
    exact,
    from_json,
    hierarchical_bootstrap,
    holm,
    paired_difference,
    paired_permutation_p,
    pass_at_k,
    pooled_auroc,
    to_json,
    within_agreement,
    within_auroc,
    within_correlation,
)


def test_bootstrap_mean_agrees_with_scipy_when_every_row_is_its_own_question():
    values = np.random.default_rng(0).normal(size=200)
    ours = bootstrap_mean(values, [str(i) for i in range(200)], draws=4000, seed=1)
    theirs = scipy_bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(2))
    assert ours.value == pytest.approx(values.mean())
    assert ours.n == 200
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.02)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.02)


def test_rows_of_one_question_are_drawn_together():
    values = np.repeat(np.random.default_rng(0).integers(0, 2, size=50), 16)
    alone = bootstrap_mean(values, [str(i) for i in range(800)])
    together = bootstrap_mean(values, [str(i // 16) for i in range(800)])
    assert together.n == 50
    # Sixteen copies of an answer are one piece of evidence: the interval is four times as wide.
    assert (together.high - together.low) / (alone.high - alone.low) == pytest.approx(4, rel=0.15)


def test_two_questions_give_the_three_possible_means():
    estimate = bootstrap_mean([0, 1], ["a", "b"], draws=1000)
    assert estimate == Estimate(0.5, 0.0, 1.0, 2)


def test_unequal_groups_weigh_by_their_rows():
    assert bootstrap_mean([1, 1, 1, 0], ["a", "a", "a", "b"]).value == 0.75


def test_nothing_gives_nan_and_zero():
    assert bootstrap_mean([], []).n == 0
    assert np.isnan(within_auroc([True, True], [1.0, 2.0], ["a", "a"]).value)
    assert pooled_auroc([True, True], [1.0, 2.0], ["a", "b"]).n == 0


def test_values_and_groups_must_match():
    with pytest.raises(ValueError, match="3 values but 2 groups"):
        bootstrap_mean([1, 2, 3], ["a", "b"])


@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 5)), min_size=1, max_size=40), st.integers(0, 9))
@examples(40)
def test_interval_lies_within_the_range_of_group_means_and_is_reproducible(rows, seed):
    values, groups = [value for value, _ in rows], [str(group) for _, group in rows]
    estimate = bootstrap_mean(values, groups, draws=100, seed=seed)
    assert estimate == bootstrap_mean(values, groups, draws=100, seed=seed)
    assert min(values) - 1e-9 <= estimate.low <= estimate.high <= max(values) + 1e-9


def test_paired_difference_is_narrower_than_its_parts():
    rng = np.random.default_rng(0)
    second = rng.normal(size=300)
    first = second + 0.1 + rng.normal(scale=0.1, size=300)
    groups = [str(i) for i in range(300)]
    difference = paired_difference(first, second, groups)
    assert difference.low > 0
    assert difference.value == pytest.approx(first.mean() - second.mean())
    assert difference.high - difference.low < 0.2 * (
        bootstrap_mean(first, groups).high - bootstrap_mean(first, groups).low
    )


def test_permutation_p_is_the_enumerated_one_on_a_small_table():
    first, second = np.array([3.0, 1, 4, 1.5, 5]), np.array([2.0, 1.5, 2, 1, 2])
    difference = first - second
    signs = np.array(list(itertools.product((1, -1), repeat=5)))
    totals = signs @ difference
    by_hand = (np.abs(totals) >= abs(difference.sum()) - 1e-12).mean()
    p = paired_permutation_p(first, second, list("abcde"))
    assert p.value == p.low == p.high == pytest.approx(by_hand)


def test_permutation_flips_whole_questions():
    first, second = np.ones(32), np.zeros(32)
    assert paired_permutation_p(first, second, ["a"] * 16 + ["b"] * 16).value == 1.0 / 2
    assert paired_permutation_p(first, second, ["a"] * 32).value == 1.0
    assert paired_permutation_p(first, second, [str(i) for i in range(32)]).value < 0.001
    assert paired_permutation_p(first, first, [str(i) for i in range(32)]).value == 1.0


def test_permutation_p_is_uniform_under_the_null():
    rng = np.random.default_rng(0)
    groups = [str(i) for i in range(30)]
    ps = [paired_permutation_p(*rng.normal(size=(2, 30)), groups, draws=199).value for _ in range(200)]
    assert np.mean(np.array(ps) <= 0.05) < 0.11


def test_pooled_auroc_agrees_with_scikit_learn_and_mann_whitney():
    rng = np.random.default_rng(0)
    labels = rng.random(400) < 0.4
    scores = np.round(rng.normal(size=400) + labels, 1)  # rounded, so that there are ties
    estimate = pooled_auroc(labels, scores, [str(i // 4) for i in range(400)])
    assert estimate.value == pytest.approx(roc_auc_score(labels, scores))
    u = mannwhitneyu(scores[labels], scores[~labels]).statistic
    assert estimate.value == pytest.approx(u / (labels.sum() * (~labels).sum()))
    assert estimate.low < estimate.value < estimate.high
    assert estimate.n == 100


def test_pooled_auroc_interval_agrees_with_resampling_scikit_learn():
    rng = np.random.default_rng(0)
    labels, groups = rng.random(120) < 0.5, np.arange(120) // 4
    scores = np.round(rng.normal(size=120) + labels, 1)
    draws = []
    for _ in range(600):
        rows = np.concatenate([np.flatnonzero(groups == g) for g in rng.integers(30, size=30)])
        draws.append(roc_auc_score(labels[rows], scores[rows]))
    estimate = pooled_auroc(labels, scores, [str(g) for g in groups], draws=2000)
    assert estimate.low == pytest.approx(np.percentile(draws, 2.5), abs=0.02)
    assert estimate.high == pytest.approx(np.percentile(draws, 97.5), abs=0.02)


def test_within_auroc_by_hand():
    #        a: right 2, wrong 1 -> 1 of 1;  b: right 1 and 3, wrong 1 and 2 -> .5 + 0 + 1 + 1 = 2.5 of 4;  c: no pair
    labels = [True, False, True, True, False, False, True]
    scores = [2, 1, 1, 3, 1, 2, 9]
    estimate = within_auroc(labels, scores, list("aabbbbc"))
    assert estimate.value == pytest.approx(3.5 / 5)
    assert estimate.n == 2


def test_within_auroc_of_one_question_is_the_plain_auroc():
    rng = np.random.default_rng(3)
    labels, scores = rng.random(50) < 0.5, rng.integers(0, 8, size=50)
    assert within_auroc(labels, scores, ["q"] * 50).value == pytest.approx(roc_auc_score(labels, scores))


def test_within_auroc_ignores_what_is_common_to_a_question():
    rng = np.random.default_rng(4)
    labels, scores = rng.random(80) < 0.5, rng.normal(size=80)
    groups = [str(i // 8) for i in range(80)]
    moved = scores + np.repeat(rng.normal(scale=100, size=10), 8)
    assert within_auroc(labels, moved, groups) == within_auroc(labels, scores, groups)


def test_a_score_that_is_not_finite_is_refused():
    with pytest.raises(RairlError, match="row 1"):
        within_auroc([True, False], [0.0, float("nan")], ["a", "a"])


def test_pass_at_k_by_enumeration():
    for n, correct in ((5, 0), (5, 2), (6, 6), (4, 1)):
        right = [True] * correct + [False] * (n - correct)
        for k in range(1, n + 1):
            subsets = list(itertools.combinations(right, k))
            assert pass_at_k(n, correct, k) == pytest.approx(np.mean([any(subset) for subset in subsets]))


def test_pass_at_k_refuses_more_than_there_are():
    with pytest.raises(RairlError, match="pass@9 needs at least 9 samples"):
        pass_at_k(8, 3, 9)


def test_json_round_trip():
    figures = {"a": Estimate(0.5, 0.4, 0.6, 7), "b": exact(3)}
    assert from_json(to_json(figures)) == figures


# --- several training runs -------------------------------------------------------------------------------------------


def first(means):
    return means[..., 0]


def runs_of(*rows):
    """Training runs of one figure from ``[(numerator, denominator), ...]`` per question."""
    return [np.array(row, dtype=float)[:, None, :] for row in rows]


def test_a_mean_over_runs_by_hand():
    runs = runs_of([(1, 2), (3, 4)], [(1, 1), (0, 1), (0, 2)])
    found = hierarchical_bootstrap(runs, first, draws=500)
    assert found.value == pytest.approx((4 / 6 + 1 / 4) / 2)
    assert found.n == 5
    assert found.low <= found.value <= found.high


def test_one_run_has_the_plain_bootstraps_interval():
    values = np.random.default_rng(0).normal(size=300)
    plain = bootstrap_mean(values, [f"{i:03d}" for i in range(300)], draws=4000)
    found = hierarchical_bootstrap(runs_of([(value, 1) for value in values]), first, draws=4000)
    assert found.value == pytest.approx(plain.value)
    assert found.low == pytest.approx(plain.low, abs=0.01)
    assert found.high == pytest.approx(plain.high, abs=0.01)


def test_runs_that_differ_widen_the_interval_however_many_questions_there_are():
    alike = hierarchical_bootstrap(runs_of(*[[(0.5, 1)] * 2000] * 4), first)
    apart = hierarchical_bootstrap(runs_of(*[[(level, 1)] * 2000 for level in (0.2, 0.4, 0.6, 0.8)]), first)
    assert (alike.low, alike.high) == pytest.approx((0.5, 0.5))
    assert apart.value == pytest.approx(0.5)
    # The mean of four draws from four levels: 2.5 % and 97.5 % of its 4^4 equally likely values.
    means = sorted(np.mean(draw) for draw in itertools.product((0.2, 0.4, 0.6, 0.8), repeat=4))
    assert apart.low == pytest.approx(means[6], abs=0.051)
    assert apart.high == pytest.approx(means[249], abs=0.051)


def test_figures_of_one_run_are_drawn_together_and_nothing_comes_of_nothing():
    values = np.random.default_rng(0).normal(size=(2, 50))
    both = [np.stack([np.stack([row + 1, row], 1), np.ones((50, 2))], -1) for row in values]
    found = hierarchical_bootstrap(both, lambda means: means[..., 0] - means[..., 1], draws=300)
    assert found[:3] == pytest.approx((1, 1, 1))
    assert hierarchical_bootstrap([], first).n == 0
    assert hierarchical_bootstrap(runs_of([(0, 0)]), first).n == 0


# --- within questions ------------------------------------------------------------------------------------------------


def test_agreement_by_hand():
    first, second, groups = [1, 2, 3, 5, 5], [1, 3, 2, 7, 8], ["a", "a", "a", "b", "b"]
    # a: two of three pairs in the same order; b: tied in one of them.
    assert within_agreement(first, second, groups, draws=100).value == pytest.approx(2.5 / 4)
    assert within_agreement([1, 1], [2, 2], ["a", "a"]) == NOTHING
    assert within_agreement([1, 2], [2, 2], ["a", "b"]) == NOTHING


@given(st.lists(st.floats(-9, 9), min_size=2, max_size=9, unique=True))
def test_agreement_with_itself_is_whole_and_with_its_opposite_nothing(values):
    groups = ["q"] * len(values)
    assert within_agreement(values, values, groups, draws=100).value == 1
    assert within_agreement(values, [-value for value in values], groups, draws=100).value == 0


def test_agreement_is_kendalls_tau_on_another_scale():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=30), rng.normal(size=30)
    tau = kendalltau(first, second).statistic
    assert within_agreement(first, second, ["q"] * 30, draws=100).value == pytest.approx((tau + 1) / 2)


def test_correlation_within_units_is_pearsons_of_what_is_left():
    rng = np.random.default_rng(0)
    units = [str(row // 5) for row in range(60)]
    first = rng.normal(size=60) + np.arange(60) // 5 * 10
    second = first + rng.normal(size=60) - np.arange(60) // 5 * 30
    a, b = centred(first, units), centred(second, units)
    assert within_correlation(first, second, units, units, draws=100).value == pytest.approx(pearsonr(a, b).statistic)
    assert pearsonr(first, second).statistic < 0 < pearsonr(a, b).statistic, "the units' means hide it"
    one = ["u"] * 60
    assert within_correlation(first, second, one, units, draws=100).value == pytest.approx(pearsonr(first, second)[0])


def test_holm_by_hand():
    # Sorted .01, .02, .03, .2 times 4, 3, 2, 1: .04, .06, .06 (never below the one before), .2.
    assert holm({"a": 0.03, "b": 0.01, "c": 0.2, "d": 0.02}) == pytest.approx(
        {"a": 0.06, "b": 0.04, "c": 0.2, "d": 0.06}
    )
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.5))
def test_holm_rejects_step_by_step(values, alpha):
    adjusted = holm({str(at): value for at, value in enumerate(values)})
    rejected = set()
    for rank, at in enumerate(sorted(range(len(values)), key=lambda at: values[at])):
        if values[at] * (len(values) - rank) > alpha:
            break
        rejected.add(str(at))
    assert {name for name, value in adjusted.items() if value <= alpha} == rejected
