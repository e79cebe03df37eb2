"""What tests/test_sharding.py launches in two processes: sharded training gives what one process gives.

``sharded.py FOLDER CASE...``: FOLDER holds a tiny policy, and each process writes ``fine-CASE-RANK`` there. The result
of one process is computed in each of them, with the environment of a process that is alone.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import nn

from rairl.core.dataset_params import ArithmeticDataset
from rairl.core.params import Params, parse_params
from rairl.core.traces import Trace
from rairl.datasets import arithmetic
from rairl.learn.distributed import world
from rairl.learn.language_model import Fit, adamw, examples, fit, mean_loss
from rairl.learn.learned_reward import LearnedReward
from rairl.learn.policy_step import policy_step
from rairl.learn.rollouts import Completion, sample_together
from rairl.learn.sharding import Fsdp, language_learner
from rairl.models.adapters import add_lora
from rairl.models.attention import replaceable
from rairl.models.policy import load_policy, make_trainable, save_policy
from rairl.models.reading import encode
from rairl.models.reward import RewardModel, new_reward

FOLDER = Path(sys.argv[1])
DEMOS = arithmetic.build(ArithmeticDataset(name="arithmetic", demos=12, prompts=4, dev=4, test=4, ood=2), 0)["demos"]


def params(**sections: dict[str, object]) -> Params:
    values = yaml.safe_load((Path(__file__).parent / "miniature.yaml").read_text())
    return parse_params({**values, **{name: {**values[name], **changes} for name, changes in sections.items()}})


@contextmanager
def alone() -> Iterator[None]:
    os.environ["WORLD_SIZE"] = "1"
    yield
    os.environ["WORLD_SIZE"] = "2"


def same(one: nn.Module, other: nn.Module, tolerance: float = 1e-5) -> None:
    """Equal weights; a twentieth of the first steps of Adam, which magnifies last digits, is 5e-5."""
    for (name, value), wanted in zip(other.named_parameters(), one.parameters(), strict=True):
        assert type(value) is nn.Parameter, name
        torch.testing.assert_close(value, wanted, rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


# --- supervised fine-tuning ------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def fine_tune(folder: Path, *, lora: bool = False, stop: bool = False) -> nn.Module:
    """Three epochs; with ``stop`` the process ends in the second, and the checkpoint of the first stays."""
    model, tokenizer = load_policy(FOLDER / "policy")
    if lora:
        add_lora(model, 4, seed=0)
    rows = examples(tokenizer, DEMOS)
    plan = Fit(
        language_learner(model, adamw),
        3,
        lambda epoch: [rows[:5], rows[5:6], rows[6:]],  # of the second, one process has no share
        lambda step: 1e-3,
        lambda current: mean_loss(current, rows[:4], 0),
        micro_batch_tokens=150,  # processes differ in the number of micro-batches
    )

    def on_epoch(row: dict[str, float]) -> None:
        if stop and row["step"] == 1:
            raise Killed

    with suppress(Killed):
        fit(model, plan, 0, folder=folder, desc="sft", on_epoch=on_epoch)
    return model


def sft() -> None:
    for lora in (False, True):
        with alone():
            wanted = fine_tune(FOLDER / f"alone-{lora}-{RANK}", lora=lora)
        same(wanted, fine_tune(FOLDER / f"together-{lora}", lora=lora))


def resume() -> None:
    with alone():
        wanted = fine_tune(FOLDER / f"unbroken-{RANK}")
    fine_tune(FOLDER / "broken", stop=True)
    if RANK == 0:  # what many have begun, one can finish
        shutil.copytree(FOLDER / "broken", FOLDER / "handed-over")
    found = fine_tune(FOLDER / "broken")
    same(wanted, found)
    if RANK == 0:
        with alone():
            same(wanted, fine_tune(FOLDER / "handed-over"))
            save_policy(FOLDER / "saved", found, load_policy(FOLDER / "policy")[1])
            same(found, load_policy(FOLDER / "saved")[0], 0)


# --- the policy's update ---------------------------------------------------------------------------------------------


def policy_after(train: str) -> nn.Module:
    it = params(policy={"train": train, "lora_rank": 4, "micro_batch_tokens": 200, "kl": 0.1}).policy
    model, tokenizer = load_policy(FOLDER / "policy")
    reference = make_trainable(model, it, seed=0)
    rows = encode(tokenizer, DEMOS[:7])
    completions = [Completion(row.ids[: row.prompt_tokens], row.ids[row.prompt_tokens :], [], True) for row in rows]
    advantages = [np.linspace(-1, 1, len(item.ids)) for item in completions]

    def adam(model: nn.Module) -> list[torch.optim.Optimizer]:
        return [torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], weight_decay=0.0)]

    learner = language_learner(model, adam)
    assert not isinstance(learner, Fsdp) or replaceable(learner.model)  # prompts and completions go in one pass
    for step in range(3):
        metrics = policy_step(learner, reference, completions, advantages, it, rate=1e-3)
        NORMS.setdefault(f"{train} {step}", metrics["policy/grad_norm"])
        assert abs(metrics["policy/grad_norm"] - NORMS[f"{train} {step}"]) < 1e-3, (train, step, metrics)
        # Between two updates the policy generates, each process for itself and one more than the other.
        drawn = sample_together(
            model, tokenizer, [it.problem for it in DEMOS[:3]], n=1, max_new_tokens=8, temperature=1.0, seed=step
        )
        assert len(drawn) == 3
    if train == "full" and isinstance(learner, Fsdp):  # each process keeps half of Adam's state
        means = [entry["exp_avg"].to_local().numel() for entry in learner.optimizers[0].state.values()]
        assert 0.4 < sum(means) / sum(weight.numel() for weight in model.parameters()) < 0.6
    return model


NORMS: dict[str, float] = {}


def policy() -> None:
    for train in ("full", "lora"):
        with alone():
            wanted = policy_after(train)
        same(wanted, policy_after(train))


# --- the reward's update ---------------------------------------------------------------------------------------------


def wrong(problems: Sequence[Trace], tag: str) -> list[Trace]:
    table = str.maketrans("0123456789", "3456789012")
    return [replace(it, id=f"{it.id}/{tag}", text=it.text.translate(table), source="policy") for it in problems]


def reward_after(head: str, train: str) -> tuple[LearnedReward, RewardModel]:
    it = params(
        reward={"head": head, "train": train, "lora_rank": 4, "learning_rate": 1e-3, "demos_per_update": 5}
    ).reward
    model = new_reward(FOLDER / "policy", it, seed=0)
    reward = LearnedReward(model, DEMOS, it, 0.5, 0)
    for step in range(2):
        reward.learn(step, wrong)
    return reward, model


def reward() -> None:
    for head, train in (("linear", "full"), ("linear", "lora"), ("surprisal", "lora"), ("surprisal", "head")):
        with alone():
            wanted, one = reward_after(head, train)
        found, other = reward_after(head, train)
        same(one, other, 3e-4)
        assert np.allclose(wanted.discriminator.evidence(DEMOS[:3]), found.discriminator.evidence(DEMOS[:3]), atol=1e-3)
        folder = FOLDER / f"state-{head}-{train}-{RANK}"
        folder.mkdir()
        kept = found.state(folder)
        [adam] = kept["optimizers"]
        assert {type(value) for entry in adam["state"].values() for value in entry.values()} == {torch.Tensor}
        found.restore(kept, folder)
        found.learn(2, wrong)


CASES: dict[str, Callable[[], None]] = {"sft": sft, "resume": resume, "policy": policy, "reward": reward}

if __name__ == "__main__":
    RANK, SIZE = world()
    assert SIZE == 2
    for case in sys.argv[2:]:
        CASES[case]()
        (FOLDER / f"fine-{case}-{RANK}").touch()
