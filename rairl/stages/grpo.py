"""The grpo stage: the outcome-reward baseline, through the very loop that R-AIRL uses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rairl.core.errors import RairlError
from rairl.core.params import Params
from rairl.core.stats import Estimate, exact
from rairl.core.traces import read_traces

if TYPE_CHECKING:
    from rairl.tracking.run import Run


def grpo(
    params: Params, run: Run, *, data: Path, base: Path, sft: Path, model: Path, history: Path
) -> dict[str, Estimate]:
    """Train a policy on the outcome (right answer = 1).

    Args:
        params: ``policy`` acts here.
        run: metrics per iteration.
        data: the prepared splits; ``prompts`` with answers.
        base, sft: folders of the models of which ``policy.start`` names the one to start from, the KL reference.
        model: folder to write.
        history: folder for ``history.json``, one row per iteration.

    Returns:
        ``grpo.train_correct``: share of right rollouts in the last ten iterations. Empty when the reward is learned
        from logged traces: no policy is in the loop then.

    Raises:
        RairlError: when a prompt has no answer.
    """
    if params.logged:
        return {}
    from rairl.learn.checkpoints import checkpoint_folder, clear
    from rairl.learn.policy_loop import PolicyLoop
    from rairl.learn.rewards import OutcomeReward
    from rairl.models.policy import load_policy, make_trainable, save_policy

    run.log_input(data / "prompts.jsonl", name="prompts")
    prompts = read_traces(data / "prompts.jsonl")
    without = [prompt.id for prompt in prompts if prompt.gold is None]
    if without:
        raise RairlError(f"{data / 'prompts.jsonl'}: {without[0]!r} has no 'gold'; the outcome reward needs an answer")
    start = {"base": base, "sft": sft}[params.policy.start]
    policy, tokenizer = load_policy(start)
    loop = PolicyLoop(
        policy=policy,
        reference=make_trainable(policy, params.policy, seed=params.seed),
        tokenizer=tokenizer,
        prompts=prompts,
        reward=OutcomeReward(params.policy.advantage_floor),
        params=params.policy,
        seed=params.seed,
        checkpoints=checkpoint_folder("grpo", params, [data / "card.json", start]),
        rollouts=None,
        on_metrics=lambda iteration, metrics: run.log(metrics, step=iteration),
    )
    rows = loop.run("grpo")
    save_policy(model, policy, tokenizer)
    write_history(history, rows)
    clear(loop.checkpoints)
    return {"grpo.train_correct": recent(rows, "rollout/correct")}


def write_history(folder: Path, rows: list[dict[str, float]]) -> None:
    """Write ``history.json``: a list of rows with ``step``, which DVC plots and the report read."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "history.json").write_text(json.dumps(rows) + "\n")


def recent(rows: list[dict[str, float]], key: str) -> Estimate:
    """Mean of a metric over the last ten iterations."""
    values = [row[key] for row in rows[-10:]]
    return exact(sum(values) / len(values), len(values))
