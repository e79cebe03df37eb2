"""What the pages of Kubeflow Pipelines show of a stage: the report's tables, the reward's ROC curve."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from rairl.report.tables import Table


POINTS = 100
"""Most points of a curve: Kubeflow keeps them in its database of metadata."""


def tables(summary: Path) -> str:
    """The tables of the report as Markdown, from ``metrics.json``."""
    from rairl.core.stats import from_json
    from rairl.report.tables import tables as report_tables

    found = report_tables(from_json(json.loads(summary.read_text(encoding="utf-8"))))
    return "\n".join(_markdown(table) for section in found.values() for table in section)


def _markdown(table: Table) -> str:
    from rairl.report.tables import cell

    head = [f"### {table.title}", "", f"| | {' | '.join(table.columns)} |", "|---" * (1 + len(table.columns)) + "|"]
    rows = (f"| {label} | {' | '.join(' '.join(cell(value)) for value in row)} |" for label, row in table.rows.items())
    return "\n".join([*head, *rows, ""])


def roc(params: Mapping[str, Any], candidates: Path, scores: Path) -> tuple[list[float], list[float], list[float]]:
    """ROC curve of the reward's score for a right answer, on the candidates that the headline reranks.

    Returns:
        False positive rate, true positive rate and threshold, point by point; empty where all candidates are right, or
        none is.
    """
    from rairl.evaluate.candidates import candidates_path, read_candidates, reference_policy
    from rairl.evaluate.scores import read_scores
    from rairl.kubeflow.task import read_params

    policy = reference_policy(logged=read_params(params)[0].logged)
    traces = read_candidates(candidates_path(candidates, policy, "test"))
    return curve([bool(trace.correct) for trace in traces], read_scores(scores / f"{policy}.test.json").scores(traces))


def curve(right: Sequence[bool], scores: Sequence[float]) -> tuple[list[float], list[float], list[float]]:
    """ROC curve of scores, thinned to :data:`POINTS`; see :func:`roc`."""
    from sklearn.metrics import roc_curve

    if all(right) or not any(right):
        return [], [], []
    false, true, threshold = roc_curve(right, scores)
    threshold[0] = threshold[1]  # scikit-learn begins at infinity, which JSON does not have
    kept = np.unique(np.linspace(0, len(false) - 1, POINTS).round().astype(int))
    return false[kept].tolist(), true[kept].tolist(), threshold[kept].tolist()
