"""What is applied to a cluster is what Kubernetes, Kubeflow Trainer and KServe would take, and carries no credential.

Kubernetes' own kinds are checked against the models of its Python client, Trainer's against kubeflow-trainer-api; both
are generated from the schemas. KServe has no models that install beside kfp: the part of its schema that is used here
is written down below, from its reference page for v1beta1; containers in it are Kubernetes' own.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import kubernetes.client
import pytest
import yaml
from kubeflow_trainer_api import models as trainer
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from rairl.core.params import Params

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "deploy").glob("*.yaml"))
DOCUMENTS = [(path.name, it) for path in FILES for it in yaml.safe_load_all(path.read_text())]
PLAIN = {"str": str, "int": int, "float": (int, float), "bool": bool}


def check(value: Any, kind: str, where: str) -> None:
    """``value`` is a ``kind`` of the Kubernetes client: no field that it does not have, none missing, right types."""
    if match := re.fullmatch(r"list\[(.+)\]", kind):
        assert isinstance(value, list), f"{where}: a list is needed"
        for index, item in enumerate(value):
            check(item, match[1], f"{where}[{index}]")
    elif match := re.fullmatch(r"dict\(str, (.+)\)", kind):
        assert isinstance(value, dict), f"{where}: a mapping is needed"
        for key, item in value.items():
            assert isinstance(key, str), f"{where}: {key!r} is no text"
            check(item, match[1], f"{where}.{key}")
    elif kind in PLAIN:
        assert isinstance(value, PLAIN[kind]) and (kind == "bool" or not isinstance(value, bool)), f"{where}: no {kind}"
    elif kind != "object":  # an int-or-string, such as a port
        model = getattr(kubernetes.client, kind)
        assert isinstance(value, dict), f"{where}: {kind} is a mapping"
        names = {field: attribute for attribute, field in model.attribute_map.items()}
        unknown = set(value) - set(names)
        assert not unknown, f"{where}: {kind} has no {sorted(unknown)}"
        for field, item in value.items():
            check(item, model.openapi_types[names[field]], f"{where}.{field}")
        model(**{names[field]: item for field, item in value.items()})  # refuses to leave out what is required


def strict(model: type[BaseModel], value: Any, where: str) -> None:
    """``value`` is a ``model`` of kubeflow-trainer-api, which by itself passes over fields that it does not know."""
    model.model_validate(value)
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    assert not set(value) - set(fields), f"{where}: {model.__name__} has no {sorted(set(value) - set(fields))}"
    for name, item in value.items():
        inner = fields[name].annotation
        while get_args(inner):
            inner = get_args(inner)[0]
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            for index, one in enumerate(item if isinstance(item, list) else [item]):
                strict(inner, one, f"{where}.{name}[{index}]")


class Exact(BaseModel):
    """No field beside those that are named."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Predictor(Exact):
    """Of KServe's PredictorSpec: a pod's containers, and how many."""

    containers: list[dict[str, Any]]
    minReplicas: int | None = None
    maxReplicas: int | None = None
    serviceAccountName: str | None = None


InferenceService = create_model(
    "InferenceService",
    __base__=Exact,
    apiVersion=(str, ...),
    kind=(str, ...),
    metadata=(dict[str, Any], ...),
    spec=(create_model("Spec", __base__=Exact, predictor=(Predictor, ...)), ...),
)


def validate(document: Mapping[str, Any]) -> None:
    group, _, version = document["apiVersion"].rpartition("/")
    kind = document["kind"]
    if group == "trainer.kubeflow.org":
        if kind == "TrainJob":  # Trainer's models want a quantity as an object, where all of Kubernetes writes text
            document = copy.deepcopy(dict(document))
            resources = document["spec"]["trainer"].pop("resourcesPerNode")
            check(resources, "V1ResourceRequirements", f"{kind}.resourcesPerNode")
        strict(getattr(trainer, f"TrainerV1alpha1{kind}"), document, kind)
        check(document["metadata"], "V1ObjectMeta", f"{kind}.metadata")
    elif group == "serving.kserve.io":
        InferenceService.model_validate(document)
        for container in document["spec"]["predictor"]["containers"]:
            check(container, "V1Container", f"{kind}.container")
        check(document["metadata"], "V1ObjectMeta", f"{kind}.metadata")
    else:
        check(document, version.capitalize() + kind, kind)


@pytest.mark.parametrize(("name", "document"), DOCUMENTS, ids=[f"{name}-{it['kind']}" for name, it in DOCUMENTS])
def test_a_manifest_is_valid(name: str, document: dict[str, Any]) -> None:
    validate(document)
    assert document["metadata"]["labels"]["app.kubernetes.io/part-of"] == "rairl"


def of(kind: str, name: str) -> dict[str, Any]:
    [found] = [it for _, it in DOCUMENTS if (it["kind"], it["metadata"]["name"]) == (kind, name)]
    return found


@pytest.mark.parametrize(
    ("kind", "name", "path", "value"),
    [
        ("PersistentVolumeClaim", "rairl-shared", ("spec", "acessModes"), ["ReadWriteMany"]),
        ("PersistentVolumeClaim", "rairl-shared", ("spec", "accessModes"), "ReadWriteMany"),
        ("Deployment", "rairl-mlflow", ("spec", "replicas"), "1"),
        ("Deployment", "rairl-mlflow", ("spec", "template", "spec", "containers", 0, "evn"), []),
        ("Role", "rairl-trainjobs", ("rules", 0, "verb"), ["get"]),
        ("TrainingRuntime", "rairl", ("spec", "mlPolicy", "numNodes"), "2"),
        ("TrainingRuntime", "rairl", ("spec", "mlPolicy", "nodes"), 2),
        ("InferenceService", "rairl-reward", ("spec", "predictor", "replicas"), 2),
        ("InferenceService", "rairl-reward", ("spec", "predictor", "containers", 0, "imagee"), "x"),
    ],
)
def test_a_mistake_would_be_seen(kind: str, name: str, path: tuple[Any, ...], value: Any) -> None:
    document = copy.deepcopy(of(kind, name))
    place: Any = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises((AssertionError, ValidationError)):
        validate(document)


def test_the_parts_fit_together() -> None:
    cluster = yaml.safe_load((ROOT / "pipelines" / "cluster.yaml").read_text())
    assert of("PersistentVolumeClaim", cluster["volume"]["claim"])["spec"]["accessModes"] == ["ReadWriteMany"]
    pod = of("TrainingRuntime", "rairl")["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"][
        "template"
    ]
    [container] = pod["spec"]["containers"]
    assert container["volumeMounts"][0] == {"name": "shared", "mountPath": cluster["volume"]["path"]}
    assert pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] == cluster["volume"]["claim"]
    for name in ("rairl-postgres", "rairl-mlflow"):
        kind = "StatefulSet" if name == "rairl-postgres" else "Deployment"
        labels = of(kind, name)["spec"]["template"]["metadata"]["labels"]
        assert of("Service", name)["spec"]["selector"].items() <= labels.items()
        assert of("NetworkPolicy", name)["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    served = of("InferenceService", "rairl-reward")["spec"]["predictor"]["containers"][0]
    port = of("Service", "rairl-mlflow")["spec"]["ports"][0]["port"]
    assert served["env"] == [{"name": "MLFLOW_TRACKING_URI", "value": f"http://rairl-mlflow:{port}"}]
    rules = of("Role", "rairl-trainjobs")["rules"]
    assert rules == [
        {"apiGroups": ["trainer.kubeflow.org"], "resources": ["trainjobs"], "verbs": ["create", "get", "delete"]}
    ]


def test_the_servers_flags_are_mlflows_own() -> None:
    import mlflow.cli

    args = of("Deployment", "rairl-mlflow")["spec"]["template"]["spec"]["containers"][0]["args"]
    assert args[0] == "server"
    known = {option for it in mlflow.cli.server.params for option in it.opts}
    assert {flag.split("=")[0] for flag in args[1:]} <= known


def test_the_service_is_the_command_lines_own_and_is_asked_where_it_listens() -> None:
    import typer

    from rairl.cli.main import app

    container = of("InferenceService", "rairl-reward")["spec"]["predictor"]["containers"][0]
    assert container["command"] == ["rairl", "serve"]
    command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    given = command.make_context("serve", list(container["args"])).params
    assert given == {"reward": "models:/rairl-reward@champion", "host": "0.0.0.0", "port": 8080}
    assert container["ports"][0]["containerPort"] == given["port"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/health", "port": given["port"]}


def test_pods_are_ordinary_users_and_credentials_come_by_name() -> None:
    for name, document in DOCUMENTS:
        text = yaml.safe_dump(document)
        for variable in re.findall(r"name: (\w*(?:PASSWORD|SECRET|ACCESS_KEY|TOKEN)\w*)", text):
            block = text[text.index(f"name: {variable}") :].split("- name:")[0]
            assert "secretKeyRef" in block, f"{name}: {variable}"
        if "containers:" in text:
            assert "runAsNonRoot: true" in text, name


# --- TrainJobs --------------------------------------------------------------------------------------------------------

SETTINGS = {
    "image": "rairl-python:7", "runtime": "rairl", "nodes": 4, "processes": 8, "shared": "/shared", "fsdp": False,
    "resources": {"cpu": "64", "memory": "512Gi", "nvidia.com/gpu": "8"},
    "secrets": [{"name": "rairl-hub", "env": {"token": "HF_TOKEN"}}],
}  # fmt: skip


def test_the_job_of_a_stage_is_valid_and_says_what_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    from rairl.kubeflow.trainjob import manifest

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    monkeypatch.setenv("RAIRL_KFP_RUN", "run-1")
    for name in ("RAIRL_PROMOTE", "RAIRL_CHECKPOINTS"):
        monkeypatch.delenv(name, raising=False)
    made = manifest("rairl-sft-1", ["rairl", "stage", "sft"], SETTINGS)
    validate(made)
    assert made["spec"]["runtimeRef"]["name"] == of("TrainingRuntime", "rairl")["metadata"]["name"]
    job = made["spec"]["trainer"]
    assert (job["image"], job["numNodes"], job["numProcPerNode"]) == ("rairl-python:7", 4, 8)
    assert job["command"] + job["args"] == ["torchrun", "-m", "rairl", "stage", "sft"]
    assert job["resourcesPerNode"]["limits"] == SETTINGS["resources"]
    assert job["env"] == [
        {"name": "MLFLOW_TRACKING_URI", "value": "http://mlflow:5000"},
        {"name": "RAIRL_KFP_RUN", "value": "run-1"},
        {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "rairl-hub", "key": "token", "optional": True}}},
    ]
    with pytest.raises((AssertionError, ValidationError)):
        validate({**made, "spec": {**made["spec"], "nodes": 3}})
    sharded = manifest("rairl-sft-1", ["rairl", "stage", "sft"], {**SETTINGS, "fsdp": True})
    validate(sharded)
    assert {"name": "ACCELERATE_USE_FSDP", "value": "true"} in sharded["spec"]["trainer"]["env"]
    assert {"name": "FSDP_VERSION", "value": "2"} in sharded["spec"]["trainer"]["env"]


def test_a_job_has_one_name_per_run_stage_and_parameters(miniature: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    from rairl.kubeflow.trainjob import job_name

    names = set()
    for run in ("run-1", "run-2"):
        monkeypatch.setenv("RAIRL_KFP_RUN", run)
        for stage in ("sft", "rairl"):
            for seed in (0, 1):
                name = job_name(stage, miniature.model_copy(update={"seed": seed}))
                assert name == job_name(stage, miniature.model_copy(update={"seed": seed}))
                assert re.fullmatch(r"[a-z0-9-]{1,52}", name)  # Kubernetes adds to it
                names.add(name)
    assert len(names) == 8
