"""First wrong steps: predictors, chance, F1, by hand, by scikit-learn, and against published reference numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, roc_auc_score

from rairl.core.errors import RairlError
from rairl.core.traces import Trace, locate_steps
from rairl.evaluate.first_error import (
    choose_threshold,
    detection_figures,
    f1,
    located_figures,
    logprob_predictions,
    step_auc_figures,
    trivial_predictions,
)
from rairl.models.calibration import first_error, first_error_or_none, suspicion

DATA = Path(__file__).parents[1].parent / "shared" / "data"


def trace(name: str, steps: list[str], error: int | None, group: str = "") -> Trace:
    text = "\n".join(steps)
    return Trace(
        name, f"problem {group or name}", text, locate_steps(text, steps), first_error=error, labelled=True, group=group
    )


def test_suspicion_by_hand():
    reads = np.array([-0.5, 1.0, -1.0, -1.2])
    np.testing.assert_allclose(suspicion(reads, "drop"), [-0.5, 1.5, -2.0, -0.2])
    np.testing.assert_allclose(suspicion(reads, "argmin"), reads)
    # sigmoid: .5 -> .3775 -> .7311 -> .2689 -> .2315
    np.testing.assert_allclose(suspicion(reads, "fall"), [-0.1225, 0.3535, -0.4621, -0.0375], atol=1e-4)
    assert first_error(reads, "drop") == 2
    assert first_error(reads, "argmin") == 3
    assert first_error(np.array([-3.0, -4.0]), "drop") == 0, "the first step is compared with the prior logit 0"
    # Far down the logit still falls by 3, the probability by less than 2 %.
    assert first_error(np.array([1.0, -1.0, -4.0, -7.0]), "drop") == 2
    assert first_error(np.array([1.0, -1.0, -4.0, -7.0]), "fall") == 1
    np.testing.assert_allclose(suspicion(np.array([-2000.0, 2000.0]), "fall"), [-0.5, 1.0])
    assert first_error_or_none(reads, "drop", -0.4) == 0
    assert first_error_or_none(reads, "drop", -1.0) == 2
    assert first_error_or_none(reads, "drop", -2.0) is None
    assert first_error_or_none(np.zeros(0), "drop", 9.0) is None


def test_bad_input_is_refused():
    with pytest.raises(RairlError, match="locator 'rise' is unknown"):
        suspicion(np.zeros(2), "rise")
    with pytest.raises(RairlError, match="without steps"):
        first_error(np.zeros(0), "drop")
    with pytest.raises(RairlError, match="with and without"):
        choose_threshold([np.zeros(2)], [0], "drop")


@given(st.lists(st.floats(-9, 9), min_size=1, max_size=12), st.floats(-9, 9))
def test_increments_sum_to_the_last_read_and_prediction_is_in_range(reads, cut):
    array = np.array(reads)
    assert suspicion(array, "drop").sum() == pytest.approx(reads[-1], abs=1e-9)
    assert suspicion(array, "fall").sum() == pytest.approx(1 / (1 + np.exp(-reads[-1])) - 0.5, abs=1e-9)
    assert 0 <= first_error(array, "drop") < len(reads)
    at = first_error_or_none(array, "argmin", cut)
    assert at == next((k for k, value in enumerate(reads) if value < cut), None)


@given(
    st.lists(
        st.tuples(st.lists(st.integers(-4, 4), min_size=1, max_size=5), st.none() | st.integers(0, 4)),
        min_size=2,
        max_size=8,
    )
)
@examples(80)
def test_the_chosen_threshold_is_the_best_of_all(rows):
    reads = [np.array(row, dtype=float) for row, _ in rows]
    truth = [None if at is None else min(at, len(row) - 1) for row, at in rows]
    if all(at is None for at in truth) or all(at is not None for at in truth):
        return

    def score(cut: float) -> float:
        hits = [first_error_or_none(row, "argmin", cut) == at for row, at in zip(reads, truth, strict=True)]
        wrong = np.mean([hit for hit, at in zip(hits, truth, strict=True) if at is not None])
        right = np.mean([hit for hit, at in zip(hits, truth, strict=True) if at is None])
        return float(f1(wrong, right))

    best = max(score(cut) for cut in np.arange(-5.5, 6))
    assert score(choose_threshold(reads, truth, "argmin")) == pytest.approx(best)


def test_logprob_predictions_by_hand():
    sums, means = np.array([-2.0, -6.0, -9.0]), np.array([-1.0, -3.0, -1.5])
    ratios = np.array([0.5, 0.4, -0.1])
    assert logprob_predictions(sums, means, ratios) == {
        "logprob_drop": 1, "logprob_sum": 2, "logprob_change": 1, "logratio_drop": 2,
    }  # fmt: skip


def test_trivial_predictions():
    assert trivial_predictions(trace("a", ["x", "long one", "same len"], 1)) == {"first": 0, "last": 2, "longest": 1}


def test_located_figures_by_hand():
    traces = [trace("a", list("xyzw"), 0), trace("b", list("xy"), 1), trace("c", list("xyzwv"), 2)]
    figures = located_figures(traces, {"reward": [0, 0, 2], "first": [0, 0, 0]}, "localise", draws=200, seed=0)
    values = {name: figure.value for name, figure in figures.items()}
    assert values["localise.reward.exact"] == pytest.approx(2 / 3)
    assert values["localise.reward.within1"] == 1
    assert values["localise.first.within1"] == pytest.approx(2 / 3)
    assert values["localise.chance.exact"] == pytest.approx((1 / 4 + 1 / 2 + 1 / 5) / 3)
    # Steps within one of the truth: 2 of 4 at the left end, 2 of 2, 3 of 5 in the middle.
    assert values["localise.chance.within1"] == pytest.approx((2 / 4 + 2 / 2 + 3 / 5) / 3)
    assert values["localise.reward-first.exact"] == pytest.approx(1 / 3)
    assert values["localise.first.distance"] == pytest.approx((0 + 1 + 2) / 3)
    # Steps off by a random guess: (0 + 1 + 2 + 3) / 4, (1 + 0) / 2, (2 + 1 + 0 + 1 + 2) / 5.
    assert values["localise.chance.distance"] == pytest.approx((6 / 4 + 1 / 2 + 6 / 5) / 3)
    assert 0 < values["localise.reward-chance.exact.p"] <= 1


def test_step_auc_by_hand_and_by_scikit_learn():
    traces = [trace("a", list("xyzw"), 2), trace("b", list("xy"), 1), trace("c", list("xyz"), 0)]
    trust = [np.array([3.0, 0.0, 1.0, -9.0]), np.array([2.0, 2.0]), np.array([-1.0, 5.0, 5.0])]
    figures = step_auc_figures(traces, {"reward": trust}, "x", draws=100, seed=0)
    # Within a: 3 > 1 but 0 < 1; within b a tie; c has no step before its first error.
    assert figures["x.reward.step_auc"].value == pytest.approx(1.5 / 3)
    assert figures["x.reward.step_auc"].n == 2
    good, values = [1, 1, 0, 1, 0, 0], [3.0, 0.0, 1.0, 2.0, 2.0, -1.0]
    assert figures["x.reward.step_auc_pooled"].value == pytest.approx(roc_auc_score(good, values))


def test_f1_is_the_harmonic_mean():
    assert f1(0.5, 1.0) == pytest.approx(2 / 3)
    assert f1(0.0, 0.0) == 0
    assert f1(0.3, 0.3) == pytest.approx(0.3)
    # With accuracies read as precision and recall it is scikit-learn's F1: 2 hits, 3 false alarms, 1 miss.
    labels, predicted = [1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 1, 1]
    assert f1(2 / 5, 2 / 3) == pytest.approx(f1_score(labels, predicted))


def test_detection_figures_by_hand():
    traces = [trace(name, list("xy"), error) for name, error in (("a", 0), ("b", 1), ("c", None), ("d", None))]
    figures = detection_figures(traces, [1, 0, 1, 1], "localise.set.reward", draws=300, seed=0)
    assert figures["localise.set.reward.acc_error"].value == 0.5
    assert figures["localise.set.reward.acc_correct"].value == 1
    assert figures["localise.set.reward.f1"].value == pytest.approx(2 / 3)
    assert 0 <= figures["localise.set.reward.f1"].low <= figures["localise.set.reward.f1"].high <= 1
    only_wrong = detection_figures(traces[:2], [1, 0], "x", draws=100, seed=0)
    assert set(only_wrong) == {"x.acc_error"}


@pytest.mark.skipif(not (DATA / "processbench").exists(), reason="../shared/data/processbench is not here")
def test_reference_numbers_of_processbench():
    """Published for this file: chance .208, first .179, last .077, longest .406; F1 of a uniform guess .172."""
    rows = [json.loads(line) for line in (DATA / "processbench" / "gsm8k.jsonl").read_text().splitlines()]
    traces = []
    for row in rows:
        steps = [step.strip() for step in row["steps"]]
        traces.append(trace(row["id"], steps, None if row["label"] < 0 else row["label"], row["problem"]))
    wrong = [item for item in traces if item.first_error is not None]
    assert len(wrong) == 207
    guesses = [trivial_predictions(item) for item in wrong]
    predictions = {name: [guess[name] for guess in guesses] for name in ("first", "last", "longest")}
    figures = located_figures(wrong, predictions, "x", draws=100, seed=0)
    expected = {"chance": 0.208, "first": 0.179, "last": 0.077, "longest": 0.406}
    assert {name: figures[f"x.{name}.exact"].value for name in expected} == pytest.approx(expected, abs=0.0006)
    chance = detection_figures(traces, [1 / (len(item.steps) + 1) for item in traces], "x", draws=100, seed=0)
    assert chance["x.f1"].value == pytest.approx(0.172, abs=0.0006)
    assert chance["x.f1"].n == 375
