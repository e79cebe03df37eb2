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

from rairl.stages import INPUTS, OUTPUTS, STAGES

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "components").glob("*.py"))


def expected_inputs(name: str) -> set[str]:
    """Artifact inputs of a component: the layout's, with the metrics folder as one artifact per stage."""
    inputs = set(INPUTS[name])
    if "metrics_dir" in inputs:
        inputs = inputs - {"metrics_dir"} | {f"{stage}_metrics" for stage in STAGES if stage != name}
    return inputs


def test_there_is_one_component_per_stage() -> None:
    assert {path.stem for path in FILES} == {"__init__", *STAGES}


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
    assert set(spec.outputs) == set(OUTPUTS[name])
    assert spec.inputs["params"].type == "Dict"
    assert spec.description


@pytest.mark.parametrize("name", STAGES)
def test_the_body_hands_every_path_to_its_own_stage(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    function = getattr(import_module(f"components.{name}"), name).python_func
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    monkeypatch.setattr("rairl.stages.run_task", lambda *args, **kwargs: calls.append((args, kwargs)))
    names = [arg for arg in inspect.signature(function).parameters if arg != "params"]
    args = {arg: dsl.Artifact(name=arg, uri=str(tmp_path / arg)) for arg in names}
    function(params={"seed": 0}, **args)
    [((stage, params, metrics), paths)] = calls
    assert stage == name
    assert params == {"seed": 0}
    assert metrics is args["metrics"]
    gathered = paths.pop("metrics_dir", None)
    assert paths == {arg: value for arg, value in args.items() if arg in {*INPUTS[name], *OUTPUTS[name]} - {"metrics"}}
    if gathered is not None:
        assert gathered == {stage: args[f"{stage}_metrics"] for stage in STAGES if stage != name}


def test_a_component_runs_its_stage(tmp_path: Path, miniature: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from components.prepare import prepare
    from rairl.traces import read_traces

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    metrics = dsl.Metrics(name="metrics", uri=str(tmp_path / "task" / "metrics"))
    prepare.python_func(
        params=json.loads(json.dumps(miniature.model_dump()), parse_int=float),
        data=dsl.Dataset(name="data", uri=str(tmp_path / "task" / "data")),
        metrics=metrics,
    )
    assert len(read_traces(tmp_path / "task" / "data" / "demos.jsonl")) == miniature.dataset.demos
    assert set(json.loads((tmp_path / "task" / "metrics").read_text())) == set(metrics.metadata)
