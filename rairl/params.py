"""The typed view of params.yaml: an unknown key, a wrong type or a contradiction is an error that names the key.

Imports only the standard library, yaml and pydantic, so that the command line answers at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rairl.errors import RairlError

Granularity = Literal["sparse", "step", "interval", "dense"]
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Dtype = Literal["float32", "bfloat16"]
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
Beta2 = Annotated[float, Field(gt=0, lt=1, description="AdamW's second beta; the first is 0.9")]


class Section(BaseModel):
    """A section of params.yaml: strict types, no unknown keys, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ArithmeticDataset(Section):
    """The built-in benchmark of generated word problems with an exact step oracle."""

    name: Literal["arithmetic"]
    demos: PositiveInt = Field(description="problems with an expert trace")
    prompts: PositiveInt = Field(description="problems without traces, for the policy loop")
    dev: PositiveInt = Field(description="held-out problems with expert traces; every choice is made on them")
    test: PositiveInt = Field(description="held-out problems for the reported numbers")
    ood: PositiveInt = Field(description="problems in each out-of-distribution split")
    noise: Fraction = Field(
        default=0.0, description="share of the demonstrations, and of dev, that a careless author solved instead"
    )
    steps: Annotated[int, Field(ge=3, le=9)] = Field(
        default=6, description="most steps of a problem, from 3 on; the split of longer chains has one and two more"
    )
    largest: Annotated[int, Field(ge=40)] = Field(
        default=40, description="largest number in a problem; the split of larger numbers has half as much again"
    )


class LoggedDataset(Section):
    """Expert traces plus logged traces of other models: the reward is learned offline, no policy is in the loop."""

    name: Literal["gsm8k-logged"]
    demos: str = Field(description="GSM8K training file, or the hub id openai/gsm8k")
    revision: str | None = Field(default=None, description="pinned revision when `demos` is a hub id")
    logged: str = Field(description="file of model solutions, several per question, correctness known")
    labelled: list[str] = Field(
        default=[],
        description="files with human first-error labels: ProcessBench, MR-Ben, BIG-Bench-Mistake, or of `rairl view`",
    )
    dev: PositiveInt = Field(description="expert traces kept out of training; every choice is made on them")
    held_out: Annotated[float, Field(gt=0, lt=1)] = Field(
        description="share of the logged questions kept for reranking; their traces are never negatives"
    )
    max_demos: PositiveInt | None = Field(default=None, description="use at most this many expert traces; null for all")


class Reviewed(Section):
    """Labels of a reviewer on solutions that somebody else wrote: traces whose first wrong step is known."""

    labels: list[str] = Field(
        default=[],
        description="files as `rairl view` lets a reviewer download them (or of the public labelled sets), to learn "
        "from: wrong traces are negatives from their first wrong step on, right ones are positives",
    )
    dev_labels: list[str] = Field(
        default=[],
        description="such files on dev's problems or other ones: natural errors to choose locator and threshold on",
    )


class FileDataset(Reviewed):
    """A user's own files in the trace format."""

    name: Literal["file"]
    demos: str = Field(description="expert traces")
    prompts: str = Field(description="problems for the policy loop; `gold` is needed only by the outcome baseline")
    dev: str = Field(description="held-out expert traces")
    test: str = Field(description="held-out problems with `gold`")


class RealText(Reviewed):
    """What the data sets of real questions share. A source is a JSON-lines file or a hub id with a pinned revision."""

    system: str | None = Field(
        default=None, description="system message in front of every problem, by the model's own chat template"
    )
    dev: PositiveInt = Field(description="expert traces kept out of training; every choice is made on them")
    max_demos: PositiveInt | None = Field(default=None, description="use at most this many expert traces; null for all")
    max_problem_words: PositiveInt | None = Field(
        default=None, description="expert traces on longer problems are left out, with a count; test never is"
    )
    max_solution_words: PositiveInt | None = Field(
        default=None, description="longer expert traces are left out, with a count"
    )
    split_seed: NonNegativeInt = Field(
        default=42, description="of the splits; apart from `seed`, so that runs of several seeds share their test set"
    )


class Gsm8kDataset(RealText):
    """GSM8K: expert solutions of its training questions by people or by a stronger model; its own test questions."""

    name: Literal["gsm8k"]
    demos: str = Field(description="rows with `question` and `answer`: ending in '#### 72', or '<think>' and '\\boxed'")
    demos_revision: str | None = None
    test: str = Field(description="rows with `question` and `answer`, whose last line is '#### 72'")
    test_revision: str | None = None


class MmluProDataset(RealText):
    """MMLU-Pro: questions with 3 to 10 options. It ships no rationale for them, so experts' come from elsewhere."""

    name: Literal["mmlu_pro"]
    questions: str = Field(
        description="rows with `question_id`, `question`, `options`, `answer` (a letter), `category`"
    )
    questions_revision: str | None = None
    rationales: str = Field(description="rows with `question_id` and `rationale`: worked solutions of those questions")
    rationales_revision: str | None = None
    category: str | None = Field(default=None, description="questions of one category only, 'health' say; null for all")
    test: PositiveInt = Field(description="questions kept for the reported numbers")


class MedReasonDataset(RealText):
    """MedReason: medical questions with options and worked reasoning (Wu et al. 2025)."""

    name: Literal["medreason"]
    demos: str = Field(description="rows with `question`, `options`, `reasoning`, `answer`, `dataset_name`")
    demos_revision: str | None = None
    sources: Annotated[list[str], Field(min_length=1)] = Field(
        default=["medqa", "medmcqa"], description="values of `dataset_name` to use: those whose questions have options"
    )
    test: PositiveInt = Field(description="questions kept for the reported numbers")


class BaseParams(Section):
    """Where the base model comes from."""

    source: str = Field(description="'builtin', a local folder, or a hub id")
    revision: str | None = Field(default=None, description="pinned commit of a hub id; required for one")
    dtype: Dtype = Field(
        default="float32",
        description="what this model, and all that are trained from it, hold their weights in and compute with; what "
        "learns is float32 while it does, and so are log-probabilities and losses",
    )
    hidden_size: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    vocab_size: Annotated[int, Field(ge=300)]
    corpus: PositiveInt = Field(description="solutions in the pre-training corpus of the built-in model")
    epochs: PositiveInt = Field(description="passes over that corpus")
    batch_size: PositiveInt
    learning_rate: PositiveFloat

    @model_validator(mode="after")
    def _consistent(self) -> BaseParams:
        if self.hidden_size % (2 * self.heads):
            raise ValueError("base.hidden_size must be a multiple of 2 * base.heads (rotary halves of equal size)")
        return self


class SftParams(Section):
    """Supervised fine-tuning on the demonstrations; the epoch with the best dev loss wins."""

    epochs: PositiveInt
    patience: PositiveInt | None = Field(
        default=None, description="epochs without a better dev loss before stopping; null runs all epochs"
    )
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    train: Literal["full", "lora"] = Field(
        default="full", description="'full': all weights learn; 'lora': low-rank adapters do, folded in at the end"
    )
    lora_rank: PositiveInt = Field(
        default=8, description="rank of the adapters, for train 'lora'; alpha is twice the rank"
    )
    micro_batch_tokens: PositiveInt | None = Field(
        default=None, description="tokens, padding included, that go through at once; null for the whole batch"
    )


class PolicyParams(Section):
    """The policy loop; the grpo and rairl stages share it and differ in the reward alone."""

    start: Literal["sft", "base"] = Field(
        default="sft", description="the model that the policy starts from, and whose distance the KL penalty measures"
    )
    train: Literal["full", "lora"] = Field(description="'full': all weights learn; 'lora': low-rank adapters do")
    lora_rank: PositiveInt = Field(description="rank of the adapters, for train 'lora'; alpha is twice the rank")
    iterations: PositiveInt
    prompts_per_iteration: PositiveInt
    group_size: Annotated[int, Field(ge=2)] = Field(description="samples per prompt; advantages are relative to them")
    max_new_tokens: PositiveInt
    temperature: PositiveFloat
    learning_rate: PositiveFloat
    learning_rate_schedule: Schedule = "constant"
    warmup_iterations: NonNegativeInt = Field(
        description="learning rate rises linearly; a fresh Adam takes full-size steps"
    )
    optimizer: Optimizer = "adamw"
    adam_beta2: Beta2 = 0.999
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    kl: Annotated[float, Field(ge=0)] = Field(description="weight of the KL penalty towards policy.start")
    kl_target: PositiveFloat | None = Field(
        default=None, description="nats per token that the KL weight adapts to hold; null keeps it fixed"
    )
    entropy: Annotated[float, Field(ge=0)] = Field(description="weight of the entropy bonus, per token in nats")
    baseline: Literal["group", "leave_one_out"] = Field(
        description="what a sample's reward is compared with: the mean of its group, or of the others in it"
    )
    advantage_floor: PositiveFloat = Field(description="advantages are divided by max(group std, this)")
    checkpoint_every: PositiveInt = Field(description="iterations between resumable checkpoints")
    micro_batch_tokens: PositiveInt = Field(
        default=16384, description="tokens, padding included, that go through forward and back at once; a memory limit"
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="keep only what enters each layer for the backward pass, and compute the rest again: a fraction of "
        "the memory for a third more time",
    )
    load_in_4bit: bool = Field(
        default=False, description="hold the frozen weights in 4 bits (NF4, by bitsandbytes); for train 'lora'"
    )
    rollouts: Literal["transformers", "vllm"] = Field(
        default="transformers",
        description="what samples the loop's rollouts; 'vllm', made for big models, has not been run yet",
    )
    vllm_memory: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.4, description="share of the GPU's memory for vLLM's copy of the policy and its cache"
    )


Band = Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=2, max_length=2)]


class RewardParams(Section):
    """The reward model (discriminator) and its training."""

    backbone: str = Field(
        description="the body the reward starts from: 'peer', a second built-in model of another seed, which does not "
        "share the policy's blind spots; the policy's own 'sft' or 'base' model; a local folder or a hub id (its "
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
    train: Literal["head", "lora", "full"] = Field(description="what learns beside the head: nothing, adapters, or all")
    lora_rank: PositiveInt = Field(description="rank of the adapters, for train 'lora'; alpha is twice the rank")
    granularity: Granularity = Field(description="where the logit is trained and read")
    interval: PositiveInt = Field(description="tokens between reads, for granularity 'interval'")
    objective: Literal["bce", "wgan", "relativistic"] = Field(
        description="'bce' with label smoothing; 'wgan', which needs a Lipschitz bound; 'relativistic': Bradley-Terry "
        "within a prompt"
    )
    form: Literal["logit", "airl"] = Field(
        description="'logit': the reward is the logit; 'airl': D = sigmoid(f - log pi), f = g + gamma h' - h, reward g"
    )
    switch_labels: bool = Field(description="count rollouts with a right answer as positives; this uses answers")
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(description="for 'bce' and 'relativistic'")
    gradient_penalty: Annotated[float, Field(ge=0)] = Field(description="weight of (|gradient of the head| - 1)^2")
    spectral_norm: bool = Field(description="keep every linear map of the head 1-Lipschitz")
    dropout: Fraction = Field(description="in front of the head's last linear map")
    optimizer: Optimizer = "adamw"
    adam_beta2: Beta2 = 0.999
    weight_decay: Annotated[float, Field(ge=0)]
    credit: Literal["mean", "last", "return", "difference", "min"] = Field(
        description="'mean' (as published) or 'last' read as one advantage for all tokens; per step: discounted "
        "'return'-to-go of the reads' differences, the 'difference' alone, or the lowest one still to come ('min')"
    )
    discount: Annotated[float, Field(ge=0, le=1)] = Field(description="for credit 'return', and gamma of form 'airl'")
    clip: PositiveFloat | None = Field(
        default=None, description="reads are clipped to +-this before credit; null for no clip"
    )
    normalise: bool = Field(description="divide rewards by their running standard deviation")
    length_control: Literal["none", "match", "centre"] = Field(
        description="'match': negatives of the experts' lengths; 'centre': what length explains is taken off the reward"
    )
    ema: Fraction = Field(description="decay of the lagging copy that scores; 0 scores with the weights themselves")
    learning_rate: PositiveFloat
    learning_rate_schedule: Schedule = "constant"
    learning_rate_warmup: NonNegativeInt = Field(description="updates over which the learning rate rises linearly")
    warmup_updates: NonNegativeInt = Field(description="reward updates before the policy starts to move")
    warmup_rollouts: PositiveInt = Field(
        description="samples per demonstration's prompt to warm up on: of the base model, and where the policy starts "
        "from SFT as many of the SFT policy"
    )
    updates_per_iteration: NonNegativeInt
    accuracy_band: Band | None = Field(
        default=None,
        description="below it the updates per iteration double (up to 4 times as many), above it they halve (down "
        "to 0); null keeps their number fixed",
    )
    demos_per_update: PositiveInt
    rollout_prompts: Literal["demos", "others"] = Field(
        description="fresh rollouts on the demonstrations' own prompts, or the policy's batch on other prompts"
    )
    perturbations: NonNegativeInt = Field(description="verified corruptions per expert trace in an update")
    perturbation_depth: PositiveInt = Field(description="corruptions composed in one trace: 1 to this many")
    replay_size: NonNegativeInt = Field(description="past rollouts kept as negatives")
    register_every: PositiveInt = Field(description="iterations between registered reward checkpoints")
    gradient_checkpointing: bool = Field(
        default=False,
        description="keep only what enters each layer for the backward pass, and compute the rest again: a fraction of "
        "the memory for a third more time; for train 'lora' and 'full'",
    )
    load_in_4bit: bool = Field(
        default=False, description="hold the frozen body in 4 bits (NF4, by bitsandbytes); for train 'lora' and 'head'"
    )


class GuardParams(Section):
    """The collapse guard of the rairl stage: what counts as a collapse, and what to do then."""

    action: Literal["off", "stop", "rollback"] = Field(
        description="'stop' ends with the last good checkpoint; 'rollback' goes on from it at half the learning rate"
    )
    patience: PositiveInt = Field(description="iterations in a row that a sign of collapse must last")
    length_ratio: Annotated[float, Field(gt=1)] = Field(
        description="mean length above this multiple of the first iterations', or below its inverse"
    )
    min_entropy: Fraction = Field(description="entropy below this share of the first iterations'")
    saturation: Annotated[float, Field(gt=0.5, le=1)] = Field(
        description="discriminator accuracy on experts and on fresh rollouts both above this"
    )
    hacking: Annotated[float, Field(gt=0)] = Field(
        description="fall below its best of the share of dev problems that the policy solves; or of the reward's dev "
        "score, while the learned reward is at its highest"
    )
    min_auroc: Annotated[float, Field(ge=0, le=1)] = Field(
        description="no policy is trained on a warmed-up reward that tells right from wrong rollouts on dev less "
        "surely than this (AUROC within a problem; 0.5 is chance)"
    )


class SampleParams(Section):
    """Candidates drawn from each policy for evaluation."""

    n: Annotated[int, Field(ge=2)] = Field(description="samples per prompt at the first temperature")
    temperatures: Annotated[list[PositiveFloat], Field(min_length=1)] = Field(
        description="the first is the headline, and the only one that is reranked and localised; at the others the "
        "policies are compared on test"
    )
    extra_n: PositiveInt = Field(
        description="samples per prompt at each of the other temperatures, and where only pass@1 is measured"
    )

    @model_validator(mode="after")
    def _consistent(self) -> SampleParams:
        if len(set(self.temperatures)) < len(self.temperatures):
            raise ValueError(f"sample.temperatures names one twice: {', '.join(map(str, self.temperatures))}")
        return self


class RerankParams(Section):
    """Reranking of sampled answers."""

    n: Annotated[int, Field(ge=2)] = Field(description="the N of the headline best-of-N; at most sample.n")


class ReportParams(Section):
    """Statistics of the report."""

    bootstrap: Annotated[int, Field(ge=100)] = Field(description="resamples over prompts behind every interval")


class TrackingParams(Section):
    """MLflow names; the address comes from MLFLOW_TRACKING_URI, else a sqlite file here."""

    experiment: Annotated[str, Field(min_length=1)]
    registered_model: Annotated[str, Field(min_length=1)]


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
    if reward.objective == "wgan" and not (reward.gradient_penalty or reward.spectral_norm):
        yield "reward.objective 'wgan' needs a Lipschitz bound: set reward.gradient_penalty or reward.spectral_norm"
    if reward.objective == "relativistic" and reward.rollout_prompts == "others":
        yield "reward.objective 'relativistic' compares traces of one prompt; set reward.rollout_prompts to 'demos'"
    if reward.form == "airl" and reward.objective != "bce":
        yield "reward.form 'airl' defines its own discriminator, sigmoid(f - log pi); use reward.objective 'bce'"
    if reward.form == "airl" and reward.granularity == "sparse":
        yield "reward.form 'airl' shapes between successive reads; reward.granularity 'sparse' reads once"
    if reward.length_control == "centre" and per_step:
        yield f"reward.length_control 'centre' corrects a trace's reward; reward.credit '{reward.credit}' is per step"
    if reward.gradient_checkpointing and reward.train == "head":
        yield "reward.gradient_checkpointing acts on a body that learns; reward.train 'head' keeps nothing anyway"
    if reward.load_in_4bit and reward.train == "full":
        yield "reward.load_in_4bit holds weights that can't learn: use reward.train 'lora' or 'head'"
    if reward.accuracy_band is not None and reward.learning_rate_schedule == "cosine":
        yield (
            "reward.learning_rate_schedule 'cosine' needs the number of updates beforehand, which reward.accuracy_band "
            "changes: use 'constant' or accuracy_band null"
        )
    if reward.accuracy_band is not None and reward.accuracy_band[0] >= reward.accuracy_band[1]:
        yield "reward.accuracy_band needs its lower bound first"


class Params(Section):
    """Everything in params.yaml."""

    seed: NonNegativeInt
    dataset: Annotated[
        ArithmeticDataset | LoggedDataset | FileDataset | Gsm8kDataset | MmluProDataset | MedReasonDataset,
        Field(discriminator="name"),
    ]
    base: BaseParams
    sft: SftParams
    policy: PolicyParams
    reward: RewardParams
    guard: GuardParams
    sample: SampleParams
    rerank: RerankParams
    report: ReportParams
    tracking: TrackingParams

    @model_validator(mode="after")
    def _consistent(self) -> Params:
        if self.rerank.n > self.sample.n:
            raise ValueError(f"rerank.n is {self.rerank.n} but only sample.n = {self.sample.n} candidates are drawn")
        for problem in contradictions(self.reward):
            raise ValueError(problem)
        if self.policy.kl_target is not None and self.policy.kl == 0:
            raise ValueError("policy.kl_target adapts the weight policy.kl, which must start above 0")
        if self.reward.backbone == "shared" and self.policy.train != "lora":
            raise ValueError(
                "reward.backbone 'shared' reads the weights that policy.train 'full' moves; "
                "use policy.train 'lora' or reward.backbone 'sft'"
            )
        if self.policy.load_in_4bit and self.policy.train != "lora":
            raise ValueError("policy.load_in_4bit holds weights that can't learn: use policy.train 'lora'")
        if self.reward.backbone == "shared" and self.base.dtype != self.reward.dtype:
            raise ValueError("reward.backbone 'shared' is the policy's body: set reward.dtype to base.dtype")
        if self.reward.backbone == "shared" and self.policy.load_in_4bit != self.reward.load_in_4bit:
            raise ValueError(
                "reward.backbone 'shared' is the policy's body: set reward.load_in_4bit to policy.load_in_4bit"
            )
        if self.peer and self.base.source != "builtin":
            raise ValueError(
                f"reward.backbone 'peer' is a second built-in model, but base.source is {self.base.source!r}; name "
                "another model, by folder or hub id, as reward.backbone ('sft' shares the policy's blind spots)"
            )
        if self.policy.warmup_iterations >= self.policy.iterations:
            raise ValueError(
                "policy.warmup_iterations must be below policy.iterations, or the full rate is never reached"
            )
        return self

    @property
    def logged(self) -> bool:
        """True when the reward is learned from logged traces, with no policy in the loop."""
        return isinstance(self.dataset, LoggedDataset)

    @property
    def system(self) -> str | None:
        """The system message that every model is addressed with."""
        return self.dataset.system if isinstance(self.dataset, RealText) else None

    @property
    def peer(self) -> bool:
        """True when a second built-in model is made for the reward to read with."""
        return self.reward.backbone == "peer"

    def digest(self) -> str:
        """Short hash of all parameters."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()[:12]


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and validate a parameter file.

    Raises:
        RairlError: naming the file and every key that is unknown, missing, of a wrong type or contradictory.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RairlError(
            f"{path} does not exist; run from the project's folder or name the file with --params"
        ) from error
    except yaml.YAMLError as error:
        raise RairlError(f"{path} is not valid YAML: {error}") from error
    return parse_params(values, source=str(path))


def parse_params(values: Any, *, source: str = "params") -> Params:
    """Validate parameters given as nested dicts; see :func:`load_params`."""
    if not isinstance(values, dict):
        raise RairlError(f"{source}: a mapping of sections is needed")
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise RairlError("\n".join(f"{source}: {_explain(item)}" for item in error.errors())) from error


def _explain(item: Any) -> str:
    tags = {"arithmetic", "gsm8k-logged", "file", "gsm8k", "mmlu_pro", "medreason"}
    key = ".".join(str(part) for part in item["loc"] if part not in tags)
    if item["type"] == "extra_forbidden":
        return f"unknown key {key!r}; remove it or correct its spelling"
    if item["type"] == "missing":
        return f"key {key!r} is missing"
    if item["type"] == "value_error":
        return str(item["ctx"]["error"])
    return f"key {key!r}: {item['msg']} (got {item.get('input')!r})"
