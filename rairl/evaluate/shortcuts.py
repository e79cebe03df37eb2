"""Does the reward follow the reasoning, or something cheaper? Each check has a number and an interval."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from rairl.core.stats import (
    Estimate,
    Values,
    bootstrap,
    bootstrap_mean,
    centred,
    members_of,
    paired_difference,
    paired_permutation_p,
    pooled_auroc,
    ratio,
    within_agreement,
    within_auroc,
    within_correlation,
    within_pairs,
)
from rairl.core.traces import Trace
from rairl.evaluate.best_of_n import best_of_n
from rairl.evaluate.candidates import by_question
from rairl.evaluate.questions import Table, one_each, sums

SUPPORTED, NOT_SUPPORTED, FALSIFIED, NOT_TESTED = "supported", "not supported", "falsified", "not tested"


def falsification_verdict(auroc: Estimate) -> str:
    """The rule fixed in advance for the within-question AUROC of right against wrong chains on novel problems.

    Below .5 (the whole interval): falsified. Interval touching .5: not supported. Else supported.
    """
    if auroc.n == 0:
        return NOT_TESTED
    if auroc.high < 0.5:
        return FALSIFIED
    return SUPPORTED if auroc.low > 0.5 else NOT_SUPPORTED


def audited(names: Iterable[str]) -> list[str]:
    """Splits with a falsification figure ``audit.<split>.auroc`` among the names, test first."""
    splits = {match[1] for name in names if (match := re.fullmatch(r"audit\.([^.]+)\.auroc", name))}
    return sorted(splits, key=lambda name: (name.startswith("ood"), name))


def remove(scores: Values, features: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """What is left of the scores after a linear regression on features within questions.

    Args:
        scores, groups: ``(n,)`` each.
        features: ``(n, m)``.

    Returns:
        ``(n,)`` residuals: scores and features centred per question, one common slope per feature.
    """
    score = centred(scores, groups)
    columns = np.stack([centred(column, groups) for column in np.asarray(features, dtype=float).T], axis=1)
    spread = columns.std(axis=0)
    columns = columns[:, spread > 0] / spread[spread > 0]
    left = score - columns @ np.linalg.lstsq(columns, score, rcond=None)[0]
    return np.where(np.abs(left) > 1e-9 * np.abs(score).max(initial=0), left, 0.0)  # what is nothing must not rank


def remove_length(scores: Values, lengths: Values, groups: Sequence[str]) -> np.ndarray:
    """:func:`remove` for one feature."""
    return remove(scores, np.asarray(lengths, dtype=float)[:, None], groups)


def surface(trace: Trace) -> list[float]:
    """What needs no understanding: characters, steps, digits, tags, distinct words, characters of the longest step."""
    longest = max((step.end - step.start for step in trace.steps), default=0)
    digits, tags = sum(letter.isdigit() for letter in trace.text), len(re.findall(r"</?\w+>", trace.text))
    return [len(trace.text), len(trace.steps), digits, tags, len(set(trace.text.split())), longest]


def explained(scores: Values, residuals: Values, groups: Sequence[str], *, draws: int, seed: int) -> Estimate:
    """Share of the scores' variance within questions that the regression behind the residuals explains (R squared)."""
    columns = np.stack([np.square(residuals), np.square(centred(scores, groups))], axis=1)
    return bootstrap(columns, groups, lambda sums: 1 - ratio(sums), draws=draws, seed=seed)


MATCHED = 0.05
"""Traces whose lengths differ by at most this share of the longer one count as equally long."""


def matched_auroc(
    correct: Sequence[bool], scores: Values, lengths: Values, groups: Sequence[str], *, draws: int, seed: int
) -> Estimate:
    """Within-question AUROC over the pairs of a right and a wrong trace that are equally long, see :data:`MATCHED`."""
    values, sizes = np.asarray(scores, dtype=float), np.asarray(lengths, dtype=float)
    columns, keys = [], []
    for group, rows in members_of(groups).items():
        right, wrong = [row for row in rows if correct[row]], [row for row in rows if not correct[row]]
        gap = values[right][:, None] - values[wrong][None, :]
        long = np.maximum(sizes[right][:, None], sizes[wrong][None, :])
        near = np.abs(sizes[right][:, None] - sizes[wrong][None, :]) <= MATCHED * long
        if near.any():
            columns.append([float((gap > 0)[near].sum() + (gap == 0)[near].sum() / 2), float(near.sum())])
            keys.append(group)
    return bootstrap(np.array(columns), keys, ratio, draws=draws, seed=seed)


def split_figures(
    traces: Sequence[Trace], scores: Sequence[float], logprobs: Sequence[float], prefix: str, *, draws: int, seed: int
) -> dict[str, Estimate]:
    """Right against wrong chains of one split.

    Args:
        traces: judged candidates.
        scores: the reward's score of each.
        logprobs: mean log-probability per token of each.
        prefix: of the names, e.g. ``audit.test``.
        draws, seed: of the bootstrap over questions.

    Returns:
        ``<prefix>.auroc`` within question; ``.auroc_pooled`` over all; ``.auroc_length`` and ``.auroc_logprob`` of
        length and likelihood alone; ``.auroc_without_length`` after length is regressed out; ``.auroc_matched_length``
        over pairs of equal length; ``.partial_correlation`` of score and correctness, question and length taken out;
        ``.surface_r2``, how much of the score the features of :func:`surface` explain, and ``.auroc_without_surface``
        what is left of the AUROC without them; ``.reward_right`` and
        ``.reward_wrong``, the mean scores; ``.reward_gap``, by how much right chains outscore wrong ones of their own
        question, mean over the questions that have both.
    """
    correct = [bool(trace.correct) for trace in traces]
    groups = [trace.question for trace in traces]
    lengths = [float(len(trace.text)) for trace in traces]
    sampling = {"draws": draws, "seed": seed}
    figures = {
        f"{prefix}.auroc": within_auroc(correct, scores, groups, **sampling),
        f"{prefix}.auroc_pooled": pooled_auroc(correct, scores, groups, **sampling),
        f"{prefix}.auroc_length": within_auroc(correct, lengths, groups, **sampling),
        f"{prefix}.auroc_logprob": within_auroc(correct, logprobs, groups, **sampling),
        f"{prefix}.auroc_without_length": within_auroc(
            correct, remove_length(scores, lengths, groups), groups, **sampling
        ),
    }
    left = remove(scores, np.array([surface(trace) for trace in traces]), groups)
    figures[f"{prefix}.auroc_without_surface"] = within_auroc(correct, left, groups, **sampling)
    figures[f"{prefix}.surface_r2"] = explained(scores, left, groups, **sampling)
    figures[f"{prefix}.auroc_matched_length"] = matched_auroc(correct, scores, lengths, groups, **sampling)
    figures[f"{prefix}.partial_correlation"] = within_correlation(
        remove_length(scores, lengths, groups), remove_length(correct, lengths, groups), groups, groups, **sampling
    )
    for name, kind in (("right", True), ("wrong", False)):
        rows = [row for row, value in enumerate(correct) if value is kind]
        figures[f"{prefix}.reward_{name}"] = bootstrap_mean(
            [scores[row] for row in rows], [groups[row] for row in rows], **sampling
        )
    gaps = reward_gaps(correct, scores, groups)
    figures[f"{prefix}.reward_gap"] = bootstrap_mean(list(gaps.values()), list(gaps), **sampling)
    return {name: figure for name, figure in figures.items() if figure.n}


def split_questions(traces: Sequence[Trace], scores: Sequence[float], prefix: str) -> Table:
    """What lies behind ``<prefix>.<auroc|reward_right|reward_wrong|reward_gap>`` of :func:`split_figures`."""
    correct, groups = [bool(trace.correct) for trace in traces], [trace.question for trace in traces]
    wins, pairs = within_pairs(correct, scores, groups)
    table = {
        f"{prefix}.auroc": {question: [wins[question], float(count)] for question, count in pairs.items() if count},
        f"{prefix}.reward_gap": one_each(reward_gaps(correct, scores, groups)),
    }
    for name, kind in (("right", True), ("wrong", False)):
        rows = [row for row, value in enumerate(correct) if value is kind]
        table[f"{prefix}.reward_{name}"] = sums([scores[row] for row in rows], [groups[row] for row in rows])
    return table


def reward_gaps(correct: Sequence[bool], scores: Sequence[float], groups: Sequence[str]) -> dict[str, float]:
    """Mean score of right chains minus that of wrong ones, for each question that has both."""
    parts: dict[str, tuple[list[float], list[float]]] = {}
    for right, score, group in zip(correct, scores, groups, strict=True):
        parts.setdefault(group, ([], []))[not right].append(score)
    return {group: float(np.mean(right) - np.mean(wrong)) for group, (right, wrong) in parts.items() if right and wrong}


def preference(
    first: Sequence[float], second: Sequence[float], groups: Sequence[str], *, draws: int, seed: int
) -> Estimate:
    """Share of pairs in which the first outscores the second; ties count 1/2, so .5 means blind to the difference."""
    margin = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    return bootstrap_mean((margin > 0) + (margin == 0) / 2, groups, draws=draws, seed=seed)


def outcome_figures(
    name: str,
    traces: Sequence[Trace],
    scores: Sequence[Values],
    guesses: Sequence[Sequence[int]],
    *,
    draws: int,
    seed: int,
) -> dict[str, Estimate]:
    """The same traces with their outcome shown and hidden: does the reward still tell right from wrong, and where?

    Args:
        name: one of :data:`HIDDEN`.
        traces: judged.
        scores: of each, the outcome shown and hidden.
        guesses: the step that the reward points at in each, the outcome shown and hidden.
        draws, seed: of the bootstrap over questions.

    Returns:
        ``audit.outcome.<name>.<auroc|exact>_before`` (shown), ``.<auroc|exact>`` (hidden), the paired ``_change`` and
        its permutation p-value ``_change.p``; AUROC is within question, ``exact`` over the traces with a known error.
    """
    prefix, sampling = f"audit.outcome.{name}", {"draws": draws, "seed": seed}
    right, groups = [bool(trace.correct) for trace in traces], [trace.question for trace in traces]
    (shown, pairs), (hidden, _) = (within_pairs(right, values, groups) for values in scores)
    mixed = [group for group in pairs if pairs[group]]
    wins = [[won[group] for group in mixed] for won in (shown, hidden)]
    change = np.stack([np.subtract(wins[1], wins[0]), [pairs[group] for group in mixed]], axis=1)
    figures = {
        f"{prefix}.auroc_before": within_auroc(right, scores[0], groups, **sampling),
        f"{prefix}.auroc": within_auroc(right, scores[1], groups, **sampling),
        f"{prefix}.auroc_change": bootstrap(change, mixed, ratio, **sampling),
        f"{prefix}.auroc_change.p": paired_permutation_p(wins[1], wins[0], mixed, seed=seed),
    }
    wrong = [row for row, trace in enumerate(traces) if trace.first_error is not None]
    units = [groups[row] for row in wrong]
    before, after = ([float(steps[row] == traces[row].first_error) for row in wrong] for steps in guesses)
    figures |= {
        f"{prefix}.exact_before": bootstrap_mean(before, units, **sampling),
        f"{prefix}.exact": bootstrap_mean(after, units, **sampling),
        f"{prefix}.exact_change": paired_difference(after, before, units, **sampling),
        f"{prefix}.exact_change.p": paired_permutation_p(after, before, units, seed=seed),
    }
    return {key: figure for key, figure in figures.items() if figure.n}


def step_correlation(traces: Sequence[Trace], trusts: Sequence[np.ndarray], *, draws: int, seed: int) -> Estimate:
    """Correlation within traces of a step's trust with its being right, up to and with the first wrong step.

    Args:
        traces: labelled, each with a first error.
        trusts: per trace ``(n_steps,)``.
    """
    right, values, units, groups = [], [], [], []
    for trace, trust in zip(traces, trusts, strict=True):
        for at in range((trace.first_error or 0) + 1):
            right.append(float(at != trace.first_error))
            values.append(float(trust[at]))
            units.append(trace.id)
            groups.append(trace.question)
    return within_correlation(values, right, units, groups, draws=draws, seed=seed)


def lucky(traces: Sequence[Trace]) -> list[int]:
    """Indices of right-answer traces of the questions that have some with all steps right and some with a wrong one."""
    rows = []
    for members in by_question(traces).values():
        right = [row for row in members if traces[row].correct and traces[row].labelled]
        if len({traces[row].first_error is None for row in right}) == 2:
            rows += right
    return rows


def over_optimisation(
    correct: Sequence[bool],
    scores: Values,
    predicted: Values | None,
    groups: Sequence[str],
    ns: Sequence[int],
    *,
    draws: int,
    seed: int,
) -> dict[str, Estimate]:
    """Does more choice go on helping? What the reward says of its pick among N, and whether the pick is right.

    Args:
        correct, scores, groups: ``(n,)`` each.
        predicted: ``(n,)``, the scores as probabilities by dev's map; None without one.
        ns: sizes N.

    Returns:
        ``audit.choice.n<N>.<score|accuracy>`` and, with probabilities, ``.predicted`` and ``.gap`` (predicted minus
        accuracy, on the same questions): a gap that grows with N is over-optimisation (Gao et al. 2023).
    """
    members = members_of(groups)
    keys = list(members)
    quantities: dict[str, Values] = {"score": scores, "accuracy": np.asarray(correct, dtype=float)}
    if predicted is not None:
        quantities["predicted"] = predicted
    figures = {}
    for n in ns:
        means = {
            name: [
                best_of_n([float(scores[row]) for row in rows], [float(values[row]) for row in rows], n)
                for rows in members.values()
            ]
            for name, values in quantities.items()
        }
        for name, column in means.items():
            figures[f"audit.choice.n{n}.{name}"] = bootstrap_mean(column, keys, draws=draws, seed=seed)
        if predicted is not None:
            figures[f"audit.choice.n{n}.gap"] = paired_difference(
                means["predicted"], means["accuracy"], keys, draws=draws, seed=seed
            )
    return figures


def variant_figures(
    correct: Mapping[str, Sequence[bool]],
    before: Mapping[str, Values],
    after: Mapping[str, Values],
    groups: Mapping[str, Sequence[str]],
    *,
    draws: int,
    seed: int,
) -> dict[str, Estimate]:
    """Per variant of the traces: AUROC within question before and after, and how much of the order is kept.

    Args:
        correct, before, after, groups: per variant, for each trace that it applies to, whether the trace is right, its
            score, the variant's score, and its question.

    Returns:
        ``audit.variant.<name>.<auroc|auroc_before|agreement>``.
    """
    figures = {}
    sampling = {"draws": draws, "seed": seed}
    for name, right in correct.items():
        prefix = f"audit.variant.{name}"
        figures[f"{prefix}.auroc"] = within_auroc(right, after[name], groups[name], **sampling)
        figures[f"{prefix}.auroc_before"] = within_auroc(right, before[name], groups[name], **sampling)
        figures[f"{prefix}.agreement"] = within_agreement(before[name], after[name], groups[name], **sampling)
    return figures
