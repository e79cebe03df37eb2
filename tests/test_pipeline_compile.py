"""The compiled pipeline: chosen parts of its specification, never the whole (that changes with each SDK version)."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from rairl.core.errors import RairlError
from rairl.stages.layout import INPUTS, OUTPUTS, STAGES, producer
from rairl.stages.runner import TOGETHER

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "pipelines" / "cluster.yaml"
EXTRA = ("configure", "variants", "register", "finish")
LOOP = "the loop's item"


def kfp_name(name: str) -> str:
    """What Kubeflow makes of the name of a function."""
    return name.replace("_", "-")


class Compiled(NamedTuple):
    """Both documents of a compiled pipeline."""

    spec: dict[str, Any]
    kubernetes: dict[str, Any]

    def executor(self, name: str) -> dict[str, Any]:
        return self.spec["deploymentSpec"]["executors"][f"exec-{kfp_name(name)}"]["container"]

    def environment(self, name: str) -> dict[str, str]:
        return {it["name"]: it["value"] for it in self.executor(name).get("env", [])}


def compile_with(folder: Path, **changes: Any) -> Compiled:
    from pipelines.run import compile_pipeline

    cluster = {**yaml.safe_load(CLUSTER.read_text()), **changes}
    (folder / "cluster.yaml").write_text(yaml.safe_dump(cluster))
    compile_pipeline(folder / "rairl.yaml", folder / "cluster.yaml")
    spec, platform = yaml.safe_load_all((folder / "rairl.yaml").read_text())
    return Compiled(spec, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"])


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return compile_with(tmp_path_factory.mktemp("compiled"))


def walk(spec: dict[str, Any], dag: dict[str, Any], above: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every task that is no group, in whatever group, with the source of each of its inputs."""
    for name, task in dag["tasks"].items():
        inputs: dict[str, Any] = {}
        for arg, it in task.get("inputs", {}).get("artifacts", {}).items():
            made = it.get("taskOutputArtifact")
            inputs[arg] = (
                (made["producerTask"], made["outputArtifactKey"]) if made else above[it["componentInputArtifact"]]
            )
        for arg, it in task.get("inputs", {}).get("parameters", {}).items():
            made = it.get("taskOutputParameter")
            inputs[arg] = (
                (made["producerTask"], made["outputParameterKey"])
                if made
                else above.get(it.get("componentInputParameter"), it)
            )
        component = spec["components"][task["componentRef"]["name"]]
        if "dag" in component:
            loop = task.get("parameterIterator", {})
            if loop:
                inputs[loop["itemInput"]] = (LOOP, inputs[loop["items"]["inputParameter"]])
            yield from walk(spec, component["dag"], inputs)
        else:
            yield name, {"task": task, "inputs": inputs, "component": component}


@pytest.fixture(scope="module")
def tasks(compiled: Compiled) -> dict[str, dict[str, Any]]:
    spec = compiled.spec
    form = {name: ("the form", name) for name in spec["root"]["inputDefinitions"]["parameters"]}
    return dict(walk(spec, spec["root"]["dag"], form))


# --- the same thing as DVC --------------------------------------------------------------------------------------------


def test_the_tasks_are_the_stages_of_dvc(compiled: Compiled, tasks: dict[str, Any]) -> None:
    from pipelines.pipeline import EXTRA as NAMED

    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert NAMED == EXTRA
    assert {*tasks, "inputs"} == {*map(kfp_name, stages), *EXTRA}
    assert compiled.spec["pipelineInfo"]["name"] == "rairl"


@pytest.mark.parametrize("name", STAGES)
def test_each_task_is_wired_as_the_layout_says(tasks: dict[str, Any], name: str) -> None:
    found = tasks[kfp_name(name)]["inputs"]
    expected: dict[str, Any] = {}
    for arg, path in INPUTS[name].items():
        if arg == "metrics_dir":
            expected |= {f"{stage}_metrics": (kfp_name(stage), "metrics") for stage in STAGES if stage != name}
            continue
        source = producer(path)
        expected[arg] = (kfp_name(source), next(key for key, made in OUTPUTS[source].items() if made == path))
    variant = (LOOP, ("variants", "Output"))
    looped = STAGES.index(name) >= STAGES.index("rairl")
    assert found == {**expected, "params": variant if looped else ("configure", "Output")}
    assert set(tasks[kfp_name(name)]["component"]["outputDefinitions"]["artifacts"]) >= set(OUTPUTS[name])


def test_the_tasks_around_the_stages_are_wired(tasks: dict[str, Any]) -> None:
    assert tasks["configure"]["inputs"] == {
        name: ("the form", name) for name in ("params", "experiment", "tracking_uri")
    }
    assert tasks["variants"]["inputs"] == {
        "params": ("configure", "Output"),
        "seeds": ("the form", "seeds"),
        "granularities": ("the form", "granularities"),
    }
    register = tasks["register"]
    assert register["inputs"]["variants"] == ("variants", "Output")
    assert register["inputs"]["data"] == ("prepare", "data")
    assert any(it.startswith("for-loop") for it in register["task"]["dependentTasks"])  # after every report


def test_the_form_has_the_parameters_as_one_object_and_the_few_fields_that_people_change(compiled: Compiled) -> None:
    form = compiled.spec["root"]["inputDefinitions"]["parameters"]
    assert {name: field["parameterType"] for name, field in form.items()} == {
        "params": "STRUCT", "seeds": "LIST", "granularities": "LIST", "experiment": "STRING", "tracking_uri": "STRING",
    }  # fmt: skip
    assert [name for name, field in form.items() if not field.get("isOptional")] == ["params"]
    assert all(field["description"] for field in form.values())


def test_the_exit_handler_runs_whatever_became_of_the_rest(compiled: Compiled) -> None:
    root = compiled.spec["root"]["dag"]["tasks"]
    assert set(root) == {"exit-handler-1", "finish"}
    assert root["finish"]["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert root["finish"]["dependentTasks"] == ["exit-handler-1"]


def test_pure_tasks_are_cached_and_those_with_side_effects_are_not(tasks: dict[str, Any]) -> None:
    cached = {name for name, it in tasks.items() if it["task"].get("cachingOptions", {}).get("enableCache")}
    assert cached == set(tasks) - {"register", "finish"}


# --- what a cluster needs ---------------------------------------------------------------------------------------------


def test_the_specification_is_valid_and_loads_back(compiled: Compiled, tmp_path: Path) -> None:
    from google.protobuf import json_format
    from kfp import components
    from kfp.kubernetes import kubernetes_executor_config_pb2
    from kfp.pipeline_spec import pipeline_spec_pb2

    json_format.ParseDict(compiled.spec, pipeline_spec_pb2.PipelineSpec())
    for config in compiled.kubernetes.values():
        json_format.ParseDict(config, kubernetes_executor_config_pb2.KubernetesExecutorConfig())
    assert set(compiled.kubernetes) == set(compiled.spec["deploymentSpec"]["executors"])
    file = tmp_path / "rairl.yaml"
    file.write_text(yaml.safe_dump(compiled.spec))
    assert components.load_component_from_file(str(file)).pipeline_spec.pipeline_info.name == "rairl"
    with pytest.raises(json_format.ParseError):
        json_format.ParseDict({**compiled.spec, "surprise": 1}, pipeline_spec_pb2.PipelineSpec())


def test_every_task_runs_in_the_image_and_installs_nothing(compiled: Compiled) -> None:
    executors = compiled.spec["deploymentSpec"]["executors"]
    assert set(executors) == {f"exec-{kfp_name(name)}" for name in (*STAGES, *EXTRA)}
    for executor in executors.values():
        assert executor["container"]["image"].startswith("rairl-python:")
        assert "pip install" not in " ".join(executor["container"]["command"])


@pytest.mark.parametrize("name", [*STAGES, *EXTRA])
def test_every_task_has_the_resources_environment_and_secrets_of_the_description(
    compiled: Compiled, tasks: dict[str, Any], name: str
) -> None:
    cluster = yaml.safe_load(CLUSTER.read_text())
    need = cluster["stages"].get(name, cluster["default"])
    asked = compiled.executor(name)["resources"]
    for kind in ("Limit", "Request"):
        assert (asked[f"resourceCpu{kind}"], asked[f"resourceMemory{kind}"]) == (need["cpu"], need["memory"])
    assert "accelerator" not in asked
    trains = name in TOGETHER
    assert compiled.environment(name) == ({"RAIRL_CHECKPOINTS": "/shared/checkpoints"} if trains else {})
    config = compiled.kubernetes[f"exec-{kfp_name(name)}"]
    assert [(it["constant"], it["mountPath"]) for it in config.get("pvcMount", [])] == (
        [("rairl-shared", "/shared")] if trains else []
    )
    assert config["fieldPathAsEnv"] == [{"name": "RAIRL_KFP_RUN", "fieldPath": "metadata.labels['pipeline/runid']"}]
    secrets = {
        (it["secretName"], pair["secretKey"], pair["envVar"]) for it in config["secretAsEnv"] for pair in it["keyToEnv"]
    }
    assert secrets == {(it["name"], key, value) for it in cluster["secrets"] for key, value in it["env"].items()}
    assert all(it["optional"] for it in config["secretAsEnv"])
    retry = tasks[kfp_name(name)]["task"].get("retryPolicy")
    if name in ("configure", "variants", "finish"):
        assert retry is None
    else:
        assert retry == {
            "maxRetryCount": 3, "backoffDuration": "60s", "backoffFactor": 2.0, "backoffMaxDuration": "900s",
        }  # fmt: skip


def test_a_stage_gets_the_gpus_place_and_processes_it_asks_for(tmp_path: Path) -> None:
    taint = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    need = {
        "cpu": "32", "memory": "256Gi", "gpus": 8, "node_selector": {"nvidia.com/gpu.product": "H100"},
        "tolerations": [taint], "accelerate": "cpu-2",
    }  # fmt: skip
    compiled = compile_with(tmp_path, stages={"rairl": need}, image_pull_secrets=["registry"])
    assert compiled.executor("rairl")["resources"]["accelerator"] == {
        "count": "8", "type": "nvidia.com/gpu", "resourceCount": "8", "resourceType": "nvidia.com/gpu",
    }  # fmt: skip
    config = compiled.kubernetes["exec-rairl"]
    assert config["nodeSelector"]["labels"] == {"nvidia.com/gpu.product": "H100"}
    assert config["tolerations"] == [taint]
    assert [it["secretName"] for it in config["imagePullSecret"]] == ["registry"]
    assert compiled.environment("rairl")["RAIRL_ACCELERATE"] == "cpu-2"
    assert "accelerator" not in compiled.executor("sft")["resources"]
    assert not {"nodeSelector", "tolerations"} & set(compiled.kubernetes["exec-sft"])


def test_a_stage_on_several_machines_hands_its_needs_to_the_job(tmp_path: Path) -> None:
    need = {"cpu": "64", "memory": "512Gi", "gpus": 8, "trainjob": {"runtime": "rairl", "nodes": 2, "fsdp": True}}
    sharded = {"cpu": "8", "memory": "64Gi", "gpus": 8, "accelerate": "fsdp"}
    compiled = compile_with(tmp_path, stages={"rairl": need, "sft": sharded})
    job = json.loads(compiled.environment("rairl")["RAIRL_TRAINJOB"])
    assert (job["runtime"], job["nodes"], job["processes"], job["fsdp"]) == ("rairl", 2, 8, True)
    assert job["shared"] == "/shared"
    assert job["resources"] == {"cpu": "64", "memory": "512Gi", "nvidia.com/gpu": "8"}
    assert "accelerator" not in compiled.executor("rairl")["resources"]  # the task's own pod only waits
    assert compiled.environment("sft")["RAIRL_ACCELERATE"] == "fsdp"


def test_a_mistake_in_the_description_is_named(tmp_path: Path) -> None:
    from pipelines.cluster import load_cluster

    good = yaml.safe_load(CLUSTER.read_text())
    file = tmp_path / "cluster.yaml"
    need = {"cpu": "1", "memory": "1Gi"}
    for change, message in (
        ({"colour": 1}, "colour"),
        ({"default": {"cpu": "a lot", "memory": "1Gi"}}, r"default\.cpu"),
        ({"stages": {"rairl": {**need, "gpu": 1}}}, r"stages\.rairl\.gpu"),
        ({"stages": {"train": need}}, "stages.train is no stage"),
        ({"stages": {"rerank": {**need, "accelerate": "cpu-2"}}}, "one process's work"),
        ({"stages": {"sft": {**need, "accelerate": "none"}}}, "they are .*cpu-2"),
        (
            {"stages": {"sft": {**need, "accelerate": "cpu-2", "trainjob": {"runtime": "rairl", "nodes": 2}}}},
            "set one",
        ),
    ):
        file.write_text(yaml.safe_dump({**copy.deepcopy(good), **change}))
        with pytest.raises(RairlError, match=message):
            load_cluster(file)
    file.write_text("a: [")
    with pytest.raises(RairlError, match="not valid YAML"):
        load_cluster(file)
    with pytest.raises(RairlError, match="--cluster"):
        load_cluster(tmp_path / "none.yaml")


def test_no_credential_is_in_what_is_compiled(compiled: Compiled) -> None:
    """Secrets come by name: no variable that a secret fills has a value in the specification."""
    cluster = yaml.safe_load(CLUSTER.read_text())
    secret = {value for it in cluster["secrets"] for value in it["env"].values()}
    for name in (*STAGES, *EXTRA):
        assert not secret & set(compiled.environment(name))


def test_the_image_comes_from_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "rairl.yaml"
    command = [sys.executable, "-m", "rairl", "pipeline", "compile", "--output", str(path)]
    subprocess.run(
        [*command, "--image", "registry.example/rairl-python:7"], cwd=ROOT, env={**os.environ}, check=True,
        capture_output=True,
    )  # fmt: skip
    spec = next(yaml.safe_load_all(path.read_text()))
    images = {executor["container"]["image"] for executor in spec["deploymentSpec"]["executors"].values()}
    assert images == {"registry.example/rairl-python:7"}


def test_the_pipeline_compiles_without_the_learning_stack(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pipelines.run import compile_pipeline\n"
        "compile_pipeline(Path(sys.argv[1]))\n"
        "print(*sorted({'torch', 'transformers', 'mlflow', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "rairl.yaml")],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == []
