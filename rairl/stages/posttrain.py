"""Stage posttrain: how good each policy became, on test and on every out-of-distribution split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rairl.evaluate import plots as draw
from rairl.evaluate.candidates import POLICIES, candidates_path, read_candidates, require_answered, splits_of
from rairl.evaluate.labels import split_label
from rairl.evaluate.training import compare, greedy_figure, powers_of_two, sample_figures, samples_per_question
from rairl.params import Params
from rairl.stats import Estimate

if TYPE_CHECKING:
    from rairl.tracking import Run


def posttrain(params: Params, run: Run, *, data: Path, candidates: Path, plots: Path) -> dict[str, Estimate]:
    """Figures of base, SFT, GRPO and R-AIRL, and their paired differences.

    On ``test``: ``posttrain.<policy>.<pass@k|greedy|exact|process|format|length>``; on another split
    ``posttrain.<policy>.<split>.<pass@1|exact|process|format|length>``; ``posttrain.<a>-<b>[.<split>].pass@1`` with its
    p-value under ``.p``. Nothing when the reward is learned from logged traces: no policy is trained then.

    Raises:
        RairlError: for candidates that are missing, not judged, or do not cover the questions in ``data``.
    """
    plots.mkdir(parents=True, exist_ok=True)
    if params.logged:
        return {}
    sampling = {"draws": params.report.bootstrap, "seed": params.seed}
    splits = splits_of(candidates, "sft")
    figures: dict[str, Estimate] = {}
    for split in splits:
        headline = split == "test"
        policies = {}
        for policy in POLICIES:
            path = candidates_path(candidates, policy, split)
            traces = policies[policy] = read_candidates(path)
            require_answered(traces, data / f"{split}.jsonl", path)
            prefix = f"posttrain.{policy}" if headline else f"posttrain.{policy}.{split}"
            ks = powers_of_two(samples_per_question(traces)) if headline else [1]
            figures |= sample_figures(traces, prefix, path, ks, **sampling)
            if headline:
                greedy = candidates_path(candidates, policy, split, greedy=True)
                decodes = read_candidates(greedy)
                require_answered(decodes, data / f"{split}.jsonl", greedy)
                figures[f"{prefix}.greedy"] = greedy_figure(decodes, **sampling)
        figures |= compare(policies, None if headline else split, **sampling)
    _plot(figures, splits, plots)
    run.log_artifact(plots)
    return figures


def _plot(figures: dict[str, Estimate], splits: list[str], plots: Path) -> None:
    names = dict(zip(POLICIES, ("base", "SFT", "GRPO", "R-AIRL"), strict=True))
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
