"""Language-model training: pre-training on whole texts and supervised fine-tuning on completions only."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from tqdm import tqdm

from rairl.core.errors import RairlError
from rairl.core.traces import Trace
from rairl.learn import checkpoints, distributed
from rairl.learn.learner import Learner
from rairl.learn.muon import Muon
from rairl.models.reading import batches_by_length, encode, pad

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

IGNORE = -100
Example = tuple[list[int], int]
"""Token ids (end token included) and the number of leading ones that carry no loss."""


def examples(
    tokenizer: PreTrainedTokenizerBase, traces: Sequence[Trace], *, whole: bool = False, end: int | None = None
) -> list[Example]:
    """Token ids with end token for each trace; the loss covers the completion only, or everything when ``whole``.

    Args:
        end: the end token, see :func:`rairl.models.reading.end_tokens`; by default the tokenizer's.
    """
    last = tokenizer.eos_token_id if end is None else end
    return [([*row.ids, last], 0 if whole else row.prompt_tokens) for row in encode(tokenizer, traces)]


def lm_loss(model: nn.Module, batch: Sequence[Example], pad_id: int) -> Tensor:
    """Mean cross-entropy per supervised token, in nats (scalar)."""
    ids, mask = pad([row for row, _ in batch], pad_id)
    labels = ids.masked_fill(mask == 0, IGNORE)
    for row, (_, skip) in zip(labels, batch, strict=True):
        row[:skip] = IGNORE
    device = next(model.parameters()).device
    # Padded on the right, where causal attention never looks: no mask is needed.
    logits = model(input_ids=ids.to(device), use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten().to(device), ignore_index=IGNORE
    )


def shuffled_batches(rows: Sequence[Example], size: int, seed: str) -> Iterator[list[Example]]:
    """One epoch in batches of similar length: sorted within windows of 50 batches, batches shuffled, none left out."""
    rng = random.Random(seed)
    order = list(rows)
    rng.shuffle(order)
    window = size * 50
    batches = []
    for start in range(0, len(order), window):
        part = sorted(order[start : start + window], key=lambda row: len(row[0]))
        batches += [part[at : at + size] for at in range(0, len(part), size)]
    rng.shuffle(batches)
    yield from batches


def cosine(step: int, total: int, warmup: int) -> float:
    """Learning-rate factor: linear warm-up, then half a cosine down to a tenth."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


@dataclass(frozen=True)
class Fit:
    """How a language model is trained: ``epochs`` calls of ``batches(epoch)``, rate ``rate(step)`` at each step.

    Attributes:
        learner: of the model, with optimisers made by :func:`adamw` or :func:`muon`; all take the same rate.
        batches: the batches of an epoch, the same at every call.
        rate: learning rate at a global step.
        evaluate: dev loss after an epoch; with it the best epoch's weights win.
        micro_batch_tokens: tokens, padding included, that go through at once; None for the whole batch.
    """

    learner: Learner
    epochs: int
    batches: Callable[[int], Sequence[Sequence[Example]]]
    rate: Callable[[int], float]
    evaluate: Callable[[PreTrainedModel], float] | None = None
    micro_batch_tokens: int | None = None


def fit(
    model: PreTrainedModel,
    plan: Fit,
    pad_id: int,
    *,
    folder: Path,
    desc: str,
    on_epoch: Callable[[dict[str, float]], None],
    on_last: Callable[[], None] = lambda: None,
) -> list[dict[str, float]]:
    """Train in place, from the newest checkpoint in ``folder``; returns one row of metrics per epoch.

    ``on_last`` is called when the model holds the last epoch's weights, before the best epoch's replace them.

    Raises:
        RairlError: when the loss is not a number, before the weights are touched by it; the last checkpoint is kept.
    """
    history: list[dict[str, float]] = []
    best: dict[str, Tensor] = {}
    found = checkpoints.load(folder)
    if found is not None:
        state, _ = found
        model.load_state_dict(state["model"])
        plan.learner.restore(state["optimizers"])
        history, best = json.loads(state["history"]), state["best"]
        for row in history:
            on_epoch(row)
    bar = tqdm(total=sum(len(plan.batches(epoch)) for epoch in range(plan.epochs)), desc=desc, unit="batch")
    step = int(history[-1]["batches"]) if history else 0
    bar.update(step)
    for epoch in range(len(history), plan.epochs):
        row = {"step": epoch, **_epoch(plan, epoch, step, bar, pad_id, desc)}
        step = int(row["batches"])
        if plan.evaluate is not None:
            evaluate = plan.evaluate
            row["dev/loss"] = distributed.by_first(lambda evaluate=evaluate: evaluate(model))  # type: ignore[misc]
            if row["dev/loss"] < min((old["dev/loss"] for old in history), default=float("inf")):
                best = {name: value.detach().clone() for name, value in model.state_dict().items()}
        history.append(row)
        on_epoch(row)
        state = {"model": model.state_dict(), "optimizers": plan.learner.state(), "best": best}
        checkpoints.save(folder, epoch + 1, lambda _, state=state: {**state, "history": json.dumps(history)})  # type: ignore[misc]
    bar.close()
    on_last()
    if best:
        model.load_state_dict(best)
    model.eval()
    return history


def _epoch(plan: Fit, epoch: int, first: int, bar: tqdm[None], pad_id: int, desc: str) -> dict[str, float]:
    plan.learner.model.train()
    total, batches = 0.0, plan.batches(epoch)
    for step, batch in enumerate(batches, start=first):  # a bar that is switched off would count nothing
        plan.learner.zero_grad()
        value = _backward(plan.learner, batch, pad_id, plan.micro_batch_tokens)
        if not math.isfinite(value):
            raise RairlError(f"the loss is {value} at batch {step} of {desc}; lower the learning rate")
        norm = plan.learner.step(plan.rate(step))
        if not math.isfinite(norm):
            raise RairlError(f"the gradient's norm is {norm} at batch {step} of {desc}; lower the learning rate")
        total += value
        bar.update(1)
        bar.set_postfix(loss=f"{value:.3f}", refresh=False)
    return {"train/loss": total / max(1, len(batches)), "batches": first + len(batches)}


def _backward(learner: Learner, batch: Sequence[Example], pad_id: int, micro_batch_tokens: int | None = None) -> float:
    """Gradient of this process's share of the batch's mean loss per token; returns the loss of all shares."""
    parts = _micro_batches(distributed.mine(batch), micro_batch_tokens)
    value = 0.0
    for part, counts in learner.lockstep(parts, batch[:1]):
        loss = lm_loss(learner.model, part, pad_id) * (supervised(part) / supervised(batch) * counts)
        learner.backward(loss)
        value += loss.item()
    return distributed.total(value)


def _micro_batches(share: Sequence[Example], tokens: int | None) -> list[Sequence[Example]]:
    if tokens is None:
        return [share] if share else []
    return [[share[index] for index in chosen] for chosen in batches_by_length([len(ids) for ids, _ in share], tokens)]


def supervised(batch: Sequence[Example]) -> int:
    """Tokens that carry loss: all but the leading ones, and never the first, which nothing predicts."""
    return sum(len(ids) - max(skip, 1) for ids, skip in batch)


def adamw(model: nn.Module) -> list[torch.optim.Optimizer]:
    """AdamW on everything: for fine-tuning."""
    return [torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)]


def muon(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon on the layers' matrices, AdamW on embeddings and norms, at one rate: for training from scratch.

    Needs about half of AdamW's batches to the same loss here (docs/log.md).
    """
    matrices = [value for name, value in model.named_parameters() if value.ndim == 2 and "embed" not in name]
    chosen = {id(value) for value in matrices}
    others = [value for value in model.parameters() if id(value) not in chosen]
    return [
        Muon(matrices, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.01),
    ]


@torch.inference_mode()
def mean_loss(model: PreTrainedModel, rows: Sequence[Example], pad_id: int, batch_size: int = 64) -> float:
    """Mean cross-entropy per supervised token over ``rows``, in nats."""
    model.eval()
    total = weight = 0.0
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        tokens = supervised(batch)
        total += lm_loss(model, batch, pad_id).item() * tokens
        weight += tokens
    return total / weight
