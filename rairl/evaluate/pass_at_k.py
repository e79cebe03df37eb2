"""What a policy is worth: unbiased pass@k, greedy accuracy, and whether its steps are right, not only its answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rairl.core.errors import RairlError
from rairl.core.stats import Estimate, bootstrap_mean, paired_difference, paired_permutation_p, pass_at_k
from rairl.core.traces import Trace
from rairl.evaluate.candidates import by_question, logprob, meta_number, questions
from rairl.text.answers import grade, group_answers

CONTRASTS = (
    ("rairl", "sft"),
    ("rairl", "sft_last"),
    ("rairl", "second_model"),
    ("grpo", "sft"),
    ("rairl", "grpo"),
    ("sft", "base"),
)
"""Pairs of policies that are compared on the same questions."""


def powers_of_two(limit: int) -> list[int]:
    """1, 2, 4, ... up to and including ``limit``."""
    values = [2**power for power in range(limit.bit_length()) if 2**power <= limit]
    return values if values[-1] == limit else [*values, limit]


def samples_per_question(traces: Sequence[Trace]) -> int:
    """The smallest number of samples that any question has."""
    return min(len(rows) for rows in by_question(traces).values())


def pass_at_k_per_question(traces: Sequence[Trace], k: int) -> dict[str, float]:
    """Unbiased pass@k of each question."""
    return {
        question: pass_at_k(len(rows), sum(bool(traces[row].correct) for row in rows), k)
        for question, rows in by_question(traces).items()
    }


def process_right(traces: Sequence[Trace]) -> list[bool] | None:
    """For each trace, whether answer *and* every step are right; None when a right answer's steps were not checked.

    A wrong answer settles the matter without labels.
    """
    if any(trace.correct and not trace.labelled for trace in traces):
        return None
    return [bool(trace.correct) and trace.first_error is None for trace in traces]


def rates(traces: Sequence[Trace]) -> dict[str, dict[str, float]]:
    """Per question, the share of samples with a right answer (``pass@1``) and, where steps were checked, with a right
    answer and no wrong step (``process@1``)."""
    shares = {"pass@1": pass_at_k_per_question(traces, 1)}
    right = process_right(traces)
    if right is not None:
        shares["process@1"] = {
            question: float(np.mean([right[row] for row in rows])) for question, rows in by_question(traces).items()
        }
    return shares


def diversity(traces: Sequence[Trace]) -> dict[str, dict[str, float]]:
    """Per question, how different its samples are.

    Returns:
        ``distinct``: distinct texts per sample; ``answer_entropy``: entropy of the answers' distribution in nats, equal
        answers counted together and unreadable ones as one more.
    """
    measures: dict[str, dict[str, float]] = {"distinct": {}, "answer_entropy": {}}
    for question, rows in by_question(traces).items():
        answers = Counter(group_answers([traces[row].answer for row in rows]))
        shares = np.array(list(answers.values())) / len(rows)
        measures["distinct"][question] = len({traces[row].text for row in rows}) / len(rows)
        measures["answer_entropy"][question] = float(-(shares * np.log(shares)).sum())
    return measures


MATCHED = 0.05
"""Samples whose lengths differ by at most this share of the longer one count as equally long."""


def at_equal_length(
    first: Sequence[Trace], second: Sequence[Trace], paths: tuple[Path, Path]
) -> dict[str, tuple[float, float]]:
    """Accuracies of two policies over those pairs of samples of one question that are equally long (:data:`MATCHED`).

    Returns:
        Per question with such pairs: share right of the first, and of the second policy's sample.
    """
    rival_rows = by_question(second)
    accuracies = {}
    for question, rows in by_question(first).items():
        ours, rivals = [first[row] for row in rows], [second[row] for row in rival_rows.get(question, [])]
        long, other = (
            np.array([meta_number(trace, "tokens", path) for trace in side])
            for side, path in zip((ours, rivals), paths, strict=True)
        )
        near = np.abs(long[:, None] - other) <= MATCHED * np.maximum(long[:, None], other)
        if near.any():
            right, right_other = (np.array([bool(trace.correct) for trace in side]) for side in (ours, rivals))
            accuracies[question] = (
                float((near * right[:, None]).sum() / near.sum()),
                float((near * right_other).sum() / near.sum()),
            )
    return accuracies


def sample_figures(
    traces: Sequence[Trace],
    prefix: str,
    path: Path,
    ks: Sequence[int],
    *,
    draws: int,
    seed: int,
    temperature: float = 1.0,
) -> dict[str, Estimate]:
    """Figures of a policy's samples on one split, each with an interval over questions.

    Args:
        traces: judged candidates.
        prefix: of the names, e.g. ``posttrain.sft``.
        path: their file, for messages.
        ks: the k of pass@k.
        draws, seed: of the bootstrap.
        temperature: that the samples were drawn at.

    Returns:
        ``<prefix>.pass@<k>``; ``.process@1`` (answer and all steps right; absent when steps were not checked). What
        becomes of a sample adds up to 1: ``.exact`` (right under the exact checker: prescribed form, very string),
        ``.loose_form`` (right, but in another form), ``.wrong_answer`` (readable, and wrong) and ``.no_answer``
        (unreadable; 1 - ``.format``). ``.length`` (tokens); ``.distinct`` and ``.answer_entropy`` as
        :func:`diversity` says; at temperature 1 ``.entropy``, the policy's entropy in nats per token, estimated by the
        mean negative log-probability of what it drew.
    """
    groups = questions(traces)
    figures = {}
    for k in ks:
        rates = pass_at_k_per_question(traces, k)
        figures[f"{prefix}.pass@{k}"] = bootstrap_mean(list(rates.values()), list(rates), draws=draws, seed=seed)
    strict = [
        bool(trace.correct) and trace.gold is not None and grade(trace.text, trace.gold, exact=True) for trace in traces
    ]
    rows: dict[str, Sequence[float] | None] = {
        "process@1": process_right(traces),
        "exact": strict,
        "loose_form": [bool(trace.correct) and not right for trace, right in zip(traces, strict, strict=True)],
        "wrong_answer": [not trace.correct and trace.answer is not None for trace in traces],
        "no_answer": [not trace.correct and trace.answer is None for trace in traces],
        "format": [trace.answer is not None for trace in traces],
        "length": [meta_number(trace, "tokens", path) for trace in traces],
        "entropy": [-logprob(trace, path, mean=True) for trace in traces] if temperature == 1 else None,
    }
    for name, found in diversity(traces).items():
        figures[f"{prefix}.{name}"] = bootstrap_mean(list(found.values()), list(found), draws=draws, seed=seed)
    for name, values in rows.items():
        if values is not None:
            figures[f"{prefix}.{name}"] = bootstrap_mean(values, groups, draws=draws, seed=seed)
    return figures


def greedy_figure(traces: Sequence[Trace], *, draws: int, seed: int) -> Estimate:
    """Accuracy of one greedy decode per question."""
    return bootstrap_mean([bool(trace.correct) for trace in traces], questions(traces), draws=draws, seed=seed)


def compare(
    policies: Mapping[str, Mapping[str, Mapping[str, float]]], place: str, *, draws: int, seed: int
) -> dict[str, Estimate]:
    """Paired differences between policies on the same questions.

    Args:
        policies: per policy what :func:`rates` found.
        place: the split, or the temperature's label; empty for the headline.
        draws, seed: of the bootstrap.

    Returns:
        ``posttrain.<a>-<b>[.<place>].<pass@1|process@1>`` and, with ``.p`` appended, its two-sided permutation p-value.

    Raises:
        RairlError: when two policies did not answer the same questions.
    """
    figures = {}
    for first, second in CONTRASTS:
        if first not in policies or second not in policies:
            continue
        for metric in policies[first].keys() & policies[second].keys():
            a, b = policies[first][metric], policies[second][metric]
            if a.keys() != b.keys():
                odd = min(a.keys() ^ b.keys())
                raise RairlError(
                    f"policies {first} and {second} cannot be compared on {place or 'test'}: only one of them answered "
                    f"question {odd!r}; run the sample stage again"
                )
            keys = list(a)
            values = np.array([[a[key], b[key]] for key in keys])
            name = ".".join(part for part in ("posttrain", f"{first}-{second}", place, metric) if part)
            figures[name] = paired_difference(values[:, 0], values[:, 1], keys, draws=draws, seed=seed)
            figures[f"{name}.p"] = paired_permutation_p(values[:, 0], values[:, 1], keys, seed=seed)
    return figures


def compare_at_equal_length(
    traces: Mapping[str, Sequence[Trace]], paths: Mapping[str, Path], *, draws: int, seed: int
) -> dict[str, Estimate]:
    """``posttrain.<a>-<b>.equal_length`` and its ``.p``: paired differences over pairs of equally long samples.

    Args:
        traces: per policy its samples on test.
        paths: their files, for messages.
        draws, seed: of the bootstrap over questions.
    """
    figures = {}
    for first, second in CONTRASTS:
        if first in traces and second in traces:
            found = at_equal_length(traces[first], traces[second], (paths[first], paths[second]))
            name, values = f"posttrain.{first}-{second}.equal_length", np.array(list(found.values())).reshape(-1, 2)
            figures[name] = paired_difference(values[:, 0], values[:, 1], list(found), draws=draws, seed=seed)
            figures[f"{name}.p"] = paired_permutation_p(values[:, 0], values[:, 1], list(found), seed=seed)
    return {name: figure for name, figure in figures.items() if figure.n}
