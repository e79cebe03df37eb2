"""Does the reward follow the reasoning, or something cheaper? Each check has a number and an interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rairl.evaluate.candidates import by_question
from rairl.evaluate.questions import Table, one_each, sums
from rairl.stats import Estimate, bootstrap_mean, pooled_auroc, within_auroc, within_pairs
from rairl.traces import Step, Trace, relabel

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


def remove_length(scores: Sequence[float], lengths: Sequence[float], groups: Sequence[str]) -> np.ndarray:
    """What is left of the scores after a linear regression on length within questions.

    Args:
        scores, lengths, groups: ``(n,)`` each.

    Returns:
        ``(n,)`` residuals: scores and lengths centred per question, one common slope.
    """
    _, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    counts = np.bincount(index)
    score, length = (
        (values := np.asarray(raw, dtype=float)) - (np.bincount(index, weights=values) / counts)[index]
        for raw in (scores, lengths)
    )
    spread = float(length @ length)
    return score - (float(score @ length) / spread if spread > 0 else 0.0) * length


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
        length and likelihood alone; ``.auroc_without_length`` after length is regressed out; ``.reward_right`` and
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


def shuffle_steps(trace: Trace, rng: np.random.Generator) -> Trace | None:
    """The same steps in another order, all else in place; None when there is no other order."""
    texts = trace.step_texts()
    if len(set(texts)) < 2:
        return None
    order = rng.permutation(len(texts))
    while all(texts[at] == text for at, text in zip(order, texts, strict=True)):
        order = rng.permutation(len(texts))
    parts: list[str] = []
    steps: list[Step] = []
    end, length = 0, 0
    for span, at in zip(trace.steps, order, strict=True):
        between = trace.text[end : span.start]
        start = length + len(between)
        length = start + len(texts[at])
        parts += [between, texts[at]]
        steps.append(Step(start, length))
        end = span.end
    text = "".join(parts) + trace.text[end:]
    return relabel(trace, text=text, steps=tuple(steps), first_error=None, labelled=False)


def answer_block(trace: Trace) -> str:
    """What follows the last step: the markup and the answer; blank when the answer stands in a step."""
    return trace.text[trace.steps[-1].end :] if trace.steps else ""


def without_answer(trace: Trace) -> Trace:
    """The trace cut off after its last step."""
    return relabel(trace, text=trace.text[: len(trace.text) - len(answer_block(trace))], answer=None)


def with_answer_of(trace: Trace, donor: Trace) -> Trace:
    """The trace's steps followed by the donor's answer block."""
    cut = without_answer(trace)
    return relabel(cut, text=cut.text + answer_block(donor), answer=donor.answer)


def mixed_sample(traces: Sequence[Trace], each: int) -> list[int]:
    """Indices of the first ``each`` right and wrong candidates of every question that has both kinds."""
    rows = []
    for members in by_question(traces).values():
        right = [row for row in members if traces[row].correct]
        wrong = [row for row in members if not traces[row].correct]
        if right and wrong:
            rows += [*right[:each], *wrong[:each]]
    return rows


def shuffled_pairs(traces: Sequence[Trace], seed: int) -> list[tuple[int, Trace]]:
    """One right candidate per question, by index, and its shuffled copy."""
    rng = np.random.default_rng(seed)
    pairs = []
    for members in by_question(traces).values():
        right = next((row for row in members if traces[row].correct), None)
        shuffled = None if right is None else shuffle_steps(traces[right], rng)
        if right is not None and shuffled is not None:
            pairs.append((right, shuffled))
    return pairs


def swapped_pairs(traces: Sequence[Trace]) -> list[tuple[int, int, Trace, Trace]]:
    """Per question the first right and first wrong candidate with an answer block, by index, and both with the answers
    exchanged: (right, wrong, right steps with the wrong answer, wrong steps with the right answer)."""
    swaps = []
    for members in by_question(traces).values():
        usable = [row for row in members if answer_block(traces[row]).strip() and traces[row].answer is not None]
        right = next((row for row in usable if traces[row].correct), None)
        wrong = next((row for row in usable if not traces[row].correct), None)
        if right is not None and wrong is not None:
            a, b = traces[right], traces[wrong]
            swaps.append((right, wrong, with_answer_of(a, b), with_answer_of(b, a)))
    return swaps
