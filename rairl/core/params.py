"""The typed view of params.yaml: an unknown key, a wrong type or a contradiction is an error that names the key.

Imports only the standard library, yaml and pydantic, so that the command line answers at once.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from rairl.core.dataset_params import (
    ArithmeticDataset,
    FileDataset,
    Gsm8kDataset,
    LoggedDataset,
    MedReasonDataset,
    MmluProDataset,
    RealText,
)
from rairl.core.errors import RairlError
from rairl.core.section import NonNegativeInt, PositiveFloat, PositiveInt, Section
from rairl.core.training_params import (
    BaseParams,
    BuiltinBase,
    GuardParams,
    PolicyParams,
    PretrainedBase,
    RewardParams,
    SftParams,
    contradictions,
)
from rairl.core.yaml_files import read_yaml

UNUSED_POLICY = {
    "iterations": 1, "prompts_per_iteration": 1, "group_size": 2, "max_new_tokens": 1, "learning_rate": 1e-3, "kl": 0.0,
}  # fmt: skip
"""What stands for the section ``policy`` of logged traces, where no policy learns and the section may be left out."""


class SampleParams(Section):
    """Candidates drawn from each policy for evaluation."""

    n: Annotated[int, Field(ge=2)] = Field(description="samples per prompt at the first temperature")
    temperatures: Annotated[list[PositiveFloat], Field(min_length=1)] = Field(
        default=[1.0],
        description="the first is the headline, and the only one that is reranked and localised; at the others the "
        "policies are compared on test",
    )
    extra_n: PositiveInt = Field(
        default=4, description="samples per prompt at each of the other temperatures, and where only pass@1 is measured"
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

    bootstrap: Annotated[int, Field(ge=100)] = Field(
        default=1000, description="resamples over prompts behind every interval"
    )


class TrackingParams(Section):
    """MLflow names; the address comes from MLFLOW_TRACKING_URI, else a sqlite file here."""

    experiment: Annotated[str, Field(min_length=1, max_length=256)]
    registered_model: Annotated[str, Field(min_length=1, max_length=256)]

    @model_validator(mode="after")
    def _accepted_by_mlflow(self) -> TrackingParams:
        if not self.experiment.strip():
            raise ValueError("tracking.experiment is blank; MLflow wants a name")
        name = self.registered_model
        # MLflow refuses a slash, a colon and what would be another path; quotes would end the name in a search.
        if not name.strip() or name == "." or name.startswith("..") or any(sign in name for sign in "/:'\""):
            raise ValueError(
                f"tracking.registered_model {name!r} is no name for a registered model: it must not be empty, begin "
                "with '..' or hold a slash, a colon or quotes; write team-reward rather than team/reward"
            )
        return self


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
    guard: GuardParams = GuardParams()
    sample: SampleParams
    rerank: RerankParams
    report: ReportParams
    tracking: TrackingParams

    @model_validator(mode="before")
    @classmethod
    def _without_policy(cls, values: Any) -> Any:
        dataset = values.get("dataset") if isinstance(values, dict) else None
        if isinstance(dataset, dict) and dataset.get("name") == "gsm8k-logged":
            return {"policy": UNUSED_POLICY, **values}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Params:
        if self.rerank.n > self.sample.n:
            raise ValueError(f"rerank.n is {self.rerank.n} but only sample.n = {self.sample.n} candidates are drawn")
        for problem in contradictions(self.reward):
            raise ValueError(problem)
        if self.reward.backbone == "shared" and self.policy.train != "lora":
            raise ValueError(
                "reward.backbone 'shared' reads the weights that policy.train 'full' moves; "
                "use policy.train 'lora' or reward.backbone 'sft'"
            )
        if self.reward.backbone == "shared" and self.base.dtype != self.reward.dtype:
            raise ValueError("reward.backbone 'shared' is the policy's body: set reward.dtype to base.dtype")
        if self.second_model and not isinstance(self.base, BuiltinBase):
            raise ValueError(
                f"reward.backbone 'second_model' is a built-in one, but base.source is {self.base.source!r}; name "
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
    def second_model(self) -> bool:
        """True when a second built-in model is made for the reward to read with."""
        return self.reward.backbone == "second_model"

    def digest(self) -> str:
        """Short hash of all parameters."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()[:12]


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and validate a parameter file.

    Raises:
        RairlError: naming the file and every key that is unknown, missing, of a wrong type or contradictory.
    """
    path = Path(path)
    if not path.exists():
        raise RairlError(f"{path} does not exist; run from the project's folder or name the file with --params")
    return parse_params(read_yaml(path), source=str(path))


def parse_params(values: Any, *, source: str = "params") -> Params:
    """Validate parameters given as nested dicts; see :func:`load_params`."""
    if not isinstance(values, dict):
        raise RairlError(f"{source}: a mapping of sections is needed")
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise RairlError("\n".join(f"{source}: {_explain(item)}" for item in error.errors())) from error


def _explain(item: Any) -> str:
    tags = {"arithmetic", "gsm8k-logged", "file", "gsm8k", "mmlu_pro", "medreason", "builtin", "pretrained"}
    key = ".".join(str(part) for part in item["loc"] if part not in tags)
    section, kind, name = (*item["loc"], None, None, None)[:3]
    if item["type"] == "extra_forbidden":
        if section == "base" and kind == "pretrained" and name in BuiltinBase.model_fields:
            return f"{key} belongs to base.source 'builtin'; remove it"
        if section == "base" and kind == "builtin" and name in PretrainedBase.model_fields:
            return f"{key} belongs to a base.source from the hub; remove it"
        return f"unknown key {key!r}; remove it or correct its spelling"
    if item["type"] == "missing":
        needed = " (base.source 'builtin' needs it)" if (section, kind) == ("base", "builtin") else ""
        return f"key {key!r} is missing{needed}"
    if item["type"] == "value_error":
        return str(item["ctx"]["error"])
    return f"key {key!r}: {item['msg']} (got {item.get('input')!r})"
