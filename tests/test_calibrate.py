"""What is chosen on dev: preferences by hand, and a calibration from corruptions and rollouts."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rairl.core.params import Params
from rairl.core.traces import Trace, locate_steps
from rairl.evaluate.calibrate import (
    CRITERION,
    Dev,
    dev_scores,
    make_dev,
    parting,
    preference,
    selection,
    within_question,
)
from rairl.models.calibration import AGGREGATORS, Calibration
from rairl.models.reads import Scores
from rairl.models.reward import new_reward


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
    assert calibration.threshold is not None and calibration.aggregator in AGGREGATORS
    assert calibration.selector == "max" and calibration.slope is None, "without rollouts nothing decides"


@pytest.mark.parametrize(
    ("scores", "selector", "temperature"),
    [([3, 1, 1], "max", 0.25), ([1, 1, 3], "vote", 4.0), ([2, 2, 2.5], "vote", 1.0)],
)
def test_rollouts_choose_the_selector_and_its_temperature(scores, selector, temperature) -> None:
    """Two right rollouts and a wrong one: with the wrong one on top only a vote that is warm enough overrules it,
    exp(-2/T) + exp(-2/T) > 1 from T = 2.9 on, for a gap of .5 from T = .72 on."""
    rollouts = [
        replace(EXPERT, id=f"r{k}", answer=answer, correct=answer == "51", group="q")
        for k, answer in enumerate(["51", "51", "17"])
    ]
    found = selection(rollouts, {"min": scores, "mean": [3, 2, 1]}, Calibration(aggregator="min"))
    assert (found.selector, found.aggregator) == (selector, "min")
    assert found.temperatures == {"min": temperature, "mean": 0.25}
    assert found.base == pytest.approx(2 / 3)
    assert found.slope is not None and (found.slope > 0) == (selector == "max"), "0 where the scores run backwards"
    assert selection([replace(EXPERT, correct=None)], {"min": [1.0]}, Calibration()) == Calibration()


# --- natural errors --------------------------------------------------------------------------------------------------


def solved(name: str, *steps: str, correct: bool | None = None) -> Trace:
    text = "\n".join(steps)
    return Trace(name, "How many?", text, locate_steps(text, steps), correct=correct)


EXPERT = solved("e", "Ana has 12 + 5 = 17 eggs.", "Ben has 3 * 17 = 51 eggs.", "So that is it.", correct=True)


@pytest.mark.parametrize(
    ("steps", "at"),
    [
        (EXPERT.step_texts(), None),
        (["12 + 5 = 17", "She: 3 x 17 = $51", "So  that is it."], None),  # the words around an equation don't count
        (["12 + 5 = 17", "3 + 17 = 20", "So that is it."], 1),
        (["12 - 5 = 17", "3 * 17 = 51"], 0),
        (["12 + 5 = 17", "3 * 17 = 52"], 1),
        (["12 + 5 = 17", "Ben has 51 eggs."], 1),
        (["12 + 5 = 17", "3 * 17 = 51", "So that is that."], 2),
        (["12 + 5 = 17"], None),  # to stop early is not to part
        ([*EXPERT.step_texts(), "And more."], 3),
        ([], None),
    ],
)
def test_where_a_rollout_parts_from_the_expert(steps: list[str], at: int | None) -> None:
    assert parting(EXPERT, solved("r", *steps)) == at


def test_only_wrong_rollouts_part(demos: list[Trace]) -> None:
    first, second = demos[:2]
    steps = [*first.step_texts()[:-1], "So 1 + 1 = 3 eggs."]
    text = "\n".join(steps)
    other = replace(first, text=text, steps=locate_steps(text, steps), group=first.id)
    rollouts = [replace(other, correct=correct) for correct in (False, True, None)]
    dev = make_dev([second, first], rollouts, copies=1, seed=0)
    assert dev.rollouts_of == [1, 1, 1]
    assert dev.rollouts_part == [len(first.steps) - 1, None, None]


def test_natural_errors_choose_the_locator_and_the_threshold() -> None:
    reads = {"e": [2.0, 3.0, 4.0], "c": [1.0, -1.0, -1.5], "r": [1.0, -1.0, -4.0]}
    model = SimpleNamespace(step_logits=lambda rows: [Scores(np.array(reads[r.id]), reads[r.id][-1]) for r in rows])
    bad = replace(EXPERT, id="c", correct=False, first_error=1, labelled=True)
    rollout = replace(EXPERT, id="r", correct=False)
    dev = Dev([EXPERT], [bad], [0], [rollout], [0], [1])
    # In the corruption both increments point at step 1; in the rollout the logit's largest fall comes a step late.
    scores, calibration = dev_scores(model, dev)  # type: ignore[arg-type]
    assert calibration.locator == "fall"
    assert scores["dev/exact"] == scores["dev/exact_rollouts"] == 1
    # Midway between the two lowest falls: sigmoid(-1) - sigmoid(1) = -.4621, and in the rollout
    # sigmoid(-4) - sigmoid(-1) = -.2510.
    assert calibration.threshold == pytest.approx(-0.3565, abs=1e-4)
    scores, calibration = dev_scores(model, replace(dev, rollouts=[], rollouts_of=[], rollouts_part=[]))  # type: ignore[arg-type]
    assert calibration.locator == "drop"
    assert scores["dev/exact"] == 1 and "dev/exact_rollouts" not in scores
    # Midway between the corruption's -2 and -.5.
    assert calibration.threshold == pytest.approx(-1.25)
