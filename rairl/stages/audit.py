"""Stage audit: shift, length, surface, form, wording, the answer's weight, and the falsification test."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rairl.core.params import Params
from rairl.core.stats import Estimate, to_json
from rairl.evaluate.candidates import (
    candidates_path,
    logprob,
    read_candidates,
    reference_policy,
    require_answered,
    splits_of,
)
from rairl.evaluate.questions import Table, write_questions
from rairl.evaluate.scores import read_scores
from rairl.evaluate.shortcuts import audited, falsification_verdict, split_figures, split_questions
from rairl.report import plots as draw
from rairl.report.labels import CHECK_LABELS, VARIANT_LABELS, split_label

if TYPE_CHECKING:
    from rairl.tracking.run import Run


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

    Per split ``audit.<split>.<auroc|...>``, see :func:`rairl.evaluate.shortcuts.split_figures`. On test:

    - ``audit.outcome.<answer|result>.*``: with the outcome hidden, does it still tell right from wrong, and where
      (:func:`rairl.evaluate.shortcuts.outcome_figures`; a sample, as it is scored anew)?
    - ``audit.<shuffle|swap|premise|lucky|ngrams|style>.*``: shares of pairs in which the side that should win wins, .5
      is blind, the SFT policy's log-probability beside it where there is a choice;
    - ``audit.variant.<name>.*``: the same solutions in another form or wording (:mod:`rairl.evaluate.variants`);
    - ``audit.choice.n<N>.*``: over-optimisation by choice;
    - ``audit.steps.correlation``: of a step's trust with its being right, within traces.

    Verdicts of the falsification rule go to ``plots/verdicts.json``, what lies behind AUROC and reward to
    ``plots/questions.json``.

    Raises:
        RairlError: for candidates that are missing, not judged or without log-probability.
    """
    from rairl.evaluate.shortcut_checks import ShortcutChecks
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
        saved = read_scores(rerank_scores / f"{policy}.{split}.json")
        scores = saved.scores(traces)
        logprobs = [logprob(trace, path, mean=True) for trace in traces]
        figures |= split_figures(traces, scores, logprobs, f"audit.{split}", **sampling)
        behind |= split_questions(traces, scores, f"audit.{split}")
        if split == "test":
            figures |= ShortcutChecks(params, model, sft, traces, saved).figures()
    figures = {name: figure for name, figure in figures.items() if figure.n}
    write_questions(plots, behind)
    _write(figures, plots)
    run.log_artifact(plots)
    return figures


def _write(figures: Mapping[str, Estimate], plots: Path) -> None:
    plots.mkdir(parents=True, exist_ok=True)
    aurocs = {split: figures[f"audit.{split}.auroc"] for split in audited(figures)}
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
    rows = {label: figures[f"audit.{name}"] for name, label in CHECK_LABELS.items() if f"audit.{name}" in figures}
    if rows:
        draw.forest(rows, plots / "checks.png", label="share of pairs preferred as it should be", reference=0.5)
    variants = {
        label: {
            words: figures[f"audit.variant.{name}.{key}"]
            for name, words in VARIANT_LABELS.items()
            if f"audit.variant.{name}.{key}" in figures
        }
        for key, label in (("auroc_before", "AUROC before"), ("auroc", "AUROC after"), ("agreement", "order kept"))
    }
    if variants["AUROC after"]:
        draw.compared(variants, plots / "variants.png", label="within question; .5 is chance")
    keys = {"predicted": "what the reward predicts of its pick", "accuracy": "how often the pick is right"}
    chosen = {
        label: {
            int(name.split(".")[2].removeprefix("n")): figure
            for name, figure in figures.items()
            if name.startswith("audit.choice.n") and name.endswith(f".{key}")
        }
        for key, label in keys.items()
    }
    if all(chosen.values()):
        draw.curves(
            chosen, plots / "choice.png", xlabel="N (candidates to choose from)", ylabel="probability of a right answer"
        )
