"""Pointing at the first wrong step: predictors, trivial rules, and scores against known first errors.

Two questions, kept apart. *Given an error exists*, which step is the first wrong one (``exact``, ``within1``)? And
without that knowledge, is there one at all, and where (ProcessBench F1; Zheng et al. 2024, arXiv 2412.06559)?
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rairl.core.errors import RairlError
from rairl.core.stats import (
    Estimate,
    bootstrap,
    bootstrap_mean,
    paired_difference,
    paired_permutation_p,
    pooled_auroc,
    ratio,
    within_pairs,
)
from rairl.core.traces import Trace
from rairl.models.calibration import suspicion


def f1(hit_wrong: np.ndarray | float, hit_right: np.ndarray | float) -> np.ndarray:
    """Harmonic mean of the accuracies on erroneous and on error-free rows; 0 when both are 0, NaN when one is."""
    total = np.asarray(hit_wrong) + np.asarray(hit_right)
    return 2 * hit_wrong * hit_right / np.where(total == 0, 1.0, total)


def choose_threshold(reads: Sequence[np.ndarray], truth: Sequence[int | None], locator: str) -> float:
    """The threshold of :func:`~rairl.models.calibration.first_error_or_none` with the best F1. For dev data only.

    It lies midway between two suspicions.

    Args:
        reads: per trace ``(n_steps,)``.
        truth: per trace the 0-based first wrong step, or None for a trace without one.
        locator: see :func:`rairl.models.calibration.suspicion`.

    Raises:
        RairlError: unless there are traces of both kinds.
    """
    if not (any(error is None for error in truth) and any(error is not None for error in truth)):
        raise RairlError("a threshold needs dev traces with and without a wrong step")
    rows = [suspicion(row, locator) for row in reads]
    values = np.unique(np.concatenate(rows))
    cuts = np.concatenate([values[:1] - 1, (values[1:] + values[:-1]) / 2, values[-1:] + 1])
    # A trace whose running minimum first falls below the cut at step k predicts k: count hits over all cuts at once.
    hits = {True: np.zeros(len(cuts)), False: np.zeros(len(cuts))}
    counts = {True: 0, False: 0}
    for row, error in zip(rows, truth, strict=True):
        counts[error is None] += 1
        if error is None:
            hits[True] += row.min(initial=np.inf) >= cuts
        else:
            hits[False] += (row[error] < cuts) & (row[:error].min(initial=np.inf) >= cuts)
    scores = f1(hits[False] / counts[False], hits[True] / counts[True])
    return float(cuts[int(np.argmax(scores))])


def trivial_predictions(trace: Trace) -> dict[str, int]:
    """What needs no model: always the first step, always the last, the longest (characters; the earliest of equals)."""
    lengths = [step.end - step.start for step in trace.steps]
    return {"first": 0, "last": len(lengths) - 1, "longest": int(np.argmax(lengths))}


def logprob_predictions(sums: np.ndarray, means: np.ndarray, ratios: np.ndarray) -> dict[str, int]:
    """What plain language models say.

    ``logprob_drop`` is the step with the lowest mean log-probability per token: the largest drop of the running
    log-likelihood, measured per token so that long steps are not suspect for their length. ``logprob_sum`` is the same
    without that correction; ``logprob_change`` the largest fall of the per-token mean from one step to the next (the
    first step is compared with the mean over all steps). ``logratio_drop`` is the step with the lowest mean log-ratio
    per token, SFT over base: the implicit reward's own locator.

    Args:
        sums: ``(n_steps,)``, log-probability of each step.
        means: ``(n_steps,)``, the same per token.
        ratios: ``(n_steps,)``, log-probability over the base model's, per token.
    """
    return {
        "logprob_drop": int(np.argmin(means)),
        "logprob_sum": int(np.argmin(sums)),
        "logprob_change": int(np.argmin(np.diff(means, prepend=means.mean()))),
        "logratio_drop": int(np.argmin(ratios)),
    }


def located_figures(
    traces: Sequence[Trace],
    predictions: Mapping[str, Sequence[int]],
    prefix: str,
    *,
    draws: int,
    seed: int,
) -> dict[str, Estimate]:
    """Given an error exists: ``<prefix>.<method>.<exact|within1|distance>``, with ``chance``, and the reward's paired
    gains. The distance is that of the named step to the true one, in steps.

    Args:
        traces: labelled, each with a first error.
        predictions: per method one step index per trace; ``chance`` (a uniformly random step) is added.
        prefix: of the names, e.g. ``localise`` or ``localise.processbench``.
        draws, seed: of the bootstrap.

    Returns:
        also ``<prefix>.reward-<method>.exact`` and, with ``.p`` appended, its permutation p-value.
    """
    hits = location_hits(traces, predictions)
    groups = [trace.question for trace in traces]
    figures = {
        f"{prefix}.{method}.{metric}": bootstrap_mean(values, groups, draws=draws, seed=seed)
        for method, metrics in hits.items()
        for metric, values in metrics.items()
    }
    for method in hits:
        if method != "reward" and "reward" in hits:
            pair = hits["reward"]["exact"], hits[method]["exact"]
            figures[f"{prefix}.reward-{method}.exact"] = paired_difference(*pair, groups, draws=draws, seed=seed)
            figures[f"{prefix}.reward-{method}.exact.p"] = paired_permutation_p(*pair, groups, seed=seed)
    return figures


def location_hits(
    traces: Sequence[Trace], predictions: Mapping[str, Sequence[int]]
) -> dict[str, dict[str, np.ndarray]]:
    """``{method: {"exact" | "within1" | "distance": (n,)}}``: per trace, whether its first error was found, and how far
    off the guess was; for ``chance`` the expectations. Arguments as for :func:`located_figures`."""
    truth = np.array([_error(trace) for trace in traces])
    sizes = np.array([len(trace.steps) for trace in traces])
    neighbours = np.minimum(truth + 1, sizes - 1) - np.maximum(truth - 1, 0) + 1
    after = sizes - 1 - truth
    off = (truth * (truth + 1) + after * (after + 1)) / 2 / sizes  # the distances 1, 2, ... to either side
    hits = {"chance": {"exact": 1 / sizes, "within1": neighbours / sizes, "distance": off}}
    for method, values in predictions.items():
        distance = np.abs(np.asarray(values) - truth)
        hits[method] = {"exact": (distance == 0).astype(float), "within1": (distance <= 1).astype(float),
                        "distance": distance.astype(float)}  # fmt: skip
    return hits


def _error(trace: Trace) -> int:
    if trace.first_error is None:
        raise ValueError(f"trace {trace.id!r} has no first error")
    return trace.first_error


def detection_figures(
    traces: Sequence[Trace], hits: Sequence[float], prefix: str, *, draws: int, seed: int
) -> dict[str, Estimate]:
    """ProcessBench scores: ``<prefix>.acc_error``, ``.acc_correct`` and their harmonic mean ``.f1``.

    Args:
        traces: labelled, with and without a first error.
        hits: per trace, (the probability of) predicting exactly its first error, or none where there is none.
        prefix: of the names, e.g. ``localise.processbench.reward``.
        draws, seed: of the bootstrap over questions.

    Returns:
        nothing for a kind of row that does not occur.
    """
    wrong = np.array([trace.first_error is not None for trace in traces], dtype=float)
    values = np.asarray(hits, dtype=float)
    columns = np.stack([values * wrong, wrong, values * (1 - wrong), 1 - wrong], axis=1)
    groups = [trace.question for trace in traces]
    statistics: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "acc_error": lambda sums: sums[..., 0] / sums[..., 1],
        "acc_correct": lambda sums: sums[..., 2] / sums[..., 3],
        "f1": lambda sums: f1(sums[..., 0] / sums[..., 1], sums[..., 2] / sums[..., 3]),
    }
    figures = {
        f"{prefix}.{name}": bootstrap(columns, groups, statistic, draws=draws, seed=seed)
        for name, statistic in statistics.items()
    }
    return {name: figure for name, figure in figures.items() if figure.n}


def step_auc_figures(
    traces: Sequence[Trace], trusts: Mapping[str, Sequence[np.ndarray]], prefix: str, *, draws: int, seed: int
) -> dict[str, Estimate]:
    """``<prefix>.<method>.<step_auc|step_auc_pooled>``: does trust tell the first wrong step from those before it?

    Steps before the first error are good, the first error is bad, later ones are left out, as nobody knows what is
    right once something is wrong. ``step_auc`` compares within a trace, ``step_auc_pooled`` over all of them.

    Args:
        traces: labelled, each with a first error.
        trusts: per method and trace ``(n_steps,)``, low where a step is suspect.
        prefix: of the names.
        draws, seed: of the bootstrap over questions.
    """
    ends = [_error(trace) + 1 for trace in traces]
    good = [at < end - 1 for end in ends for at in range(end)]
    owner = [trace.id for trace, end in zip(traces, ends, strict=True) for _ in range(end)]
    groups = [trace.question for trace, end in zip(traces, ends, strict=True) for _ in range(end)]
    question = {trace.id: trace.question for trace in traces}
    figures = {}
    for method, rows in trusts.items():
        values = np.concatenate([np.asarray(row)[:end] for row, end in zip(rows, ends, strict=True)])
        wins, pairs = within_pairs(good, values, owner)
        mixed = [key for key in wins if pairs[key]]
        columns = np.array([[wins[key], pairs[key]] for key in mixed])
        figures[f"{prefix}.{method}.step_auc"] = bootstrap(
            columns, [question[key] for key in mixed], ratio, draws=draws, seed=seed
        )
        figures[f"{prefix}.{method}.step_auc_pooled"] = pooled_auroc(good, values, groups, draws=draws, seed=seed)
    return figures
