"""Sets with human first-error labels, all brought to one convention: 0-based, None for no wrong step.

Each loader keeps the source's words; only white space inside a step changes, so that a step is one line. The index base
differs between the sources and is converted here, once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rairl.core.errors import RairlError
from rairl.core.traces import Trace, require_unique_ids
from rairl.datasets.source import read_rows, text_field
from rairl.text.answers import answers_match, extract_answer
from rairl.text.segment import NUMBERED, compose, merge_numbered


class Labelled(NamedTuple):
    """A labelled set: its short name, its traces, and why each row that was left out was."""

    name: str
    traces: list[Trace]
    left_out: list[str]


class Unusable(Exception):
    """A row that is well formed but whose label names no step; it is left out, with a count."""


def load(path: str | Path) -> Labelled:
    """Read a labelled file in the ProcessBench, MR-Ben or BIG-Bench-Mistake format, or of traces as `rairl view` gives
    them to a reviewer to download; they are told apart by the fields.

    Raises:
        RairlError: naming file, line and field of a malformed row or of a label outside the steps; for a file in none
            of the formats.
    """
    rows = read_rows(path)
    first = rows[0][1]
    if "Model_Solution_Steps" in first:
        name, reader = "mr_ben", mr_ben
    elif "mistake_index" in first:
        name, reader = "bigbench_mistake", bigbench_mistake
    elif "label" in first and "problem" in first:
        name, reader = "processbench", processbench
    elif "text" in first and "problem" in first:
        name, reader = "review", review
    else:
        raise RairlError(
            f"{path}: not a labelled set; the ProcessBench format has the fields id, problem, steps, label and "
            "final_answer_correct (MR-Ben, BIG-Bench-Mistake and the labels of `rairl view` are read too)"
        )
    return _read(path, rows, name, reader)


def reviewed(paths: Sequence[str | Path]) -> tuple[list[Trace], dict[str, Any]]:
    """Labelled traces of several files to learn from or to choose on, and what the data card says of them.

    Rows without a label are left out, with a count.

    Raises:
        RairlError: as :func:`load`; for a file without any label, a labelled trace without steps, or one that two files
            (or reviewers) have labelled.
    """
    traces: list[Trace] = []
    seen: dict[str, str | Path] = {}
    left_out = []
    for path in paths:
        file = load(path)
        if not file.traces:
            raise RairlError(
                f"{path} has no label; mark the first wrong step of its traces, or that there is none, on the page of "
                "`rairl view`"
            )
        for trace in file.traces:
            if not trace.steps:
                raise RairlError(f"{path}: trace {trace.id!r} has no steps, so its label says nothing; remove the row")
            if trace.id in seen:
                raise RairlError(
                    f"{path}: trace {trace.id!r} is labelled in {seen[trace.id]}, too; keep one of the two labels"
                )
            seen[trace.id] = path
        traces += file.traces
        left_out += [f"{path}, {why}" for why in file.left_out]
    return traces, {"files": [str(path) for path in paths], "left_out": left_out}


def _read(
    path: str | Path, rows: list[tuple[int, dict[str, Any]]], name: str, reader: Callable[[dict[str, Any], int], Trace]
) -> Labelled:
    traces, left_out = [], []
    for number, row in rows:
        try:
            traces.append(reader(row, number))
        except Unusable as error:
            left_out.append(f"line {number}: {error}")
        except RairlError as error:
            raise RairlError(f"{path}, line {number}: {error}") from error
    require_unique_ids(traces, str(path))
    return Labelled(name, traces, left_out)


def review(row: dict[str, Any], number: int) -> Trace:
    """A trace that a reviewer labelled.

    Raises:
        Unusable: when it has a comment but no label.
    """
    trace = Trace.from_json(row)
    if not trace.labelled:
        raise Unusable("no label, only a comment")
    return trace


def processbench(row: dict[str, Any], number: int) -> Trace:
    """A row of ProcessBench (Zheng et al. 2024): ``label`` is 0-based, -1 for none; a step may hold line breaks."""
    steps = _steps(row, "steps")
    label = _integer(row, "label")
    if not -1 <= label < len(steps):
        raise RairlError(f"field 'label' is {label} but there are {len(steps)} steps; it is 0-based, -1 for no error")
    if not isinstance(row.get("final_answer_correct"), bool):
        raise RairlError("field 'final_answer_correct' must be true or false")
    text, spans = compose(steps, extract_answer("\n".join(steps)))
    return Trace(
        id=text_field(row, "id"),
        problem=text_field(row, "problem"),
        text=text,
        steps=spans,
        answer=extract_answer(text),
        correct=row["final_answer_correct"],
        first_error=None if label == -1 else label,
        labelled=True,
        source=str(row.get("generator", "")),
    )


def mr_ben(row: dict[str, Any], number: int) -> Trace:
    """A row of MR-Ben (Zeng et al. 2024): the label is the 1-based number *written* in the step, ``N/A`` for none.

    Its items are lines; they are merged into numbered steps (:func:`rairl.text.segment.merge_numbered`). A final
    ``Solution:`` item is the answer, not a step. Rows of one question share a group whatever their white space.

    Raises:
        Unusable: when no step has the number that the label names.
    """
    items = [item for item in _steps(row, "Model_Solution_Steps", blank=True) if item.strip()]
    parts = merge_numbered(items)
    steps = ["\n".join(items[index] for index in part) for part in parts]
    answer = None
    if len(steps) > 1 and not any(NUMBERED.match(items[index]) for index in parts[-1]):
        answer = " ".join(steps.pop().split()).removeprefix("Solution:").strip() or None
    verdict = text_field(row, "Model_Solution_Correctness")
    if verdict not in ("correct", "incorrect"):
        raise RairlError(f"field 'Model_Solution_Correctness' is {verdict!r}; it must be 'correct' or 'incorrect'")
    label = text_field(row, "Model_Solution_First_Error_Step")
    first_error = None
    if verdict == "incorrect":
        heads = {_written_number(items, part): index for index, part in enumerate(parts[: len(steps)])}
        if not label.isdecimal():
            raise RairlError(
                f"field 'Model_Solution_First_Error_Step' is {label!r}; an incorrect solution needs a number"
            )
        if int(label) not in heads:
            raise Unusable(f"label {label} names no step; the numbered steps are 1 to {len(steps)}")
        first_error = heads[int(label)]
    text, spans = compose(steps, answer)
    question = text_field(row, "Question")
    return Trace(
        id=f"{text_field(row, 'Question_UUID')}/{text_field(row, 'Sampled_Model')}",
        problem=f"{question.strip()}\n{text_field(row, 'Options').strip()}",
        text=text,
        steps=spans,
        answer=answer,
        gold=text_field(row, "Ground_Truth_Answer_Modified"),
        correct=verdict == "correct",
        first_error=first_error,
        labelled=True,
        source=row["Sampled_Model"],
        group="".join(question.split()),
    )


def _written_number(items: list[str], part: list[int]) -> int | None:
    heads = [match for index in part if (match := NUMBERED.match(items[index]))]
    return int(heads[0]["number"]) if heads else None


def bigbench_mistake(row: dict[str, Any], number: int) -> Trace:
    """A row of BIG-Bench-Mistake (Tyen et al. 2024): ``mistake_index`` is 0-based, null for none.

    No marked mistake does not mean a right answer: ``correct`` compares ``answer`` with ``target``.
    """
    steps = _steps(row, "steps")
    label = None if row.get("mistake_index") is None else _integer(row, "mistake_index")
    if label is not None and not 0 <= label < len(steps):
        raise RairlError(
            f"field 'mistake_index' is {label} but there are {len(steps)} steps; it is 0-based, null for none"
        )
    answer, target = text_field(row, "answer"), text_field(row, "target")
    text, spans = compose(steps, answer)
    return Trace(
        id=f"line-{number}",
        problem=text_field(row, "input"),
        text=text,
        steps=spans,
        answer=answer,
        gold=target,
        correct=answers_match(answer, target),
        first_error=label,
        labelled=True,
        source="PaLM 2",
    )


def _steps(row: dict[str, Any], name: str, *, blank: bool = False) -> list[str]:
    steps = row.get(name)
    if not isinstance(steps, list) or not steps or not all(isinstance(step, str) for step in steps):
        raise RairlError(f"field {name!r} must be a non-empty list of strings")
    if not blank and not all(step.strip() for step in steps):
        raise RairlError(f"field {name!r}: item {[bool(step.strip()) for step in steps].index(False)} is blank")
    return steps


def _integer(row: dict[str, Any], name: str) -> int:
    value = row.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise RairlError(f"field {name!r} must be an integer, not {value!r}")
    return value
