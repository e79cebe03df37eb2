"""The discriminator as a reward: how it learns, and the advantages it gives."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rairl.core.errors import RairlError
from rairl.core.traces import Trace, read_traces, write_traces
from rairl.core.training_params import RewardParams
from rairl.learn import distributed
from rairl.learn.credit import group_advantages, step_advantages
from rairl.learn.diagnostics import boundary, discriminator_metrics, reward_metrics
from rairl.learn.discriminator import Discriminator
from rairl.learn.discriminator_batch import Corruptions, Replay, compose
from rairl.learn.learner import Learner, adamw_of, rates
from rairl.learn.rewards import Batch, Metrics, spread
from rairl.learn.rollouts import character_ends
from rairl.learn.sharding import reward_learner
from rairl.learn.token_alignment import spread_reads
from rairl.models.reads import Memo
from rairl.models.reward import RewardModel

HELD_OUT = 32
"""Most held-out experts, and as many trained-on ones, that tell how much is memorised."""

Rollout = Callable[[Sequence[Trace], str], list[Trace]]


@dataclass
class LearnedReward:
    """The discriminator as a reward: it learns from experts against policy rollouts, replay and verified corruptions.

    Experts and rollouts answer the *same* prompts (those of the demonstrations): were they on different prompts, the
    cheapest way to tell the classes apart would be to recognise the prompts. ``reward.rollout_prompts: others`` saves
    the extra rollouts and takes that risk.

    Attributes:
        model: the reward model.
        demos: expert traces.
        floor: smallest divisor of advantages.
        held_out: expert traces that are never trained on, to measure memorisation.
        labelled: traces whose first wrong step a reviewer marked, to learn from.
        iterations: of the policy, after the warm-up; the learning rate's schedule ends with them.
        replay: past rollouts.
        done: updates taken so far.
        seen: the policy's latest batch.
    """

    model: RewardModel
    demos: Sequence[Trace]
    params: RewardParams
    floor: float
    seed: int
    held_out: Sequence[Trace] = ()
    labelled: Sequence[Trace] = ()
    iterations: int = 0
    replay: Replay = field(init=False)
    corruptions: Corruptions = field(init=False)
    learner: Learner = field(init=False)
    discriminator: Discriminator = field(init=False)
    done: int = field(init=False, default=0)
    seen: list[Trace] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.replay = Replay(self.params.replay_size)
        self.corruptions = Corruptions(self.seed, self.params.perturbation_depth)
        self.learner = reward_learner(self.model, adamw_of(self.params))
        steps = self.params.warmup_updates + self.iterations * self.params.updates_per_iteration
        self.rate = rates(self.params, self.params.learning_rate_warmup, steps)
        self.discriminator = Discriminator(self.model, self.params, self._new_memo())

    def _new_memo(self) -> Memo | None:
        return Memo() if self.params.train == "head" else None

    # --- credit -----------------------------------------------------------------------------------------------------

    def advantages(self, batch: Batch) -> tuple[list[np.ndarray], Metrics]:
        """Advantages by ``reward.credit``, before the model learns from the batch.

        The metrics are of the reads as they come, not clipped.
        """
        self.seen = batch.traces
        reads = self.discriminator.reads(batch.traces)
        per_trace = [one.logits for one in reads]
        last = np.array([values[-1] for values in per_trace]).reshape(-1, batch.group)
        lengths = np.array([len(item.ids) for item in batch.completions], dtype=float).reshape(last.shape)
        silent = np.array([not trace.steps for trace in batch.traces]).reshape(last.shape)
        correct = np.array([trace.correct for trace in batch.traces], dtype=float).reshape(last.shape)
        metrics = reward_metrics(last, lengths, correct)
        if self.params.clip is not None:
            per_trace = [values.clip(-self.params.clip, self.params.clip) for values in per_trace]
        rule = self.params.credit
        if rule == "mean" or rule == "last":
            rewards = np.array([one[-1] if rule == "last" else one.mean() for one in per_trace]).reshape(last.shape)
            return spread(group_advantages(rewards, self.floor, silent).ravel(), batch.completions), metrics
        groups = [per_trace[at : at + batch.group] for at in range(0, len(per_trace), batch.group)]
        by_group = step_advantages(groups, rule, self.params.discount, self.floor, silent.tolist())
        flat = [values for group in by_group for values in group]
        ends = character_ends(batch.tokenizer, [completion.ids for completion in batch.completions])
        return [
            spread_reads(values, read.ends, tokens) for values, read, tokens in zip(flat, reads, ends, strict=True)
        ], metrics

    # --- learning ---------------------------------------------------------------------------------------------------

    def warm_up(self, traces: Sequence[Trace], on_update: Callable[[Metrics], None]) -> None:
        """Train against rollouts of the initial policies before the policy moves (``reward.warmup_updates``)."""
        self.replay.add(traces)
        for update in range(self.params.warmup_updates):
            on_update(self.update([], f"warmup/{update}"))

    def learn(self, iteration: int, rollout: Rollout) -> Metrics:
        """The iteration's updates, each with fresh rollouts on the demonstrations it draws."""
        metrics: Metrics = {}
        for update in range(self.params.updates_per_iteration):
            key = f"{iteration}/{update}"
            fresh = self._fresh(self._draw(key), rollout, key, f"learn{update}-")
            metrics |= self.update(fresh, key)
            self.replay.add(fresh)
        return metrics

    def _draw(self, key: str) -> list[Trace]:
        rng = random.Random(f"{self.seed}/demos/{key}")
        return rng.sample(list(self.demos), min(self.params.demos_per_update, len(self.demos)))

    def _fresh(self, experts: Sequence[Trace], rollout: Rollout, key: str, tag: str) -> list[Trace]:
        """Rollouts of the current policy: on the experts' prompts, or as many of the batch that was just scored."""
        if self.params.rollout_prompts == "demos":
            return rollout(experts, tag)
        rng = random.Random(f"{self.seed}/others/{key}")
        return rng.sample(self.seen, min(len(experts), len(self.seen)))

    def update(self, fresh: Sequence[Trace], key: str) -> Metrics:
        """One gradient step: experts against fresh rollouts on their prompts, replay, and verified corruptions.

        Raises:
            RairlError: when the loss is not a number; the weights are left as they were.
        """
        rng = random.Random(f"{self.seed}/update/{key}")
        experts = self._draw(key)
        batch = compose(experts, fresh, self.replay, self.corruptions, self.params, rng, self.labelled)
        self.learner.model.train()
        torch.manual_seed(rng.getrandbits(31))
        loss, last = self._learning().loss(batch)
        value = distributed.total(loss.item())
        if not np.isfinite(value):
            raise RairlError(f"the reward's loss is {value} at update {key}; lower reward.learning_rate")
        self.learner.zero_grad()
        self.learner.backward(loss)
        norm = self.learner.step(self.rate(self.done))
        if not np.isfinite(norm):
            raise RairlError(f"the reward's gradient is {norm} at update {key}; lower reward.learning_rate")
        self.done += 1
        border = boundary(last, batch.positive, self.params.objective)
        metrics = {"discriminator/loss": value, "discriminator/grad_norm": norm}
        metrics |= discriminator_metrics(
            last, batch.positive, batch.kinds, [len(trace.text) for trace in batch.traces], border
        )
        if self.params.switch_labels:
            metrics["discriminator/switched"] = float(batch.positive.sum() - len(experts))
        return metrics | self._memorisation(experts, border, key)

    def _learning(self) -> Discriminator:
        """The discriminator as its update reads with it: sharded, with a single pass, so that processes keep step."""
        if self.learner.model is self.model:
            return self.discriminator
        return replace(self.discriminator, model=self.learner.model, batch_tokens=sys.maxsize)

    # --- measuring --------------------------------------------------------------------------------------------------

    def _memorisation(self, experts: Sequence[Trace], border: float, key: str) -> Metrics:
        """Accuracy on held-out experts, and by how much that on as many experts of the update exceeds it."""
        count = min(HELD_OUT, len(self.held_out), len(experts))
        if not count:
            return {}
        unseen = random.Random(f"{self.seed}/held-out/{key}").sample(list(self.held_out), count)
        right = self.discriminator.evidence([*experts[:count], *unseen]) > border
        return {
            "discriminator/accuracy_held_out": float(right[count:].mean()),
            "discriminator/memorisation": float(right[:count].mean() - right[count:].mean()),
        }

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def state(self, folder: Path) -> dict[str, Any]:
        """Weights that learn, optimiser, replay buffer, and the count of updates.

        The memo starts afresh with every checkpoint: what is in it decides which traces share a batch, and with that
        the last digits of their features, so a resumed run must not differ in it from one that went on.
        """
        self.discriminator.memo = self._new_memo()
        write_traces(folder / "replay.jsonl", unique_ids(self.replay.traces))
        return {
            "weights": self.model.learned_state(),
            "optimizers": self.learner.state(),
            "done": self.done,
        }

    def restore(self, state: dict[str, Any], folder: Path) -> None:
        """Load what :meth:`state` kept."""
        self.discriminator.memo = self._new_memo()
        self.model.load_state_dict(state["weights"], strict=False)
        self.learner.restore(state["optimizers"])
        self.replay = Replay(self.params.replay_size, read_traces(folder / "replay.jsonl", allow_empty=True))
        self.done = state["done"]


def unique_ids(traces: Iterable[Trace]) -> list[Trace]:
    """Copies whose ids are numbered, since rollouts of different iterations share theirs."""
    return [replace(trace, id=f"{index}:{trace.id.split(':')[-1]}") for index, trace in enumerate(traces)]
