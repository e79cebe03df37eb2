"""The discriminator as a reward: what it learns from, and the advantages it gives."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rairl.errors import RairlError
from rairl.learn.adversarial import Batch, Metrics, spread
from rairl.learn.credit import Baseline, group_advantages, step_advantages
from rairl.learn.objectives import bce_loss
from rairl.learn.replay import Replay
from rairl.learn.rollouts import character_ends
from rairl.models.policy import encode
from rairl.models.reward import Memo, Reads, RewardModel, read_tokens
from rairl.params import RewardParams
from rairl.perturb import perturb
from rairl.traces import Trace, read_traces, write_traces

VARIANTS = 16
"""Different corruptions of one demonstration over a run."""


@dataclass
class LearnedReward:
    """The discriminator as a reward: it learns from experts against policy rollouts, replay and verified corruptions.

    Experts and rollouts answer the *same* prompts (those of the demonstrations): were they on different prompts, the
    cheapest way to tell the classes apart would be to recognise the prompts.

    Attributes:
        model: the reward model.
        demos: expert traces.
        replay: past rollouts on the demonstrations' prompts.
    """

    model: RewardModel
    demos: Sequence[Trace]
    params: RewardParams
    floor: float
    seed: int
    baseline: Baseline = "group"
    replay: Replay = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    memo: Memo | None = field(init=False)

    def __post_init__(self) -> None:
        self.replay = Replay(self.params.replay_size)
        self.memo = Memo() if self.params.train == "head" else None
        self.optimizer = torch.optim.AdamW(
            self.model.trained_parameters(), lr=self.params.learning_rate, weight_decay=self.params.weight_decay
        )

    # --- credit -----------------------------------------------------------------------------------------------------

    def advantages(self, batch: Batch) -> tuple[list[np.ndarray], Metrics]:
        """Advantages by ``reward.credit`` from the logits of the current, not yet updated model."""
        with torch.no_grad():
            self.model.eval()
            reads = self.model.read(batch.traces)
            logits = self.model.logits(reads).double().cpu().numpy()
        per_trace = split_reads(logits, reads, len(batch.traces))
        last = np.array([values[-1] for values in per_trace]).reshape(-1, batch.group)
        correct = np.array([trace.correct for trace in batch.traces], dtype=float)
        metrics = {
            "reward/mean": float(last.mean()),
            "reward/std_in_group": float(last.std(axis=1).mean()),
            "reward/corr_length": correlation(last.ravel(), [len(item.ids) for item in batch.completions]),
        }
        if not np.isnan(correct).any():
            metrics["reward/corr_correct"] = correlation(last.ravel(), correct)
        rule = self.params.credit
        if rule == "mean" or rule == "last":
            mean = np.array([values.mean() for values in per_trace]).reshape(last.shape)
            values = group_advantages(mean if rule == "mean" else last, self.floor, self.baseline).ravel()
            return spread(values, batch.completions), metrics
        groups = [per_trace[at : at + batch.group] for at in range(0, len(per_trace), batch.group)]
        advantages = step_advantages(groups, rule, self.params.discount, self.floor, self.baseline)
        flat = [values for group in advantages for values in group]
        return [
            spread_reads(values, reads_of(self.model, trace), character_ends(batch.tokenizer, completion.ids))
            for values, trace, completion in zip(flat, batch.traces, batch.completions, strict=True)
        ], metrics

    # --- learning ---------------------------------------------------------------------------------------------------

    def warm_up(self, traces: Sequence[Trace], on_update: Callable[[Metrics], None]) -> None:
        """Train against rollouts of the initial policies before the policy moves (``reward.warmup_updates``)."""
        self.replay.add(traces)
        for update in range(self.params.warmup_updates):
            on_update(self.update([], f"warmup/{update}"))

    def learn(self, iteration: int, rollout: Callable[[Sequence[Trace], str], list[Trace]]) -> Metrics:
        """``reward.updates_per_iteration`` updates, each with fresh rollouts on the demonstrations it draws."""
        metrics: Metrics = {}
        for update in range(self.params.updates_per_iteration):
            key = f"{iteration}/{update}"
            fresh = rollout(self._draw(key), f"learn{update}-")
            metrics = self.update(fresh, key)
            self.replay.add(fresh)
        return metrics

    def _draw(self, key: str) -> list[Trace]:
        rng = random.Random(f"{self.seed}/demos/{key}")
        return rng.sample(list(self.demos), min(self.params.demos_per_update, len(self.demos)))

    def _corrupt(self, demo: Trace, rng: random.Random) -> Trace | None:
        """One of a fixed set of corruptions of a demonstration, so that their reads can be looked up."""
        return perturb(demo, random.Random(f"{self.seed}/corrupt/{demo.id}/{rng.randrange(VARIANTS)}"))

    def update(self, fresh: Sequence[Trace], key: str) -> Metrics:
        """One gradient step: experts against fresh rollouts on their prompts, replay, and verified corruptions.

        Raises:
            RairlError: when the loss is not a number; the weights are left as they were.
        """
        rng = random.Random(f"{self.seed}/update/{key}")
        experts = self._draw(key)
        drawn = [self._corrupt(demo, rng) for demo in experts for _ in range(self.params.perturbations)]
        corrupted = [bad for bad in drawn if bad is not None]
        replayed = self.replay.draw(len(experts), rng)
        generated = [*fresh, *replayed, *corrupted]
        if not generated:
            raise RairlError("the reward has no negatives: set reward.perturbations, reward.replay_size or sample more")
        self.model.train()
        torch.manual_seed(rng.getrandbits(31))
        reads = self.model.read([*experts, *generated], memo=self.memo)
        logits = self.model.logits(reads)
        positive = reads.trace < len(experts)
        loss = bce_loss(logits[positive], logits[~positive], self.params.label_smoothing)
        if not torch.isfinite(loss):
            raise RairlError(f"the reward's loss is {loss.item()} at update {key}; lower reward.learning_rate")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.trained_parameters(), 1.0)
        self.optimizer.step()
        kinds = ["expert"] * len(experts) + ["policy"] * len(fresh) + ["replay"] * len(replayed)
        kinds += ["perturbed"] * len(corrupted)
        return {
            "discriminator/loss": loss.item(),
            "discriminator/grad_norm": float(norm),
            **diagnostics(logits.detach().cpu().double().numpy(), reads, kinds, [*experts, *generated]),
        }

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def state(self, folder: Path) -> dict[str, Any]:
        """Weights that learn, optimiser and replay buffer.

        The memo starts afresh with every checkpoint: what is in it decides which traces share a batch, and with that
        the last digits of their features, so a resumed run must not differ in it from one that went on.
        """
        self.memo = Memo() if self.params.train == "head" else None
        write_traces(folder / "replay.jsonl", unique_ids(self.replay.traces))
        return {"weights": self.model.learned_state(), "optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict[str, Any], folder: Path) -> None:
        """Load what :meth:`state` kept."""
        self.model.load_state_dict(state["weights"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.replay = Replay(self.params.replay_size, read_traces(folder / "replay.jsonl", allow_empty=True))


def unique_ids(traces: Iterable[Trace]) -> list[Trace]:
    """Copies whose ids are numbered, since rollouts of different iterations share theirs."""
    return [replace(trace, id=f"{index}:{trace.id.split(':')[-1]}") for index, trace in enumerate(traces)]


def reads_of(model: RewardModel, trace: Trace) -> list[int]:
    """Character ends, in the trace's text, of the units that the reward reads."""
    item = encode(model.tokenizer, [trace])[0]
    tokens = read_tokens(item, trace, model.params.granularity, model.params.interval)
    return [int(item.ends[token - item.prompt_tokens]) for token in tokens]


def split_reads(values: np.ndarray, reads: Reads, count: int) -> list[np.ndarray]:
    """Values of all reads ``(R,)`` as one array per trace."""
    bounds = np.searchsorted(reads.trace.numpy(), np.arange(1, count))
    return np.split(values, bounds)


def spread_reads(values: np.ndarray, unit_ends: Sequence[int], token_ends: Sequence[int]) -> np.ndarray:
    """One value per unit, given to the tokens that lie in it.

    Both sides are character positions in the text, so the reward's tokenizer may differ from the policy's. A token that
    straddles two units belongs to the later one; what follows the last unit (the end token) belongs to the last.

    Args:
        values: shape ``(K,)``.
        unit_ends: ascending character ends of the K units.
        token_ends: character end of each sampled token.
    """
    unit = np.searchsorted(unit_ends, token_ends, side="left")
    return values[np.minimum(unit, len(values) - 1)]


def correlation(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> float:
    """Pearson correlation; 0 when either side is constant."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if x.std() == 0 or y.std() == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def diagnostics(logits: np.ndarray, reads: Reads, kinds: Sequence[str], traces: Sequence[Trace]) -> Metrics:
    """How the discriminator sees each kind of trace, by its last read.

    Accuracy per kind (expert above 0, everything else below), entropy of its decisions in nats, gap between the mean
    logits of experts and of all others, and correlation of logit and length (a length shortcut shows here).

    Args:
        logits: shape ``(R,)``.
        kinds: one of expert, policy, replay, perturbed per trace.
    """
    last = np.array([values[-1] for values in split_reads(logits, reads, len(traces))])
    is_expert = np.array([kind == "expert" for kind in kinds])
    metrics = {}
    for kind in dict.fromkeys(kinds):
        mine = last[[one == kind for one in kinds]]
        metrics[f"discriminator/accuracy_{kind}"] = float((mine > 0).mean() if kind == "expert" else (mine < 0).mean())
    p = 1 / (1 + np.exp(-np.clip(last, -30, 30)))
    entropy = -(p * np.log(p + 1e-12) + (1 - p) * np.log(1 - p + 1e-12))
    return {
        **metrics,
        "discriminator/entropy": float(entropy.mean()),
        "discriminator/gap": float(last[is_expert].mean() - last[~is_expert].mean()),
        "discriminator/corr_length": correlation(last, [len(trace.text) for trace in traces]),
    }
