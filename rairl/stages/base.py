"""The base stage: build and train the built-in model, or fetch one, and write down where it came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rairl.params import ArithmeticDataset, Params
from rairl.stats import Estimate, exact
from rairl.traces import Trace, read_traces

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rairl.tracking import Run

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
    if params.base.source == "builtin":
        network, tokenizer = _train(params, run, data)
    else:
        from rairl.models.base import load_source

        network, tokenizer = load_source("base.source", params.base.source, params.base.revision)
    from rairl.models.policy import save_policy

    save_policy(model, network, tokenizer)
    count = sum(parameter.numel() for parameter in network.parameters())
    manifest = {
        "source": params.base.source,
        "revision": params.base.revision,
        "architecture": network.config.architectures,
        "parameters": count,
        "params": params.base.model_dump(),
        "sha256": {path.name: _sha256(path) for path in sorted(model.glob("*.safetensors"))},
    }
    (model / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return {"base.parameters": exact(count)}


def _train(params: Params, run: Run, data: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from rairl.learn.checkpoints import checkpoint_folder, clear
    from rairl.learn.sft import Fit, cosine, examples, fit, muon, shuffled_batches
    from rairl.models.base import new_model, train_tokenizer

    corpus = _corpus(params, data)
    tokenizer = train_tokenizer((f"{trace.problem}\n{trace.text}" for trace in corpus[:5000]), params.base.vocab_size)
    rows = examples(tokenizer, corpus, whole=True)
    longest = max(len(ids) for ids, _ in rows)
    # Others' traces may be far longer than any of the corpus; a rotary model reads on, if less well, at no cost.
    network = new_model(params.base, tokenizer, max_tokens=max(4096, 2 * longest), seed=params.seed)
    batches = [
        batch
        for epoch in range(params.base.epochs)
        for batch in shuffled_batches(rows, params.base.batch_size, f"base/{params.seed}/{epoch}")
    ]
    total = len(batches)
    slices = [batches[total * part // SLICES : total * (part + 1) // SLICES] for part in range(SLICES)]
    peak, warmup = params.base.learning_rate, max(1, total // 20)
    plan = Fit(muon(network), SLICES, slices.__getitem__, lambda step: peak * cosine(step, total, warmup))
    folder = checkpoint_folder("base", params, [data / "card.json"])

    def on_epoch(row: dict[str, float]) -> None:
        run.log({"train/loss": row["train/loss"]}, step=int(row["batches"]))

    fit(network, plan, tokenizer.pad_token_id, folder=folder, desc="base", on_epoch=on_epoch)
    clear(folder)
    return network, tokenizer


def _corpus(params: Params, data: Path) -> Sequence[Trace]:
    """Texts to pre-train on: many authors' generated solutions, or else the demonstrations."""
    if not isinstance(params.dataset, ArithmeticDataset):
        return read_traces(data / "demos.jsonl")[: params.base.corpus]
    from rairl.datasets import arithmetic

    seen = frozenset(trace.problem for path in sorted(data.glob("*.jsonl")) for trace in read_traces(path))
    pairs = arithmetic.corpus(params.base.corpus, params.seed, seen)
    return [Trace(id=str(index), problem=problem, text=text) for index, (problem, text) in enumerate(pairs)]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
