"""Stage localise: does the reward point at the first wrong step better than chance, length, or a language model?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rairl.core.errors import RairlError
from rairl.core.params import Params
from rairl.core.stats import Estimate
from rairl.core.traces import Trace, read_traces
from rairl.evaluate.candidates import candidates_path, reference_policy
from rairl.evaluate.first_error import (
    detection_figures,
    located_figures,
    location_hits,
    logprob_predictions,
    step_auc_figures,
    trivial_predictions,
)
from rairl.evaluate.likelihood import Likelihood, likelihoods, read_likelihoods
from rairl.evaluate.probes import SEEN, UNSEEN, Probe, corrupted, originals, probe_figures
from rairl.evaluate.questions import Table, sums, write_questions
from rairl.evaluate.scores import read_scores
from rairl.models.calibration import LOCATORS, first_error, first_error_or_none, suspicion
from rairl.report import plots as draw
from rairl.report.labels import KIND_LABELS, LOCATOR_LABELS

if TYPE_CHECKING:
    import numpy as np

    from rairl.models.calibration import Calibration
    from rairl.models.reward import RewardModel
    from rairl.tracking.run import Run

PROBED = 60
"""Questions whose right candidate is corrupted in every way."""
NATURAL = "natural"
"""Name of the set of a policy's own traces whose steps the dataset's oracle has checked."""


def localise(
    params: Params,
    run: Run,
    *,
    data: Path,
    candidates: Path,
    reward: Path,
    base: Path,
    sft: Path,
    second_model: Path,
    rerank_scores: Path,
    scores: Path,
    plots: Path,
) -> dict[str, Estimate]:
    """First-error figures on the SFT policy's own wrong traces and on every ``data/labelled_<set>.jsonl``.

    ``localise.<set>.<method>.<exact|within1|distance|step_auc|step_auc_pooled>`` given an error exists,
    ``localise.<set>.<method>.<acc_error|acc_correct|f1>`` without that knowledge (the threshold was chosen on dev). The
    set ``natural`` has no ``<set>.`` in its names; where it does not exist the first labelled set gives the headline
    under its short names as well. On corruptions of right candidates ``localise.<kind.<kind>|family.<seen|unseen>>.
    <method>.exact`` and ``.<reward|logprob>.prefers`` (share that score below their original). Writes the reads and the
    predictions to ``scores/<set>.json``, what lies behind ``.exact`` to ``plots/questions.json``.

    Raises:
        RairlError: for a file without labels.
    """
    from rairl.models.reward import RewardModel

    model = RewardModel.from_pretrained(reward)
    policy = reference_policy(logged=params.logged)
    figures: dict[str, Estimate] = {}
    behind: Table = {}
    plots.mkdir(parents=True, exist_ok=True)
    scores.mkdir(parents=True, exist_ok=True)
    for number, (name, traces) in enumerate(labelled_sets(data, candidates, logged=params.logged).items()):
        prefix = "localise" if name == NATURAL else f"localise.{name}"
        if name == NATURAL:
            reads = read_scores(rerank_scores / f"{policy}.test.json").steps(traces)
            pairs = read_likelihoods(candidates, policy, "test", _wrong(traces))
        else:
            reads = [read.steps for read in model.step_logits(traces, progress=True)]
            pairs = likelihoods(_wrong(traces), sft=sft, base=base, second_model=second_model)
        found, hits = _figures(traces, reads, model.calibration, pairs, prefix, scores / f"{name}.json", params)
        _plot(found, prefix, plots / (f"{name}.png" if name == NATURAL else f"labelled_{name}.png"))
        figures |= found
        behind |= hits
        if number == 0:
            figures |= {f"localise{key.removeprefix(prefix)}": figure for key, figure in found.items()}
            behind |= {f"localise{key.removeprefix(prefix)}": rows for key, rows in hits.items()}
    figures |= _probes(params, model, candidates, policy, {"logprob": sft, "second_model": second_model}, plots)
    write_questions(plots, behind)
    run.log_artifact(plots)
    return figures


def labelled_sets(data: Path, candidates: Path, *, logged: bool) -> dict[str, list[Trace]]:
    """Name to traces with known first errors, the headline set first; sets without any wrong trace are left out.

    The labelled files come in the order of the data card.

    Raises:
        RairlError: naming file and trace when a labelled file has a row without a label.
    """
    sets = {}
    path = candidates_path(candidates, reference_policy(logged=logged), "test")
    sets[NATURAL] = [trace for trace in read_traces(path) if trace.labelled]
    card = data / "card.json"
    order = list(json.loads(card.read_text(encoding="utf-8")).get("splits", {})) if card.exists() else []
    known = {name: place for place, name in enumerate(order)}
    for path in sorted(data.glob("labelled_*.jsonl"), key=lambda path: (known.get(path.stem, len(order)), path.stem)):
        traces = read_traces(path)
        for trace in traces:
            if not trace.labelled:
                raise RairlError(
                    f"{path}: trace {trace.id!r} has no label; set 'first_error', or 'labelled' if it has none"
                )
        sets[path.stem.removeprefix("labelled_")] = traces
    return {name: traces for name, traces in sets.items() if any(trace.first_error is not None for trace in traces)}


def _figures(
    traces: list[Trace],
    reads: list[np.ndarray],
    calibration: Calibration,
    pairs: list[Likelihood],
    prefix: str,
    path: Path,
    params: Params,
) -> tuple[dict[str, Estimate], Table]:
    sampling = {"draws": params.report.bootstrap, "seed": params.seed}
    wrong = [row for row, trace in enumerate(traces) if trace.first_error is not None]
    guesses = {row: first_error(reads[row], calibration.locator) for row in wrong}
    predictions: dict[str, list[int]] = {"reward": [guesses[row] for row in wrong]}
    for row, pair in zip(wrong, pairs, strict=True):
        others = {f"reward_{locator}": first_error(reads[row], locator) for locator in LOCATORS}
        others |= logprob_predictions(pair.sft.steps, pair.sft.mean_steps, pair.ratio.mean_steps)
        others |= {"base_logprob": int(pair.base.mean_steps.argmin()), "entropy": int(pair.sft.entropies.argmax())}
        if pair.second_model is not None:
            others["second_model_drop"] = int(pair.second_model.mean_steps.argmin())
        others |= trivial_predictions(traces[row])
        for method, step in others.items():
            predictions.setdefault(method, []).append(step)
    figures = located_figures(_wrong(traces), predictions, prefix, **sampling)
    trusts = {
        "reward": [suspicion(reads[row], calibration.locator) for row in wrong],
        "logprob_drop": [pair.sft.mean_steps for pair in pairs],
        "entropy": [-pair.sft.entropies for pair in pairs],
    }
    second_models = [pair.second_model.mean_steps for pair in pairs if pair.second_model is not None]
    if second_models:
        trusts["second_model_drop"] = second_models
    figures |= step_auc_figures(_wrong(traces), trusts, prefix, **sampling)
    chance = [1 / (len(trace.steps) + 1) for trace in traces]
    figures |= detection_figures(traces, chance, f"{prefix}.chance", **sampling)
    flagged: list[int | None] = [None] * len(traces)
    if calibration.threshold is not None:
        flagged = [first_error_or_none(read, calibration.locator, calibration.threshold) for read in reads]
        hits = [float(at == trace.first_error) for at, trace in zip(flagged, traces, strict=True)]
        figures |= detection_figures(traces, hits, f"{prefix}.reward", **sampling)
    rows = {
        trace.id: {
            "steps": [round(float(value), 4) for value in read],
            "first_error": trace.first_error,
            "predicted": guesses.get(row),
            "flagged": flagged[row],
        }
        for row, (trace, read) in enumerate(zip(traces, reads, strict=True))
    }
    path.write_text(
        json.dumps({"locator": calibration.locator, "traces": rows}, allow_nan=False) + "\n", encoding="utf-8"
    )
    groups = [traces[row].question for row in wrong]
    found = location_hits(_wrong(traces), predictions)
    return figures, {f"{prefix}.{method}.exact": sums(hit["exact"], groups) for method, hit in found.items()}


def _wrong(traces: list[Trace]) -> list[Trace]:
    return [trace for trace in traces if trace.first_error is not None]


def _probes(
    params: Params, model: RewardModel, candidates: Path, policy: str, readers: dict[str, Path], plots: Path
) -> dict[str, Estimate]:
    """Corruptions of right candidates by kind.

    ``readers`` are the models whose plain log-probability is the rival: the SFT policy, and the second model unless its
    folder is empty.
    """
    from rairl.models.likelihood import step_logprobs
    from rairl.models.policy import load_policy

    sampling = {"draws": params.report.bootstrap, "seed": params.seed}
    traces = read_traces(candidates_path(candidates, policy, "test"))
    right = originals(traces, PROBED)
    made = [(kind, right[row], bad) for kind in (*SEEN, *UNSEEN) for row, bad in corrupted(right, kind, params.seed)]
    every = [*right, *(bad for _, _, bad in made)]
    if not every:
        return {}
    likely = {
        name: dict(zip((it.id for it in every), step_logprobs(*load_policy(folder), every, progress=True), strict=True))
        for name, folder in readers.items()
        if any(folder.iterdir())
    }
    read = {trace.id: scores for trace, scores in zip(every, model.step_logits(every, progress=True), strict=True)}
    score = {name: model.calibration.trace_score(scores) for name, scores in read.items()}
    found = [
        Probe(
            kind,
            bad,
            gaps={
                "reward": score[bad.id] - score[original.id],
                **{name: found[bad.id].per_token - found[original.id].per_token for name, found in likely.items()},
            },
            predictions={
                "reward": first_error(read[bad.id].steps, model.calibration.locator),
                **{name: int(found[bad.id].mean_steps.argmin()) for name, found in likely.items()},
                "entropy": int(likely["logprob"][bad.id].entropies.argmax()),
            },
        )
        for kind, original, bad in made
    ]
    figures = probe_figures(found, "localise", **sampling)
    _plot_kinds(figures, plots / "kinds.png")
    return figures


def _plot_kinds(figures: dict[str, Estimate], path: Path) -> None:
    labels = {
        "reward": "reward",
        "logprob": "SFT log-probability",
        "second_model": "second model's log-probability",
        "chance": "chance",
    }
    lines = {
        label: {
            words: figures[f"localise.kind.{kind}.{method}.exact"]
            for kind, words in KIND_LABELS.items()
            if f"localise.kind.{kind}.{method}.exact" in figures
        }
        for method, label in labels.items()
    }
    lines = {label: line for label, line in lines.items() if line}
    if lines:
        draw.compared(lines, path, label="exact first wrong step, given there is one")


def _plot(figures: dict[str, Estimate], prefix: str, path: Path) -> None:
    draw.forest(
        {
            label: figures[f"{prefix}.{method}.exact"]
            for method, label in LOCATOR_LABELS.items()
            if f"{prefix}.{method}.exact" in figures
        },
        path,
        label="exact first wrong step, given there is one",
        reference=figures[f"{prefix}.chance.exact"].value,
        strong=["reward"],
    )
