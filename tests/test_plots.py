"""The training curves: means over a window of iterations with their intervals, by hand and as drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from rairl.report import plots


def test_rolling_means_and_their_intervals_by_hand() -> None:
    mean, low, high = plots.rolling([0, 1, 2, 3], [1.0, 2.0, 3.0, 8.0], 3)
    np.testing.assert_allclose(mean, [1.5, 2, 13 / 3, 5.5])
    # The standard deviation of 1, 2, 3 is 1, and t's 97.5 % point with two degrees of freedom 4.3027.
    assert (low[1], high[1]) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)
    assert np.isnan(low[[0, 3]]).all() and np.isnan(high[[0, 3]]).all(), "two values say nothing of their spread"


def test_rolling_intervals_are_students() -> None:
    values = np.random.default_rng(0).normal(size=30)
    mean, low, high = plots.rolling(range(30), values, 9)
    for at in (0, 3, 14, 29):
        part = values[max(0, at - 4) : at + 5]
        expected = stats.t.interval(0.95, len(part) - 1, loc=part.mean(), scale=stats.sem(part))
        assert (low[at], mean[at], high[at]) == pytest.approx((expected[0], part.mean(), expected[1]))


def test_a_curve_that_stands_still_has_no_width_and_an_empty_one_no_points() -> None:
    _, low, high = plots.rolling(range(4), [0.5] * 4, 3)
    np.testing.assert_allclose([low[1:3], high[1:3]], 0.5)
    assert plots.rolling([], [], 3).shape == (3, 0)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are drawn while the test runs, kept from being closed."""
    figures: list[Any] = []

    def keep(figure: Any, path: Path) -> Path:
        figures.append(figure)
        return path

    monkeypatch.setattr(plots, "_save", keep)
    return figures


ROWS = [{"step": step, "reward/mean": step / 5, "a/b/x": step**2, "a/b/y": 3.0} for step in range(12)]


def test_every_training_curve_has_a_band(drawn: list[Any], tmp_path: Path) -> None:
    plots.histories(ROWS, tmp_path / "x.png")
    plots.twin(ROWS, ("reward/mean", "reward"), ("a/b/x", "truth"), tmp_path / "y.png")
    panels, both = drawn
    bands = [len(axis.collections) for axis in panels.axes if axis.get_visible()]
    assert bands == [1, 2], "one per quantity"
    assert [len(axis.collections) for axis in both.axes] == [1, 1]
    _, low, high = plots.rolling(range(12), [row["reward/mean"] for row in ROWS])
    edge = both.axes[0].collections[0].get_paths()[0].vertices
    at_six = edge[edge[:, 0] == 6][:, 1]
    assert (at_six.min(), at_six.max()) == pytest.approx((low[6], high[6]))


def test_the_window_is_of_iterations_not_of_records(drawn: list[Any], tmp_path: Path) -> None:
    """What is measured every twenty iterations must not be averaged over forty."""
    mean, low, _ = plots.rolling([0, 20, 40], [0.1, 0.5, 0.9])
    assert mean.tolist() == [0.1, 0.5, 0.9] and np.isnan(low).all()
    rows = [{"step": step, "dev/auroc": step / 10} for step in range(0, 12, 3)] + [{"step": 20, "other": 1.0}]
    plots.histories(rows, tmp_path / "x.png")
    line = drawn[0].axes[0].get_lines()[0]
    assert line.get_xdata().tolist() == [0, 3, 6, 9]
    assert line.get_ydata() == pytest.approx([0.15, 0.3, 0.6, 0.75])
