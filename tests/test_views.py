"""What the pages of Kubeflow Pipelines show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rairl.core.stats import Estimate, to_json
from rairl.kubeflow import pages as views


def test_the_curve_of_four_scores_worked_by_hand() -> None:
    false, true, threshold = views.curve([True, False, True, False], [0.9, 0.8, 0.4, 0.1])
    assert (false, true) == ([0.0, 0.0, 0.5, 0.5, 1.0], [0.0, 0.5, 0.5, 1.0, 1.0])
    assert threshold == [0.9, 0.9, 0.8, 0.4, 0.1]  # no infinity: the artifact's metadata is JSON


def test_a_long_curve_is_thinned_and_keeps_its_ends() -> None:
    right = [index % 3 == 0 for index in range(3000)]
    false, true, threshold = views.curve(right, [float(index * 7919 % 3001) for index in range(3000)])
    assert len(false) == len(true) == len(threshold) == views.POINTS
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert false == sorted(false) and true == sorted(true)


@pytest.mark.parametrize("right", [[True, True], [False, False]])
def test_one_class_has_no_curve(right: list[bool]) -> None:
    assert views.curve(right, [0.1, 0.2]) == ([], [], [])


def test_the_reports_tables_as_markdown(tmp_path: Path) -> None:
    figures = {"posttrain.sft.pass@1": Estimate(0.5, 0.25, 0.75, 40), "posttrain.rairl.pass@1": Estimate(1, 1, 1, 40)}
    (tmp_path / "metrics.json").write_text(json.dumps(to_json(figures)))
    lines = views.tables(tmp_path / "metrics.json").splitlines()
    assert lines[0] == "### Policies on test"
    head, rule, *rows = lines[2:]
    assert head.startswith("| | pass@1 |") and rule.count("---") == head.count("|") - 1
    assert any("0.500 [0.250, 0.750]" in row for row in rows)
    assert all(row.count("|") == head.count("|") for row in rows if row.startswith("|"))
