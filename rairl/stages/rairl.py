"""The rairl stage: learn the reward and, unless the traces are logged ones, the policy against each other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from rairl.core.params import Params
from rairl.core.stats import Estimate, exact
from rairl.stages.grpo import recent, write_history

if TYPE_CHECKING:
    from rairl.tracking.run import Run


def rairl(
    params: Params,
    run: Run,
    *,
    data: Path,
    base: Path,
    sft: Path,
    second_model: Path,
    policy: Path,
    reward: Path,
    checkpoints: Path,
    rollouts: Path,
    history: Path,
) -> dict[str, Estimate]:
    """Train by R-AIRL; keep every reward checkpoint and make the best one by dev the reward.

    Answers of the prompts are never read; the dev criterion needs held-out expert traces, answers included, only.

    Args:
        params: ``reward``, ``policy`` and ``guard`` act here.
        run: metrics per update and iteration; every reward checkpoint becomes a registered version.
        data: the prepared splits.
        base, sft: folders of the base model and the SFT policy; ``policy.start`` names the one that the policy starts
            from, the KL reference.
        second_model: its folder, which is read for ``reward.backbone: second_model`` only.
        policy: folder to write the trained policy to (stays empty for logged traces: no policy is in the loop).
        reward: folder for the best reward checkpoint.
        checkpoints: folder for all of them.
        rollouts: folder for the rollouts, one JSON-lines file per iteration.
        history: folder for ``history.json`` and ``guard.json``: what the collapse guard did, a list of iteration,
            reason in words, and action.

    Returns:
        Dev scores of the chosen checkpoint (``rairl.dev.*``), its step (``rairl.step``), and ``rairl.train_correct``:
        share of right rollouts in the last ten iterations behind the policy.
    """
    from rairl.learn.checkpoints import checkpoint_folder, clear
    from rairl.learn.training_run import TrainingRun

    for split in ("demos", "dev", "prompts", "logged_train", "labels_train", "labels_dev"):
        if (data / f"{split}.jsonl").exists():
            run.log_input(data / f"{split}.jsonl", name=split)
    backbone = Path(params.reward.backbone)
    work = checkpoint_folder(
        "rairl", params, [data / "card.json", base, sft, second_model, *([backbone] if backbone.is_dir() else [])]
    )
    (work / "rollouts").mkdir(parents=True, exist_ok=True)
    training = TrainingRun(params, run, data, base, sft, second_model, work)
    rows = training.run()
    training.register()
    training.choose(reward)
    if not params.logged:
        training.save_policy(policy)
    for source, target in ((work / "rewards", checkpoints), (work / "rollouts", rollouts)):
        shutil.copytree(source, target)
    write_history(history, rows)
    (history / "guard.json").write_text(json.dumps(training.events, indent=1) + "\n")
    step, scores = training.best()
    clear(work)
    figures = {f"rairl.{key.replace('/', '.')}": exact(value) for key, value in scores.items()}
    figures["rairl.step"] = exact(step)
    if params.logged or not rows:  # the guard may have kept the reward away from the policy
        return figures
    standing = rows[: training.done] or rows  # after a stop of the guard, the iterations behind the policy
    return {**figures, "rairl.train_correct": recent(standing, "rollout/correct")}
