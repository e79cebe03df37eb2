"""Reading sampled candidates: judged traces, several per question, that every method is scored on alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from rairl.core.errors import RairlError
from rairl.core.traces import Trace, read_traces

POLICIES = ("base", "sft", "sft_last", "second_model", "grpo", "rairl")
"""Policies compared by the evaluation, weakest start first; the second model only where there is one."""


def candidates_path(folder: Path, policy: str, split: str, how: str = "") -> Path:
    """File of a policy's samples on a split, at the headline temperature or as ``how`` says (``greedy``, ``t0.5``)."""
    return folder / f"{'.'.join(part for part in (policy, split, how) if part)}.jsonl"


def temperature_label(temperature: float) -> str:
    """What files and figures call the samples at another temperature than the headline's: ``t0.5``."""
    return f"t{temperature:g}"


def splits_of(folder: Path, policy: str) -> list[str]:
    """Splits that ``policy`` was sampled on for evaluation: test first, then the out-of-distribution ones by name."""
    names = {path.name.split(".")[1] for path in folder.glob(f"{policy}.*.jsonl")}
    return [name for name in ("test",) if name in names] + sorted(name for name in names if name.startswith("ood"))


def reference_policy(*, logged: bool) -> str:
    """Whose candidates the reward is judged on: a fixed policy that the reward did not choose."""
    return "logged" if logged else "sft"


def read_candidates(path: Path) -> list[Trace]:
    """Read judged candidates.

    Raises:
        RairlError: naming file and trace when a candidate has no ``correct``.
    """
    traces = read_traces(path)
    for trace in traces:
        if trace.correct is None:
            raise RairlError(
                f"{path}: trace {trace.id!r} has no 'correct'; its question needs a 'gold' answer to be judged"
            )
    return traces


def require_answered(traces: Sequence[Trace], prompts: Path, path: Path) -> None:
    """Check that the candidates in ``path`` are about exactly the problems in ``prompts``.

    Raises:
        RairlError: naming a question that only one of the two files has.
    """
    asked, answered = {prompt.id for prompt in read_traces(prompts)}, set(questions(traces))
    if asked != answered:
        odd = min(asked ^ answered)
        where = f"{path} has no candidate for" if odd in asked else f"{path} has candidates for an unknown"
        raise RairlError(f"{where} question {odd!r} of {prompts}; run the sample stage again")


def questions(traces: Sequence[Trace]) -> list[str]:
    """The question key of each trace: the unit of resampling."""
    return [trace.question for trace in traces]


def by_question(traces: Sequence[Trace]) -> dict[str, list[int]]:
    """Indices of each question's traces, in order of first appearance."""
    members: dict[str, list[int]] = {}
    for index, trace in enumerate(traces):
        members.setdefault(trace.question, []).append(index)
    return members


TRANSFERRED = 100
"""Test questions whose candidates by a third policy are ranked, too: enough to see whether the reward transfers."""


def first_questions(traces: Sequence[Trace], count: int) -> list[Trace]:
    """The traces of the first ``count`` questions, in their order."""
    kept = set(list(by_question(traces))[:count])
    return [trace for trace in traces if trace.question in kept]


def meta_number(trace: Trace, key: str, path: Path) -> float:
    """A number that the sampler stored with a trace.

    Raises:
        RairlError: naming file and trace when it is missing or not a finite number. There is no substitute for it: a
            baseline that quietly becomes another one is worse than none.
    """
    value = trace.meta.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        fault = "is missing" if value is None else f"is {value!r}"
        raise RairlError(f"{path}: trace {trace.id!r}: field 'meta.{key}' {fault}; sample the candidates again")
    return float(value)


def logprob(trace: Trace, path: Path, *, mean: bool) -> float:
    """Log-probability of the trace under the policy that wrote it, in nats: the sum, or the mean per token."""
    total = meta_number(trace, "logprob", path)
    if not mean:
        return total
    tokens = meta_number(trace, "tokens", path)
    if tokens < 1:
        raise RairlError(f"{path}: trace {trace.id!r}: field 'meta.tokens' is {tokens:g}; at least 1 is needed")
    return total / tokens
