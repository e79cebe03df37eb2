"""The policy loop and the two rewards that drive it: the learned one (R-AIRL) and the outcome (GRPO baseline).

One iteration: sample a group of completions for each of a few prompts; let the reward give advantages; move the policy
by one policy-gradient step with a KL penalty towards the SFT policy; let the reward learn. A batch is scored *before*
the reward learns anything from rollouts of its own iteration.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from rairl.errors import RairlError
from rairl.learn import checkpoints
from rairl.learn.credit import group_advantages, step_advantages
from rairl.learn.objectives import bce_loss
from rairl.learn.replay import Replay
from rairl.learn.rollouts import Completion, character_ends, sample, to_traces
from rairl.models.policy import batches_by_length, encode, pad, token_logprobs
from rairl.models.reward import Memo, Reads, RewardModel, read_tokens
from rairl.params import PolicyParams, RewardParams
from rairl.perturb import perturb
from rairl.traces import Trace, read_traces, write_traces

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Metrics = dict[str, float]
VARIANTS = 16
"""Different corruptions of one demonstration over a run."""


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
    replay: Replay = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    memo: Memo | None = field(init=False)

    def __post_init__(self) -> None:
        self.replay = Replay(self.params.replay_size)
        self.memo = None if self.params.train_backbone else Memo()
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
        if self.params.credit == "trace":
            return spread(group_advantages(last, self.floor).ravel(), batch.completions), metrics
        groups = [per_trace[at : at + batch.group] for at in range(0, len(per_trace), batch.group)]
        flat = [values for group in step_advantages(groups, self.params.discount, self.floor) for values in group]
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
        self.memo = None if self.params.train_backbone else Memo()
        write_traces(folder / "replay.jsonl", unique_ids(self.replay.traces))
        trained = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        weights = {name: value for name, value in self.model.state_dict().items() if name in trained}
        return {"weights": weights, "optimizer": self.optimizer.state_dict()}

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


def spread(values: np.ndarray, completions: Sequence[Completion]) -> list[np.ndarray]:
    """One value per completion, repeated for each of its tokens."""
    return [np.full(len(item.ids), value) for value, item in zip(values, completions, strict=True)]


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
