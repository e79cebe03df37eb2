"""What lies behind a figure, question by question: enough to pair, to pool over training runs, and to resample.

Every figure here is a ratio of two sums over questions: pass@1 is (share of right samples) / (1), the share of first
wrong steps found is (found) / (wrong traces), AUROC within question is (pairs in order) / (pairs).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rairl.core.errors import RairlError
from rairl.core.stats import Values

Table = dict[str, dict[str, list[float]]]
"""Figure to question to ``[numerator, denominator]``."""
FILE = "questions.json"


def one_each(values: Mapping[str, float]) -> dict[str, list[float]]:
    """A figure that is the mean over questions of one value each."""
    return {question: [round(float(value), 6), 1.0] for question, value in values.items()}


def sums(values: Values, groups: Sequence[str]) -> dict[str, list[float]]:
    """A figure that is the mean over rows; ``groups`` has the question of each row."""
    totals: dict[str, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        row = totals.setdefault(group, [0.0, 0.0])
        row[0] += float(value)
        row[1] += 1
    return {question: [round(total, 6), count] for question, (total, count) in totals.items()}


def write_questions(folder: Path, table: Table) -> None:
    """Write ``folder/questions.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(json.dumps(table, allow_nan=False) + "\n", encoding="utf-8")


def read_questions(folder: Path) -> Table:
    """Read what :func:`write_questions` wrote.

    Raises:
        RairlError: when it is missing or not JSON.
    """
    try:
        return json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise RairlError(f"{folder / FILE} is missing or broken ({error}); run its stage again") from error
