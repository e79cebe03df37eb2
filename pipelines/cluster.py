"""The cluster's description (cluster.yaml) and what it asks of each task: resources, places, secrets, retries.

It changes where and how tasks run, never what they compute: nothing of it is among the parameters.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from kfp import dsl, kubernetes
from pydantic import Field, ValidationError, model_validator

from components import IMAGE
from rairl.core.errors import RairlError
from rairl.core.section import PositiveFloat, PositiveInt, Section
from rairl.core.yaml_files import read_yaml
from rairl.kubeflow.task import ACCELERATE
from rairl.stages.layout import STAGES
from rairl.stages.runner import TOGETHER

RUN_LABEL = "metadata.labels['pipeline/runid']"
"""Where Kubeflow Pipelines writes a run's id on each of its pods."""

Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|Ki|Mi|Gi|Ti|K|M|G|T)?$")]


class Toleration(Section):
    """A taint that a task's pod tolerates, as in a pod's specification."""

    key: str
    operator: Literal["Exists", "Equal"]
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class TrainJob(Section):
    """A stage on several machines, by Kubeflow Trainer."""

    runtime: str = Field(description="TrainingRuntime of the namespace; see deploy/training-runtime.yaml")
    nodes: PositiveInt
    fsdp: bool = Field(default=False, description="split what learns over all processes, see docs/scaling.md")


class Need(Section):
    """What a task asks for. Requests equal limits, so that a pod is never thrown off a full node first."""

    cpu: Quantity
    memory: Quantity
    gpus: Annotated[int, Field(ge=0)] = Field(default=0, description="per pod; per machine of a TrainJob")
    node_selector: dict[str, str] = Field(default={}, description="labels of the node, such as the type of its GPUs")
    tolerations: list[Toleration] = Field(default=[])
    accelerate: str | None = Field(default=None, description="file of rairl/kubeflow/accelerate, without .yaml")
    trainjob: TrainJob | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Need:
        if self.accelerate and self.trainjob:
            raise ValueError("accelerate starts the processes of one pod, a trainjob those of several; set one")
        if self.accelerate and not (ACCELERATE / f"{self.accelerate}.yaml").is_file():
            known = ", ".join(sorted(path.stem for path in ACCELERATE.glob("*.yaml")))
            raise ValueError(
                f"accelerate {self.accelerate!r} is no file of rairl/kubeflow/accelerate; they are {known}"
            )
        return self


class Secret(Section):
    """Keys of a Kubernetes secret as environment variables. A secret that is not there is passed over."""

    name: str
    env: dict[str, str] = Field(description="key of the secret to environment variable")


class Retry(Section):
    """Tries after a failure, such as a node that is lost or a store that is silent; training goes on from its state."""

    times: PositiveInt
    seconds: PositiveInt = Field(description="before the first new try")
    factor: PositiveFloat = Field(description="what the pause is multiplied by each time")
    most_seconds: PositiveInt


class Volume(Section):
    """A volume that all training pods share: checkpoints, and the files of TrainJobs."""

    claim: str
    path: str


class Cluster(Section):
    """Everything in the cluster's description."""

    gpu: str = Field(description="name of the GPU resource")
    image_pull_secrets: list[str]
    volume: Volume
    secrets: list[Secret]
    retry: Retry
    default: Need = Field(description="of every task that `stages` does not name")
    stages: dict[str, Need]

    @model_validator(mode="after")
    def _consistent(self) -> Cluster:
        for name, need in self.stages.items():
            if name not in STAGES:
                raise ValueError(f"stages.{name} is no stage; the stages are {', '.join(STAGES)}")
            if name not in TOGETHER and (need.accelerate or need.trainjob):
                raise ValueError(f"stages.{name} is one process's work; accelerate and trainjob are for training")
        return self


def load_cluster(path: str | Path) -> Cluster:
    """Read and validate a cluster's description.

    Raises:
        RairlError: naming the file and every key that is unknown, missing or wrong.
    """
    try:
        values = read_yaml(path)
        return Cluster.model_validate(values)
    except FileNotFoundError as error:
        raise RairlError(f"{path} does not exist; name the cluster's description with --cluster") from error
    except ValidationError as error:
        lines = (f"{path}: {'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise RairlError("\n".join(lines)) from error


def place(task: dsl.PipelineTask, name: str, cluster: Cluster) -> None:
    """Tell a task where it runs and what it may use.

    Args:
        task: of the pipeline.
        name: the stage, or one of the tasks around them.
        cluster: the description.
    """
    need = cluster.stages.get(name, cluster.default)
    if need.trainjob is None:
        _ask(task, need, cluster.gpu)
    else:  # the pod only hands files over and waits
        _ask(task, cluster.default, cluster.gpu)
        task.set_env_variable("RAIRL_TRAINJOB", json.dumps(job_settings(need, cluster), sort_keys=True))
    if need.accelerate:
        task.set_env_variable("RAIRL_ACCELERATE", need.accelerate)
    if name in TOGETHER:
        kubernetes.mount_pvc(task, pvc_name=cluster.volume.claim, mount_path=cluster.volume.path)
        task.set_env_variable("RAIRL_CHECKPOINTS", f"{cluster.volume.path}/checkpoints")
    if name in (*STAGES, "register"):
        task.set_retry(
            num_retries=cluster.retry.times,
            backoff_duration=f"{cluster.retry.seconds}s",
            backoff_factor=cluster.retry.factor,
            backoff_max_duration=f"{cluster.retry.most_seconds}s",
        )
    kubernetes.use_field_path_as_env(task, env_name="RAIRL_KFP_RUN", field_path=RUN_LABEL)
    for secret in cluster.secrets:
        kubernetes.use_secret_as_env(task, secret.name, secret.env, optional=True)
    if cluster.image_pull_secrets:
        kubernetes.set_image_pull_secrets(task, cluster.image_pull_secrets)


def _ask(task: dsl.PipelineTask, need: Need, gpu: str) -> None:
    task.set_cpu_request(need.cpu).set_cpu_limit(need.cpu)
    task.set_memory_request(need.memory).set_memory_limit(need.memory)
    if need.gpus:
        task.set_accelerator_type(gpu).set_accelerator_limit(need.gpus)
    for key, value in need.node_selector.items():
        kubernetes.add_node_selector(task, key, value)
    for taint in need.tolerations:
        kubernetes.add_toleration(task, **taint.model_dump(exclude_none=True))


def job_settings(need: Need, cluster: Cluster) -> dict[str, object]:
    """What :func:`rairl.kubeflow.trainjob.train_in_job` needs to know, as JSON values."""
    assert need.trainjob is not None
    resources = {"cpu": need.cpu, "memory": need.memory, **({cluster.gpu: str(need.gpus)} if need.gpus else {})}
    return {
        "image": IMAGE,
        "runtime": need.trainjob.runtime,
        "nodes": need.trainjob.nodes,
        "fsdp": need.trainjob.fsdp,
        "processes": max(1, need.gpus),
        "resources": resources,
        "shared": cluster.volume.path,
        "secrets": [secret.model_dump() for secret in cluster.secrets],
    }
