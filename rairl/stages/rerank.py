"""Stage rerank: does the reward pick better answers than a vote, the policy's own likelihood, or plain length?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rairl.core.params import Params
from rairl.core.stats import Estimate, bootstrap_mean, to_json
from rairl.evaluate.best_of_n import (
    accuracy_by_source,
    auroc_figures,
    baseline_scores,
    expected_accuracy,
    rerank_figures,
    vote_temperature,
    vote_weights,
)
from rairl.evaluate.candidates import (
    TRANSFERRED,
    by_question,
    candidates_path,
    first_questions,
    questions,
    read_candidates,
    reference_policy,
    splits_of,
)
from rairl.evaluate.likelihood import read_likelihoods
from rairl.evaluate.pass_at_k import powers_of_two
from rairl.evaluate.probability import calibration_figures, probabilities, reliability
from rairl.evaluate.questions import Table, one_each, write_questions
from rairl.evaluate.scores import Saved, read_scores, write_scores
from rairl.models.calibration import AGGREGATORS
from rairl.report import plots as draw
from rairl.report.labels import POOL_LABELS, SELECTOR_LABELS

if TYPE_CHECKING:
    import numpy as np

    from rairl.core.traces import Trace
    from rairl.models.calibration import Calibration
    from rairl.tracking.run import Run


def rerank(
    params: Params, run: Run, *, data: Path, candidates: Path, reward: Path, scores: Path, plots: Path
) -> dict[str, Estimate]:
    """Expected accuracy of every selector at N = ``rerank.n``, with the reward's paired differences.

    The headline ``rerank.<selector>`` ranks the SFT policy's test candidates (with logged traces: the held-out logged
    ones, where ``model_name`` joins the baselines); ``rerank.<split>.<selector>`` the other splits, and
    ``rerank.on_<rairl|grpo>.<selector>`` those policies' candidates (GRPO's: on the first questions only).
    Within-question AUROC under ``.auroc.<what>``, and ``.calibration.<ece|brier|brier_base>`` of the probabilities that
    dev's map makes of the scores. For the headline also ``rerank.n<N>.<selector>`` and
    ``rerank.matrix.<aggregator>.<max|vote>.n<N>`` for every N.
    Writes all scores to ``scores/<policy>.<split>.json`` and the accuracy over N to ``plots/curves.json``, what lies
    behind the accuracies to ``plots/questions.json``.

    Raises:
        RairlError: for candidates that are missing, not judged, without log-probability, or fewer than ``rerank.n``.
    """
    from rairl.models.reward import RewardModel

    model = RewardModel.from_pretrained(reward)
    sampling = {"draws": params.report.bootstrap, "seed": params.seed}
    model_accuracy = accuracy_by_source(read_candidates(data / "logged_train.jsonl")) if params.logged else None
    ns = powers_of_two(params.rerank.n)
    figures: dict[str, Estimate] = {}
    curves: dict[str, dict[str, dict[int, Estimate]]] = {}
    behind: Table = {}
    reliable: dict[str, dict[float, Estimate]] = {}
    for policy, split, prefix in contests(candidates, logged=params.logged):
        path = candidates_path(candidates, policy, split)
        traces = read_candidates(path)
        if policy == "grpo":
            traces = first_questions(traces, TRANSFERRED)
        saved = scores / f"{policy}.{split}.json"
        write_scores(saved, traces, model.step_logits(traces, progress=True), model.calibration)
        read = read_scores(saved)
        table = {"reward": read.rivals(traces)}
        table |= baseline_scores(traces, path, read_likelihoods(candidates, policy, split, traces), model_accuracy)
        groups = questions(traces)
        weights = {"reward_vote": vote_weights(table["reward"], groups, vote_temperature(model.calibration))}
        accuracy = expected_accuracy(traces, table, ns, weights)
        keys = list(by_question(traces))
        behind |= {
            f"{prefix}.{name}": one_each(dict(zip(keys, values[params.rerank.n], strict=True)))
            for name, values in accuracy.items()
        }
        figures |= rerank_figures(accuracy, keys, params.rerank.n, prefix, **sampling)
        figures |= auroc_figures(traces, table, f"{prefix}.auroc", **sampling)
        found = _probable(model.calibration, traces, table["reward"])
        if found is not None:
            right = [bool(trace.correct) for trace in traces]
            name = f"{prefix}.calibration"
            figures |= calibration_figures(found, right, groups, name, base=model.calibration.base or 0.0, **sampling)
            reliable[prefix] = reliability(found, right, groups, **sampling)
        curves[prefix] = {
            name: {n: bootstrap_mean(values[n], keys, **sampling) for n in ns} for name, values in accuracy.items()
        }
        if prefix == "rerank":
            figures |= {f"rerank.n{n}.{name}": line[n] for name, line in curves[prefix].items() for n in ns}
            figures |= _matrix(traces, read, model.calibration, ns, **sampling)
    write_questions(plots, behind)
    _plot(figures, curves, plots)
    lines = {POOL_LABELS[prefix]: line for prefix, line in reliable.items() if prefix in POOL_LABELS}
    if lines:
        draw.reliability(lines, plots / "reliability.png")
    run.log_artifact(plots)
    return figures


def contests(candidates: Path, *, logged: bool) -> list[tuple[str, str, str]]:
    """(policy, split, prefix of the figures) of every set of candidates that is ranked; the headline first."""
    policy = reference_policy(logged=logged)
    found = [
        (policy, split, "rerank" if split == "test" else f"rerank.{split}")
        for split in ["test", *(split for split in splits_of(candidates, policy) if split != "test")]
    ]
    others = [(policy, "test", f"rerank.on_{policy}") for policy in ("rairl", "grpo")]
    return found if logged else [*found, *others]


def _probable(calibration: Calibration, traces: Sequence[Trace], scores: Sequence[float]) -> np.ndarray | None:
    """Probability of each candidate to be right by the map chosen on dev; None without one."""
    if calibration.slope is None or calibration.intercept is None or not traces:
        return None
    return probabilities(scores, calibration.slope, calibration.intercept)


def _matrix(
    traces: Sequence[Trace], read: Saved, calibration: Calibration, ns: Sequence[int], *, draws: int, seed: int
) -> dict[str, Estimate]:
    """Every aggregator crossed with both selectors at every N, each vote at the temperature that dev chose for it."""
    groups = questions(traces)
    scores = {how: read.scores_by(traces, how) for how in AGGREGATORS}
    votes = {how: vote_weights(scores[how], groups, calibration.temperatures.get(how, 1.0)) for how in AGGREGATORS}
    table = expected_accuracy(
        traces,
        {f"{how}.max": values for how, values in scores.items()},
        ns,
        {f"{how}.vote": values for how, values in votes.items()},
    )
    keys = list(by_question(traces))
    return {
        f"rerank.matrix.{how}.{selector}.n{n}": bootstrap_mean(
            table[f"{how}.{selector}"][n], keys, draws=draws, seed=seed
        )
        for how in AGGREGATORS
        for selector in ("max", "vote")
        for n in ns
    }


SHOWN = (
    "oracle",
    "reward",
    "majority",
    "model_name",
    "logprob",
    "second_model_logprob",
    "logratio",
    "shortest",
    "random",
)
"""Selectors drawn in the plots; the figures have them all."""


def _plot(figures: dict[str, Estimate], curves: dict[str, dict[str, dict[int, Estimate]]], plots: Path) -> None:
    plots.mkdir(parents=True, exist_ok=True)
    rows = {
        prefix: {name: to_json({str(n): value for n, value in line.items()}) for name, line in lines.items()}
        for prefix, lines in curves.items()
    }
    (plots / "curves.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    for prefix, lines in curves.items():
        if prefix in POOL_LABELS:
            draw.curves(
                {SELECTOR_LABELS[name]: lines[name] for name in SHOWN if name in lines},
                plots / f"{prefix.removeprefix('rerank').strip('.') or 'curve'}.png",
                xlabel="N (candidates to choose from)",
                ylabel="expected accuracy",
            )
    names = [
        name
        for name in (*SHOWN, "reward_vote", "logprob_sum", "logratio_sum", "entropy", "longest")
        if f"rerank.{name}" in figures
    ]
    draw.forest(
        {
            SELECTOR_LABELS[name]: figures[f"rerank.{name}"]
            for name in sorted(names, key=lambda name: -figures[f"rerank.{name}"].value)
        },
        plots / "selectors.png",
        label=f"expected accuracy, best of {figures['rerank.n'].value:.0f}",
        reference=figures["rerank.random"].value,
        strong=["reward"],
    )
