"""Serving a reward model: from plain requests to scores, and the MLflow model that wraps it.

A request is a problem and its solution, as text, as steps, or both; the reply holds a score per step, one for the
trace, and the first wrong step. ``rairl/serve_model.py`` is what MLflow executes when it loads a registered model.

Other libraries are served, too: :func:`reward_function` is a reward for TRL's trainers, :func:`guided_decode` lets the
reward choose among continuations while transformers generates.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from rairl.answers import read_answer
from rairl.errors import RairlError
from rairl.traces import Step, Trace, locate_steps

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rairl.models.reward import RewardModel

REQUIREMENTS = (
    "mlflow", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pydantic", "pyyaml", "scipy",
    "scikit-learn", "tqdm", "peft",
)  # fmt: skip
"""What loading and scoring import, so that MLflow need not find out by running the model at every registration."""


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


EXAMPLE = {"problem": "Ann has 3 eggs and buys 4. How many?", "steps": ["3 + 4 = 7"], "answer": "7"}
"""The request that is registered with every model, for whoever wants to try it."""


class Verdict(BaseModel):
    """The reply to a :class:`Solution`.

    Attributes:
        step_scores: logit at the end of each step; higher is more expert-like.
        score: of the whole trace, by the aggregator that was chosen on dev.
        first_error: 0-based index of the first wrong step, -1 for none. A model without a calibrated threshold always
            names the most suspect step.
        rank: by ``score``, among the solutions of the same problem in the request; 1 is the best.
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
    from rairl.segment import compose, guess, segment

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
    from rairl.evaluate.localise import first_error, first_error_or_none
    from rairl.evaluate.rerank import aggregate

    choice = model.calibration
    read = model.score(traces)
    totals = [aggregate(scores.steps, scores.last, choice.aggregator) for scores in read]
    verdicts = []
    for trace, scores, total in zip(traces, read, totals, strict=True):
        rivals = [other for other, one in zip(totals, traces, strict=True) if one.problem == trace.problem]
        if len(scores.steps) == 0:
            wrong = None
        elif choice.threshold is None:
            wrong = first_error(scores.steps, choice.locator)
        else:
            wrong = first_error_or_none(scores.steps, choice.locator, choice.threshold)
        verdicts.append(
            Verdict(
                step_scores=scores.steps.tolist(),
                score=total,
                first_error=-1 if wrong is None else wrong,
                rank=1 + sum(other > total for other in rivals),
            )
        )
    return verdicts


def reward_function(model: RewardModel) -> Callable[..., list[float]]:
    """The reward as ``GRPOTrainer(reward_funcs=...)`` of TRL takes it: one score per completion.

    The score is the one that was chosen on dev. It compares completions of one prompt, as GRPO does; its height means
    nothing across prompts. Prompts and completions may be texts or conversations; of a prompt the last message is
    the problem, as it stands, without a system message.

    Args:
        model: in evaluation mode; it learns nothing here.
    """

    def rairl_reward(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
        pairs = zip(prompts, completions, strict=True)
        traces = [written(content(prompt), content(text), str(at)) for at, (prompt, text) in enumerate(pairs)]
        return [verdict.score for verdict in judge(model, traces)]

    return rairl_reward


def content(message: Any) -> str:
    """The text of a prompt or completion, which may be a conversation.

    Raises:
        RairlError: when the last message holds something other than text.
    """
    content = message if isinstance(message, str) else message[-1]["content"]
    if not isinstance(content, str):
        raise RairlError(f"a reward reads text, not a message of {type(content).__name__}")
    return content


def written(problem: str, text: str, key: str) -> Trace:
    """A completion as a policy wrote it, with the steps that it shows; an empty one is a blank line."""
    from rairl.segment import guess, segment

    return Trace(id=key, problem=problem, text=text or "\n", steps=segment(text, guess(text)))


def guided_decode(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    reward: RewardModel,
    problem: str,
    *,
    k: int,
    max_steps: int,
    max_step_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
) -> Trace:
    """Solve a problem step by step: sample ``k`` continuations up to the next line break, keep the best by reward.

    It samples as many tokens as best-of-k does, but chooses at every step instead of once among whole solutions.

    Args:
        policy: any causal model of transformers.
        tokenizer: the policy's; the reward reads text and has its own.
        reward: scores the solution so far, by the aggregator that was chosen on dev.
        max_steps: lines at most.
        max_step_tokens: tokens of a line at most; a longer one goes on in the next round.
        seed: equal arguments give equal solutions.

    Returns:
        The solution, with ``meta``: ``tokens`` sampled in all, and whether it is ``finished``.
    """
    import torch

    from rairl.models.policy import render_prompt

    prompt = tokenizer(render_prompt(tokenizer, problem), add_special_tokens=False)["input_ids"]
    chosen: list[int] = []
    sampled, finished = 0, False
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for _ in range(max_steps):
            ids = torch.tensor([prompt + chosen], device=policy.device)
            rows = policy.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                temperature=temperature,
                top_k=0,
                top_p=1.0,
                num_return_sequences=k,
                max_new_tokens=max_step_tokens,
                stop_strings=["\n"],
                tokenizer=tokenizer,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )[:, ids.shape[1] :].tolist()
            steps = [_until_end(row, tokenizer) for row in rows]
            sampled += sum(len(step) + ended for step, ended in steps)
            texts = [tokenizer.decode(chosen + step, skip_special_tokens=False) for step, _ in steps]
            scores = [verdict.score for verdict in judge(reward, [written(problem, text, "0") for text in texts])]
            step, finished = steps[max(range(k), key=scores.__getitem__)]
            chosen = chosen + step
            if finished:
                break
    trace = written(problem, tokenizer.decode(chosen, skip_special_tokens=False), "0")
    return replace(trace, answer=read_answer(trace.text, trace.problem), meta={"tokens": sampled, "finished": finished})


def _until_end(row: list[int], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], bool]:
    """A generated row without its end token and padding (the same token in many models), and whether it has ended."""
    stops = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    end = next((at for at, token in enumerate(row) if token in stops), len(row))
    line = "\n" in tokenizer.decode(row[:end], skip_special_tokens=False)
    return row[:end], end < len(row) and row[end] == tokenizer.eos_token_id and not line


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
            input_example=[EXAMPLE],
        )
