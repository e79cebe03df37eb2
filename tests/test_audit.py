"""Audits: the fixed verdict, length removed, steps shuffled, answers swapped."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rairl.core.stats import NOTHING, Estimate, within_auroc
from rairl.core.traces import Trace, locate_steps, relabel
from rairl.evaluate.shortcuts import (
    FALSIFIED,
    NOT_SUPPORTED,
    NOT_TESTED,
    SUPPORTED,
    audited,
    explained,
    falsification_verdict,
    lucky,
    matched_auroc,
    outcome_figures,
    over_optimisation,
    preference,
    remove,
    remove_length,
    reward_gaps,
    split_figures,
    step_correlation,
    surface,
    variant_figures,
)
from rairl.evaluate.trace_edits import (
    HIDDEN,
    answer_block,
    mixed_sample,
    shuffle_steps,
    shuffled_pairs,
    swapped_pairs,
    turned_pairs,
    with_answer_of,
    without_answer,
    without_result,
)


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
    values = {name.removeprefix("audit.test."): pytest.approx(figure.value) for name, figure in figures.items()}
    # Here length gives the answer away, and nothing is left of the score once it is removed.
    assert values == {
        "auroc": 1, "auroc_pooled": 1, "auroc_length": 0, "auroc_logprob": 0.5, "auroc_without_length": 0.5,
        "reward_right": 1, "reward_wrong": -1, "reward_gap": 2, "surface_r2": 1, "auroc_without_surface": 0.5,
        "auroc_matched_length": 1,
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


@pytest.mark.parametrize(
    ("last", "left"),
    [
        ("So Ana has 12 + 5 = 17 eggs.", "So Ana has 12 + 5 ="),
        ("First 2 * 3 = 6, then 6 + 1 = $7, so 7.", "First 2 * 3 = 6, then 6 + 1 ="),
        ("So the answer is 7.", "So the answer is"),  # the outcome stands in a sentence of its own
        ("Of 7 she keeps all 7.", "Of 7 she keeps all"),
        ("7", None),  # nothing would be left of the step
        ("She keeps 70.", None),  # 70 is no 7
        ("So it is so.", None),
    ],
)
def test_the_last_steps_result_is_hidden(last: str, left: str | None):
    trace = solved("t", ["2 + 5 = 7", last], "7", right=True)
    cut = without_result(trace)
    if left is None:
        assert cut is None
    else:
        assert cut is not None
        assert cut.step_texts() == ["2 + 5 = 7", left]
        assert cut.text == f"<think>\n2 + 5 = 7\n{left}"
        assert (cut.answer, cut.id, cut.correct) == (None, "t", True)


def test_only_traces_whose_error_can_still_be_seen_lose_their_outcome():
    wrong = solved("w", ["1 + 1 = 3", "3 + 4 = 7"], "7", right=False)
    right = solved("r", ["1 + 1 = 2", "2 + 4 = 6"], "6", right=True)
    errors = [relabel(wrong, first_error=at, labelled=True) for at in (0, 1, None)]
    hide_answer, hide_result = HIDDEN["answer"], HIDDEN["result"]
    assert [hide_answer(trace) is not None for trace in (right, wrong, *errors)] == [True, True, True, True, False]
    assert [hide_result(trace) is not None for trace in (right, wrong, *errors)] == [True, True, True, False, False]
    bare = Trace("b", "p", "1 + 1 = 2", locate_steps("1 + 1 = 2", ["1 + 1 = 2"]), "2", "2", True)
    assert hide_answer(bare) is None, "there is no answer after the last step to hide"
    assert hide_result(bare) is not None


def test_outcome_figures_by_hand():
    def known(name: str, group: str, error: int | None) -> Trace:
        trace = solved(name, ["one", "two", "three"], "7", right=error is None, group=group)
        return relabel(trace, first_error=error, labelled=True)

    traces = [known("a", "p", None), known("b", "p", 1), known("c", "q", None), known("d", "q", 0), known("e", "q", 1)]
    before, after = [2.0, 1.0, 2.0, 3.0, 1.0], [1.0, 2.0, 2.0, 2.0, 1.0]
    # Pairs in order: p 1 of 1, then 0; q 1 of 2, then 1.5 (the tie with d counts one half).
    guesses = [[0, 1, 0, 0, 0], [0, 1, 0, 1, 1]]  # of b, d, e: 2 of 3 found, then 2 of 3, d lost and e won
    figures = outcome_figures("answer", traces, (before, after), guesses, draws=200, seed=0)
    values = {name.removeprefix("audit.outcome.answer."): figure.value for name, figure in figures.items()}
    assert values.pop("auroc_change.p") == 1  # the totals -1 and +.5: each of the four sign patterns is as far from 0
    assert values.pop("exact_change.p") == 1
    assert values == pytest.approx({
        "auroc_before": 2 / 3, "auroc": 0.5, "auroc_change": -1 / 6,
        "exact_before": 2 / 3, "exact": 2 / 3, "exact_change": 0,
    })  # fmt: skip
    assert figures["audit.outcome.answer.auroc_change"].n == 2
    same = outcome_figures("answer", traces, (before, before), [guesses[0]] * 2, draws=200, seed=0)
    assert same["audit.outcome.answer.auroc_change"][:3] == (0, 0, 0)
    unlabelled = [relabel(trace, first_error=None, labelled=False) for trace in traces]
    assert not any(
        "exact" in name for name in outcome_figures("x", unlabelled, (before, after), guesses, draws=9, seed=0)
    )


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


def test_surface_features_by_hand():
    trace = solved("t", ["one 12", "three"], "7", right=True)
    # 50 characters, 2 steps, 3 digits, 4 tags, 8 words (4 tags, one, 12, three, 7), the longest step of 6 characters
    assert surface(trace) == [len(trace.text), 2, 3, 4, 8, 6]


def test_several_features_are_taken_out_as_by_least_squares():
    rng = np.random.default_rng(2)
    scores, features = rng.normal(size=40), rng.normal(size=(40, 3))
    features[:, 2] = 7.0  # what does not vary explains nothing
    groups = np.arange(40) // 5
    design = np.column_stack([features[:, :2], *(groups == g for g in range(8))])
    left = scores - design @ np.linalg.lstsq(design, scores, rcond=None)[0]
    keys = [str(g) for g in groups]
    np.testing.assert_allclose(remove(scores, features, keys), left, atol=1e-9)
    centred_ = scores - np.array([scores[groups == g].mean() for g in groups])
    r2 = 1 - (left @ left) / (centred_ @ centred_)
    assert explained(scores, left, keys, draws=100, seed=0).value == pytest.approx(r2)


def test_auroc_at_equal_length_by_hand():
    correct, scores = [True, False, False, True, False], [1.0, 2.0, 0.5, 5.0, 4.0]
    lengths, groups = [100, 104, 150, 100, 96], ["a", "a", "a", "b", "b"]
    # a: 104 is within 5 % of 100 and scores higher, 150 is not; b: 96 is within 5 % and scores lower.
    assert matched_auroc(correct, scores, lengths, groups, draws=100, seed=0) == pytest.approx((0.5, 0, 1, 2))
    assert matched_auroc(correct, scores, [1, 2, 4, 1, 9], groups, draws=100, seed=0) == NOTHING


def equations(name: str, *steps: str, **known: object) -> Trace:
    return relabel(solved(name, list(steps), "7", right=True, group=name), **known)


def test_turned_pairs_hold_the_same_words():
    mixed = equations("a", "So 12 - 5 = 7.", "So 7 + 4 = 11.")
    [(kept, harmless, harmful)] = turned_pairs([mixed, equations("b", "So 7 + 4 = 11.")], 0)
    assert kept == mixed
    assert harmless.step_texts() == ["So 12 - 5 = 7.", "So 4 + 7 = 11."]
    assert harmful.step_texts() == ["So 5 - 12 = 7.", "So 7 + 4 = 11."]
    assert sorted(harmless.text.split()) == sorted(harmful.text.split()) == sorted(mixed.text.split())


def test_step_correlation_is_pearsons_within_traces():
    traces = [
        equations("a", "x", "y", "z", first_error=2, labelled=True),
        equations("b", "x", "y", first_error=1, labelled=True),
    ]
    trusts = [np.array([3.0, 1.0, 0.0]), np.array([2.0, 2.5])]
    value = step_correlation(traces, trusts, draws=100, seed=0).value
    x = np.array([3.0, 1.0, 0.0]) - 4 / 3, np.array([2.0, 2.5]) - 2.25
    y = np.array([1, 1, 0]) - 2 / 3, np.array([1, 0]) - 0.5
    a, b = np.concatenate(x), np.concatenate(y)
    assert value == pytest.approx(a @ b / np.sqrt((a @ a) * (b @ b)))


def test_lucky_answers_stand_beside_earned_ones_of_the_same_question():
    earned = equations("a", "x", labelled=True)
    by_luck = relabel(earned, id="a2", first_error=0)
    alone = equations("b", "x", labelled=True)
    wrong = relabel(earned, id="a3", correct=False, first_error=0)
    assert lucky([earned, wrong, by_luck, alone]) == [0, 2]
    assert lucky([earned, alone, wrong]) == []


def test_over_optimisation_by_hand():
    # The wrong one scores highest: more choice makes it worse while the promise grows.
    correct, scores, predicted = [True, True, False], [0.0, 1.0, 2.0], [0.2, 0.4, 0.9]
    figures = over_optimisation(correct, scores, predicted, ["q"] * 3, [1, 2, 3], draws=100, seed=0)
    values = {name.removeprefix("audit.choice."): figure.value for name, figure in figures.items()}
    assert values["n1.accuracy"] == pytest.approx(2 / 3) and values["n3.accuracy"] == 0
    assert values["n2.accuracy"] == pytest.approx(1 / 3)
    assert values["n2.score"] == pytest.approx((2 * 2 + 1) / 3)
    assert values["n3.predicted"] == pytest.approx(0.9) and values["n3.gap"] == pytest.approx(0.9)
    assert values["n1.gap"] == pytest.approx(0.5 - 2 / 3)
    assert not any(
        "predicted" in name for name in over_optimisation(correct, scores, None, ["q"] * 3, [1], draws=100, seed=0)
    )


def test_variant_figures_by_hand():
    figures = variant_figures(
        {"x": [True, False, False]}, {"x": [3.0, 2.0, 1.0]}, {"x": [3.0, 1.0, 4.0]}, {"x": ["q"] * 3}, draws=100, seed=0
    )
    values = {name.removeprefix("audit.variant.x."): figure.value for name, figure in figures.items()}
    assert values == {"auroc": 0.5, "auroc_before": 1, "agreement": pytest.approx(1 / 3)}


def test_audited_splits_come_in_order_and_other_aurocs_are_none():
    names = [
        "audit.ood_b.auroc",
        "audit.test.auroc",
        "audit.variant.x.auroc",
        "audit.test.auroc_length",
        "audit.dev.auroc",
    ]
    assert audited(names) == ["dev", "test", "ood_b"]
