"""A user's own file of solved traces: in the project's format, or in one of the public labelled sets' as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from rairl.core.errors import RairlError
from rairl.core.jsonl import no_rows, parse_object, read_lines
from rairl.core.traces import Trace
from rairl.datasets import labelled
from rairl.datasets.logged import plain
from rairl.text.answers import answers_match, read_answer
from rairl.text.segment import guess, segment

Row = dict[str, Any]


class Own(NamedTuple):
    """What was read.

    Attributes:
        path: the file.
        form: the format it is in, a key of :data:`FORMATS`.
        traces: the usable ones, with steps.
        lines: the line of each, from 1.
        left_out: file, line and reason of each line that was left out.
    """

    path: Path
    form: str
    traces: list[Trace]
    lines: list[int]
    left_out: list[str]


def _rairl(row: Row, number: int) -> Trace:
    """A row as docs/own-candidates.md has it; what is not given is filled in.

    Steps are found in the text (by tags, numbers, lines or sentences), and so is the final answer; ``correct`` follows
    from the answer where there is a ``gold``.
    """
    trace = Trace.from_json(row)
    if not trace.text:
        raise RairlError(f"field 'text': trace {trace.id!r} has no 'text' to score")
    answer = trace.answer or read_answer(trace.text, trace.problem)
    judged = trace.correct
    if judged is None and trace.gold is not None:
        judged = answers_match(answer, trace.gold)
    steps = trace.steps or segment(trace.text, guess(trace.text))
    return replace(trace, steps=steps, answer=answer, correct=judged)


FORMATS: dict[str, tuple[frozenset[str], Callable[[Row, int], Trace]]] = {
    "mr_ben": (frozenset({"Model_Solution_Steps"}), labelled.mr_ben),
    "bigbench_mistake": (frozenset({"mistake_index"}), labelled.bigbench_mistake),
    "processbench": (frozenset({"label", "problem", "steps"}), labelled.processbench),
    "rairl": (frozenset(), _rairl),
}
"""Name of a format to the fields that give it away (the first format whose fields are all there) and its reader."""


def detect(row: Row) -> str:
    """The format of a row, by its fields; ``rairl`` when they are no other's."""
    return next(name for name, (fields, _) in FORMATS.items() if fields <= row.keys())


def read_own(path: Path, *, form: str = "auto", skip_bad: bool = False) -> Own:
    """Read solved traces.

    Rows of the labelled sets are brought to the written form that the preset ``gsm8k-logged`` trains on and scores
    (:func:`rairl.datasets.logged.plain`). A label that names no step is left out with a count, as it is there.

    Args:
        path: a JSON-lines file.
        form: a key of :data:`FORMATS`, or ``auto``: by the fields of the first row.
        skip_bad: leave malformed lines out instead of stopping at the first one.

    Raises:
        RairlError: naming file, line and field of the first malformed line; for an unknown format, a missing file, one
            without usable rows, and ids that occur twice.
    """
    own = Own(path, form, [], [], [])
    for found, number, trace in _rows(path, form, own.left_out, skip_bad=skip_bad):
        own = own._replace(form=found)
        own.traces.append(trace)
        own.lines.append(number)
    return _some(own)


def _rows(path: Path, form: str, left_out: list[str], *, skip_bad: bool) -> Iterator[tuple[str, int, Trace]]:
    """Format, line and trace of each usable row, one at a time; see :func:`read_own`."""
    if form not in ("auto", *FORMATS):
        raise RairlError(f"format {form!r} is unknown; it is auto or one of {', '.join(sorted(FORMATS))}")
    seen: dict[str, int] = {}
    for number, line in read_lines(path):
        try:
            row = parse_object(line)
            form = form if form != "auto" else detect(row)
            trace = FORMATS[form][1](row, number)
            if trace.id in seen:
                raise RairlError(
                    f"field 'id': {trace.id!r} already occurs on line {seen[trace.id]}; ids must be unique"
                )
        except labelled.Unusable as reason:
            left_out.append(f"{path}, line {number}: {reason}")
            continue
        except RairlError as error:
            _refuse(path, number, error, left_out, skip_bad=skip_bad)
            continue
        seen[trace.id] = number
        yield form, number, trace if form == "rairl" else plain(trace)


class Survey(NamedTuple):
    """What a file holds, without its traces.

    Attributes:
        path: the file.
        form: the format it is in, a key of :data:`FORMATS`.
        lines: of the usable traces, from 1.
        left_out: file, line and reason of each line that was left out.
    """

    path: Path
    form: str
    lines: set[int]
    left_out: list[str]


def survey(
    path: Path, *, form: str = "auto", skip_bad: bool = False, check: Callable[[Trace], None] = lambda trace: None
) -> Survey:
    """Look through a file of any length, of which ids and line numbers are kept; see :func:`read_own`.

    Args:
        check: raises RairlError for a trace that can't be used.

    Raises:
        RairlError: as :func:`read_own`, and for what ``check`` refuses.
    """
    found = Survey(path, form, set(), [])
    for kind, number, trace in _rows(path, form, found.left_out, skip_bad=skip_bad):
        found = found._replace(form=kind)
        try:
            check(trace)
        except RairlError as error:
            _refuse(path, number, error, found.left_out, skip_bad=skip_bad)
            continue
        found.lines.add(number)
    if not found.lines:
        raise no_rows(path)
    return found


def pieces(found: Survey, size: int) -> Iterator[list[Trace]]:
    """The usable traces of a file that was looked through, ``size`` at a time, in their order."""
    rows = _rows(found.path, found.form, [], skip_bad=True)
    usable = (trace for _, number, trace in rows if number in found.lines)
    while piece := list(islice(usable, size)):
        yield piece


def require(own: Own, check: Callable[[Trace], None], *, skip_bad: bool = False) -> Own:
    """The traces that pass a check, which raises RairlError for those it refuses.

    Raises:
        RairlError: the first refusal, with file and line, unless ``skip_bad``; when nothing is left.
    """
    kept = own._replace(traces=[], lines=[], left_out=list(own.left_out))
    for trace, number in zip(own.traces, own.lines, strict=True):
        try:
            check(trace)
        except RairlError as error:
            _refuse(kept.path, number, error, kept.left_out, skip_bad=skip_bad)
            continue
        kept.traces.append(trace)
        kept.lines.append(number)
    return _some(kept)


def _refuse(path: Path, number: int, error: RairlError, left_out: list[str], *, skip_bad: bool) -> None:
    message = f"{path}, line {number}: {error}"
    if not skip_bad:
        raise RairlError(message) from error
    left_out.append(message)


def _some(own: Own) -> Own:
    if not own.traces:
        raise no_rows(own.path)
    return own
