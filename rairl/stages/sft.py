"""The sft stage: supervised fine-tuning of the base model on the demonstrations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rairl.core.params import Params
from rairl.core.stats import Estimate, exact
from rairl.core.traces import Trace, read_traces
from rairl.core.training_params import SftParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rairl.tracking.run import Run


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
    from rairl.models.adapters import add_lora
    from rairl.models.policy import load_policy, mixed, save_policy

    for split in ("demos", "dev"):
        run.log_input(data / f"{split}.jsonl", name=split)
    network, tokenizer = load_policy(base)
    if params.sft.train == "lora":
        add_lora(network, params.sft.lora_rank, seed=params.seed)
    else:
        mixed(network)
    dev = read_traces(data / "dev.jsonl")
    work = checkpoint_folder("sft", params, [data / "card.json", base])
    history = fine_tune(
        network,
        tokenizer,
        params.sft,
        read_traces(data / "demos.jsonl"),
        dev,
        seed=params.seed,
        folder=work,
        desc="sft",
        log=run.log,
        on_last=lambda: save_policy(last, network, tokenizer),
    )
    save_policy(model, network, tokenizer)
    clear(work)
    best = min(history, key=lambda row: row["dev/loss"])
    return {
        "sft.epochs": exact(best["step"] + 1),
        "sft.dev_loss": exact(best["dev/loss"], len(dev)),
        "sft.updates": exact(history[-1]["batches"]),
    }


def fine_tune(
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    params: SftParams,
    demos: Sequence[Trace],
    dev: Sequence[Trace],
    *,
    seed: int,
    folder: Path,
    desc: str,
    log: Callable[[Mapping[str, float], int], None],
    on_last: Callable[[], None] = lambda: None,
) -> list[dict[str, float]]:
    """Fine-tune in place with the loss on completions only; ``network`` ends with the epoch that is best on dev.

    Args:
        demos, dev: traces that teach, and that choose.
        seed: of the order of batches.
        folder: of checkpoints; the caller clears it when the model is safe elsewhere.
        desc: label of the progress bar.
        log: takes training and dev loss per epoch.
        on_last: called when the network holds the last epoch's weights.

    Returns:
        per epoch ``step`` (0-based), ``batches`` so far, ``train/loss`` and ``dev/loss``, in nats per token.
    """
    from rairl.learn.language_model import Fit, adamw, examples, fit, mean_loss, shuffled_batches
    from rairl.learn.sharding import language_learner
    from rairl.models.reading import end_tokens

    end = end_tokens(network, tokenizer)[0]
    train, held_out = examples(tokenizer, demos, end=end), examples(tokenizer, dev, end=end)
    warmup = max(1, len(train) // params.batch_size)  # one epoch: a fresh Adam takes full-size steps
    plan = Fit(
        learner=language_learner(network, adamw),
        epochs=params.epochs,
        batches=lambda epoch: list(shuffled_batches(train, params.batch_size, f"sft/{seed}/{epoch}")),
        rate=lambda step: params.learning_rate * min(1.0, (step + 1) / warmup),
        evaluate=lambda current: mean_loss(current, held_out, tokenizer.pad_token_id),
        micro_batch_tokens=params.micro_batch_tokens,
    )

    def on_epoch(row: dict[str, float]) -> None:
        log({key: row[key] for key in ("train/loss", "dev/loss")}, int(row["step"]))

    return fit(network, plan, tokenizer.pad_token_id, folder=folder, desc=desc, on_epoch=on_epoch, on_last=on_last)
