"""The policy loop and the two rewards that drive it: the learned one (R-AIRL) and the outcome (GRPO baseline).

One iteration: sample a group of completions for each of a few prompts; let the reward give advantages; move the policy
by one policy-gradient step with a KL penalty towards the SFT policy; let the reward learn. A batch is scored *before*
the reward learns anything from rollouts of its own iteration.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from rairl.errors import RairlError
from rairl.learn import checkpoints
from rairl.learn.credit import group_advantages
from rairl.learn.rollouts import Completion, sample, to_traces
from rairl.models.policy import batches_by_length, pad, token_logprobs
from rairl.params import PolicyParams
from rairl.traces import Trace, write_traces

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Metrics = dict[str, float]


@dataclass(frozen=True)
class Batch:
    """Rollouts of one iteration: ``len(completions) = prompts x group``, the samples of a prompt adjacent."""

    prompts: list[Trace]
    completions: list[Completion]
    traces: list[Trace]
    tokenizer: PreTrainedTokenizerBase

    @property
    def group(self) -> int:
        """Samples per prompt."""
        return len(self.traces) // len(self.prompts)


class Reward(Protocol):
    """What drives the policy."""

    def advantages(self, batch: Batch) -> tuple[list[np.ndarray], Metrics]:
        """One advantage per sampled token (shape ``(len(completion.ids),)`` each), and diagnostics."""

    def learn(self, iteration: int, rollout: Callable[[Sequence[Trace], str], list[Trace]]) -> Metrics:
        """Update on fresh rollouts of the current policy (``rollout(prompts, tag)``); returns diagnostics."""

    def state(self, folder: Path) -> dict[str, Any]:
        """What a checkpoint needs beside the policy; large text goes into ``folder``."""

    def restore(self, state: dict[str, Any], folder: Path) -> None:
        """Inverse of :meth:`state`."""


class OutcomeReward:
    """1 for a right answer, else 0: the GRPO baseline (Shao et al. 2024), an upper reference that needs answers."""

    def __init__(self, floor: float) -> None:
        self.floor = floor

    def advantages(self, batch: Batch) -> tuple[list[np.ndarray], Metrics]:
        """The group-relative outcome, the same for every token."""
        rewards = np.array([float(bool(trace.correct)) for trace in batch.traces]).reshape(-1, batch.group)
        values = group_advantages(rewards, self.floor).ravel()
        return spread(values, batch.completions), {"reward/mean": float(rewards.mean())}

    def learn(self, iteration: int, rollout: Callable[[Sequence[Trace], str], list[Trace]]) -> Metrics:
        """Nothing to learn."""
        return {}

    def state(self, folder: Path) -> dict[str, Any]:
        """Nothing to keep."""
        return {}

    def restore(self, state: dict[str, Any], folder: Path) -> None:
        """Nothing to restore."""


def spread(values: np.ndarray, completions: Sequence[Completion]) -> list[np.ndarray]:
    """One value per completion, repeated for each of its tokens."""
    return [np.full(len(item.ids), value) for value, item in zip(values, completions, strict=True)]


# --- the policy loop -------------------------------------------------------------------------------------------------


def policy_loss(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    ids: Tensor,
    mask: Tensor,
    advantages: Tensor,
    *,
    temperature: float,
    kl: float,
) -> tuple[Tensor, Tensor]:
    """Summed policy-gradient loss and summed KL estimate over the completion tokens of a batch.

    The samples are from the current policy, so the importance ratio is 1 and needs no clipping. KL(policy || reference)
    is estimated per token by exp(d) - d - 1 with d = log ref - log policy (Schulman 2020: unbiased, never negative).

    Args:
        ids, mask: ``(B, T)``, right-padded.
        advantages: ``(B, T)``, NaN on prompt and padding tokens.
        kl: weight of the penalty in the loss.
    """
    taken = ~advantages.isnan()
    logprobs = token_logprobs(model, ids, mask, temperature)[taken]
    with torch.no_grad():
        expected = token_logprobs(reference, ids, mask, temperature)[taken]
    difference = expected - logprobs
    divergence = (difference.exp() - difference - 1).sum()
    return -(advantages[taken] * logprobs).sum() + kl * divergence, divergence.detach()


def policy_step(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    completions: Sequence[Completion],
    advantages: Sequence[np.ndarray],
    params: PolicyParams,
    *,
    rate: float,
    batch_tokens: int = 16384,
) -> Metrics:
    """One optimiser step on all completions, in micro-batches; the loss is a mean over completion tokens.

    Raises:
        RairlError: when an advantage, the loss or the gradient is not a number; the weights are left as they were.
    """
    if not all(np.isfinite(values).all() for values in advantages):
        raise RairlError("an advantage is not a number: the reward model has diverged; lower reward.learning_rate")
    model.train()
    device = next(model.parameters()).device
    rows = [item.prompt_ids + item.ids for item in completions]
    total = sum(len(item.ids) for item in completions)
    optimizer.zero_grad(set_to_none=True)
    loss_sum = kl_sum = 0.0
    for batch in batches_by_length([len(row) for row in rows], batch_tokens):
        ids, mask = pad([rows[index] for index in batch], 0)
        values = torch.full(ids.shape, float("nan"))
        for row, index in enumerate(batch):
            start = len(completions[index].prompt_ids)
            values[row, start : len(rows[index])] = torch.from_numpy(advantages[index]).float()
        loss, divergence = policy_loss(
            model,
            reference,
            ids.to(device),
            mask.to(device),
            values.to(device),
            temperature=params.temperature,
            kl=params.kl,
        )
        (loss / total).backward()
        loss_sum += loss.item()
        kl_sum += divergence.item()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    if not (np.isfinite(loss_sum) and torch.isfinite(norm)):
        raise RairlError("the policy's loss or gradient is not a number; lower policy.learning_rate")
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return {"policy/loss": loss_sum / total, "policy/kl": kl_sum / total, "policy/grad_norm": float(norm)}


@dataclass
class PolicyLoop:
    """Everything one training run needs; :meth:`run` goes from the newest checkpoint to ``params.iterations``.

    Every iteration's randomness comes from (seed, iteration) alone, so a resumed run takes the same numbers as one that
    was never interrupted.

    Attributes:
        policy: the model that moves.
        reference: the frozen SFT policy of the KL penalty.
        prompts: problems without traces.
        reward: what drives the policy.
        checkpoints: folder of this very run (its name holds a hash of parameters and data).
        rollouts: folder for the JSON lines of every iteration's rollouts, or None.
        on_metrics: called with (iteration, metrics) for each iteration, those before a resume included.
        after_iteration: called with the number of iterations done, for those done now.
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
    after_iteration: Callable[[int], None] = lambda done: None

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), lr=self.params.learning_rate, weight_decay=0.0)
        self.history: list[dict[str, float]] = []

    def run(self, desc: str) -> list[dict[str, float]]:
        """Train; returns one row of metrics per iteration.

        Raises:
            RairlError: when a loss is not a number; it names the iteration and the checkpoint that is kept.
        """
        start = self.resume()
        bar = tqdm(
            range(start, self.params.iterations), desc=desc, unit="it", initial=start, total=self.params.iterations
        )
        for iteration in bar:
            try:
                metrics = self.iterate(iteration)
            except RairlError as error:
                kept = f"{self.checkpoints}" if checkpoints.latest(self.checkpoints) else "none yet"
                raise RairlError(f"{desc}, iteration {iteration}: {error}. Last good checkpoint: {kept}") from error
            self.history.append({"step": iteration, **metrics})
            self.on_metrics(iteration, metrics)
            bar.set_postfix({key.split("/")[-1]: f"{metrics[key]:.2f}" for key in SHOWN if key in metrics})
            self.after_iteration(iteration + 1)
            if (iteration + 1) % self.params.checkpoint_every == 0 and iteration + 1 < self.params.iterations:
                self.save(iteration + 1)
        return self.history

    def iterate(self, iteration: int) -> Metrics:
        """One iteration: sample, score, move the policy, let the reward learn."""
        clock = time.monotonic()
        prompts = self.batch_of_prompts(iteration)
        completions, traces = self.rollout(prompts, self.params.group_size, iteration, "policy", f"it{iteration}-")
        sampled = time.monotonic()
        advantages, metrics = self.reward.advantages(Batch(prompts, completions, traces, self.tokenizer))
        rate = self.params.learning_rate * min(1.0, (iteration + 1) / max(1, self.params.warmup_iterations))
        metrics |= policy_step(
            self.policy, self.reference, self.optimizer, completions, advantages, self.params, rate=rate
        )
        if self.rollouts is not None:
            write_traces(self.rollouts / f"iteration-{iteration:05d}.jsonl", traces)

        def rollout(problems: Sequence[Trace], tag: str) -> list[Trace]:
            return self.rollout(problems, 1, iteration, tag, tag)[1]

        metrics |= self.reward.learn(iteration, rollout)
        metrics |= rollout_metrics(completions, traces)
        metrics["time/rollout"] = sampled - clock
        metrics["time/iteration"] = time.monotonic() - clock
        return metrics

    def batch_of_prompts(self, iteration: int) -> list[Trace]:
        """The prompts of an iteration: consecutive slices of a shuffle that is redrawn on every pass."""
        size = min(self.params.prompts_per_iteration, len(self.prompts))
        per_pass = len(self.prompts) // size
        order = list(range(len(self.prompts)))
        random.Random(f"{self.seed}/prompts/{iteration // per_pass}").shuffle(order)
        at = iteration % per_pass * size
        return [self.prompts[index] for index in order[at : at + size]]

    def rollout(
        self, prompts: Sequence[Trace], n: int, iteration: int, key: str, tag: str
    ) -> tuple[list[Completion], list[Trace]]:
        """Sample ``n`` completions for each prompt from the current policy."""
        seed = random.Random(f"{self.seed}/{key}/{iteration}").getrandbits(31)
        completions = sample(
            self.policy,
            self.tokenizer,
            [prompt.problem for prompt in prompts],
            n=n,
            max_new_tokens=self.params.max_new_tokens,
            temperature=self.params.temperature,
            seed=seed,
        )
        meta = {"step": iteration, "seed": seed}
        return completions, to_traces(completions, prompts, self.tokenizer, source="policy", tag=tag, meta=meta)

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def save(self, iteration: int) -> None:
        """Keep policy, reward, both optimisers, replay buffer and history."""

        def state(folder: Path) -> dict[str, Any]:
            return {
                "iteration": iteration,
                "policy": self.policy.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "reward": self.reward.state(folder),
                "history": json.dumps(self.history),
            }

        checkpoints.save(self.checkpoints, iteration, state)

    def resume(self) -> int:
        """Load the newest checkpoint, if there is one; returns the iteration to go on with."""
        found = checkpoints.load(self.checkpoints)
        if found is None:
            return 0
        state, folder = found
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.reward.restore(state["reward"], folder)
        self.history = json.loads(state["history"])
        for row in self.history:
            self.on_metrics(int(row["step"]), {key: value for key, value in row.items() if key != "step"})
        return int(state["iteration"])


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
