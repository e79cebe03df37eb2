"""A stage as a pipeline's task: parameters in, artifacts and figures out, in one process or in several."""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from kfp import dsl

from rairl.core.errors import RairlError
from rairl.core.params import Params
from rairl.core.stats import Estimate, exact
from rairl.kubeflow import task
from rairl.kubeflow.task import ACCELERATE, configure, read_params, run_task, variants, whole_numbers
from rairl.tracking.champion import Verdict
from rairl.tracking.run import Run


@pytest.fixture
def values(miniature: Params) -> dict[str, Any]:
    """Parameters as a pipeline hands them on: every number a float, no nulls."""
    from pipelines.run import without_nulls

    return json.loads(json.dumps(without_nulls(miniature.model_dump())), parse_int=float)


def test_whole_numbers_come_back_from_a_pipelines_dict() -> None:
    given = {"seed": 3.0, "lr": 0.5, "flag": True, "name": "1.0", "list": [1.0, {"n": 2.0}]}
    back = whole_numbers(given)
    assert back == {"seed": 3, "lr": 0.5, "flag": True, "name": "1.0", "list": [1, {"n": 2}]}
    assert isinstance(back["seed"], int)
    assert isinstance(back["list"][1]["n"], int)
    assert back["flag"] is True


# --- parameters -------------------------------------------------------------------------------------------------------


def test_the_forms_fields_go_into_the_parameters(values: dict[str, Any], miniature: Params) -> None:
    plain = configure(values, experiment="", tracking_uri="")
    assert read_params(plain) == (miniature, None)
    filled = configure(values, experiment="mine", tracking_uri="http://mlflow:5000")
    known, uri = read_params(filled)
    assert uri == "http://mlflow:5000"
    assert known.tracking.experiment == "mine"
    assert known.model_copy(update={"tracking": miniature.tracking}) == miniature
    assert values["tracking"] == miniature.tracking.model_dump()  # the caller's is as it was


def test_wrong_parameters_are_named_before_anything_runs(values: dict[str, Any]) -> None:
    values["policy"]["iterationz"] = 3.0
    with pytest.raises(RairlError, match=r"unknown key 'policy\.iterationz'"):
        configure(values, experiment="", tracking_uri="")


def test_without_seeds_and_granularities_there_is_one_run_of_the_parameters(
    values: dict[str, Any], miniature: Params
) -> None:
    [only] = variants(values, seeds=[], granularities=[])
    assert read_params(only)[0] == miniature


def test_every_seed_meets_every_granularity(values: dict[str, Any], miniature: Params) -> None:
    found = [read_params(it)[0] for it in variants(values, seeds=[0.0, 7.0], granularities=["step", "dense"])]
    assert [(it.seed, it.reward.granularity) for it in found] == [(0, "step"), (0, "dense"), (7, "step"), (7, "dense")]
    assert {it.policy for it in found} == {miniature.policy}
    assert len({it.digest() for it in found}) == 4


@pytest.mark.parametrize(
    ("seeds", "granularities", "message"),
    [([1, 1.0], [], "name one twice"), ([], ["word"], r"reward\.granularity"), ([0.5], [], "'seed'")],
)
def test_a_variant_that_is_none_is_an_error(
    values: dict[str, Any], seeds: list[float], granularities: list[str], message: str
) -> None:
    with pytest.raises(RairlError, match=message):
        variants(values, seeds=seeds, granularities=granularities)


# --- running a stage --------------------------------------------------------------------------------------------------


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a function in the place of stage prepare, and a tracking run that does nothing."""

    @contextmanager
    def stage_run(*_: Any, **__: Any) -> Any:
        yield Run()

    monkeypatch.setattr("rairl.tracking.run.stage_run", stage_run)
    monkeypatch.setattr("rairl.tracking.pipeline_runs.run_links", lambda *_: {"mlflow.run_id": "abc"})

    def use(function: Any) -> None:
        module = ModuleType("rairl.stages.prepare")
        module.prepare = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)

    return use


def test_a_task_hands_paths_figures_and_run_ids_over(
    tmp_path: Path, values: dict[str, Any], miniature: Params, stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAIRL_PROMOTE", raising=False)
    seen: dict[str, Any] = {}

    def prepare(params: Params, run: Any, *, data: Path) -> dict[str, Estimate]:
        known = {name: os.environ.get(name) for name in ("MLFLOW_TRACKING_URI", "RAIRL_PROMOTE")}
        seen.update(params=params, data=data.name, **known)
        data.mkdir()
        return {"rows": exact(5)}

    stage(prepare)
    values["tracking"]["uri"] = "http://mlflow:5000"
    metrics = dsl.Metrics(name="metrics", uri=str(tmp_path / "metrics"))
    run_task("prepare", values, metrics, data=dsl.Dataset(name="data", uri=str(tmp_path / "data")))
    assert seen == {
        "params": miniature, "data": "data", "MLFLOW_TRACKING_URI": "http://mlflow:5000", "RAIRL_PROMOTE": "no",
    }  # fmt: skip
    assert metrics.metadata["rows"] == 5.0
    assert metrics.metadata["mlflow.run_id"] == "abc"
    assert set(json.loads((tmp_path / "metrics").read_text())) == set(metrics.metadata) - {"mlflow.run_id"}
    assert "MLFLOW_TRACKING_URI" not in os.environ and "RAIRL_PROMOTE" not in os.environ


def test_a_training_stage_goes_where_its_environment_says(
    tmp_path: Path, values: dict[str, Any], stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, Any]] = []

    def record(how: str) -> Any:
        def instead(name: str, params: Params, *args: Any, **paths: Path) -> None:
            calls.append((how, args[-1] if args else None))
            (tmp_path / "metrics").write_text("{}")

        return instead

    monkeypatch.setattr(task, "run_stage", record("here"))
    monkeypatch.setattr(task, "launch", record("processes"))
    monkeypatch.setattr("rairl.kubeflow.trainjob.train_in_job", record("machines"))

    def run(name: str, **environment: str) -> None:
        with monkeypatch.context() as patch:
            for key, value in environment.items():
                patch.setenv(key, value)
            run_task(name, values, dsl.Metrics(name="metrics", uri=str(tmp_path / "metrics")))

    run("sft")
    run("sft", RAIRL_ACCELERATE="cpu-2")
    run("sft", RAIRL_TRAINJOB='{"nodes": 2}')
    run("rerank", RAIRL_ACCELERATE="cpu-2", RAIRL_TRAINJOB='{"nodes": 2}')  # one process's work
    assert calls == [
        ("here", None), ("processes", ACCELERATE / "cpu-2.yaml"), ("machines", {"nodes": 2}), ("here", None),
    ]  # fmt: skip


BOTH = """
import sys
from pathlib import Path
import yaml
from rairl.learn.distributed import gather, world
rank, size = world()
params = yaml.safe_load(Path(sys.argv[1]).read_text())
Path(f"rank{rank}").write_text(f"{size} {gather([rank])} seed {params['seed']}")
"""


def test_a_launch_starts_two_processes_that_find_each_other(
    tmp_path: Path, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another program in the place of the stage: tests/test_distributed.py has the learning."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "both.py").write_text(BOTH)
    monkeypatch.setattr(task, "stage_command", lambda name, file, paths: ["both", str(file)])
    task.launch("sft", read_params(values)[0], {}, ACCELERATE / "cpu-2.yaml")
    assert {path.name: path.read_text() for path in tmp_path.glob("rank*")} == {
        "rank0": "2 [0, 1] seed 0", "rank1": "2 [0, 1] seed 0",
    }  # fmt: skip


def test_a_failed_launch_is_an_error(tmp_path: Path, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "stage_command", lambda name, file, paths: ["no_such_module"])
    with pytest.raises(RairlError, match="stage sft under accelerate ended with code"):
        task.launch("sft", read_params(values)[0], {}, ACCELERATE / "gpu-1.yaml")
    with pytest.raises(RairlError, match=r"gpu-9\.yaml does not exist"):
        task.launch("sft", read_params(values)[0], {}, ACCELERATE / "gpu-9.yaml")


# --- the tasks around the stages --------------------------------------------------------------------------------------


def test_register_lets_all_variants_compete(
    tmp_path: Path, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rairl.evaluate.calibrate import CRITERION
    from rairl.tracking.provenance import data_tag

    calls: list[Any] = []

    def promote(params: list[Params], **options: Any) -> Verdict:
        calls.append(([it.seed for it in params], options, os.environ.get("MLFLOW_TRACKING_URI")))
        return Verdict(True, "3", 0.5, "version 3 is champion")

    monkeypatch.setattr("rairl.tracking.champion.promote", promote)
    (tmp_path / "card.json").write_text("{}")
    rows = variants(configure(values, experiment="", tracking_uri="http://mlflow"), seeds=[0, 1], granularities=[])
    assert task.register(rows, tmp_path).text == "version 3 is champion"
    options = {"data": data_tag(tmp_path / "card.json"), "criterion": CRITERION}
    assert calls == [([0, 1], options, "http://mlflow")]


@pytest.mark.parametrize(
    ("state", "status"), [("SUCCEEDED", "FINISHED"), ("FAILED", "FAILED"), ("CANCELLED", "KILLED"), ("NEW", "FAILED")]
)
def test_finish_settles_the_pipelines_run(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, state: str, status: str
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(
        "rairl.tracking.pipeline_runs.close_pipeline", lambda params, **it: calls.append((params.tracking, it))
    )
    task.finish(values, experiment="mine", tracking_uri="", state=state, error=None)
    [(tracking, options)] = calls
    assert tracking.experiment == "mine"
    assert options == {"status": status, "error": ""}


def test_the_command_line_of_a_stage_is_one_that_it_takes(tmp_path: Path, values: dict[str, Any]) -> None:
    from typer.testing import CliRunner

    from rairl.cli.main import app

    (tmp_path / "params.yaml").write_text(yaml.safe_dump(read_params(values)[0].model_dump()))
    words = task.stage_command("sft", tmp_path / "params.yaml", {"data": tmp_path / "a", "last": tmp_path / "b"})
    done = CliRunner().invoke(app, words[1:])
    assert "needs" in str(done.exception) and str(tmp_path / "a") in str(done.exception)
