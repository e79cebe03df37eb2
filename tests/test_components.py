"""Every component is thin: light imports at its top, the layout's paths as its signature, and a call of its stage."""

from __future__ import annotations

import ast
import inspect
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl

from rairl.stages.layout import INPUTS, OUTPUTS, STAGES

ROOT = Path(__file__).parents[1]
EXTRA = {"configure", "variants", "register", "finish"}
"""Components that are no stages; each says why in its first lines."""
SHOWN = {"rerank": {"roc": "ClassificationMetrics"}, "report": {"page": "HTML", "tables": "Markdown"}}
"""Outputs that only the pages of Kubeflow Pipelines want."""
FILES = sorted((ROOT / "components").glob("*.py"))


def expected_inputs(name: str) -> set[str]:
    """Artifact inputs of a component: the layout's, with the metrics folder as one artifact per stage."""
    inputs = set(INPUTS[name])
    if "metrics_dir" in inputs:
        inputs = inputs - {"metrics_dir"} | {f"{stage}_metrics" for stage in STAGES if stage != name}
    return inputs


def test_there_is_one_component_per_stage() -> None:
    assert {path.stem for path in FILES} == {"__init__", *STAGES, *EXTRA}
    for name in EXTRA:
        words = (ROOT / "components" / f"{name}.py").read_text()
        assert "not a stage" in words.splitlines()[0] and "rairl.kubeflow.task import" in words


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_only_the_standard_library_and_kfp_are_imported_at_the_top(path: Path) -> None:
    allowed = set(sys.stdlib_module_names) | {"kfp", "components"}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= allowed
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] in allowed


@pytest.mark.parametrize("name", STAGES)
def test_the_interface_is_the_layouts(name: str) -> None:
    task = getattr(import_module(f"components.{name}"), name)
    spec = task.component_spec
    assert {arg for arg in spec.inputs if arg != "params"} == expected_inputs(name)
    assert set(spec.outputs) == {*OUTPUTS[name], *SHOWN.get(name, {})}
    for arg, kind in SHOWN.get(name, {}).items():
        assert spec.outputs[arg].type == f"system.{kind}@0.0.1"
    assert spec.inputs["params"].type == "Dict"
    assert spec.description


@pytest.mark.parametrize("name", STAGES)
def test_the_body_hands_every_path_to_its_own_stage(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    function = getattr(import_module(f"components.{name}"), name).python_func
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    monkeypatch.setattr("rairl.kubeflow.task.run_task", lambda *args, **kwargs: calls.append((args, kwargs)))
    names = [arg for arg in inspect.signature(function).parameters if arg != "params"]
    args = {arg: dsl.Artifact(name=arg, uri=str(tmp_path / arg)) for arg in names}
    if name in SHOWN:
        monkeypatch.setattr("rairl.kubeflow.pages.roc", lambda *_: ([0.0, 1.0], [0.0, 1.0], [0.5, 0.25]))
        monkeypatch.setattr("rairl.kubeflow.pages.tables", lambda summary: f"| of {summary.name} |")
        (tmp_path / "report").mkdir()
        (tmp_path / "report" / "report.html").write_text("<p>")
        args |= {arg: getattr(dsl, kind)(name=arg, uri=str(tmp_path / arg)) for arg, kind in SHOWN[name].items()}
    function(params={"seed": 0}, **args)
    [((stage, params, metrics), paths)] = calls
    assert stage == name
    assert params == {"seed": 0}
    assert metrics is args["metrics"]
    gathered = paths.pop("metrics_dir", None)
    assert paths == {arg: value for arg, value in args.items() if arg in {*INPUTS[name], *OUTPUTS[name]} - {"metrics"}}
    if gathered is not None:
        assert gathered == {stage: args[f"{stage}_metrics"] for stage in STAGES if stage != name}
    if name == "report":
        assert (tmp_path / "page").read_text() == "<p>"
        assert (tmp_path / "tables").read_text() == "| of summary |"
    if name == "rerank":
        points = args["roc"].metadata["confidenceMetrics"]
        assert [point["confidenceThreshold"] for point in points] == [0.5, 0.25]


def python_func(name: str) -> Any:
    return getattr(import_module(f"components.{name}"), name).python_func


def test_the_tasks_around_the_stages_call_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from rairl.tracking.champion import Verdict

    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def record(result: Any) -> Any:
        return lambda *args, **kwargs: calls.append((args, kwargs)) or result

    monkeypatch.setattr("rairl.kubeflow.task.configure", record({"seed": 1}))
    monkeypatch.setattr("rairl.kubeflow.task.variants", record([{"seed": 1}]))
    monkeypatch.setattr("rairl.kubeflow.task.register", record(Verdict(True, "4", 0.75, "version 4 is champion")))
    monkeypatch.setattr("rairl.kubeflow.task.finish", record(None))
    assert python_func("configure")(params={}, experiment="e", tracking_uri="t") == {"seed": 1}
    assert python_func("variants")(params={}, seeds=[1], granularities=["step"]) == [{"seed": 1}]
    verdict = dsl.Markdown(name="verdict", uri=str(tmp_path / "verdict"))
    metrics = dsl.Metrics(name="metrics", uri=str(tmp_path / "metrics"))
    data = dsl.Dataset(name="data", uri=str(tmp_path))
    python_func("register")(variants=[{"seed": 1}], data=data, reports=[], verdict=verdict, metrics=metrics)
    status = dsl.PipelineTaskFinalStatus("FAILED", "run", "exit-handler-1", 13, "no node")
    python_func("finish")(params={}, experiment="e", tracking_uri="t", status=status)
    assert calls == [
        (({},), {"experiment": "e", "tracking_uri": "t"}),
        (({},), {"seeds": [1], "granularities": ["step"]}),
        (([{"seed": 1}], tmp_path), {}),
        (({},), {"experiment": "e", "tracking_uri": "t", "state": "FAILED", "error": "no node"}),
    ]
    assert (tmp_path / "verdict").read_text() == "version 4 is champion\n"
    assert metrics.metadata == {"promoted": 1.0, "criterion": 0.75, "version": "4"}


def test_a_component_runs_its_stage(
    tmp_path: Path, project: Path, miniature: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from components.prepare import prepare
    from rairl.core.traces import read_traces

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    metrics = dsl.Metrics(name="metrics", uri=str(tmp_path / "task" / "metrics"))
    prepare.python_func(
        params=json.loads(json.dumps(miniature.model_dump()), parse_int=float),
        data=dsl.Dataset(name="data", uri=str(tmp_path / "task" / "data")),
        metrics=metrics,
    )
    assert len(read_traces(tmp_path / "task" / "data" / "demos.jsonl")) == miniature.dataset.demos
    links = {key for key in metrics.metadata if key.startswith("mlflow.")}
    assert links == {"mlflow.tracking_uri", "mlflow.run_id", "mlflow.parent_id"}
    assert set(json.loads((tmp_path / "task" / "metrics").read_text())) == set(metrics.metadata) - links
