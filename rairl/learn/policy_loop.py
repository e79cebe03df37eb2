"""The policy loop and the two rewards that drive it: the learned one (R-AIRL) and the outcome (GRPO baseline).

One iteration: sample a group of completions for each of a few prompts; let the reward give advantages; move the policy
by one policy-gradient step with a KL penalty towards its start; let the reward learn. A batch is scored *before*
the reward learns anything from rollouts of its own iteration.

Of several processes (:mod:`rairl.learn.distributed`) each samples for its share of the prompts and takes its share of
the policy's gradient; everything else is the same in all of them, decisions included.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from rairl.core.errors import RairlError
from rairl.core.traces import Trace, write_traces
from rairl.core.training_params import GuardParams, PolicyParams
from rairl.learn import checkpoints
from rairl.learn.collapse_guard import MAX_ROLLBACKS, begun, collapse
from rairl.learn.distributed import by_first
from rairl.learn.learner import adamw_of, rates
from rairl.learn.policy_step import policy_step
from rairl.learn.rewards import Batch
from rairl.learn.rollouts import Completion, sample_together, to_traces
from rairl.learn.sharding import language_learner

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rairl.learn.rewards import Metrics, Reward


@dataclass
class PolicyLoop:
    """Everything one training run needs; :meth:`run` goes from the newest checkpoint to ``params.iterations``.

    Every iteration's randomness comes from (seed, :attr:`position`) alone, so a resumed run takes the same numbers as
    one that was never interrupted.

    Attributes:
        policy: the model that moves, by its parameters that require a gradient.
        reference: the policy as it started, frozen, of the KL penalty.
        prompts: problems without traces.
        reward: what drives the policy.
        checkpoints: folder of this very run (its name holds a hash of parameters and data).
        rollouts: folder for the JSON lines of every iteration's rollouts, or None.
        on_metrics: called with (iteration, metrics) for each iteration, those before a resume included.
        after_iteration: called with the number of iterations done, for those done now; what it returns (scores on dev)
            joins the iteration's metrics.
        guard: when to stop or go back, and which; None never does.
        start: what :attr:`after_iteration` would have given before the first iteration; the guard compares with it.
        done: iterations behind the present weights.
        history: one row of metrics per iteration.
        events: what the guard did: iteration, reason and action of each.
    """

    policy: PreTrainedModel
    reference: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prompts: Sequence[Trace]
    reward: Reward
    params: PolicyParams
    seed: int
    checkpoints: Path
    rollouts: Path | None
    on_metrics: Callable[[int, Metrics], None]
    after_iteration: Callable[[int], Metrics] = lambda done: {}
    guard: GuardParams | None = None
    start: Metrics = field(default_factory=dict)
    done: int = field(init=False, default=0)
    history: list[dict[str, float]] = field(init=False, default_factory=list)
    events: list[dict[str, str | int]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.learner = language_learner(self.policy, adamw_of(self.params))
        self.rate = rates(self.params, self.params.warmup_iterations, self.params.iterations)
        self.good: int | None = None

    @property
    def rollbacks(self) -> int:
        """How often the guard has gone back to a good checkpoint."""
        return sum(event["action"] == "rollback" for event in self.events)

    @property
    def position(self) -> int:
        """A number that no other iteration of the run has: one done again after a rollback gets another one."""
        return self.rollbacks * self.params.iterations + self.done

    def run(self, desc: str) -> list[dict[str, float]]:
        """Train; returns one row of metrics per iteration (of those that were rolled back none).

        Raises:
            RairlError: when a loss is not a number; it names the iteration and the checkpoint that is kept.
        """
        self.resume()
        if self.good is None:
            self.save()
        bar = tqdm(desc=desc, unit="it", initial=self.done, total=self.params.iterations)
        while self.done < self.params.iterations:
            try:
                metrics = self.iterate()
            except RairlError as error:
                kept = f"{self.checkpoints}" if checkpoints.latest(self.checkpoints) else "none yet"
                raise RairlError(f"{desc}, iteration {self.done}: {error}. Last good checkpoint: {kept}") from error
            self.done += 1
            metrics |= self.after_iteration(self.done)
            self.history.append({"step": self.done - 1, **metrics})
            action = self.guarded()
            self.on_metrics(int(self.history[-1]["step"]), metrics_of(self.history[-1]))
            shown = {key.split("/")[-1]: f"{metrics[key]:.2f}" for key in SHOWN if key in metrics}
            bar.set_postfix(shown, refresh=False)
            if action is not None:
                self.go_back(action)
                line = f"{desc}: {self.events[-1]['reason']}: {action}, with the weights after {self.done} iterations"
                by_first(lambda line=line: bar.write(line))  # type: ignore[misc]
            if action == "stop":
                break
            if action is None and self.done % self.params.checkpoint_every == 0 and self.done < self.params.iterations:
                self.save()
            bar.update(self.done - bar.n)
        bar.close()
        return self.history

    def iterate(self) -> Metrics:
        """One iteration: sample, score, move the policy, let the reward learn."""
        clock = time.monotonic()
        prompts = self.batch_of_prompts()
        completions, traces = self.rollout(prompts, self.params.group_size, "policy", f"it{self.done}-")
        sampled = time.monotonic()
        advantages, metrics = self.reward.advantages(Batch(prompts, completions, traces, self.tokenizer))
        metrics |= policy_step(
            self.learner,
            self.reference,
            completions,
            advantages,
            self.params,
            rate=self.rate(self.done) * 0.5**self.rollbacks,
        )
        if self.rollouts is not None:
            file = self.rollouts / f"iteration-{self.done:05d}.jsonl"
            by_first(lambda: write_traces(file, traces))

        def rollout(problems: Sequence[Trace], tag: str) -> list[Trace]:
            return self.rollout(problems, 1, tag, tag)[1]

        metrics |= self.reward.learn(self.position, rollout)
        metrics |= rollout_metrics(completions, traces)
        metrics["time/rollout"] = sampled - clock
        metrics["time/iteration"] = time.monotonic() - clock
        return metrics

    def batch_of_prompts(self) -> list[Trace]:
        """The prompts of an iteration: consecutive slices of a shuffle that is redrawn on every pass."""
        size = min(self.params.prompts_per_iteration, len(self.prompts))
        per_pass = len(self.prompts) // size
        order = list(range(len(self.prompts)))
        random.Random(f"{self.seed}/prompts/{self.position // per_pass}").shuffle(order)
        at = self.position % per_pass * size
        return [self.prompts[index] for index in order[at : at + size]]

    def rollout(self, prompts: Sequence[Trace], n: int, key: str, tag: str) -> tuple[list[Completion], list[Trace]]:
        """Sample ``n`` completions for each prompt from the current policy."""
        seed = random.Random(f"{self.seed}/{key}/{self.position}").getrandbits(31)
        completions = sample_together(
            self.policy,
            self.tokenizer,
            [prompt.problem for prompt in prompts],
            n=n,
            max_new_tokens=self.params.max_new_tokens,
            temperature=self.params.temperature,
            seed=seed,
        )
        meta = {"step": self.done, "seed": seed}
        return completions, to_traces(completions, prompts, self.tokenizer, source="policy", tag=tag, meta=meta)

    # --- guard ------------------------------------------------------------------------------------------------------

    def guarded(self) -> str | None:
        """Let the guard look at the history and note what it finds: 'stop', 'rollback', or None to go on."""
        if self.guard is None or self.guard.action == "off":
            return None
        self.history[-1]["guard/rollbacks"] = self.rollbacks
        reason = by_first(lambda: collapse(self.history, self.start))
        if reason is None:
            return None
        action = "stop" if self.rollbacks == MAX_ROLLBACKS else self.guard.action
        self.history[-1]["guard/stopped"] = float(action == "stop")
        self.events.append({"iteration": self.done - 1, "reason": reason, "action": action})
        return action

    def go_back(self, action: str) -> None:
        """Load the last good checkpoint; after a stop the history still shows what led to it."""
        found = checkpoints.load(self.checkpoints, self.good)
        if found is None:
            raise RairlError(f"{self.checkpoints} holds no checkpoint to go back to")
        history, events = self.history, self.events
        self.restore(*found)
        self.events = events
        if action == "stop":
            self.history = history
        else:
            self.save()

    def sound(self) -> bool:
        """Whether nothing speaks against the present weights. Where dev problems are counted now and then, only a count
        tells: between two of them a policy can be lost unseen."""
        if self.guard is None:
            return True
        counted = "dev/correct" not in self.start or not self.history or "dev/correct" in self.history[-1]
        return counted and not by_first(lambda: begun(self.history, self.start))

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Keep policy, reward, both optimisers, replay buffer and history; beside it stays the last good checkpoint."""
        if self.sound():
            self.good = self.position
        optimizers = self.learner.state()

        def state(folder: Path) -> dict[str, Any]:
            return {
                "done": self.done,
                "good": self.good,
                "policy": trained_weights(self.policy),
                "optimizers": optimizers,
                "reward": self.reward.state(folder),
                "history": json.dumps(self.history),
                "events": json.dumps(self.events),
            }

        checkpoints.save(self.checkpoints, self.position, state, keep=self.good)

    def resume(self) -> int:
        """Load the newest checkpoint, if there is one; returns the iteration to go on with."""
        found = checkpoints.load(self.checkpoints)
        if found is not None:
            self.restore(*found)
            for row in self.history:
                self.on_metrics(int(row["step"]), metrics_of(row))
        return self.done

    def restore(self, state: dict[str, Any], folder: Path) -> None:
        """Inverse of what :meth:`save` kept."""
        self.policy.load_state_dict(state["policy"], strict=False)
        self.learner.restore(state["optimizers"])
        self.reward.restore(state["reward"], folder)
        self.done, self.good = state["done"], state["good"]
        self.history, self.events = json.loads(state["history"]), json.loads(state["events"])


def trained_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights that learn, by name; those of a frozen body need no checkpoint."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name: value for name, value in model.state_dict().items() if name in trained}


def metrics_of(row: dict[str, float]) -> Metrics:
    """A row of the history without its step."""
    return {key: value for key, value in row.items() if key != "step"}


SHOWN = ("reward/mean", "rollout/correct", "policy/kl", "discriminator/gap")
"""What the progress bar shows."""


def rollout_metrics(completions: Sequence[Completion], traces: Sequence[Trace]) -> Metrics:
    """What the policy wrote: length in tokens, share finished, share right (when known; no learned reward reads it)."""
    metrics = {
        "rollout/tokens": float(np.mean([len(item.ids) for item in completions])),
        "rollout/finished": float(np.mean([item.finished for item in completions])),
        "rollout/entropy": float(-np.mean([value for item in completions for value in item.logprobs])),
    }
    if all(trace.correct is not None for trace in traces):
        metrics["rollout/correct"] = float(np.mean([bool(trace.correct) for trace in traces]))
    return metrics
