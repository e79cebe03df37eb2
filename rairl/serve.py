"""Serving a reward model: from plain requests to scores, and the MLflow model that wraps it.

A request is a problem and its solution, as text, as steps, or both; the reply holds a score per step, one for the
trace, and the first wrong step. ``rairl/serve_model.py`` is what MLflow executes when it loads a registered model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from rairl.errors import RairlError
from rairl.traces import Step, Trace, locate_steps

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

    from rairl.models.reward import RewardModel

REQUIREMENTS = (
    "mlflow", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pydantic", "pyyaml", "scipy",
    "scikit-learn", "tqdm", "peft",
)  # fmt: skip
"""What loading and scoring import, so that MLflow need not find out by running the model at every registration."""


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
    """

    step_scores: list[float]
    score: float
    first_error: int


def to_trace(solution: Solution, number: int = 0) -> Trace:
    """A request as a trace.

    Args:
        solution: the request.
        number: its place among the requests, for the message of an error.

    Raises:
        RairlError: when there is neither text nor steps, or the steps do not rebuild the text.
    """
    from rairl.segment import compose, guess, segment

    text, spans = solution.text or "", tuple[Step, ...]()
    try:
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


def judge(model: RewardModel, traces: Sequence[Trace]) -> list[Verdict]:
    """Score traces and point at their first wrong steps, with the calibration that the model carries."""
    from rairl.evaluate.localise import first_error, first_error_or_none
    from rairl.evaluate.rerank import aggregate

    choice = model.calibration
    verdicts = []
    for scores in model.score(traces):
        if len(scores.steps) == 0:
            wrong = None
        elif choice.threshold is None:
            wrong = first_error(scores.steps, choice.locator)
        else:
            wrong = first_error_or_none(scores.steps, choice.locator, choice.threshold)
        verdicts.append(
            Verdict(
                step_scores=scores.steps.tolist(),
                score=aggregate(scores.steps, scores.last, choice.aggregator),
                first_error=-1 if wrong is None else wrong,
            )
        )
    return verdicts


def requirements() -> list[str]:
    """:data:`REQUIREMENTS` pinned to what is installed, without local build tags such as ``+cpu``."""
    return [f"{name}=={re.sub(r'[+].*', '', version(name))}" for name in REQUIREMENTS]


def save_pyfunc(folder: Path, target: Path, *, model: LoggedModel, run_id: str) -> None:
    """Write a saved reward model as a self-contained MLflow model: weights, this package's code, requirements.

    Args:
        folder: what ``RewardModel.save_pretrained`` wrote.
        target: the folder to make.
        model: the LoggedModel it will belong to.
        run_id: the run that made it.
    """
    import warnings

    import mlflow.pyfunc
    from mlflow.models import Model

    package = Path(__file__).parent
    card = Model(model.artifact_location, run_id, model_uuid=model.model_id, model_id=model.model_id)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice to whoever writes the model script
        mlflow.pyfunc.save_model(
            path=str(target),
            python_model=str(package / "serve_model.py"),
            artifacts={"reward": str(folder)},
            code_paths=[str(package)],
            pip_requirements=requirements(),
            mlflow_model=card,
        )
