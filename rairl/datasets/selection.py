"""From expert traces to splits: length filters that say what they drop, and a division that every run repeats."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from rairl.core.dataset_params import RealText
from rairl.core.errors import RairlError
from rairl.core.traces import Trace
from rairl.datasets import Splits, question_key


def assemble(
    experts: Sequence[Trace], test: Sequence[Trace], params: RealText, notes: dict[str, Any] | None = None
) -> Splits:
    """Splits ``demos``, ``prompts``, ``dev`` and ``test``; the card's notes tell what was left out and why.

    The policy practises on the demonstrations' own questions, as in the published runs. An expert trace on a question
    of ``test`` is left out, and so is one on a question that an earlier trace answers already.

    Args:
        experts: worked solutions; the order decides nothing.
        test: problems with answers, never filtered.
        params: sizes, length limits and the seed of the split.
        notes: what the loader left out before.

    Raises:
        RairlError: when nothing is left for the demonstrations.
    """
    ordered, tested = sorted(experts, key=lambda trace: trace.id), {question_key(trace.problem) for trace in test}
    kept, left_out = keep_short(ordered, params.max_problem_words, params.max_solution_words)
    fresh = {question_key(trace.problem): trace for trace in reversed(kept)}
    left_out["repeated_question"] = len(kept) - len(fresh)
    free = [trace for key, trace in reversed(fresh.items()) if key not in tested]
    left_out["question_in_test"] = len(fresh) - len(free)
    random.Random(f"split/{params.split_seed}").shuffle(free)
    end = None if params.max_demos is None else params.dev + params.max_demos
    demos = free[params.dev : end]
    if not demos:
        raise RairlError(
            f"{len(experts)} expert traces, {len(free)} after filtering ({left_out}): dataset.dev = {params.dev} "
            "leaves none for training"
        )
    traces = {"demos": demos, "prompts": [prompt(trace) for trace in demos], "dev": free[: params.dev], "test": [*test]}
    return Splits(traces, {"left_out": {**(notes or {}), **left_out}, "prompts": "the demonstrations' own questions"})


def keep_short(
    traces: Sequence[Trace], problem_words: int | None, solution_words: int | None
) -> tuple[list[Trace], dict[str, int]]:
    """Traces within both limits (None for none), and how many each limit dropped."""
    limits = {"long_problem": problem_words, "long_solution": solution_words}
    kept, dropped = [], dict.fromkeys(limits, 0)
    for trace in traces:
        lengths = {"long_problem": len(trace.problem.split()), "long_solution": len(trace.text.split())}
        over = [name for name, limit in limits.items() if limit is not None and lengths[name] > limit]
        if over:
            dropped[over[0]] += 1
        else:
            kept.append(trace)
    return kept, dropped


def prompt(trace: Trace) -> Trace:
    """The problem of a trace, with its reference answer and without a solution."""
    return Trace(id=trace.id, problem=trace.problem, gold=trace.gold)
