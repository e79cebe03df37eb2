"""The review page: traces as one HTML file on which an expert marks first wrong steps, and the labels read back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rairl.core.errors import RairlError
from rairl.core.traces import Trace, read_traces
from rairl.evaluate.scores import Saved
from rairl.report.page import embed_json, fill
from rairl.report.viewer import every_row

NOTE = "Trust is what the locator compares: the lowest is where the reward points."


def traces_page(
    traces: Sequence[Trace], rows: Sequence[Mapping[str, Any]], locator: str, title: str, *, review: bool = False
) -> str:
    """The traces as one self-contained HTML page to page through: each step coloured by its reward, the suspected and,
    where it is known, the true first wrong step marked.

    Args:
        rows: of :func:`rairl.use.apply.localise_rows`.
        review: let the reader mark the first wrong steps and download them as labels for :func:`with_labels`.
    """
    shown = every_row(traces, Saved(Path(title), locator, {row["id"]: dict(row) for row in rows}))
    key = ""
    if review:
        # Without meta, which is the file's own business and may be anything; the label is matched by id.
        plain = [replace(trace, meta={}).to_json() for trace in traces]
        shown = [
            {**row, "group": trace.question, "trace": json}
            for row, trace, json in zip(shown, traces, plain, strict=True)
        ]
        # Marks are kept in the browser under this key: another file, or a changed one, starts without any.
        key = hashlib.sha256(embed_json(plain).encode()).hexdigest()[:16]
    context = {"title": title, "viewer": shown, "viewer_note": NOTE, "review": key}
    return fill(Path(__file__).with_name("traces.html"), context)


def with_labels(traces: Sequence[Trace], path: Path) -> list[Trace]:
    """The traces with the first wrong steps that a reviewer gave; a trace without a label keeps what it had.

    Args:
        path: a file of traces such as the review page's download; rows without a label are passed over.

    Raises:
        RairlError: when a label is for a trace that is not there, or for other steps than it has.
    """
    known = {trace.id: trace for trace in traces}
    given: dict[str, Trace] = {}

    def check(label: Trace) -> None:
        trace = known.get(label.id)
        if trace is None:
            raise RairlError(f"field 'id': no trace {label.id!r} is in the file that the labels are for")
        if (label.text, label.steps) != (trace.text, trace.steps):
            raise RairlError(f"field 'steps': trace {label.id!r} was labelled with another text or other steps")
        if label.labelled:
            given[label.id] = label

    read_traces(path, check=check)
    return [
        replace(trace, first_error=given[trace.id].first_error, labelled=True) if trace.id in given else trace
        for trace in traces
    ]
