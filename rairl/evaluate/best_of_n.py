"""Picking one of N sampled answers: expected accuracy of every selector, exactly, over all subsets of the candidates.

A selector is a score per candidate (the highest wins, ties are shared) or a vote. With n candidates per question, the
accuracy at N <= n is the expectation over all N-subsets, in closed form: no lucky draw, no seed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from itertools import combinations
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rairl.core.errors import RairlError
from rairl.core.stats import Estimate, bootstrap_mean, exact, paired_difference, paired_permutation_p, within_auroc
from rairl.core.traces import Trace
from rairl.evaluate.candidates import by_question, logprob, questions
from rairl.text.answers import normalise_answer

if TYPE_CHECKING:
    from rairl.evaluate.likelihood import Likelihood
    from rairl.models.calibration import Calibration

AGGREGATORS = ("last", "mean", "min", "product", "discounted")
"""How the reads of a trace become its score; chosen on dev, never on the candidates."""
DISCOUNT = 0.5
"""Weight of a read relative to the next one, for ``discounted``: the .95 per token of arXiv 2510.01857's code over a
step of 14 tokens."""
NOTHING = -1e9
"""What a trace without steps competes with, below any other's score: it must not win because nothing in it is wrong."""
SUBSETS = 20_000
"""Largest number of N-subsets that a weighted vote goes through one by one; of more, this many random ones."""


def aggregate(steps: np.ndarray, last: float, how: str) -> float:
    """Score of a trace from the reward's reads.

    Args:
        steps: ``(n_steps,)``, the logit read at each step's end.
        last: the logit read at the end of the text.
        how: ``last`` is that final logit; ``mean`` and ``min`` go over the steps; ``product`` is the logarithm of the
            product of the steps' probabilities ``sigmoid(z_k)``; ``discounted`` is the mean over the steps with weights
            that halve from each step to the one before it. A trace without steps has one read only, the last, and
            that is its score under every rule.
    """
    if how not in AGGREGATORS:
        raise RairlError(f"aggregator {how!r} is unknown; it is one of {', '.join(AGGREGATORS)}")
    if how == "last" or len(steps) == 0:
        return float(last)
    if how == "product":
        return float(-np.logaddexp(0, -steps).sum())
    if how == "discounted":
        return float(np.average(steps, weights=DISCOUNT ** np.arange(len(steps) - 1, -1, -1)))
    return float(steps.mean() if how == "mean" else steps.min())


def trace_score(steps: np.ndarray, last: float, how: str) -> float:
    """Score by which a trace competes with others; see :func:`competing`."""
    return competing(aggregate(steps, last, how), steps)


def competing(score: float, steps: Sequence[object] | np.ndarray) -> float:
    """The score of a trace among others: its own, or :data:`NOTHING` where there are no steps."""
    return score if len(steps) else NOTHING


def best_of_n(scores: Sequence[float], correct: Sequence[float], n: int) -> float:
    """Expected correctness (or any other value) of the highest-scoring candidate in a random N-subset.

    Candidate i (1-based, best first) of m wins with probability ``C(m - i, N - 1) / C(m, N)``; candidates with equal
    scores share their probabilities.

    Args:
        scores: ``(m,)``.
        correct: ``(m,)``.
        n: size N of the subset, at most m.
    """
    return float(_chances(len(scores), n) @ _ranked(scores, correct))


@cache
def _chances(size: int, n: int) -> np.ndarray:
    """Probability of each of ``size`` ranks, best first, to be the best of a random n-subset: ``(size,)``."""
    _require(size, n)
    return np.array([comb(size - i, n - 1) for i in range(1, size + 1)], dtype=float) / comb(size, n)


def _ranked(scores: Sequence[float], correct: Sequence[float]) -> np.ndarray:
    """Correctness by rank, best first; candidates with equal scores have their mean: ``(m,)``."""
    values = np.asarray(scores, dtype=float)
    order = np.argsort(-values, kind="stable")
    tie = np.cumsum(np.diff(values[order], prepend=values[order[0]]) != 0)
    means = np.bincount(tie, weights=np.asarray(correct, dtype=float)[order]) / np.bincount(tie)
    return means[tie]


def majority_of_n(answers: Sequence[str | None], correct: Sequence[bool], ns: Sequence[int]) -> list[float]:
    """Expected correctness of the majority answer in a random N-subset, for each N in ``ns``; exact.

    Candidates without an answer take a place but have no vote; tied answers share the win; a subset without any vote is
    wrong. For every winning count j the subsets are counted by the generating function over answers
    ``prod_a (sum_{c<j} C(m_a, c) x^c + y C(m_a, j) x^j)``: x counts the subset's members, y the answers tied at j.

    Args:
        answers: ``(m,)``, normalised so that equal strings are equal answers.
        correct: ``(m,)``.
        ns: sizes N, each at most m.
    """
    size = len(answers)
    for n in ns:
        _require(size, n)
    rights: dict[str, list[bool]] = defaultdict(list)
    for answer, right in zip(answers, correct, strict=True):
        if answer is not None:
            rights[answer].append(bool(right))
    silent = size - sum(len(votes) for votes in rights.values())
    widest = max(ns)
    total = np.zeros(widest + 1)
    for level in range(1, max((len(votes) for votes in rights.values()), default=0) + 1):
        # ways[t, x]: subsets of x members with t answers tied at `level` votes and none above;
        # worth[t, x]: the same, each weighted with how many of its tied answers are right.
        ways = np.zeros((len(rights) + 1, widest + 1))
        ways[0] = [comb(silent, x) for x in range(widest + 1)]
        worth = np.zeros_like(ways)
        for votes in rights.values():
            below = [comb(len(votes), count) for count in range(level)]
            at = comb(len(votes), level)
            new_ways, new_worth = _times(ways, below), _times(worth, below)
            if at and level <= widest:
                new_ways[1:, level:] += at * ways[:-1, : widest + 1 - level]
                tied = worth[:-1, : widest + 1 - level] + np.mean(votes) * ways[:-1, : widest + 1 - level]
                new_worth[1:, level:] += at * tied
            ways, worth = new_ways, new_worth
        total += (worth[1:] / np.arange(1, len(rights) + 1)[:, None]).sum(axis=0)
    return [float(total[n] / comb(size, n)) for n in ns]


def weighted_vote_of_n(
    answers: Sequence[str | None], weights: Sequence[float], correct: Sequence[bool], ns: Sequence[int]
) -> list[float]:
    """Expected correctness of the answer with the largest sum of weights in a random N-subset, for each N in ``ns``.

    As :func:`majority_of_n`, which is the case of equal weights, but by going through the subsets: all of them, or of
    more than :data:`SUBSETS` that many random ones.

    Args:
        answers: ``(m,)``, normalised so that equal strings are equal answers; None has no vote.
        weights: ``(m,)``, positive.
        correct: ``(m,)``.
        ns: sizes N, each at most m.
    """
    names = sorted({answer for answer in answers if answer is not None})
    votes = np.array(
        [[weight * (answer == name) for name in names] for answer, weight in zip(answers, weights, strict=True)]
    )
    rights = np.array([np.mean([c for a, c in zip(answers, correct, strict=True) if a == name]) for name in names])
    found = []
    for n in ns:
        _require(len(answers), n)
        if not names:
            found.append(0.0)
            continue
        sums = _subsets(len(answers), n) @ votes
        best = sums.max(axis=1, keepdims=True)
        winners = (sums >= best * (1 - 1e-9)) & (best > 0)  # sums of equal weights may differ in their last digits
        found.append(float(((winners @ rights) / np.maximum(winners.sum(axis=1), 1)).mean()))
    return found


@lru_cache(maxsize=16)
def _subsets(size: int, n: int) -> np.ndarray:
    """Members of the n-subsets of ``size`` candidates, as rows of zeros and ones: ``(subsets, size)``."""
    if comb(size, n) <= SUBSETS:
        members = np.array(list(combinations(range(size), n)))
    else:
        members = np.random.default_rng(0).random((SUBSETS, size)).argsort(axis=1)[:, :n]
    rows = np.zeros((len(members), size))
    np.put_along_axis(rows, members, 1.0, axis=1)
    return rows


def vote_weights(scores: Sequence[float], groups: Sequence[str], temperature: float) -> list[float]:
    """Softmax weights of the scores within each question, up to a factor per question: the highest score has 1.

    Args:
        scores: ``(n,)``.
        groups: ``(n,)``, the question of each.
        temperature: above 0, in the unit of the scores; chosen on dev. Low: the best candidate decides; high: majority.
    """
    best: dict[str, float] = {}
    for score, group in zip(scores, groups, strict=True):
        best[group] = max(score, best.get(group, score))
    gaps = np.array([score - best[group] for score, group in zip(scores, groups, strict=True)])
    return np.exp(np.maximum(gaps / temperature, -600)).tolist()  # far below, but never nothing


def vote_temperature(calibration: Calibration) -> float:
    """Temperature of the weighted vote for the aggregator that dev chose; 1 for a reward that dev did not calibrate."""
    return calibration.temperatures.get(calibration.aggregator, 1.0)


def _times(counts: np.ndarray, polynomial: Sequence[int]) -> np.ndarray:
    """Multiply each row, a polynomial in x, by ``polynomial``, cut off at the row's length."""
    width = counts.shape[1]
    product = np.zeros_like(counts)
    for power, factor in enumerate(polynomial[:width]):
        product[:, power:] += factor * counts[:, : width - power]
    return product


def _require(size: int, n: int) -> None:
    if not 1 <= n <= size:
        raise RairlError(f"best-of-{n} needs at least {n} candidates per question, but there are {size}")


def baseline_scores(
    traces: Sequence[Trace],
    path: Path,
    pairs: Sequence[Likelihood],
    model_accuracy: Mapping[str, float] | None = None,
) -> dict[str, list[float]]:
    """Scores of the selectors that need no learned reward, one per candidate; the highest is picked.

    ``random`` scores all alike, ``oracle`` knows the truth (so its best-of-N is pass@N); lengths are characters.
    ``logprob`` and ``logratio`` are means per token, ``logprob_sum`` and ``logratio_sum`` are totals; ``pairs`` has
    the likelihoods of each candidate, and with a second model among them ``second_model_logprob`` is its mean per
    token. ``entropy`` picks the lowest mean entropy of the SFT policy per token. ``model_name`` (only with
    ``model_accuracy``) knows nothing but which model wrote the candidate.

    Raises:
        RairlError: naming file and trace, for a missing log-probability or a source without a known accuracy.
    """
    ratios = [pair.ratio for pair in pairs]
    scores = {
        "random": [0.0 for _ in traces],
        "logprob": [logprob(trace, path, mean=True) for trace in traces],
        "logprob_sum": [logprob(trace, path, mean=False) for trace in traces],
        "logratio": [ratio.total / ratio.tokens for ratio in ratios],
        "logratio_sum": [ratio.total for ratio in ratios],
        "entropy": [-pair.sft.entropy for pair in pairs],
        "shortest": [-float(len(trace.text)) for trace in traces],
        "longest": [float(len(trace.text)) for trace in traces],
        "oracle": [float(bool(trace.correct)) for trace in traces],
    }
    second_models = [
        pair.second_model.total / pair.second_model.tokens for pair in pairs if pair.second_model is not None
    ]
    if second_models:
        scores["second_model_logprob"] = second_models
    if model_accuracy is not None:
        for trace in traces:
            if trace.source not in model_accuracy:
                known = ", ".join(sorted(model_accuracy)) or "none"
                raise RairlError(
                    f"{path}: trace {trace.id!r}: source {trace.source!r} has no traces in the training half "
                    f"(known: {known}), so the model-name baseline cannot score it"
                )
        scores["model_name"] = [model_accuracy[trace.source] for trace in traces]
    return scores


def accuracy_by_source(traces: Sequence[Trace]) -> dict[str, float]:
    """Share of right traces of each source. Use traces of *other* questions than those that are then ranked."""
    rights: dict[str, list[bool]] = defaultdict(list)
    for trace in traces:
        rights[trace.source].append(bool(trace.correct))
    return {source: float(np.mean(values)) for source, values in rights.items()}


def expected_accuracy(
    traces: Sequence[Trace],
    scores: Mapping[str, Sequence[float]],
    ns: Sequence[int],
    weights: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, dict[int, np.ndarray]]:
    """Expected accuracy of every selector, per question.

    Args:
        traces: judged candidates.
        scores: per selector one score per candidate.
        ns: subset sizes N.
        weights: per weighted vote one weight per candidate.

    Returns:
        ``{selector: {N: (questions,)}}`` with ``majority`` added; questions in order of first appearance.

    Raises:
        RairlError: naming the question that has fewer candidates than the largest N.
    """
    rows = list(by_question(traces).items())
    for question, members in rows:
        if len(members) < max(ns):
            raise RairlError(
                f"question {question!r} has {len(members)} candidates but rerank.n asks for {max(ns)}; "
                "lower rerank.n or sample more"
            )
    correct = [bool(trace.correct) for trace in traces]
    table: dict[str, dict[int, np.ndarray]] = {}
    for name, values in scores.items():
        ranked = [_ranked([values[i] for i in at], [correct[i] for i in at]) for _, at in rows]
        table[name] = {n: np.array([_chances(len(one), n) @ one for one in ranked]) for n in ns}
    answers = [None if trace.answer is None else normalise_answer(trace.answer) for trace in traces]

    def kept(found: list[list[float]]) -> dict[int, np.ndarray]:
        columns = np.array(found).reshape(len(rows), len(ns))
        return {n: columns[:, column] for column, n in enumerate(ns)}

    table["majority"] = kept([majority_of_n([answers[i] for i in at], [correct[i] for i in at], ns) for _, at in rows])
    for name, values in (weights or {}).items():
        table[name] = kept(
            [
                weighted_vote_of_n([answers[i] for i in at], [values[i] for i in at], [correct[i] for i in at], ns)
                for _, at in rows
            ]
        )
    return table


def rerank_figures(
    table: Mapping[str, Mapping[int, np.ndarray]],
    keys: Sequence[str],
    n: int,
    prefix: str,
    *,
    draws: int,
    seed: int,
) -> dict[str, Estimate]:
    """Figures at one N: ``<prefix>.<selector>``, and the reward against every other selector on the same questions.

    Args:
        table: from :func:`expected_accuracy`.
        keys: its questions.
        n: the headline N.
        prefix: of the names, e.g. ``rerank``.
        draws, seed: of the bootstrap.

    Returns:
        Accuracies; ``<prefix>.reward-<other>`` differences and, with ``.p`` appended, their permutation p-values (the
        oracle is a bound, not a rival, and has no p-value); ``<prefix>.n``.
    """
    figures = {
        f"{prefix}.{name}": bootstrap_mean(values[n], keys, draws=draws, seed=seed) for name, values in table.items()
    }
    figures[f"{prefix}.n"] = exact(n)
    reward = table["reward"][n]
    for name, values in table.items():
        if name in ("reward", "oracle"):
            continue
        figures[f"{prefix}.reward-{name}"] = paired_difference(reward, values[n], keys, draws=draws, seed=seed)
        figures[f"{prefix}.reward-{name}.p"] = paired_permutation_p(reward, values[n], keys, seed=seed)
    return figures


def auroc_figures(
    traces: Sequence[Trace], scores: Mapping[str, Sequence[float]], prefix: str, *, draws: int, seed: int
) -> dict[str, Estimate]:
    """Within-question AUROC of the reward and of what could pass for it: ``<prefix>.<reward|logprob|logratio|...>``."""
    correct, groups = [bool(trace.correct) for trace in traces], questions(traces)
    return {
        f"{prefix}.{'length' if name == 'longest' else name}": within_auroc(
            correct, scores[name], groups, draws=draws, seed=seed
        )
        for name in ("reward", "logprob", "second_model_logprob", "logratio", "entropy", "longest", "model_name")
        if name in scores
    }
