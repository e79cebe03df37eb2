"""One run of adversarial training: what is built from the inputs, and the reward checkpoints it leaves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rairl.core.params import Params
from rairl.core.traces import Trace, read_traces
from rairl.learn.learned_reward import LearnedReward

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rairl.evaluate.calibrate import Dev
    from rairl.models.reward import RewardModel
    from rairl.tracking.run import Run


class TrainingRun:
    """One run of the stage: what is built from the inputs, and the reward checkpoints it leaves in ``work``."""

    def __init__(
        self, params: Params, run: Run, data: Path, base: Path, sft: Path, second_model: Path, work: Path
    ) -> None:
        from rairl.learn.learned_reward import LearnedReward
        from rairl.models.policy import load_policy, make_trainable

        self.params, self.log, self.data, self.work = params, run, data, work
        self.base, self.sft, self.second_model = base, sft, second_model
        self.demos = read_traces(data / "demos.jsonl")
        start = {"base": base, "sft": sft}[params.policy.start]
        self.policy, self.tokenizer = load_policy(start)
        self.reference = make_trainable(self.policy, params.policy, seed=params.seed)
        self.model: RewardModel = self._new_reward()
        self.dev: Dev = self._dev()
        self.reward: LearnedReward = LearnedReward(
            self.model,
            self.demos,
            params.reward,
            params.policy.advantage_floor,
            params.seed,
            held_out=self.dev.experts,
            labelled=self._labels("labels_train"),
            iterations=0 if params.logged else params.policy.iterations,
        )
        self.rows: list[dict[str, float]] = []
        self.done = 0
        self.events: list[dict[str, str | int]] = []

    def _new_reward(self) -> RewardModel:
        """The untrained reward on the body that ``reward.backbone`` names."""
        from rairl.models.base import load_source
        from rairl.models.policy import load_policy
        from rairl.models.reward import reward_on

        params, own = self.params.reward, {"base": self.base, "sft": self.sft, "second_model": self.second_model}
        if params.backbone == "shared":
            body = self.reference, self.tokenizer
        elif params.backbone in own:
            body = load_policy(own[params.backbone], dtype=params.dtype)
        else:
            source = "reward.backbone", params.backbone, params.revision, self.params.system
            body = load_source(*source, dtype=params.dtype)
        return reward_on(*body, params, seed=self.params.seed)

    def _dev(self) -> Dev:
        from rairl.evaluate.calibrate import make_dev

        experts = read_traces(self.data / "dev.jsonl")
        drawn = [] if self.params.logged else self._rollouts((self.policy, self.tokenizer), experts, 4, "dev")
        return make_dev(experts, drawn, copies=2, seed=self.params.seed, labelled=self._labels("labels_dev"))

    def _labels(self, split: str) -> list[Trace]:
        """What a reviewer labelled, if anything."""
        path = self.data / f"{split}.jsonl"
        return read_traces(path) if path.exists() else []

    def _rollouts(
        self,
        policy: tuple[PreTrainedModel, PreTrainedTokenizerBase],
        prompts: Sequence[Trace],
        n: int,
        key: str,
    ) -> list[Trace]:
        import random

        from rairl.learn.rollouts import sample_together, to_traces

        seed = random.Random(f"{self.params.seed}/{key}").getrandbits(31)
        completions = sample_together(
            *policy,
            [prompt.problem for prompt in prompts],
            n=n,
            max_new_tokens=self.params.policy.max_new_tokens,
            temperature=self.params.policy.temperature,
            seed=seed,
        )
        return to_traces(
            completions, prompts, policy[1], source="policy", tag=f"{key}-", meta={"step": 0, "seed": seed}
        )

    # --- training ---------------------------------------------------------------------------------------------------

    def run(self) -> list[dict[str, float]]:
        """Warm up and train, or go on where a killed run stopped; returns the history."""
        from rairl.learn import checkpoints

        if checkpoints.latest(self.work) is None:
            self._warm_up()
            self.log.log(self._keep(0), step=0)
        if self.params.logged or self._unfit():
            return self.rows
        loop = self._loop()
        rows = loop.run("rairl")
        self.done, self.events = loop.done, loop.events
        self._settle(loop.done)
        return [*self.rows, *rows]

    def _unfit(self) -> bool:
        """Whether the guard keeps the warmed-up reward away from the policy; it notes why."""
        from tqdm import tqdm

        from rairl.learn.collapse_guard import unfit
        from rairl.learn.distributed import by_first

        reason = None if self.params.guard.action == "off" else unfit(self._start())
        if reason is not None:
            self.events.append({"iteration": 0, "reason": reason, "action": "stop"})
            by_first(lambda: tqdm.write(f"rairl: {reason}"))
        return reason is not None

    def _start(self) -> dict[str, float]:
        """Dev scores before the first iteration: of the warmed-up reward, and of the policy."""
        from rairl.learn.distributed import by_first

        return {**by_first(lambda: read_scores(self._checkpoint(0))[1]), **solved(self.dev.rollouts)}

    def _warm_up(self) -> None:
        from tqdm import tqdm

        from rairl.core.traces import write_traces
        from rairl.learn.distributed import by_first
        from rairl.models.policy import load_policy

        if self.params.logged:
            negatives = read_traces(self.data / "logged_train.jsonl")
        else:
            n, start = self.params.reward.warmup_rollouts, self.params.policy.start
            negatives = []
            if start == "sft":
                negatives += self._rollouts(load_policy(self.base), self.demos, n, "warmup-base")
            negatives += self._rollouts((self.policy, self.tokenizer), self.demos, n, f"warmup-{start}")
            by_first(lambda: write_traces(self.work / "rollouts" / "warmup.jsonl", negatives))
        updates = self.params.reward.warmup_updates
        bar = tqdm(total=updates, desc="reward warm-up", unit="update")
        numbers = iter(range(updates))

        def on_update(metrics: dict[str, float]) -> None:
            step = next(numbers)
            self.log.log({f"warmup/{key}": value for key, value in metrics.items()}, step=step)
            if self.params.logged:
                self.rows.append({"step": step, **metrics})
                if (step + 1) % self.params.reward.register_every == 0 and step + 1 < updates:
                    self.log.log(self._keep(step + 1), step=step + 1)
            bar.update(1)
            bar.set_postfix(loss=f"{metrics['discriminator/loss']:.3f}", refresh=False)

        self.reward.warm_up(negatives, on_update)
        bar.close()

    def _loop(self):  # type: ignore[no-untyped-def]
        from rairl.learn.policy_loop import PolicyLoop

        def after(done: int) -> dict[str, float]:
            if done % self.params.reward.register_every and done != self.params.policy.iterations:
                return {}
            # The same random numbers every time: a difference is the policy's.
            drawn = self._rollouts((self.policy, self.tokenizer), self.dev.experts, 4, "dev")
            return {**self._keep(done), **solved(drawn)}

        return PolicyLoop(
            policy=self.policy,
            reference=self.reference,
            tokenizer=self.tokenizer,
            prompts=read_traces(self.data / "prompts.jsonl"),
            reward=self.reward,
            params=self.params.policy,
            seed=self.params.seed,
            checkpoints=self.work,
            rollouts=self.work / "rollouts",
            on_metrics=lambda iteration, metrics: self.log.log(metrics, step=iteration),
            after_iteration=after,
            guard=self.params.guard,
            start=self._start(),
        )

    # --- reward checkpoints -----------------------------------------------------------------------------------------

    def _keep(self, step: int) -> dict[str, float]:
        """Score the reward on dev, calibrate it there and save it; returns the scores."""
        from rairl.evaluate.calibrate import dev_scores
        from rairl.learn.distributed import by_first
        from rairl.models.card import write_card

        def keep() -> dict[str, float]:
            folder = self._checkpoint(step)
            scores, self.model.calibration = dev_scores(self.model, self.dev)
            self.model.save_pretrained(folder)
            write_scores(folder, step, scores)
            write_card(folder, self.data / "card.json")
            return scores

        return by_first(keep)

    def _checkpoint(self, step: int) -> Path:
        return self.work / "rewards" / f"step-{step:05d}"

    def _settle(self, done: int) -> None:
        """Make the reward after ``done`` iterations the last checkpoint, where the guard has gone back to it."""
        from rairl.learn.distributed import by_first

        def drop_later() -> bool:
            for folder in (self.work / "rewards").iterdir():
                if read_scores(folder)[0] > done:
                    shutil.rmtree(folder)
            return self._checkpoint(done).exists()

        if not by_first(drop_later):
            self._keep(done)

    def register(self) -> None:
        """Make every checkpoint a version; only now is it known which ones the guard has let stand."""
        for folder in sorted((self.work / "rewards").iterdir()):
            self.log.register_reward(folder, *read_scores(folder))

    def best(self) -> tuple[int, dict[str, float]]:
        """Step and dev scores of the best checkpoint; the later of equals."""
        from rairl.evaluate.calibrate import CRITERION

        kept = [read_scores(folder) for folder in sorted((self.work / "rewards").iterdir())]
        return max(kept, key=lambda item: (item[1][CRITERION], item[0]))

    def choose(self, target: Path) -> None:
        """Copy the best checkpoint to ``target`` and give its version the alias ``champion``."""
        from rairl.evaluate.calibrate import CRITERION

        shutil.copytree(self._checkpoint(self.best()[0]), target)
        self.log.promote_champion(CRITERION)

    def save_policy(self, target: Path) -> None:
        """Write the trained policy."""
        from rairl.models.policy import save_policy

        save_policy(target, self.policy, self.tokenizer)


def solved(rollouts: Sequence[Trace]) -> dict[str, float]:
    """``dev/correct``: the share of rollouts that reach their expert's own answer; empty where experts gave none."""
    if not rollouts or any(trace.correct is None for trace in rollouts):
        return {}
    return {"dev/correct": sum(trace.correct is True for trace in rollouts) / len(rollouts)}


def write_scores(folder: Path, step: int, scores: dict[str, float]) -> None:
    """Dev scores beside a reward checkpoint."""
    (folder / "dev.json").write_text(json.dumps({"step": step, "scores": scores}, indent=1) + "\n")


def read_scores(folder: Path) -> tuple[int, dict[str, float]]:
    """Inverse of :func:`write_scores`."""
    row = json.loads((folder / "dev.json").read_text())
    return int(row["step"]), row["scores"]
