"""Stage audit: out of distribution, length, step order, the answer's weight, and the falsification test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rairl.evaluate import plots as draw
from rairl.evaluate.audit import (
    answer_block,
    falsification_verdict,
    mixed_sample,
    preference,
    shuffled_pairs,
    split_figures,
    split_questions,
    swapped_pairs,
    without_answer,
)
from rairl.evaluate.candidates import (
    candidates_path,
    logprob,
    questions,
    read_candidates,
    reference_policy,
    require_answered,
    splits_of,
)
from rairl.evaluate.labels import split_label
from rairl.evaluate.questions import Table, write_questions
from rairl.evaluate.rerank import aggregate
from rairl.evaluate.scores import read_scores
from rairl.params import Params
from rairl.stats import Estimate, to_json, within_auroc

if TYPE_CHECKING:
    from rairl.models.reward import RewardModel
    from rairl.traces import Trace
    from rairl.tracking import Run


MASKED = 2
"""Right and wrong candidates per question that are scored again with their answers hidden."""


def audit(
    params: Params,
    run: Run,
    *,
    data: Path,
    candidates: Path,
    reward: Path,
    sft: Path,
    rerank_scores: Path,
    plots: Path,
) -> dict[str, Estimate]:
    """Checks of the reward on the SFT policy's candidates (with logged traces: the held-out logged ones).

    Per split ``audit.<split>.<auroc|auroc_pooled|auroc_length|auroc_logprob|auroc_without_length|reward_right|
    reward_wrong|reward_gap>``. On test ``audit.test.auroc_without_answer`` (text cut off after the last
    step; at most two right and two wrong candidates per question, as this one is scored anew);
    ``audit.shuffle.reward`` (share of right traces that outscore a copy with its steps in another order;
    ``audit.shuffle.logprob`` the SFT policy's own preference);
    ``audit.swap.answer`` (same right steps: right against wrong answer) and
    ``audit.swap.steps`` (same right answer: right against wrong steps). .5 is blind everywhere. Verdicts of the
    falsification rule go to ``plots/verdicts.json``, what lies behind AUROC and reward to ``plots/questions.json``.

    Raises:
        RairlError: for candidates that are missing, not judged or without log-probability.
    """
    from rairl.models.policy import load_policy, step_logprobs
    from rairl.models.reward import RewardModel

    model = RewardModel.from_pretrained(reward)
    sampling = {"draws": params.report.bootstrap, "seed": params.seed}
    policy = reference_policy(logged=params.logged)
    figures: dict[str, Estimate] = {}
    behind: Table = {}
    for split in splits_of(candidates, policy):
        path = candidates_path(candidates, policy, split)
        traces = read_candidates(path)
        require_answered(traces, data / f"{split}.jsonl", path)
        scores = read_scores(rerank_scores / f"{policy}.{split}.json").scores(traces)
        logprobs = [logprob(trace, path, mean=True) for trace in traces]
        figures |= split_figures(traces, scores, logprobs, f"audit.{split}", **sampling)
        behind |= split_questions(traces, scores, f"audit.{split}")
        if split != "test":
            continue
        if all(answer_block(trace).strip() for trace in traces if trace.answer is not None):
            some = [traces[row] for row in mixed_sample(traces, MASKED)]
            masked = _score(model, [without_answer(trace) if trace.steps else trace for trace in some])
            figures["audit.test.auroc_without_answer"] = within_auroc(
                [bool(trace.correct) for trace in some], masked, questions(some), **sampling
            )
        shuffled = shuffled_pairs(traces, params.seed)
        if shuffled:
            kept, copies = [traces[row] for row, _ in shuffled], [copy for _, copy in shuffled]
            figures["audit.shuffle.reward"] = preference(
                [scores[row] for row, _ in shuffled], _score(model, copies), questions(kept), **sampling
            )
            likelihoods = step_logprobs(*load_policy(sft), [*kept, *copies])
            means = [likelihood.total / likelihood.tokens for likelihood in likelihoods]
            figures["audit.shuffle.logprob"] = preference(
                means[: len(kept)], means[len(kept) :], questions(kept), **sampling
            )
        swaps = swapped_pairs(traces)
        if swaps:
            right = [scores[row] for row, _, _, _ in swaps]
            keys = [traces[row].question for row, _, _, _ in swaps]
            for name, rivals in (
                ("answer", [rival for _, _, rival, _ in swaps]),
                ("steps", [rival for _, _, _, rival in swaps]),
            ):
                figures[f"audit.swap.{name}"] = preference(right, _score(model, rivals), keys, **sampling)
    figures = {name: figure for name, figure in figures.items() if figure.n}
    write_questions(plots, behind)
    _write(figures, plots)
    run.log_artifact(plots)
    return figures


def _score(model: RewardModel, traces: Sequence[Trace]) -> list[float]:
    return [
        aggregate(read.steps, read.last, model.calibration.aggregator) for read in model.score(traces, progress=True)
    ]


def _write(figures: dict[str, Estimate], plots: Path) -> None:
    plots.mkdir(parents=True, exist_ok=True)
    aurocs = {key.split(".")[1]: figure for key, figure in figures.items() if key.endswith(".auroc")}
    verdicts = {
        split: {"verdict": falsification_verdict(figure), **to_json({"auroc": figure})["auroc"]}
        for split, figure in aurocs.items()
    }
    (plots / "verdicts.json").write_text(json.dumps(verdicts, indent=1) + "\n", encoding="utf-8")
    labels = {
        "auroc": "reward",
        "auroc_without_length": "reward, length removed",
        "auroc_length": "length alone",
        "auroc_logprob": "log-probability",
    }
    series = {
        label: {
            split_label(split): figures[f"audit.{split}.{name}"]
            for split in aurocs
            if f"audit.{split}.{name}" in figures
        }
        for name, label in labels.items()
    }
    if aurocs:
        draw.groups(series, plots / "auroc.png", ylabel="AUROC within question, right against wrong", reference=0.5)
    checks = {
        "shuffle.reward": "steps in order vs shuffled: reward",
        "shuffle.logprob": "the same: SFT log-probability",
        "swap.steps": "right vs wrong steps, same answer",
        "swap.answer": "right vs wrong answer, same steps",
    }
    rows = {label: figures[f"audit.{name}"] for name, label in checks.items() if f"audit.{name}" in figures}
    if rows:
        draw.forest(rows, plots / "checks.png", label="share of pairs preferred as it should be", reference=0.5)
