"""Training on several machines: a stage as a TrainJob of Kubeflow Trainer v2, its files handed there and back.

The task that calls this is a pod without GPUs. It copies the stage's inputs to the shared volume, creates the TrainJob,
waits, and copies the outputs to where the pipeline wants them. A task that is started again finds the job of its first
try by name and goes on waiting. What the machines of the job have in common (volume, node selector, tolerations) is in
the TrainingRuntime, deploy/training-runtime.yaml; processes are started by torchrun, which Trainer configures.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rairl.core.errors import RairlError
from rairl.core.params import Params
from rairl.core.yaml_files import dump_yaml
from rairl.stages.layout import INPUTS, OUTPUTS
from rairl.stages.runner import stage_command

if TYPE_CHECKING:
    from kubernetes.client import CustomObjectsApi

logger = logging.getLogger(__name__)

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
HANDED_ON = ("MLFLOW_TRACKING_URI", "RAIRL_KFP_RUN", "RAIRL_PROMOTE", "RAIRL_CHECKPOINTS")
"""Variables of the task that its job gets, too."""
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}
"""What ``accelerate launch`` sets by accelerate/fsdp.yaml; a TrainJob's processes are started by torchrun."""
_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def job_name(stage: str, params: Params) -> str:
    """The same for every try of one task, another for every run of the pipeline and every variant."""
    key = f"{os.environ.get('RAIRL_KFP_RUN', '')} {params.digest()}"
    return f"rairl-{stage}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def manifest(name: str, command: list[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The TrainJob.

    Args:
        name: of the job.
        command: what each process runs, from the name of the module on.
        settings: ``image``, ``runtime``, ``nodes``, ``processes`` (per machine), ``resources`` (per machine), ``fsdp``
            and ``secrets``, as pipelines/cluster.py writes them.
    """
    known = {key: os.environ[key] for key in HANDED_ON if key in os.environ} | (FSDP if settings["fsdp"] else {})
    secret = [
        {"name": variable, "valueFrom": {"secretKeyRef": {"name": it["name"], "key": key, "optional": True}}}
        for it in settings["secrets"]
        for key, variable in it["env"].items()
    ]
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/part-of": "rairl"}},
        "spec": {
            "runtimeRef": {"apiGroup": GROUP, "kind": "TrainingRuntime", "name": settings["runtime"]},
            "trainer": {
                "image": settings["image"],
                "command": ["torchrun", "-m"],
                "args": command,
                "env": [*({"name": key, "value": value} for key, value in known.items()), *secret],
                "numNodes": settings["nodes"],
                "numProcPerNode": settings["processes"],
                "resourcesPerNode": {"requests": settings["resources"], "limits": settings["resources"]},
            },
        },
    }


def train_in_job(
    name: str, params: Params, paths: Mapping[str, Path], settings: Mapping[str, Any], *, every: float = 15
) -> None:
    """Run a stage in a TrainJob and bring its outputs here.

    Args:
        name: the stage.
        params: all parameters.
        paths: of all its inputs and outputs.
        settings: see :func:`manifest`; ``shared`` is where the shared volume is mounted, here and in the job.
        every: seconds between two looks at the job.

    Raises:
        RairlError: when the job fails; its message and the command that shows its log are named.
    """
    job = job_name(name, params)
    folder = Path(settings["shared"]) / "jobs" / job
    there = {arg: folder / arg for arg in paths}
    folder.mkdir(parents=True, exist_ok=True)
    for arg in INPUTS[name]:
        _copy(paths[arg], there[arg])
    (folder / "params.yaml").write_text(dump_yaml(params.model_dump()), encoding="utf-8")
    api, namespace = _connect()
    _create(api, namespace, manifest(job, stage_command(name, folder / "params.yaml", there), settings))
    problem = _wait(api, namespace, job, every)
    if problem is None:
        for arg in OUTPUTS[name]:
            _copy(there[arg], paths[arg])
    api.delete_namespaced_custom_object(GROUP, VERSION, namespace, PLURAL, job)
    if problem is not None:
        raise RairlError(
            f"TrainJob {job} has failed: {problem}. Its pods' log: kubectl -n {namespace} logs -l "
            f"jobset.sigs.k8s.io/jobset-name={job} --tail=100; checkpoints are kept, so a new try goes on from them"
        )
    shutil.rmtree(folder)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copyfile(source, target)


def _connect() -> tuple[CustomObjectsApi, str]:
    from kubernetes import client, config

    try:
        config.load_incluster_config()
        namespace = _NAMESPACE.read_text().strip()
    except config.ConfigException:
        config.load_kube_config()
        namespace = config.list_kube_config_contexts()[1]["context"].get("namespace", "default")
    return client.CustomObjectsApi(), namespace


def _create(api: CustomObjectsApi, namespace: str, body: dict[str, Any]) -> None:
    from kubernetes.client import ApiException

    name = body["metadata"]["name"]
    try:
        api.create_namespaced_custom_object(GROUP, VERSION, namespace, PLURAL, body)
        logger.info("TrainJob %s created in %s", name, namespace)
    except ApiException as error:
        if error.status == 409:
            logger.info("TrainJob %s is there from an earlier try; waiting for it", name)
        elif error.status in (403, 404):
            raise RairlError(
                f"TrainJob {name} can't be created in {namespace} ({error.status} {error.reason}); install Kubeflow "
                "Trainer 2 and apply deploy/rbac.yaml and deploy/training-runtime.yaml"
            ) from error
        else:
            raise


def _wait(api: CustomObjectsApi, namespace: str, job: str, every: float) -> str | None:
    """None when the job has ended well, else what its controller says."""
    while True:
        found = api.get_namespaced_custom_object(GROUP, VERSION, namespace, PLURAL, job)
        for condition in found.get("status", {}).get("conditions", []):
            if condition["status"] == "True" and condition["type"] == "Complete":
                return None
            if condition["status"] == "True" and condition["type"] == "Failed":
                return f"{condition.get('reason', '')}: {condition.get('message', '')}"
        time.sleep(every)
