"""The Kubeflow pipeline, run on this machine: the fan-out and the end. Its figures: tests/test_dvc.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from rairl.stages.layout import STAGES

pytestmark = pytest.mark.timeout(900)  # whole pipelines: a minute each on a quiet machine, several beside other work


STANDINS = """
# Stands in for what the tasks do, so that the pipeline's own doing is seen: each stage writes down what it was given.
import json, sys
from pathlib import Path

if any("executor_main" in word for word in sys.orig_argv):
    import rairl.kubeflow.pages, rairl.kubeflow.task

    def run_task(name, params, metrics, **artifacts):
        known = {"seed": params["seed"], "granularity": params["reward"]["granularity"]}
        from rairl.stages.layout import OUTPUTS
        for arg in OUTPUTS[name]:
            target = Path(metrics.path if arg == "metrics" else artifacts[arg].path)
            target.mkdir() if (name, arg) == ("report", "report") else target.write_text(json.dumps(known))
        if name == "report":
            (Path(artifacts["report"].path) / "report.html").write_text("page")
            given = {arg: str(it.path) for arg, it in artifacts.items() if arg.startswith("rairl")}
            histories = json.loads(Path(given["rairl_history"]).read_text())
            assert histories == known, "another variant's history"

    def register(variants, data):
        from rairl.tracking.champion import Verdict
        return Verdict(True, "1", 0.5, json.dumps([[it["seed"], it["reward"]["granularity"]] for it in variants]))

    def finish(params, *, experiment, tracking_uri, state, error):
        Path("finished").write_text(json.dumps([state, experiment]))

    rairl.kubeflow.task.run_task, rairl.kubeflow.task.register, rairl.kubeflow.task.finish = run_task, register, finish
    rairl.kubeflow.pages.tables = lambda summary: summary.read_text()
    rairl.kubeflow.pages.roc = lambda *_: ([], [], [])
"""


def with_standins(folder: Path) -> dict[str, str]:
    (folder / "standins").mkdir()
    (folder / "standins" / "sitecustomize.py").write_text(STANDINS)
    return {**os.environ, "PYTHONPATH": f"{folder / 'standins'}{os.pathsep}{ROOT}"}


def test_every_variant_is_run_measured_and_reported_and_one_task_decides(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rairl", "pipeline", "run-local", "--params", str(ROOT / "tests/miniature.yaml")]
    fan = ["--seed", "3", "--seed", "4", "--granularity", "dense"]
    done = subprocess.run([*command, *fan], cwd=tmp_path, env=with_standins(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    summaries = [line.split(": ")[1] for line in done.stdout.splitlines() if line.startswith("summary: ")]
    expected = [{"seed": seed, "granularity": "dense"} for seed in (3, 4)]
    assert [json.loads(Path(path).read_text()) for path in summaries] == expected
    for name in STAGES[: STAGES.index("rairl")]:  # what all variants share is done once, with the parameters' own seed
        [metrics] = tmp_path.glob(f"local_outputs/*/{name.replace('_', '-')}/metrics")
        assert json.loads(metrics.read_text()) == {"seed": 0, "granularity": "step"}
    [verdict] = tmp_path.glob("local_outputs/*/register/verdict")
    assert json.loads(verdict.read_text()) == [[3, "dense"], [4, "dense"]]


FAILING = """
from kfp import local
from pipelines.pipeline import cluster_pipeline

local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root="outputs", enable_caching=False)
cluster_pipeline(lambda task, name: None)(params={"seed": "none"}, experiment="mine")
"""


def test_wrong_parameters_end_the_pipeline_at_once_and_the_exit_handler_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAILING], cwd=tmp_path, env=with_standins(tmp_path), capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "key 'dataset' is missing" in done.stdout + done.stderr
    assert not list(tmp_path.glob("outputs/*/prepare"))
    assert json.loads((tmp_path / "finished").read_text()) == ["FAILED", "mine"]
