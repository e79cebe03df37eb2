"""The sft stage: supervised fine-tuning of the base model on the demonstrations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rairl.params import Params
from rairl.stats import Estimate, exact
from rairl.traces import read_traces

if TYPE_CHECKING:
    from rairl.tracking import Run


def sft(params: Params, run: Run, *, data: Path, base: Path, model: Path, last: Path) -> dict[str, Estimate]:
    """Fine-tune with the loss on completions only; the epoch with the best dev loss wins.

    The last epoch's weights are kept too: they answer what simply training longer would have given.

    Args:
        params: ``sft`` acts here.
        run: training and dev loss per epoch.
        data: the prepared splits; ``demos`` teach, ``dev`` chooses.
        base: the base model's folder.
        model: folder to write the winning epoch to.
        last: folder to write the last epoch to.

    Returns:
        ``sft.epochs`` and ``sft.dev_loss`` (nats per token) of the winning epoch; ``sft.updates``, all optimiser steps
        taken.
    """
    from rairl.learn.checkpoints import checkpoint_folder, clear
    from rairl.learn.sft import Fit, adamw, examples, fit, mean_loss, shuffled_batches
    from rairl.models.policy import load_policy, save_policy

    for split in ("demos", "dev"):
        run.log_input(data / f"{split}.jsonl", name=split)
    network, tokenizer = load_policy(base)
    train = examples(tokenizer, read_traces(data / "demos.jsonl"))
    dev = examples(tokenizer, read_traces(data / "dev.jsonl"))
    warmup = max(1, len(train) // params.sft.batch_size)  # one epoch: a fresh Adam takes full-size steps
    plan = Fit(
        optimizers=adamw(network),
        epochs=params.sft.epochs,
        batches=lambda epoch: list(shuffled_batches(train, params.sft.batch_size, f"sft/{params.seed}/{epoch}")),
        rate=lambda step: params.sft.learning_rate * min(1.0, (step + 1) / warmup),
        evaluate=lambda current: mean_loss(current, dev, tokenizer.pad_token_id),
        patience=params.sft.patience,
    )
    folder = checkpoint_folder("sft", params, [data / "card.json", base])

    def on_epoch(row: dict[str, float]) -> None:
        run.log({key: row[key] for key in ("train/loss", "dev/loss")}, step=int(row["step"]))

    history = fit(
        network,
        plan,
        tokenizer.pad_token_id,
        folder=folder,
        desc="sft",
        on_epoch=on_epoch,
        on_last=lambda: save_policy(last, network, tokenizer),
    )
    save_policy(model, network, tokenizer)
    clear(folder)
    best = min(history, key=lambda row: row["dev/loss"])
    return {
        "sft.epochs": exact(best["step"] + 1),
        "sft.dev_loss": exact(best["dev/loss"], len(dev)),
        "sft.updates": exact(history[-1]["batches"]),
    }
