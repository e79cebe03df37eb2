"""Audits: the fixed verdict, length removed, steps shuffled, answers swapped."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rairl.evaluate.audit import (
    FALSIFIED,
    NOT_SUPPORTED,
    NOT_TESTED,
    SUPPORTED,
    answer_block,
    falsification_verdict,
    mixed_sample,
    preference,
    remove_length,
    reward_gaps,
    shuffle_steps,
    shuffled_pairs,
    split_figures,
    swapped_pairs,
    with_answer_of,
    without_answer,
)
from rairl.stats import NOTHING, Estimate, within_auroc
from rairl.traces import Trace, locate_steps


def solved(name: str, steps: list[str], answer: str, *, right: bool, group: str = "q") -> Trace:
    body = "\n".join(steps)
    text = f"<think>\n{body}\n</think>\n<answer>\n{answer}\n</answer>"
    return Trace(name, "problem", text, locate_steps(text, steps), answer, "7", right, group=group)


@pytest.mark.parametrize(
    ("estimate", "verdict"),
    [
        (Estimate(0.4, 0.3, 0.49, 9), FALSIFIED),
        (Estimate(0.4, 0.3, 0.5, 9), NOT_SUPPORTED),
        (Estimate(0.6, 0.5, 0.7, 9), NOT_SUPPORTED),
        (Estimate(0.6, 0.51, 0.7, 9), SUPPORTED),
        (NOTHING, NOT_TESTED),
    ],
)
def test_the_verdict_follows_the_fixed_rule(estimate, verdict):
    assert falsification_verdict(estimate) == verdict


def test_a_score_that_is_length_has_nothing_left():
    rng = np.random.default_rng(0)
    lengths, groups = rng.integers(10, 99, size=60), [str(i // 6) for i in range(60)]
    offset = np.repeat(rng.normal(size=10), 6)  # the difficulty of a question is no length
    np.testing.assert_allclose(remove_length(3 * lengths + offset, lengths, groups), 0, atol=1e-9)


def test_residuals_are_those_of_least_squares_with_a_constant_per_question():
    rng = np.random.default_rng(1)
    scores, lengths = rng.normal(size=24), rng.normal(size=24)
    index = np.arange(24) // 4
    design = np.column_stack([lengths, *(index == g for g in range(6))])
    fitted = design @ np.linalg.lstsq(design, scores, rcond=None)[0]
    np.testing.assert_allclose(remove_length(scores, lengths, [str(g) for g in index]), scores - fitted, atol=1e-9)


def test_equal_lengths_leave_the_ranking_alone():
    labels, scores, groups = [True, False, True], [2.0, 1.0, 0.5], ["a"] * 3
    left = remove_length(scores, [5, 5, 5], groups)
    assert within_auroc(labels, left, groups) == within_auroc(labels, scores, groups)


def test_split_figures():
    traces = [solved(str(i), ["x" * (1 + i % 2), "y"], "7", right=i % 2 == 0, group=str(i // 2)) for i in range(20)]
    scores = [1.0 if trace.correct else -1.0 for trace in traces]
    figures = split_figures(traces, scores, [0.0] * 20, "audit.test", draws=100, seed=0)
    values = {name.removeprefix("audit.test."): figure.value for name, figure in figures.items()}
    # Here length gives the answer away, and nothing is left of the score once it is removed.
    assert values == {
        "auroc": 1, "auroc_pooled": 1, "auroc_length": 0, "auroc_logprob": 0.5, "auroc_without_length": 0.5,
        "reward_right": 1, "reward_wrong": -1, "reward_gap": 2,
    }  # fmt: skip
    alone = split_figures(traces[:1], scores[:1], [0.0], "audit.x", draws=100, seed=0)
    assert set(alone) == {"audit.x.reward_right"}


def test_the_reward_gap_is_within_question_and_needs_both_kinds():
    correct, scores = [True, True, False, True, False, False], [1.0, 2.0, 1.0, 9.0, 0.5, 3.0]
    assert reward_gaps(correct, scores, ["a", "a", "a", "b", "c", "a"]) == {"a": pytest.approx(-0.5)}
    two = reward_gaps(correct, scores, ["a", "a", "a", "b", "b", "b"])
    assert two == {"a": pytest.approx(0.5), "b": pytest.approx(9 - 1.75)}


def test_preference_counts_ties_half():
    assert preference([1, 1, 0, 2], [0, 1, 1, 1], list("abcd"), draws=100, seed=0).value == pytest.approx(2.5 / 4)


@given(st.lists(st.sampled_from(["a", "bb", "ccc"]), min_size=1, max_size=6), st.integers(0, 99))
def test_shuffled_steps_are_the_same_steps_in_another_order(steps, seed):
    trace = solved("t", steps, "7", right=True)
    shuffled = shuffle_steps(trace, np.random.default_rng(seed))
    if len(set(steps)) == 1:
        assert shuffled is None
        return
    assert shuffled is not None
    assert sorted(shuffled.step_texts()) == sorted(steps)
    assert shuffled.step_texts() != steps
    assert answer_block(shuffled) == answer_block(trace)
    assert len(shuffled.text) == len(trace.text)


def test_answers_are_masked_and_swapped():
    right, wrong = solved("r", ["one", "two"], "7", right=True), solved("w", ["one", "three"], "9", right=False)
    assert without_answer(right).text == "<think>\none\ntwo"
    swapped = with_answer_of(right, wrong)
    assert swapped.text == "<think>\none\ntwo\n</think>\n<answer>\n9\n</answer>"
    assert swapped.answer == "9"
    bare = Trace("b", "p", "one\ntwo", locate_steps("one\ntwo", ["one", "two"]))
    assert answer_block(bare) == ""


def test_pairs_are_one_per_question():
    traces = [
        solved("a/0", ["one", "two"], "9", right=False, group="a"),
        solved("a/1", ["one", "two"], "7", right=True, group="a"),
        solved("a/2", ["one", "six"], "7", right=True, group="a"),
        solved("b/0", ["one", "two"], "7", right=True, group="b"),
    ]
    assert [row for row, _ in shuffled_pairs(traces, 0)] == [1, 3]
    [(right, wrong, rival_answer, rival_steps)] = swapped_pairs(traces)
    assert (right, wrong) == (1, 0)
    assert rival_answer.answer == "9"
    assert rival_steps.answer == "7"
    assert shuffled_pairs(traces, 0) == shuffled_pairs(traces, 0)
    assert mixed_sample(traces, 1) == [1, 0]
    assert mixed_sample(traces, 2) == [1, 2, 0]
