"""Before money is spent: what a run needs (``rairl plan``), and whether this machine can give it (``rairl doctor``)."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from rairl.core.dataset_params import RealText
from rairl.core.errors import RairlError
from rairl.core.params import Params
from rairl.core.training_params import BuiltinBase
from rairl.preflight.presets import hub_sources
from rairl.preflight.sizing import GB, Architecture, Gpu, Plan, hours, memory, per_gpu, seconds

GPUS = {
    "h100": Gpu(),
    "h200": Gpu(memory=141 * GB, bandwidth=4.8e12),
    "a100": Gpu(operations=312e12, bandwidth=2.04e12),
    "l40s": Gpu(memory=48 * GB, operations=362e12, bandwidth=0.86e12),
    "rtx 4090": Gpu(memory=24 * GB, operations=165e12, bandwidth=1.01e12),
}
"""By name: the makers' memory, bfloat16 rate and bandwidth; the shares reached are assumptions, see :class:`Gpu`."""
SIZES = {
    "Qwen/Qwen2.5-0.5B-Instruct": Architecture(896, 4864, 24, 14, 2, 151936, tied=True, biases=True),
    "Qwen/Qwen2.5-1.5B-Instruct": Architecture(1536, 8960, 28, 12, 2, 151936, tied=True, biases=True),
    "Qwen/Qwen2.5-3B-Instruct": Architecture(2048, 11008, 36, 16, 2, 151936, tied=True, biases=True),
    "Qwen/Qwen2.5-7B-Instruct": Architecture(3584, 18944, 28, 28, 4, 152064, biases=True),
    "Qwen/Qwen3-4B-Instruct-2507": Architecture(2560, 9728, 36, 32, 8, 151936, tied=True, head=128, head_norms=True),
    "meta-llama/Llama-3.2-1B-Instruct": Architecture(2048, 8192, 16, 32, 8, 128256, tied=True),
    "meta-llama/Llama-3.2-3B-Instruct": Architecture(3072, 8192, 28, 24, 8, 128256, tied=True),
    "meta-llama/Llama-3.1-8B-Instruct": Architecture(4096, 14336, 32, 32, 8, 128256),
}
"""Of the presets' models, so that a published cell is planned without the hub, where two families ask for a licence."""
USABLE = 0.95
"""Share of a GPU's memory to plan with; the rest is the driver's and lost between blocks."""
TOKENS_PER_WORD = 4 / 3
READ_TOKENS = 16384
"""Tokens that the reward reads at once."""


def architecture(config: Mapping[str, Any]) -> Architecture:
    """The sizes in a model's ``config.json``.

    Raises:
        RairlError: when it is not of the Llama family.
    """
    kind = config.get("model_type")
    if kind not in ("llama", "qwen2", "qwen3"):
        raise RairlError(f"sizes are known for llama, qwen2 and qwen3, not for {kind!r}")
    return Architecture(
        hidden=config["hidden_size"],
        intermediate=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        vocabulary=config["vocab_size"],
        tied=config.get("tie_word_embeddings", False),
        head=config.get("head_dim"),
        biases=kind == "qwen2",
        head_norms=kind == "qwen3",
    )


def sizes_of(source: str, revision: str | None) -> Architecture:
    """The sizes of a folder's or of a hub model, which is not asked for those in :data:`SIZES`.

    Raises:
        RairlError: when they can't be read.
    """
    return SIZES[source] if source in SIZES else architecture(read_config(source, revision))


def read_config(source: str, revision: str | None) -> dict[str, Any]:
    """``config.json`` of a folder, or of a hub model (a few kilobytes).

    Raises:
        RairlError: when neither can be read.
    """
    path = Path(source) / "config.json"
    if not path.is_file():
        from huggingface_hub import hf_hub_download

        try:
            path = Path(hf_hub_download(source, "config.json", revision=revision))
        except Exception as error:  # the hub client raises a dozen unrelated types
            raise RairlError(
                f"{source}: no folder with a config.json, and the hub does not give it ({type(error).__name__}); check "
                "network and access (`rairl doctor`), or name a folder instead: to plan, its config.json is enough"
            ) from error
    return json.loads(path.read_text(encoding="utf-8"))


def plan_of(params: Params) -> Plan:
    """The run that the parameters describe, with lengths at their longest."""
    base, policy, reward = params.base, params.policy, params.reward
    if isinstance(base, BuiltinBase):
        sizes = Architecture(
            base.hidden_size, base.hidden_size * 5 // 2, base.layers, base.heads, base.heads, base.vocab_size, tied=True
        )
    else:
        sizes = sizes_of(base.source, base.revision)
    own = reward.backbone in ("base", "sft", "second_model", "shared")
    body = sizes if own else sizes_of(reward.backbone, reward.revision)
    words = params.dataset.max_problem_words if isinstance(params.dataset, RealText) else None
    return Plan(
        policy=sizes,
        reward=body,
        rank=max(policy.lora_rank, reward.lora_rank if reward.train == "lora" else 0),
        prompts=policy.prompts_per_iteration,
        group=policy.group_size,
        prompt=round(words * TOKENS_PER_WORD) if words else 300,
        completion=policy.max_new_tokens,
        iterations=policy.iterations,
        warmup_updates=reward.warmup_updates,
        updates=max(1, reward.updates_per_iteration),
        traces_per_update=reward.demos_per_update * (3 + reward.perturbations),
        micro_batch=policy.micro_batch_tokens,
    )


class Needs(NamedTuple):
    """What a run needs: lines to print, and why it does not fit (None when it does)."""

    lines: list[str]
    problem: str | None


def needs(params: Params, gpu: Gpu, gpus: int) -> Needs:
    """Parameters, memory, tokens and hours of the rairl stage on ``gpus`` GPUs.

    What learns is counted at 16 bytes a weight, for it, its gradient and Adam's two, or at 10 with those in 8 bits;
    without adapters that is all weights, and the KL reference, in float32 as well, is 4 bytes a weight.
    """
    plan = plan_of(params)
    parts = memory(plan, gpus)
    trained = {"policy": plan.policy.adapters(params.policy.lora_rank), "reward": 0}
    if params.policy.train == "full":
        trained["policy"] = plan.policy.parameters
    if params.reward.train != "head":
        lora = params.reward.train == "lora"
        trained["reward"] = plan.reward.adapters(params.reward.lora_rank) if lora else plan.reward.parameters
    else:
        parts["update reward"] = 0.0
    if params.reward.gradient_checkpointing:
        tokens = per_gpu(plan.traces_per_update, gpus) * plan.length
        parts["update reward"] = checkpointed(plan.reward, tokens, READ_TOKENS, plan.rank)
    if params.policy.gradient_checkpointing:
        batch = min(plan.micro_batch, per_gpu(plan.rows, gpus) * plan.length)
        logits = 14.0 * batch * plan.policy.vocabulary
        parts["update policy"] = checkpointed(plan.policy, batch, batch, plan.rank) + logits
    parts["policy"] = held(plan.policy, params.base.dtype)
    parts["reward"] = held(plan.reward, params.reward.dtype)
    if params.policy.train == "full":
        parts["policy"] = 4.0 * plan.policy.parameters
    if params.reward.train == "full" or params.reward.backbone == "shared":
        parts["reward"] = 0.0
    bytes_of = {"adamw": 16.0, "paged_adamw_8bit": 10.0}
    parts["adapters, gradients, Adam"] = (
        bytes_of[params.policy.optimizer] * trained["policy"] + bytes_of[params.reward.optimizer] * trained["reward"]
    )
    passing = ("generate", "update policy", "update reward")
    kept = sum(value for name, value in parts.items() if name not in (*passing, "peak"))
    largest = max(passing, key=lambda name: parts[name])
    parts["peak"] = kept + parts[largest]
    lines = [
        f"parameters: policy {plan.policy.parameters / 1e9:.2f} billion, reward {plan.reward.parameters / 1e9:.2f}",
        f"trainable: policy {trained['policy'] / 1e6:.1f} million, reward {trained['reward'] / 1e6:.1f} and its head",
        f"tokens per iteration: {plan.tokens:,} at most ({plan.rows} completions of {plan.length} with their prompts)",
        *(f"GB per GPU, {name}: {value / GB:.1f}" for name, value in parts.items()),
        *(f"seconds per iteration, {name}: {value:.1f}" for name, value in seconds(plan, gpus, gpu).items()),
        f"hours of the rairl stage: {hours(plan, gpus, gpu):.1f} (counts divided by assumed rates, not measured)",
    ]
    if parts["peak"] <= USABLE * gpu.memory:
        return Needs(lines, None)
    advice = {
        "generate": "policy.group_size or policy.prompts_per_iteration",
        "update policy": "policy.micro_batch_tokens, or set policy.gradient_checkpointing",
        "update reward": "reward.demos_per_update, or set reward.gradient_checkpointing or reward.train head",
    }
    shrink = f"lower {advice[largest]}"
    if kept > USABLE * gpu.memory:
        shrink = "take a smaller model, or hold it in less: base.dtype, reward.dtype, backbone shared"
    return Needs(
        lines,
        f"it does not fit: {parts['peak'] / GB:.1f} GB at the peak ({largest}) of {gpu.memory / GB:.0f} GB; {shrink}",
    )


def checkpointed(sizes: Architecture, tokens: int, at_once: int, rank: int) -> float:
    """Bytes of an update with gradient checkpointing: each layer's input in bfloat16, and one whole layer.

    Args:
        tokens: of the update.
        at_once: how many of them go through a layer at once.
        rank: of the adapters.
    """
    inputs = 2 * sizes.layers * sizes.hidden * tokens
    return float(inputs + min(tokens, at_once) * sizes.activations(rank) / sizes.layers)


def held(sizes: Architecture, dtype: str) -> float:
    """Bytes of frozen weights."""
    return (4.0 if dtype == "float32" else 2.0) * sizes.parameters


def find_gpu(name: str | None) -> tuple[Gpu, str]:
    """The GPU that is named, else the one found here, else an H100; and what to call it.

    Raises:
        RairlError: for a name that is not in :data:`GPUS`.
    """
    if name is not None:
        if name.lower() not in GPUS:
            raise RairlError(f"GPU {name!r} is unknown; one of {', '.join(GPUS)}")
        return GPUS[name.lower()], name.upper()
    import torch

    if not torch.cuda.is_available():
        return GPUS["h100"], "H100 (none found here; name another with --gpu)"
    found = torch.cuda.get_device_properties(0)
    known = next((gpu for key, gpu in GPUS.items() if key in found.name.lower()), None)
    told = found.name if known is not None else f"{found.name} (rates unknown: an A100's assumed)"
    return replace(known or GPUS["a100"], memory=float(found.total_memory)), told


# --- doctor ----------------------------------------------------------------------------------------------------------


class Finding(NamedTuple):
    """One check: whether all is well, what was found, and what to do if not."""

    good: bool
    text: str
    remedy: str = ""


def doctor(params: Params, folder: Path) -> Iterator[Finding]:
    """GPU, memory, disk, versions, hub access and the MLflow server, for a run of ``params`` in ``folder``."""
    yield _gpu(params)
    yield _disk(params, folder)
    yield from _versions(params)
    yield from _hub(params)
    yield _tracking(folder)


def _gpu(params: Params) -> Finding:
    import torch

    small = isinstance(params.base, BuiltinBase)
    if not torch.cuda.is_available():
        built = "with" if torch.version.cuda else "without"
        text = f"GPU: none (torch {torch.__version__}, built {built} CUDA)"
        return Finding(small, text, "run where there is a GPU and install torch's CUDA build, see pytorch.org")
    found = torch.cuda.get_device_properties(0)
    text = (
        f"GPU: {torch.cuda.device_count()} x {found.name}, {found.total_memory / GB:.0f} GB, CUDA {torch.version.cuda}"
    )
    return Finding(True, text)


def _disk(params: Params, folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    try:
        plan = plan_of(params)
    except RairlError as error:
        return Finding(
            False, f"disk: {free / GB:.0f} GB free; how much is needed is unknown ({error})", "see hub below"
        )
    # base, sft, its last epoch, grpo, policy and the reward, in bfloat16, and the reward's checkpoints
    kept = 2 + params.policy.iterations // params.reward.register_every
    wanted = 2.0 * (5 * plan.policy.parameters + kept * plan.reward.parameters) + GB
    text = f"disk: {free / GB:.0f} GB free in {folder.resolve()}, about {wanted / GB:.0f} GB needed"
    return Finding(free >= wanted, text, "free some, run in another folder, or raise reward.register_every")


def extras(params: Params) -> Iterator[Finding]:
    """What a run of ``params`` needs beside rairl's own dependencies."""
    if "paged_adamw_8bit" in (params.policy.optimizer, params.reward.optimizer):
        yield _installed("bitsandbytes", "pip install 'rairl[quantised]', or set optimizer to adamw")


def _versions(params: Params) -> Iterator[Finding]:
    yield from extras(params)
    for name in ("torch", "transformers", "peft", "accelerate", "datasets", "mlflow", "math-verify"):
        yield _installed(name, "run `make setup`, or pip install -r requirements.lock")


def _installed(name: str, remedy: str) -> Finding:
    try:
        return Finding(True, f"{name}: {version(name)}")
    except PackageNotFoundError:
        return Finding(False, f"{name}: not installed", remedy)


def _hub(params: Params) -> Iterator[Finding]:
    values = params.model_dump()
    sources = hub_sources(values)
    if not sources:
        yield Finding(True, "hub: not needed, every source is built in or a file")
    from huggingface_hub import HfApi

    for section, key, source in sources:
        api = HfApi()
        revision = values[section][key]
        try:
            ask = api.dataset_info if section == "dataset" else api.model_info
            commit = ask(source, revision=revision, timeout=10).sha
        except Exception as error:  # the hub client raises a dozen unrelated types
            remedy = "check the network, accept the licence on its page, and log in with `hf auth login` or HF_TOKEN"
            yield Finding(False, f"hub: {source} can't be read ({type(error).__name__})", remedy)
            continue
        text = f"hub: {source} is readable at {commit}"
        yield Finding(revision is not None, text, f"set {section}.{key} to that commit, or compose with --pin")


def _tracking(folder: Path) -> Finding:
    from rairl.tracking.store import tracking_uri

    uri = tracking_uri(folder)
    if not uri.startswith("http"):
        return Finding(os.access(folder, os.W_OK), f"MLflow: {uri}", f"make {folder} writable")
    from urllib.request import urlopen

    try:
        with urlopen(f"{uri.rstrip('/')}/health", timeout=5):
            return Finding(True, f"MLflow: {uri} answers")
    except OSError as error:
        remedy = "start it, correct MLFLOW_TRACKING_URI, or unset it to track into mlflow.db (training goes on without)"
        return Finding(False, f"MLflow: {uri} does not answer ({error})", remedy)
