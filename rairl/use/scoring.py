"""From plain requests to scores: what the web server and the MLflow model share.

A request is a problem and its solution, as text, as steps, or both; the reply holds a score per step, one for the
trace, and the first wrong step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from rairl.core.errors import RairlError
from rairl.core.traces import Step, Trace, locate_steps
from rairl.models.calibration import competing
from rairl.text.segment import compose, guess, segment

if TYPE_CHECKING:
    from rairl.models.reward import RewardModel


MAX_SOLUTIONS = 256
"""In one request."""
MAX_CHARACTERS = 100_000
"""Of a problem with its solution: above what any backbone reads, and far below what would hold up everybody else."""


class Solution(BaseModel):
    """A request: a problem with its solution in ``text``, in ``steps``, or in both.

    Attributes:
        problem: the question.
        text: the solution as written. Without ``steps`` it is cut by tags, numbered steps, lines or sentences,
            whichever it shows.
        steps: the solution step by step. Without ``text`` they are put into the form of the built-in benchmark.
        answer: final answer to go with ``steps``; with ``text`` it is part of that.
    """

    model_config = ConfigDict(extra="forbid")

    problem: str = Field(min_length=1)
    text: str | None = None
    steps: list[str] | None = None
    answer: str | None = None


class Verdict(BaseModel):
    """The reply to a :class:`Solution`.

    Attributes:
        step_scores: logit at the end of each step; higher is more expert-like.
        score: of the whole trace, by the aggregator that was chosen on dev.
        first_error: 0-based index of the first wrong step, -1 for none. A model without a calibrated threshold always
            names the most suspect step.
        rank: by ``score``, among the solutions of the same problem in the request; 1 is the best. Those without any
            step come after all others.
    """

    step_scores: list[float]
    score: float
    first_error: int
    rank: int


def to_trace(solution: Solution, number: int = 0) -> Trace:
    """A request as a trace.

    Args:
        solution: the request.
        number: its place among the requests, for the message of an error.

    Raises:
        RairlError: when there is neither text nor steps, or the steps do not rebuild the text.
    """
    text, spans = solution.text or "", tuple[Step, ...]()
    try:
        _require_scorable([solution.problem, text, *(solution.steps or []), solution.answer or ""])
        if text and solution.answer is not None:
            raise RairlError("'answer' goes with 'steps' alone; in 'text' it is part of the text")
        if text:
            spans = locate_steps(text, solution.steps) if solution.steps else segment(text, guess(text))
        elif solution.steps:
            text, spans = compose(solution.steps, solution.answer)
        else:
            raise RairlError("'text' or 'steps' must hold the solution")
    except RairlError as error:
        raise RairlError(f"input {number}: {error}") from error
    return Trace(id=str(number), problem=solution.problem, text=text, steps=spans)


def _require_scorable(parts: Sequence[str]) -> None:
    if sum(map(len, parts)) > MAX_CHARACTERS:
        raise RairlError(f"problem and solution have more than {MAX_CHARACTERS} characters")
    if any("\ud800" <= sign <= "\udfff" for part in parts for sign in part):
        raise RairlError("half of a surrogate pair is no character; encode the text as UTF-8")


def to_traces(solutions: Sequence[Solution]) -> list[Trace]:
    """The solutions of a request as traces.

    Raises:
        RairlError: when there are none or too many; and as :func:`to_trace`.
    """
    if not 1 <= len(solutions) <= MAX_SOLUTIONS:
        raise RairlError(f"1 to {MAX_SOLUTIONS} solutions can be scored at once, not {len(solutions)}")
    return [to_trace(solution, number) for number, solution in enumerate(solutions)]


def judge(model: RewardModel, traces: Sequence[Trace]) -> list[Verdict]:
    """Score traces and point at their first wrong steps, with the calibration that the model carries."""
    results = model.score_traces(traces)
    places = [(competing(result.score, result.steps), result.score) for result in results]
    verdicts = []
    for trace, result, place in zip(traces, results, places, strict=True):
        rivals = [other for other, one in zip(places, traces, strict=True) if one.problem == trace.problem]
        verdicts.append(
            Verdict(
                step_scores=[step.score for step in result.steps],
                score=result.score,
                first_error=-1 if result.first_error is None else result.first_error,
                rank=1 + sum(other > place for other in rivals),
            )
        )
    return verdicts
