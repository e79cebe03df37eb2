"""Scores as probabilities: the map, the Brier score and the calibration error, by hand and by scikit-learn."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from rairl.evaluate.probability import (
    BINS,
    calibration_figures,
    equal_mass_bins,
    fit_map,
    probabilities,
    reliability,
)


def test_the_map_finds_the_slope_it_was_made_with_and_never_turns_the_order_round():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=4000)
    right = rng.random(4000) < probabilities(scores, 1.5, -0.4)
    slope, intercept = fit_map(scores, right)
    assert (slope, intercept) == (pytest.approx(1.5, abs=0.15), pytest.approx(-0.4, abs=0.1))
    slope, intercept = fit_map(-scores, right)
    assert slope == 0
    np.testing.assert_allclose(probabilities(scores[:3], slope, intercept), right.mean())
    assert fit_map([1.0, 2.0], [True, True]) is None
    np.testing.assert_allclose(probabilities([0.0, 1e9, -1e9], 2.0, 0.0), [0.5, 1, 0])


def test_figures_agree_with_scikit_learn():
    rng = np.random.default_rng(1)
    chance = rng.random(400)
    right = rng.random(400) < chance**2
    groups = [str(row // 4) for row in range(400)]
    figures = calibration_figures(chance, right, groups, "x", base=0.4, draws=200, seed=0)
    assert figures["x.brier"].value == pytest.approx(brier_score_loss(right, chance))
    assert figures["x.brier_base"].value == pytest.approx(brier_score_loss(right, np.full(400, 0.4)))
    share, mean = calibration_curve(right, chance, n_bins=BINS, strategy="quantile")
    assert figures["x.ece"].value == pytest.approx(np.abs(share - mean).mean()), "each bin holds a tenth"
    assert figures["x.ece"].n == 100
    curve = reliability(chance, right, groups, draws=200, seed=0)
    assert list(curve) == pytest.approx(mean)
    assert [bin_.value for bin_ in curve.values()] == pytest.approx(share)


def test_calibration_error_by_hand():
    # Two values, so two bins: says .9, right in 3 of 4; says .1, right in 0 of 4.
    chance, right = [0.9] * 4 + [0.1] * 4, [True, True, True, False] + [False] * 4
    assert len(set(equal_mass_bins(chance))) == 2, "equal values share a bin"
    figures = calibration_figures(chance, right, [str(row) for row in range(8)], "x", base=0.5, draws=100, seed=0)
    assert figures["x.ece"].value == pytest.approx((0.15 + 0.1) / 2)
    assert figures["x.brier"].value == pytest.approx((3 * 0.01 + 0.81 + 4 * 0.01) / 8)
    assert reliability(chance, right, list("abcdefgh"), draws=100, seed=0)[0.9].value == 0.75
