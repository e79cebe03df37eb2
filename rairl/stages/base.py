"""The base stage: build and train the built-in model, or fetch one, and write down where it came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rairl.core.dataset_params import ArithmeticDataset
from rairl.core.params import Params
from rairl.core.stats import Estimate, exact
from rairl.core.traces import Trace, read_traces
from rairl.core.training_params import BaseParams, BuiltinBase

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rairl.tracking.run import Run

Log = Callable[[Mapping[str, float], int], None]
"""Takes metrics and the step they belong to, as ``Run.log`` does."""

SLICES = 20
"""The built-in model's corpus is read in this many slices; training resumes after the last whole one."""


def base(params: Params, run: Run, *, data: Path, model: Path) -> dict[str, Estimate]:
    """Put the base model and its manifest into the folder ``model``.

    Args:
        params: ``base`` acts here.
        run: training loss per slice of the corpus.
        data: the prepared splits. The built-in model never sees a problem of theirs, except that without a generator
            (real text) its corpus is the text of the demonstrations.
        model: folder to write.

    Returns:
        ``base.parameters``.
    """
    from rairl.learn.checkpoints import checkpoint_folder, clear

    work = checkpoint_folder("base", params, [data / "card.json"])
    if isinstance(params.base, BuiltinBase):
        network, tokenizer = train_builtin(params, data, seed=params.seed, folder=work, desc="base", log=run.log)
    else:
        from rairl.models.base import load_source

        network, tokenizer = load_source(
            "base.source", params.base.source, params.base.revision, params.system, dtype=params.base.dtype
        )
    from rairl.models.policy import save_policy

    save_policy(model, network, tokenizer)
    count = write_manifest(model, params.base, network)
    clear(work)
    return {"base.parameters": exact(count)}


def write_manifest(folder: Path, params: BaseParams, network: PreTrainedModel) -> int:
    """Write down beside a saved model where it came from and what its weights hash to; returns its parameters."""
    count = sum(parameter.numel() for parameter in network.parameters())
    manifest = {
        "source": params.source,
        "revision": None if isinstance(params, BuiltinBase) else params.revision,
        "architecture": network.config.architectures,
        "parameters": count,
        "params": params.model_dump(),
        "sha256": {path.name: _sha256(path) for path in sorted(folder.glob("*.safetensors"))},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return count


def train_builtin(
    params: Params, data: Path, *, seed: int, folder: Path, desc: str, log: Log
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Pre-train a built-in model with a tokenizer of its own.

    Args:
        params: ``base``, which is built in, and ``dataset`` act here.
        data: the prepared splits.
        seed: of the corpus, the initial weights and the order of batches.
        folder: of checkpoints. The last one stays, so that the same call gives the same model at once; the caller
            clears it when the model is safe elsewhere.
        desc: label of the progress bar.
        log: takes the training loss per slice of the corpus.
    """
    from rairl.learn.language_model import Fit, cosine, examples, fit, muon, shuffled_batches
    from rairl.learn.learner import Learner
    from rairl.models.base import address, new_model, train_tokenizer

    sizes = params.base
    assert isinstance(sizes, BuiltinBase)
    corpus = _corpus(params, sizes, data, seed)
    tokenizer = train_tokenizer((f"{trace.problem}\n{trace.text}" for trace in corpus[:5000]), sizes.vocab_size)
    address(tokenizer, params.system)
    rows = examples(tokenizer, corpus, whole=True)
    longest = max(len(ids) for ids, _ in rows)
    # Others' traces may be far longer than any of the corpus; a rotary model reads on, if less well, at no cost.
    network = new_model(sizes, tokenizer, max_tokens=max(4096, 2 * longest), seed=seed)
    batches = [
        batch
        for epoch in range(sizes.epochs)
        for batch in shuffled_batches(rows, sizes.batch_size, f"base/{seed}/{epoch}")
    ]
    total = len(batches)
    slices = [batches[total * part // SLICES : total * (part + 1) // SLICES] for part in range(SLICES)]
    peak, warmup = sizes.learning_rate, max(1, total // 20)
    # Too small to be sharded, whatever the configuration.
    plan = Fit(
        Learner(network, muon(network)), SLICES, slices.__getitem__, lambda step: peak * cosine(step, total, warmup)
    )

    def on_epoch(row: dict[str, float]) -> None:
        log({"train/loss": row["train/loss"]}, int(row["batches"]))

    fit(network, plan, tokenizer.pad_token_id, folder=folder, desc=desc, on_epoch=on_epoch)
    return network, tokenizer


def _corpus(params: Params, sizes: BuiltinBase, data: Path, seed: int) -> Sequence[Trace]:
    """Texts to pre-train on: many authors' generated solutions, or else the demonstrations."""
    if not isinstance(params.dataset, ArithmeticDataset):
        return read_traces(data / "demos.jsonl")[: sizes.corpus]
    from rairl.datasets import arithmetic

    seen = frozenset(trace.problem for path in sorted(data.glob("*.jsonl")) for trace in read_traces(path))
    pairs = arithmetic.corpus(sizes.corpus, seed, seen)
    return [Trace(id=str(index), problem=problem, text=text) for index, (problem, text) in enumerate(pairs)]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
