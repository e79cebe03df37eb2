"""The traces that the report shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rairl.core.traces import Trace
from rairl.evaluate.candidates import by_question
from rairl.evaluate.scores import Saved
from rairl.models.calibration import first_error, suspicion

# --- traces ----------------------------------------------------------------------------------------------------------


def viewer_rows(traces: Sequence[Trace], saved: Saved, *, per_kind: int = 12) -> list[dict[str, Any]]:
    """Traces for the viewer: for each kind the first few questions that show it.

    Kinds: ``right`` (right and scored highest), ``misjudged`` (wrong, yet scored above every right one of its problem),
    ``located`` and ``mislocated`` (wrong, with a known first wrong step that the reward did or did not point at),
    ``wrong`` (other wrong ones).

    Args:
        traces: judged candidates.
        saved: what the rerank stage read of them.
        per_kind: traces of each kind, at most one per question.
    """
    chosen: dict[str, list[dict[str, Any]]] = {
        "misjudged": [],
        "mislocated": [],
        "located": [],
        "right": [],
        "wrong": [],
    }
    score = dict(zip((trace.id for trace in traces), saved.rivals(traces), strict=True))
    for members in by_question(traces).values():
        ranked = sorted((traces[row] for row in members), key=lambda trace: -score[trace.id])
        seen = set()
        for place, trace in enumerate(ranked):
            row = _viewer_row(trace, saved, place + 1, len(ranked))
            kind = _kind(row, any(other.correct for other in ranked))
            if kind is not None and kind not in seen and len(chosen[kind]) < per_kind:
                seen.add(kind)
                chosen[kind].append({**row, "kind": kind})
    return [row for rows in chosen.values() for row in rows]


def every_row(traces: Sequence[Trace], saved: Saved) -> list[dict[str, Any]]:
    """All traces for the viewer, in their order; kinds as in :func:`viewer_rows`, and ``lower`` (right, not scored
    highest) and ``open`` (neither judged nor labelled as wrong)."""
    score = dict(zip((trace.id for trace in traces), saved.rivals(traces), strict=True))
    rows: dict[str, dict[str, Any]] = {}
    for members in by_question(traces).values():
        ranked = sorted((traces[row] for row in members), key=lambda trace: -score[trace.id])
        for place, trace in enumerate(ranked):
            row = _viewer_row(trace, saved, place + 1, len(ranked))
            kind = _kind(row, any(other.correct for other in ranked)) or "lower"
            if trace.correct is None and trace.first_error is None:
                kind = "open"
            rows[trace.id] = {**row, "kind": kind, "correct": trace.correct}
    return [rows[trace.id] for trace in traces]


def _viewer_row(trace: Trace, saved: Saved, place: int, of: int) -> dict[str, Any]:
    [values], [score] = saved.steps([trace]), saved.scores([trace])
    return {
        "id": trace.id,
        "problem": trace.problem,
        "source": trace.source,
        "steps": [
            {"text": text, "read": round(float(value), 4), "trust": round(float(trust), 4)}
            for text, value, trust in zip(trace.step_texts(), values, suspicion(values, saved.locator), strict=True)
        ],
        "answer": trace.answer,
        "gold": trace.gold,
        "correct": bool(trace.correct),
        "labelled": trace.labelled,
        "first_error": trace.first_error,
        "predicted": first_error(values, saved.locator) if len(values) else None,
        "score": round(score, 4),
        "place": place,
        "of": of,
    }


def _kind(row: Mapping[str, Any], any_right: bool) -> str | None:
    if row["correct"]:
        return "right" if row["place"] == 1 else None
    if row["place"] == 1 and any_right:
        return "misjudged"
    if row["first_error"] is not None:
        return "located" if row["predicted"] == row["first_error"] else "mislocated"
    return "wrong"
