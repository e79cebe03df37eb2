"""The reward's reads of a file of candidates, kept on disk: every candidate is scored once, by the rerank stage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rairl.core.errors import RairlError
from rairl.core.traces import Trace
from rairl.models.calibration import aggregate, competing

if TYPE_CHECKING:
    from rairl.models.calibration import Calibration
    from rairl.models.reads import Scores


@dataclass(frozen=True)
class Saved:
    """Reads of one file of candidates.

    Attributes:
        path: where they are.
        locator: how the first wrong step is picked; chosen on dev.
        rows: trace id to ``{"steps": logits, "last": logit, "score": aggregated by the rule chosen on dev}``.
    """

    path: Path
    locator: str
    rows: dict[str, dict[str, Any]]

    def _row(self, trace: Trace) -> dict[str, Any]:
        if trace.id not in self.rows:
            raise RairlError(f"{self.path} has no scores for trace {trace.id!r}; run the rerank stage again")
        return self.rows[trace.id]

    def scores(self, traces: Sequence[Trace]) -> list[float]:
        """The score of each trace.

        Raises:
            RairlError: naming file and trace when one was not scored.
        """
        return [self._row(trace)["score"] for trace in traces]

    def rivals(self, traces: Sequence[Trace]) -> list[float]:
        """The score that each trace competes with, see :func:`competing`; raises as :meth:`scores` does."""
        rows = [self._row(trace) for trace in traces]
        return [competing(row["score"], row["steps"]) for row in rows]

    def scores_by(self, traces: Sequence[Trace], how: str) -> list[float]:
        """What each trace competes with by another aggregator; raises as :meth:`scores` does."""
        rows = [self._row(trace) for trace in traces]
        return [
            competing(aggregate(np.asarray(row["steps"], dtype=float), row["last"], how), row["steps"]) for row in rows
        ]

    def steps(self, traces: Sequence[Trace]) -> list[np.ndarray]:
        """The logits at each trace's step ends, ``(n_steps,)`` each; raises as :meth:`scores` does."""
        return [np.asarray(self._row(trace)["steps"], dtype=float) for trace in traces]


def write_scores(path: Path, traces: Sequence[Trace], reads: Sequence[Scores], calibration: Calibration) -> None:
    """Write ``{<every field of the calibration>, "traces": {id: {"steps", "last", "score"}}}``."""
    rows = {
        trace.id: {
            "steps": [float(value) for value in read.steps],
            "last": float(read.last),
            "score": calibration.trace_score(read),
        }
        for trace, read in zip(traces, reads, strict=True)
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**asdict(calibration), "traces": rows}, allow_nan=False) + "\n", encoding="utf-8")


def read_scores(path: Path) -> Saved:
    """Read what :func:`write_scores` wrote.

    Raises:
        RairlError: when the file is missing or is none of these.
    """
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        return Saved(path, card["locator"], card["traces"])
    except FileNotFoundError as error:
        raise RairlError(f"{path} does not exist; run the rerank stage first") from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise RairlError(f"{path} does not hold scores ({error}); run the rerank stage again") from error
