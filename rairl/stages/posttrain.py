"""Stage posttrain: how good each policy became, on test and on every out-of-distribution split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rairl.core.params import Params
from rairl.core.stats import Estimate, exact
from rairl.evaluate.candidates import (
    POLICIES,
    candidates_path,
    read_candidates,
    require_answered,
    splits_of,
    temperature_label,
)
from rairl.evaluate.pass_at_k import (
    compare,
    compare_at_equal_length,
    greedy_figure,
    powers_of_two,
    rates,
    sample_figures,
    samples_per_question,
)
from rairl.evaluate.questions import Table, one_each, write_questions
from rairl.report import plots as draw
from rairl.report.labels import POLICY_LABELS, split_label

if TYPE_CHECKING:
    from rairl.core.traces import Trace
    from rairl.tracking.run import Run


def posttrain(params: Params, run: Run, *, data: Path, candidates: Path, plots: Path) -> dict[str, Estimate]:
    """Figures of base, SFT (best and last epoch), second_model, GRPO and R-AIRL, and their paired differences.

    On ``test``: ``posttrain.<policy>.<pass@k|greedy|...>``, see :func:`rairl.evaluate.pass_at_k.sample_figures`; on
    another split, or on ``test`` at another temperature (``t0.5``), ``posttrain.<policy>.<place>.<pass@1|...>``;
    ``posttrain.<a>-<b>[.<place>].<pass@1|process@1>`` with its p-value under ``.p``, and on ``test`` ``.equal_length``:
    the difference over pairs of equally long samples. ``posttrain.updates`` are the
    optimiser steps of the policy loops, to hold against ``sft.updates``. What lies behind pass@1 and process@1 goes to
    ``plots/questions.json``. Nothing when the reward is learned from logged traces: no policy is trained then.

    Raises:
        RairlError: for candidates that are missing, not judged, or do not cover the questions in ``data``.
    """
    plots.mkdir(parents=True, exist_ok=True)
    if params.logged:
        return {}
    sampling = {"draws": params.report.bootstrap, "seed": params.seed}
    splits = splits_of(candidates, "sft")
    figures: dict[str, Estimate] = {"posttrain.updates": exact(params.policy.iterations)}
    behind: Table = {}
    others = [temperature_label(temperature) for temperature in params.sample.temperatures[1:]]
    compared = [policy for policy in POLICIES if policy != "second_model" or params.second_model]
    for split, how in [*((split, "") for split in splits), *(("test", label) for label in others)]:
        place = how or ("" if split == "test" else split)
        policies = {}
        drawn: dict[str, list[Trace]] = {}
        files: dict[str, Path] = {}
        temperature = float(how.removeprefix("t")) if how else params.sample.temperatures[0]
        for policy in compared:
            path = candidates_path(candidates, policy, split, how)
            traces = read_candidates(path)
            require_answered(traces, data / f"{split}.jsonl", path)
            policies[policy], drawn[policy], files[policy] = rates(traces), traces, path
            prefix = f"posttrain.{policy}.{place}" if place else f"posttrain.{policy}"
            behind |= {f"{prefix}.{metric}": one_each(values) for metric, values in policies[policy].items()}
            ks = [1] if place else powers_of_two(samples_per_question(traces))
            figures |= sample_figures(traces, prefix, path, ks, temperature=temperature, **sampling)
            if not place:
                greedy = candidates_path(candidates, policy, split, "greedy")
                decodes = read_candidates(greedy)
                require_answered(decodes, data / f"{split}.jsonl", greedy)
                figures[f"{prefix}.greedy"] = greedy_figure(decodes, **sampling)
        figures |= compare(policies, place, **sampling)
        if not place:
            figures |= compare_at_equal_length(drawn, files, **sampling)
    write_questions(plots, behind)
    _plot(figures, compared, splits, plots)
    run.log_artifact(plots)
    return figures


def _plot(figures: dict[str, Estimate], policies: list[str], splits: list[str], plots: Path) -> None:
    names = {policy: POLICY_LABELS[policy].partition(" (")[0] for policy in policies}
    lines: dict[str, dict[int, Estimate]] = {label: {} for label in names.values()}
    for policy, label in names.items():
        stem = f"posttrain.{policy}.pass@"
        lines[label] = {int(key.removeprefix(stem)): value for key, value in figures.items() if key.startswith(stem)}
    draw.curves(lines, plots / "pass_at_k.png", xlabel="k (samples)", ylabel="pass@k on test")
    places = {
        label: {
            split_label(split): figures[
                f"posttrain.{policy}.pass@1" if split == "test" else f"posttrain.{policy}.{split}.pass@1"
            ]
            for split in splits
        }
        for policy, label in names.items()
    }
    draw.groups(places, plots / "splits.png", ylabel="pass@1")
