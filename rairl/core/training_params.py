"""Parameters of the base model, of SFT, of the policy loop, of the reward and of the collapse guard."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from rairl.core.section import Dtype, Fraction, Granularity, NonNegativeInt, PositiveFloat, PositiveInt, Section

Schedule = Annotated[
    Literal["constant", "cosine"],
    Field(
        description="of the learning rate after its warm-up: it stays, or falls to nothing as half a cosine over all "
        "updates"
    ),
]
Optimizer = Annotated[
    Literal["adamw", "paged_adamw_8bit"],
    Field(
        description="'paged_adamw_8bit', by bitsandbytes: AdamW's state in 8 bits, on a GPU in memory that can move to "
        "the host"
    ),
]
LoraRank = Annotated[int, Field(ge=1, description="rank of the adapters, for train 'lora'; alpha is twice the rank")]
BaseDtype = Annotated[
    Dtype,
    Field(
        description="what this model, and all that are trained from it, hold their weights in and compute with; what "
        "learns is float32 while it does, and so are log-probabilities and losses"
    ),
]
Beta2 = Annotated[float, Field(gt=0, lt=1, description="AdamW's second beta; the first is 0.9")]


class BuiltinBase(Section):
    """A small Llama, trained from scratch here on a corpus of its own."""

    source: Literal["builtin"]
    dtype: BaseDtype = "float32"
    hidden_size: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    vocab_size: Annotated[int, Field(ge=300)]
    corpus: PositiveInt = Field(description="solutions in the pre-training corpus")
    epochs: PositiveInt = Field(default=1, description="passes over that corpus")
    batch_size: PositiveInt
    learning_rate: PositiveFloat

    @model_validator(mode="after")
    def _consistent(self) -> BuiltinBase:
        if self.hidden_size % (2 * self.heads):
            raise ValueError("base.hidden_size must be a multiple of 2 * base.heads (rotary halves of equal size)")
        return self


class PretrainedBase(Section):
    """A model from elsewhere."""

    source: str = Field(description="a local folder, or a hub id")
    revision: str | None = Field(default=None, description="pinned commit of a hub id; required for one")
    dtype: BaseDtype = "float32"


def _kind(base: Any) -> str:
    source = base.get("source") if isinstance(base, dict) else getattr(base, "source", None)
    return "builtin" if source == "builtin" else "pretrained"


BaseParams = Annotated[
    Annotated[BuiltinBase, Tag("builtin")] | Annotated[PretrainedBase, Tag("pretrained")],
    Discriminator(_kind),
    Field(description="where the base model comes from: base.source 'builtin', a local folder, or a hub id"),
]


class SftParams(Section):
    """Supervised fine-tuning on the demonstrations; the epoch with the best dev loss wins."""

    epochs: PositiveInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    train: Literal["full", "lora"] = Field(
        default="full", description="'full': all weights learn; 'lora': low-rank adapters do, folded in at the end"
    )
    lora_rank: LoraRank = 8
    micro_batch_tokens: PositiveInt | None = Field(
        default=None, description="tokens, padding included, that go through at once; null for the whole batch"
    )


class PolicyParams(Section):
    """The policy loop; the grpo and rairl stages share it and differ in the reward alone."""

    start: Literal["sft", "base"] = Field(
        default="sft", description="the model that the policy starts from, and whose distance the KL penalty measures"
    )
    train: Literal["full", "lora"] = Field(
        default="full", description="'full': all weights learn; 'lora': low-rank adapters do"
    )
    lora_rank: LoraRank = 8
    iterations: PositiveInt
    prompts_per_iteration: PositiveInt
    group_size: Annotated[int, Field(ge=2)] = Field(description="samples per prompt; advantages are relative to them")
    max_new_tokens: PositiveInt
    temperature: PositiveFloat = 1.0
    learning_rate: PositiveFloat
    learning_rate_schedule: Schedule = "constant"
    warmup_iterations: NonNegativeInt = Field(
        default=0, description="learning rate rises linearly; a fresh Adam takes full-size steps"
    )
    optimizer: Optimizer = "adamw"
    adam_beta2: Beta2 = 0.999
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    kl: Annotated[float, Field(ge=0)] = Field(description="weight of the KL penalty towards policy.start")
    advantage_floor: PositiveFloat = Field(default=0.5, description="advantages are divided by max(group std, this)")
    checkpoint_every: PositiveInt = Field(default=10, description="iterations between resumable checkpoints")
    micro_batch_tokens: PositiveInt = Field(
        default=16384, description="tokens, padding included, that go through forward and back at once; a memory limit"
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="keep only what enters each layer for the backward pass, and compute the rest again: a fraction of "
        "the memory for a third more time",
    )


class RewardParams(Section):
    """The reward model (discriminator) and its training."""

    backbone: str = Field(
        description="the body the reward starts from: 'second_model', a built-in model of another seed, which does "
        "not share the policy's blind spots; the policy's own 'sft' or 'base' model; a local folder or a hub id (its "
        "tokenizer may differ from the policy's); or 'shared': the policy's own frozen weights, one copy in memory"
    )
    revision: str | None = Field(default=None, description="pinned commit of a hub id")
    dtype: Dtype = Field(
        default="float32",
        description="what the body holds its weights in and computes with; head, adapters, features and losses are "
        "float32",
    )
    head: Literal["surprisal", "linear"] = Field(
        description="'surprisal' also sees the backbone's token log-probabilities; 'linear' loads in plain transformers"
    )
    train: Literal["head", "lora", "full"] = Field(
        default="head", description="what learns beside the head: nothing, adapters, or all"
    )
    lora_rank: LoraRank = 8
    granularity: Granularity = Field(description="where the logit is trained and read")
    objective: Literal["bce", "relativistic"] = Field(
        default="bce", description="'bce': binary cross-entropy; 'relativistic': Bradley-Terry within a prompt"
    )
    switch_labels: bool = Field(
        default=False, description="count rollouts with a right answer as positives; this uses answers"
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        default=0.1, description="targets are 1 - this and this"
    )
    dropout: Fraction = Field(default=0.0, description="in front of the head's last linear map")
    optimizer: Optimizer = "adamw"
    adam_beta2: Beta2 = 0.999
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    credit: Literal["mean", "last", "return", "difference", "min"] = Field(
        description="'mean' (as published) or 'last' read as one advantage for all tokens; per step: discounted "
        "'return'-to-go of the reads' differences, the 'difference' alone, or the lowest one still to come ('min')"
    )
    discount: Annotated[float, Field(ge=0, le=1)] = Field(default=0.9, description="for credit 'return'")
    clip: PositiveFloat | None = Field(
        default=None, description="reads are clipped to +-this before credit; null for no clip"
    )
    learning_rate: PositiveFloat
    learning_rate_schedule: Schedule = "constant"
    learning_rate_warmup: NonNegativeInt = Field(
        default=0, description="updates over which the learning rate rises linearly"
    )
    warmup_updates: NonNegativeInt = Field(description="reward updates before the policy starts to move")
    warmup_rollouts: PositiveInt = Field(
        default=8,
        description="samples per demonstration's prompt to warm up on: of the base model, and where the policy starts "
        "from SFT as many of the SFT policy",
    )
    updates_per_iteration: NonNegativeInt = 1
    demos_per_update: PositiveInt
    rollout_prompts: Literal["demos", "others"] = Field(
        default="demos",
        description="fresh rollouts on the demonstrations' own prompts, or the policy's batch on other prompts",
    )
    perturbations: NonNegativeInt = Field(description="verified corruptions per expert trace in an update")
    perturbation_depth: PositiveInt = Field(default=1, description="corruptions composed in one trace: 1 to this many")
    replay_size: NonNegativeInt = Field(description="past rollouts kept as negatives")
    register_every: PositiveInt = Field(
        default=20, description="iterations between registered reward checkpoints; updates, with logged traces"
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="keep only what enters each layer for the backward pass, and compute the rest again: a fraction of "
        "the memory for a third more time; for train 'lora' and 'full'",
    )


class GuardParams(Section):
    """The collapse guard of the rairl stage; what counts as a collapse is in :mod:`rairl.learn.collapse_guard`."""

    action: Literal["off", "stop", "rollback"] = Field(
        default="rollback",
        description="'stop' ends with the last good checkpoint; 'rollback' goes on from it at half the learning rate; "
        "neither trains a policy on a warmed-up reward that can't tell right from wrong",
    )


def contradictions(reward: RewardParams) -> Iterator[str]:
    """Why a choice of keys in ``reward`` can't hold together; nothing for a sound one."""
    per_step = reward.credit in ("return", "difference", "min")
    if reward.granularity == "sparse" and per_step:
        yield f"reward.credit '{reward.credit}' needs a reward read at steps; reward.granularity 'sparse' reads once"
    if reward.head == "surprisal" and reward.train == "full":
        yield (
            "reward.train 'full' with reward.head 'surprisal' would move the log-probabilities the head reads; "
            "use reward.train 'lora' or 'head', or reward.head 'linear'"
        )
    if reward.backbone == "shared" and reward.train == "full":
        yield "reward.backbone 'shared' is frozen, the policy reads it too: use reward.train 'head' or 'lora'"
    if reward.objective == "relativistic" and reward.rollout_prompts == "others":
        yield "reward.objective 'relativistic' compares traces of one prompt; set reward.rollout_prompts to 'demos'"
    if reward.gradient_checkpointing and reward.train == "head":
        yield "reward.gradient_checkpointing acts on a body that learns; reward.train 'head' keeps nothing anyway"
