"""The second model stage: a second built-in model by the same recipe, for the reward to read with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rairl.core.params import Params
from rairl.core.stats import Estimate, exact
from rairl.core.traces import read_traces
from rairl.stages.base import Log, train_builtin, write_manifest
from rairl.stages.sft import fine_tune

if TYPE_CHECKING:
    from rairl.tracking.run import Run

SEED_OFFSET = 1_000_001
"""Added to the seed: far beyond the seeds that people choose, so that no run's second model is another run's base;
and odd, so that the built-in corpus has the other misconception (:data:`rairl.datasets.arithmetic.MISCONCEPTIONS`)."""


def second_model(params: Params, run: Run, *, data: Path, model: Path) -> dict[str, Estimate]:
    """Pre-train and fine-tune another model as ``base`` and ``sft`` do, for ``reward.backbone: second_model``.

    A model is wrong with confidence where its own features misread the problem, so a reward on those features misses
    the very errors that matter. A second model, of the same size and the same demonstrations but of another corpus,
    other initial weights and another order of batches, misreads elsewhere.

    Args:
        params: ``base`` and ``sft`` act here.
        run: losses of both parts, under ``base/`` and ``sft/``.
        data: the prepared splits; ``demos`` teach, ``dev`` chooses the epoch. Without a generator (real text) the
            corpus is the text of the demonstrations, as it is for the base model.
        model: folder to write the fine-tuned model and its manifest to (empty for any other reward.backbone).

    Returns:
        ``second_model.parameters`` and ``second_model.dev_loss`` (nats per token) of the winning epoch; empty for any
        other reward.backbone.
    """
    if not params.second_model:
        return {}
    from rairl.learn.checkpoints import checkpoint_folder, clear
    from rairl.models.policy import save_policy

    for split in ("demos", "dev"):
        run.log_input(data / f"{split}.jsonl", name=split)
    seed, dev = params.seed + SEED_OFFSET, read_traces(data / "dev.jsonl")
    # Both parts' checkpoints stay until the model is saved: a run killed in the second part has not lost the first.
    works = {part: checkpoint_folder(f"second_model/{part}", params, [data / "card.json"]) for part in ("base", "sft")}
    network, tokenizer = train_builtin(
        params, data, seed=seed, folder=works["base"], desc="second model base", log=_under("base", run)
    )
    history = fine_tune(
        network,
        tokenizer,
        params.sft,
        read_traces(data / "demos.jsonl"),
        dev,
        seed=seed,
        folder=works["sft"],
        desc="second model sft",
        log=_under("sft", run),
    )
    save_policy(model, network, tokenizer)
    count = write_manifest(model, params.base, network)
    for work in works.values():
        clear(work)
    return {
        "second_model.parameters": exact(count),
        "second_model.dev_loss": exact(min(row["dev/loss"] for row in history), len(dev)),
    }


def _under(prefix: str, run: Run) -> Log:
    return lambda metrics, step: run.log({f"{prefix}/{key}": value for key, value in metrics.items()}, step)
