"""The stages and the files between them: the one list that DVC, Kubeflow Pipelines and the command line share.

A stage is a function ``<name>(params, run, *, <paths>) -> dict[str, Estimate]`` in the module of its name. It reads the
paths in :data:`INPUTS`, writes the paths in :data:`OUTPUTS` and returns figures. :func:`run_stage` does the rest, the
same for every caller: it finds the paths, checks that the inputs exist, opens the tracking run, takes the time, and
lets the outputs appear whole or not at all.
"""

from __future__ import annotations

from pathlib import Path

from rairl.core.errors import RairlError

ABOUT = {
    "prepare": "Write the demonstrations, prompts, dev, test and out-of-distribution splits, and the data card.",
    "base": "Build, train or fetch the base model.",
    "sft": "Fine-tune the base model on the demonstrations.",
    "second_model": "Train a second model by the same recipe, for the reward to read with.",
    "grpo": "Train the outcome-reward baseline from where R-AIRL starts.",
    "rairl": "Learn the reward and the policy against each other.",
    "sample": "Draw candidates from every policy.",
    "posttrain": "Measure pass@k of every policy.",
    "rerank": "Measure best-of-N selection by the reward against every baseline.",
    "localise": "Measure how often the reward points at the first wrong step.",
    "audit": "Check the reward for shortcuts and under distribution shift.",
    "report": "Write the report, its plots and the merged metrics.",
}
STAGES = tuple(ABOUT)
"""All stages, each after the ones it needs."""

_DATA = {"data": "data"}
_CANDIDATES = {**_DATA, "candidates": "candidates"}

INPUTS: dict[str, dict[str, str]] = {
    "prepare": {},
    "base": {**_DATA},
    "sft": {**_DATA, "base": "models/base"},
    "second_model": {**_DATA},
    "grpo": {**_DATA, "base": "models/base", "sft": "models/sft"},
    "rairl": {**_DATA, "base": "models/base", "sft": "models/sft", "second_model": "models/second_model"},
    "sample": {
        **_DATA, "base": "models/base", "sft": "models/sft", "sft_last": "models/sft_last", "grpo": "models/grpo",
        "policy": "models/policy", "second_model": "models/second_model",
    },
    "posttrain": {**_CANDIDATES},
    "rerank": {**_CANDIDATES, "reward": "models/reward"},
    "localise": {
        **_CANDIDATES, "reward": "models/reward", "base": "models/base", "sft": "models/sft",
        "second_model": "models/second_model", "rerank_scores": "scores/rerank",
    },
    "audit": {**_CANDIDATES, "reward": "models/reward", "sft": "models/sft", "rerank_scores": "scores/rerank"},
    "report": {
        **_CANDIDATES,
        "metrics_dir": "metrics",
        "grpo_history": "history/grpo",
        "rairl_history": "history/rairl",
        "rerank_scores": "scores/rerank",
        "localise_scores": "scores/localise",
        "posttrain_plots": "plots/posttrain",
        "rerank_plots": "plots/rerank",
        "localise_plots": "plots/localise",
        "audit_plots": "plots/audit",
    },
}  # fmt: skip
"""Per stage, the argument and default path (a file or a whole folder) of each input."""

OUTPUTS: dict[str, dict[str, str]] = {
    name: {**paths, "metrics": f"metrics/{name}.json"}
    for name, paths in {
        "prepare": {"data": "data"},
        "base": {"model": "models/base"},
        "sft": {"model": "models/sft", "last": "models/sft_last"},
        "second_model": {"model": "models/second_model"},
        "grpo": {"model": "models/grpo", "history": "history/grpo"},
        "rairl": {
            "policy": "models/policy",
            "reward": "models/reward",
            "checkpoints": "models/reward_checkpoints",
            "rollouts": "rollouts",
            "history": "history/rairl",
        },
        "sample": {"candidates": "candidates"},
        "posttrain": {"plots": "plots/posttrain"},
        "rerank": {"scores": "scores/rerank", "plots": "plots/rerank"},
        "localise": {"scores": "scores/localise", "plots": "plots/localise"},
        "audit": {"plots": "plots/audit"},
        "report": {"report": "report", "summary": "metrics.json"},
    }.items()
}
"""Per stage, the argument and default path of each output. ``metrics`` is written by :func:`run_stage` itself."""


def producer(path: str) -> str:
    """The stage that writes ``path`` (a default path of :data:`INPUTS`)."""
    if path == "metrics":
        return "audit"
    return next(stage for stage, outputs in OUTPUTS.items() if path in outputs.values())


def stage_paths(name: str, *, root: Path = Path("."), **paths: Path | str) -> tuple[dict[str, Path], dict[str, Path]]:
    """Inputs and outputs of a stage: the given paths as they are, the others at their default place under ``root``.

    Raises:
        RairlError: for a stage or an argument that does not exist.
    """
    if name not in STAGES:
        raise RairlError(f"unknown stage {name!r}; the stages are {', '.join(STAGES)}")
    unknown = set(paths) - set(INPUTS[name]) - set(OUTPUTS[name])
    if unknown:
        known = ", ".join((*INPUTS[name], *OUTPUTS[name]))
        raise RairlError(f"stage {name} has no path {min(unknown)!r}; it has {known}")
    inputs, outputs = (
        {arg: Path(paths[arg]) if arg in paths else Path(root) / default for arg, default in layout[name].items()}
        for layout in (INPUTS, OUTPUTS)
    )
    return inputs, outputs
