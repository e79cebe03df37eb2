"""Selection among candidates: exact expectations against enumeration, and against published reference numbers."""

import json
from itertools import combinations
from math import comb
from pathlib import Path

import numpy as np
import pytest
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st

from rairl.core.errors import RairlError
from rairl.core.stats import pass_at_k
from rairl.core.traces import Trace
from rairl.evaluate.best_of_n import (
    accuracy_by_source,
    auroc_figures,
    baseline_scores,
    best_of_n,
    expected_accuracy,
    majority_of_n,
    rerank_figures,
    vote_weights,
    weighted_vote_of_n,
)
from rairl.evaluate.likelihood import Likelihood
from rairl.models.calibration import aggregate
from rairl.models.likelihood import LogProbs

DATA = Path(__file__).parents[1].parent / "shared" / "data"
rows = st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=7)


def naive_best(scores, correct, n):
    """Every N-subset, ties shared, one after the other."""
    picks = []
    for subset in combinations(range(len(scores)), n):
        top = max(scores[i] for i in subset)
        picks.append(np.mean([correct[i] for i in subset if scores[i] == top]))
    return np.mean(picks)


def naive_majority(answers, correct, n):
    picks = []
    for subset in combinations(range(len(answers)), n):
        votes = [answers[i] for i in subset if answers[i] is not None]
        counts = {answer: votes.count(answer) for answer in votes}
        winners = [answer for answer, count in counts.items() if count == max(counts.values())]
        picks.append(
            np.mean([np.mean([c for a, c in zip(answers, correct, strict=True) if a == w]) for w in winners])
            if winners
            else 0.0
        )
    return np.mean(picks)


def test_best_of_n_by_hand():
    # Sorted: right, wrong, right. N=2: the best wins C(2,1)/C(3,2) = 2/3, the second 1/3, the worst never.
    assert best_of_n([3, 2, 1], [True, False, True], 2) == pytest.approx(2 / 3)
    assert best_of_n([3, 2, 1], [True, False, True], 1) == pytest.approx(2 / 3)
    assert best_of_n([3, 2, 1], [True, False, True], 3) == 1
    assert best_of_n([1, 2, 3], [True, False, False], 3) == 0
    assert best_of_n([5, 5, 1], [True, False, True], 3) == 0.5


@given(rows, st.data())
@examples(150)
def test_best_of_n_is_the_mean_over_all_subsets(table, data):
    scores, correct = [score for score, _ in table], [right for _, right in table]
    n = data.draw(st.integers(1, len(table)))
    assert best_of_n(scores, correct, n) == pytest.approx(naive_best(scores, correct, n))


@given(st.lists(st.booleans(), min_size=1, max_size=16), st.data())
@examples(60)
def test_an_oracle_score_gives_pass_at_n_and_a_constant_one_the_mean(correct, data):
    n = data.draw(st.integers(1, len(correct)))
    assert best_of_n(correct, correct, n) == pytest.approx(pass_at_k(len(correct), sum(correct), n))
    assert best_of_n([0] * len(correct), correct, n) == pytest.approx(np.mean(correct))


def test_majority_by_hand():
    answers, correct = ["7", "7", "8", None], [True, True, False, False]
    assert majority_of_n(answers, correct, [4]) == [1.0]
    # N=2: {7,7} 1, {7,8} twice 1/2, {7,-} twice 1, {8,-} 0: 4 of 6.
    assert majority_of_n(answers, correct, [2]) == [pytest.approx(4 / 6)]
    assert majority_of_n([None, None], [False, False], [1, 2]) == [0.0, 0.0]
    assert majority_of_n(["7", "8"], [True, False], [2]) == [0.5]


@given(st.lists(st.sampled_from(["a", "b", "c", "d", None]), min_size=1, max_size=8), st.sampled_from("abz"))
@examples(150)
def test_majority_is_the_mean_over_all_subsets(answers, gold):
    correct = [answer == gold for answer in answers]
    ns = list(range(1, len(answers) + 1))
    expected = [naive_majority(answers, correct, n) for n in ns]
    assert majority_of_n(answers, correct, ns) == pytest.approx(expected)
    assert majority_of_n(answers, correct, [len(answers)]) == pytest.approx(expected[-1:])


def naive_vote(answers, weights, correct, n):
    picks = []
    for subset in combinations(range(len(answers)), n):
        sums = {}
        for i in subset:
            if answers[i] is not None:
                sums[answers[i]] = sums.get(answers[i], 0) + weights[i]
        winners = [answer for answer, total in sums.items() if total == max(sums.values())]
        right = {a: c for a, c in zip(answers, correct, strict=True) if a is not None}
        picks.append(np.mean([right[answer] for answer in winners]) if winners else 0.0)
    return np.mean(picks)


def test_weighted_vote_by_hand():
    # 7 has 1 + 1 = 2 votes, 8 has 3: the weights overrule the majority; among two candidates 7 wins {7, 7} alone.
    assert weighted_vote_of_n(["7", "7", "8"], [1, 1, 3], [True, True, False], [2, 3]) == [pytest.approx(1 / 3), 0.0]
    assert weighted_vote_of_n(["7", "8", None], [2, 2, 9], [True, False, False], [3]) == [0.5]
    assert weighted_vote_of_n([None, None], [1, 1], [False, False], [1, 2]) == [0.0, 0.0]
    with pytest.raises(RairlError, match="best-of-3"):
        weighted_vote_of_n(["1", "2"], [1, 1], [True, False], [3])


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), st.sampled_from([1, 2, 4, 8])), min_size=1, max_size=7)
)
@examples(100)
def test_weighted_vote_is_the_mean_over_all_subsets_and_with_equal_weights_the_majority(rows):
    answers, weights = [answer for answer, _ in rows], [weight for _, weight in rows]
    correct = [answer == "a" for answer in answers]
    ns = list(range(1, len(rows) + 1))
    expected = [naive_vote(answers, weights, correct, n) for n in ns]
    assert weighted_vote_of_n(answers, weights, correct, ns) == pytest.approx(expected)
    equal = weighted_vote_of_n(answers, [0.3] * len(rows), correct, ns)
    assert equal == pytest.approx(majority_of_n(answers, correct, ns))


def test_of_very_many_subsets_a_vote_takes_a_sample():
    answers, correct = [str(i % 2) for i in range(24)], [i % 2 == 0 for i in range(24)]
    [found] = weighted_vote_of_n(answers, [1.0 + 2 * right for right in correct], correct, [8])
    # Three times the weight: seven of eight of the other kind are needed to overrule it, six to draw.
    ways = [comb(12, k) * comb(12, 8 - k) for k in range(9)]
    assert found == pytest.approx((sum(ways[3:]) + ways[2] / 2) / comb(24, 8), abs=0.01)


def test_vote_weights_are_a_softmax_per_question():
    weights = vote_weights([1.0, 3.0, -5.0, -4.0], ["a", "a", "b", "b"], 2.0)
    assert weights == pytest.approx([np.exp(-1), 1, np.exp(-0.5), 1])
    assert min(vote_weights([0.0, 1e6], ["a", "a"], 0.1)) > 0
    traces = [candidate("a", k, "x", right=k == 2, answer="12"[k == 2]) for k in range(3)]
    table = expected_accuracy(traces, {}, [3], {"cold": vote_weights([0, 0, 1], ["a"] * 3, 0.25),
                                                "hot": vote_weights([0, 0, 1], ["a"] * 3, 100.0)})  # fmt: skip
    assert (table["cold"][3], table["hot"][3], table["majority"][3]) == ([1.0], [0.0], [0.0])


def test_more_candidates_than_there_are_is_refused():
    with pytest.raises(RairlError, match="best-of-4 needs at least 4 candidates"):
        best_of_n([1, 2], [True, False], 4)
    with pytest.raises(RairlError, match="best-of-3"):
        majority_of_n(["1", "2"], [True, False], [3])


def test_aggregators():
    steps = np.array([2.0, -1.0, 0.5])
    assert aggregate(steps, 9.0, "last") == 9.0
    assert aggregate(steps, 9.0, "mean") == pytest.approx(0.5)
    assert aggregate(steps, 9.0, "min") == -1.0
    # sigmoid: .8808, .2689, .6225; their product .1474
    assert aggregate(steps, 9.0, "product") == pytest.approx(np.log(0.8808 * 0.2689 * 0.6225), abs=1e-3)
    assert aggregate(np.array([-800.0]), 9.0, "product") == -800, "no overflow"
    assert aggregate(steps, 9.0, "discounted") == pytest.approx((2.0 / 4 - 1.0 / 2 + 0.5) / 1.75)
    assert aggregate(np.zeros(0), 9.0, "min") == 9.0
    with pytest.raises(RairlError, match="aggregator 'best' is unknown"):
        aggregate(steps, 9.0, "best")


def candidate(question, k, text, *, right, answer, logprob=-4.0, tokens=2, source="m"):
    return Trace(
        f"{question}/{k}", f"problem {question}", text, answer=answer, correct=right, source=source, group=question,
        meta={"logprob": logprob, "tokens": tokens},
    )  # fmt: skip


CANDIDATES = [
    candidate("a", 0, "xx", right=True, answer="1", logprob=-4.0, tokens=4, source="m"),
    candidate("a", 1, "x", right=False, answer="2", logprob=-2.0, tokens=1, source="w"),
    candidate("b", 0, "xxx", right=False, answer="3", logprob=-9.0, tokens=3, source="m"),
    candidate("b", 1, "xxxx", right=True, answer="5.0", logprob=-4.0, tokens=4, source="w"),
]


def likelihoods(*totals, tokens=1, second_model=None):
    """As likely under SFT as these totals say, and certain under the base: the log-ratio is the total."""

    def logprobs(total):
        return LogProbs(np.zeros(0), np.zeros(0), total, tokens, np.zeros(0), -total / 4)

    return [
        Likelihood(logprobs(total), logprobs(0.0), None if second_model is None else logprobs(second_model))
        for total in totals
    ]


def test_baselines_by_hand(tmp_path):
    found = [
        *likelihoods(6.0, tokens=6, second_model=-3.0), *likelihoods(2.0, second_model=-1.0),
        *likelihoods(1.0, second_model=-2.0), *likelihoods(4.0, tokens=2, second_model=-2.0),
    ]  # fmt: skip
    scores = baseline_scores(CANDIDATES, tmp_path / "f", found, {"m": 0.9, "w": 0.2})
    assert scores["logratio"] == [1, 2, 1, 2]
    assert scores["second_model_logprob"] == [-0.5, -1, -2, -1]
    table = expected_accuracy(CANDIDATES, {"reward": [1, 0, 0, 1], **scores}, [1, 2])
    means = {name: values[2].mean() for name, values in table.items()}
    assert means == {
        "reward": 1.0, "random": 0.5, "logprob": 1.0, "logprob_sum": 0.5, "shortest": 0.0, "longest": 1.0,
        "oracle": 1.0, "model_name": 0.5, "majority": 0.5, "logratio": 0.5, "logratio_sum": 1.0,
        "second_model_logprob": 1.0, "entropy": 1.0,
    }  # fmt: skip
    assert all(values[1].mean() == 0.5 for values in table.values())
    figures = rerank_figures(table, ["a", "b"], 2, "rerank", draws=100, seed=0)
    assert figures["rerank.reward"].value == 1
    assert figures["rerank.n"] == (2, 2, 2, 1)
    assert figures["rerank.reward-random"].value == 0.5
    assert 0 < figures["rerank.reward-random.p"].value <= 1
    assert "rerank.reward-oracle" not in figures
    aurocs = auroc_figures(CANDIDATES, {"reward": [1, 0, 0, 1], **scores}, "rerank.auroc", draws=100, seed=0)
    assert {name: figure.value for name, figure in aurocs.items()} == {
        "rerank.auroc.reward": 1, "rerank.auroc.logprob": 1, "rerank.auroc.length": 1, "rerank.auroc.model_name": 0.5,
        "rerank.auroc.logratio": 0.5, "rerank.auroc.second_model_logprob": 1, "rerank.auroc.entropy": 1,
    }  # fmt: skip
    assert figures["rerank.reward-logratio"].value == 0.5


def test_equal_answers_in_different_words_vote_together(tmp_path):
    traces = [
        candidate("a", 0, "x", right=True, answer="1,000"),
        candidate("a", 1, "x", right=True, answer="$1000.00"),
        candidate("a", 2, "x", right=False, answer="7"),
    ]
    assert expected_accuracy(traces, {}, [3])["majority"][3] == [1.0]


def test_equal_formulas_vote_together():
    pytest.importorskip("math_verify", reason="math-verify is not installed here")
    answers = [r"\frac{\sqrt2}{2}", r"\frac{1}{\sqrt2}", "2^{-1/2}", "0.7", "0.7"]
    traces = [candidate("a", k, "x", right=k < 3, answer=answer) for k, answer in enumerate(answers)]
    table = expected_accuracy(traces, {}, [5], {"vote": [1.0] * 5})
    assert table["majority"][5] == table["vote"][5] == [1.0]


def test_model_accuracy_comes_from_other_questions(tmp_path):
    assert accuracy_by_source(CANDIDATES) == {"m": 0.5, "w": 0.5}
    with pytest.raises(RairlError, match="trace 'a/1': source 'w' has no traces"):
        baseline_scores(CANDIDATES, tmp_path / "f", likelihoods(0, 0, 0, 0), {"m": 0.9})


def test_a_question_with_too_few_candidates_is_named():
    with pytest.raises(RairlError, match=r"question 'a' has 2 candidates but rerank\.n asks for 4"):
        expected_accuracy(CANDIDATES, {}, [1, 2, 4])


@pytest.mark.skipif(not (DATA / "gsm8k").exists(), reason="../shared/data/gsm8k is not here")
def test_reference_numbers_of_the_gsm8k_model_solutions(tmp_path):
    """Published for this file: random .379, shortest / longest .341 / .394, strongest model .563, oracle .672;
    within-question AUROC of length .540 and of the model's name .793, over 731 questions."""
    traces = []
    for number, line in enumerate((DATA / "gsm8k" / "model_solutions.jsonl").read_text().splitlines()):
        row = json.loads(line)
        for name, solution in row.items():
            if isinstance(solution, dict):
                text, right = solution["solution"], solution["is_correct"]
                traces.append(candidate(str(number), name, text, right=right, answer=text[-1:], source=name))
    scores = baseline_scores(traces, tmp_path / "f", likelihoods(*(0 for _ in traces)), accuracy_by_source(traces))
    means = {name: values[4].mean() for name, values in expected_accuracy(traces, scores, [4]).items()}
    expected = {"random": 0.379, "shortest": 0.341, "longest": 0.394, "model_name": 0.563, "oracle": 0.672}
    assert {name: means[name] for name in expected} == pytest.approx(expected, abs=0.001)
    aurocs = auroc_figures(traces, scores, "auroc", draws=100, seed=0)
    assert aurocs["auroc.length"].value == pytest.approx(0.540, abs=0.001)
    assert aurocs["auroc.model_name"].value == pytest.approx(0.793, abs=0.001)
    assert aurocs["auroc.length"].n == 731
