"""What is chosen on dev: preferences by hand, and a calibration that comes from corruptions of held-out experts."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from rairl.evaluate.calibrate import CRITERION, dev_scores, make_dev, preference, within_question
from rairl.models.reward import new_reward
from rairl.params import Params
from rairl.traces import Trace


def test_preference_by_hand() -> None:
    # pairs: 2 > 1 wins, 2 = 2 ties, 0 < 5 loses
    assert preference([2.0, 0.0], [1.0, 2.0, 5.0], [0, 0, 1]) == pytest.approx(0.5)
    assert math.isnan(preference([1.0], [], []))


def test_within_question_by_hand() -> None:
    # question 0: right 3 beats wrong 1, ties wrong 3 -> 0.75; question 1 has no wrong one and is left out
    share = within_question([3.0, 1.0, 3.0, 0.0], [True, False, False, True], [0, 0, 0, 1])
    assert share == pytest.approx(0.75)
    assert math.isnan(within_question([1.0, 2.0], [True, None], [0, 0]))


def test_dev_needs_no_answers_and_calibrates(tiny_policy: Path, miniature: Params, demos: list[Trace]) -> None:
    dev = make_dev(demos, [], copies=2, seed=0)
    assert all(trace.first_error is not None for trace in dev.corrupted)
    assert all(dev.experts[at].problem == bad.problem for at, bad in zip(dev.corrupted_of, dev.corrupted, strict=True))
    scores, calibration = dev_scores(new_reward(tiny_policy, miniature.reward, seed=0), dev)
    assert scores[CRITERION] == scores["dev/prefers_corrupted"] and "dev/auroc" not in scores
    assert calibration.threshold is not None and calibration.aggregator in ("last", "mean", "min")
