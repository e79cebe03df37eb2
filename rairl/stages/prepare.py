"""The prepare stage: build the splits, refuse what later stages could not use, write the data card."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rairl.core.dataset_params import FileDataset, RealText
from rairl.core.errors import RairlError
from rairl.core.params import Params
from rairl.core.stats import Estimate, exact
from rairl.core.traces import Trace, require_unique_ids, write_traces
from rairl.datasets import build, question_key
from rairl.datasets.overlap import near_duplicates

if TYPE_CHECKING:
    from rairl.tracking.run import Run

SOLVED = ("demos", "dev", "logged_train", "logged_test", "labelled_", "labels_")
"""Splits (or beginnings of their names) whose rows are worked solutions."""
ANSWERED = ("dev", "test", "ood_", "logged_test")
"""Splits whose rows need a reference answer: every figure of correctness is computed on them."""
SAME_QUESTIONS = ("test", "logged_test", "labelled_")
"""Views of the held-out questions; they may share problems with one another, and with nothing else."""
LABELS_MAY_SHARE = {"labels_train": {"demos", "prompts"}, "labels_dev": {"dev"}}
"""Labelled solutions are of problems that others have solved, too: where they may come from."""


def prepare(params: Params, run: Run, *, data: Path) -> dict[str, Estimate]:
    """Write ``data/<split>.jsonl`` and ``data/card.json``.

    Args:
        params: all parameters; ``dataset`` and ``seed`` act here.
        run: where the splits are logged as inputs.
        data: the folder to write.

    Returns:
        ``data.<split>.rows`` for every split.

    Raises:
        RairlError: for an empty split, ids that occur twice, a missing solution or answer where a later stage needs
            one, or a problem that occurs in two splits (labels may be on problems of the demonstrations, the prompts
            or dev); and for whatever the data set's loader refuses.
    """
    splits, notes = build(params)
    shared = check(splits, may_repeat_demos=isinstance(params.dataset, FileDataset | RealText))
    if "prompts" in splits and not all(trace.gold for trace in splits["prompts"]):
        notes = {**notes, "prompts": "some have no gold answer: the outcome baseline (grpo) will refuse them"}
    data.mkdir(parents=True, exist_ok=True)
    rows = {}
    for name, traces in splits.items():
        path = data / f"{name}.jsonl"
        write_traces(path, traces)
        rows[name] = {**describe(traces), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    card = {
        "dataset": params.dataset.model_dump(),
        "seed": params.seed,
        "splits": rows,
        "shared_problems": shared,
        "near_duplicates": near(splits),
        "notes": notes,
    }
    draft = data / "card.json.part"
    draft.write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draft.replace(data / "card.json")
    for name in splits:
        run.log_input(data / f"{name}.jsonl", name=name)
    run.log_artifact(data / "card.json")
    return {f"data.{name}.rows": exact(len(traces)) for name, traces in splits.items()}


def check(splits: Mapping[str, Sequence[Trace]], *, may_repeat_demos: bool = False) -> dict[str, int]:
    """Refuse splits that a later stage could not use or whose figures would mean nothing.

    Args:
        splits: traces by split name.
        may_repeat_demos: whether ``prompts`` may hold the problems of ``demos``, as a team with few problems wants.

    Returns:
        The number of problems that each pair of splits shares (``"a/b"``), zeros included.

    Raises:
        RairlError: naming the split, the trace and the remedy.
    """
    for name, traces in splits.items():
        if not traces:
            raise RairlError(f"split {name!r} is empty; check the sizes and files under dataset in the parameters")
        require_unique_ids(traces, f"split {name!r}")
        for trace in traces:
            if name.startswith(SOLVED) and not trace.steps:
                raise RairlError(f"split {name!r}: trace {trace.id!r} has no steps; this split needs worked solutions")
            if name.startswith(ANSWERED) and not trace.gold:
                raise RairlError(
                    f"split {name!r}: trace {trace.id!r} has no gold answer; correctness is measured on this split, so "
                    "every row needs the field 'gold'"
                )
    keys = {name: {question_key(trace.problem): trace for trace in traces} for name, traces in splits.items()}
    shared = {}
    for first, second in combinations(keys, 2):
        common = keys[first].keys() & keys[second].keys()
        shared[f"{first}/{second}"] = len(common)
        views = first.startswith(SAME_QUESTIONS) and second.startswith(SAME_QUESTIONS)
        repeats = may_repeat_demos and {first, second} == {"demos", "prompts"}
        if common and not views and not repeats and first not in LABELS_MAY_SHARE.get(second, ()):
            key = min(common)
            raise RairlError(
                f"splits {first!r} and {second!r} share {len(common)} problems, for example {keys[first][key].id!r} "
                f"and {keys[second][key].id!r}; a problem may stand in one split only, so remove it from one of them"
            )
    return shared


def near(splits: Mapping[str, Sequence[Trace]]) -> dict[str, dict[str, Any]]:
    """Near duplicates between what is learned from or chosen on and what is reported on, per pair of splits.

    They are told, not refused: how alike two problems may be depends on the data (templates make all alike). See
    :func:`rairl.datasets.overlap.near_duplicates`.
    """
    problems = {name: [trace.problem for trace in traces] for name, traces in splits.items()}
    reported = [name for name in problems if name.startswith((*SAME_QUESTIONS, "ood_"))]
    return {
        f"{seen}/{held}": near_duplicates(problems[seen], problems[held])
        for seen in problems
        if seen not in reported
        for held in reported
    }


def describe(traces: Sequence[Trace]) -> dict[str, Any]:
    """Counts for the data card: rows, distinct problems, sources, correctness, labels, steps and characters."""
    steps = [len(trace.steps) for trace in traces if trace.steps]
    row: dict[str, Any] = {
        "rows": len(traces),
        "problems": len({question_key(trace.problem) for trace in traces}),
        "with_solution": len(steps),
        "with_gold": sum(trace.gold is not None for trace in traces),
        "correct": sum(trace.correct is True for trace in traces),
        "labelled": sum(trace.labelled for trace in traces),
        "with_error": sum(trace.first_error is not None for trace in traces),
        "sources": sorted({trace.source for trace in traces if trace.source}),
    }
    if steps:
        characters = [len(trace.text) for trace in traces if trace.steps]
        row["steps"] = {"mean": round(float(np.mean(steps)), 3), "min": min(steps), "max": max(steps)}
        row["characters"] = {"mean": round(float(np.mean(characters)), 1), "max": max(characters)}
    return row
