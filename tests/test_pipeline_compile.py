"""The compiled pipeline: chosen parts of its specification, never the whole (that changes with each SDK version)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rairl.stages import INPUTS, OUTPUTS, STAGES, producer

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from pipelines.compile import compile_to

    path = tmp_path_factory.mktemp("compiled") / "rairl.yaml"
    compile_to(path)
    return next(yaml.safe_load_all(path.read_text()))


def test_the_tasks_are_the_stages(spec: dict[str, Any]) -> None:
    assert set(spec["root"]["dag"]["tasks"]) == set(STAGES)
    assert spec["pipelineInfo"]["name"] == "rairl"


@pytest.mark.parametrize("name", STAGES)
def test_each_task_is_wired_as_the_layout_says(spec: dict[str, Any], name: str) -> None:
    task = spec["root"]["dag"]["tasks"][name]
    wired = {
        arg: (source["taskOutputArtifact"]["producerTask"], source["taskOutputArtifact"]["outputArtifactKey"])
        for arg, source in task["inputs"].get("artifacts", {}).items()
    }
    expected = {}
    for arg, path in INPUTS[name].items():
        if arg == "metrics_dir":
            expected |= {f"{stage}_metrics": (stage, "metrics") for stage in STAGES if stage != name}
            continue
        source = producer(path)
        expected[arg] = (source, next(key for key, made in OUTPUTS[source].items() if made == path))
    assert wired == expected
    assert set(task.get("dependentTasks", [])) == {source for source, _ in expected.values()}
    assert task["inputs"]["parameters"]["params"] == {"componentInputParameter": "params"}
    component = spec["components"][task["componentRef"]["name"]]
    assert set(component["outputDefinitions"]["artifacts"]) == set(OUTPUTS[name])


def test_every_task_runs_in_the_image_and_installs_nothing(spec: dict[str, Any]) -> None:
    executors = spec["deploymentSpec"]["executors"]
    assert len(executors) == len(STAGES)
    for executor in executors.values():
        assert executor["container"]["image"].startswith("rairl-python:")
        assert "pip install" not in " ".join(executor["container"]["command"])


def test_the_pipeline_hands_back_report_summary_and_reward(spec: dict[str, Any]) -> None:
    outputs = spec["root"]["dag"]["outputs"]["artifacts"]
    assert {
        name: (source["artifactSelectors"][0]["producerSubtask"], source["artifactSelectors"][0]["outputArtifactKey"])
        for name, source in outputs.items()
    } == {"report": ("report", "report"), "summary": ("report", "summary"), "reward": ("rairl", "reward")}


def test_the_image_comes_from_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "rairl.yaml"
    subprocess.run(
        [sys.executable, "-m", "pipelines.compile", str(path)],
        cwd=ROOT,
        env={**os.environ, "RAIRL_IMAGE": "registry.example/rairl-python:7"},
        check=True,
        capture_output=True,
    )
    spec = next(yaml.safe_load_all(path.read_text()))
    images = {executor["container"]["image"] for executor in spec["deploymentSpec"]["executors"].values()}
    assert images == {"registry.example/rairl-python:7"}


def test_the_pipeline_compiles_without_the_learning_stack() -> None:
    code = "import sys, pipelines.compile; print(*sorted({'torch', 'transformers', 'rairl'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
