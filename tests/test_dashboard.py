"""What MLflow's own page makes of the views and descriptions that a run leaves, in a real browser."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from browser import chromium, needs_browser

from rairl.core.params import Params
from rairl.core.stats import Estimate
from rairl.core.training_params import PretrainedBase
from rairl.tracking.courier import stage_run
from rairl.tracking.dashboard import FIGURES, version_note
from rairl.tracking.pipeline_runs import views


def test_a_version_says_where_it_comes_from(miniature: Params) -> None:
    note = version_note(
        miniature,
        {"rairl.data": "377531e3fd2f", "rairl.commit": "0123456789abcdef-dirty"},
        80,
        {"dev/score": 0.9555, "dev/auroc": 0.91},
        experiment_id="1",
        run_id="r",
        parent_id="p",
    )
    assert note.split("\n\n") == [
        "**dev:** score 0.956, auroc 0.910",
        f"**policy:** built-in model, {miniature.base.layers} layers, iteration 80; **reward:** second_model, step",
        "**from:** arithmetic, data `377531e3fd2f`, commit `012345678-dirty`",
        "[the run](#/experiments/1/runs/r) · [all stages](#/experiments/1/runs/p) · "
        "[test report](#/experiments/1/runs/p/artifacts)",
    ]


def test_a_model_of_the_hub_is_named_with_its_commit(miniature: Params) -> None:
    base = PretrainedBase(source="owner/name", revision="0123456789abcdef")
    note = version_note(
        miniature.model_copy(update={"base": base}), {}, 0, {}, experiment_id="1", run_id="r", parent_id="p"
    )
    assert "**policy:** owner/name@012345678, iteration 0" in note


@needs_browser
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_page_opens_the_views_and_shows_a_version(project: Path, miniature: Params, tmp_path: Path) -> None:
    reward, card = project / "checkpoint", project / "card.json"
    reward.mkdir()
    (reward / "reward.json").write_text("{}")
    card.write_text("{}")
    for seed in (0, 1):
        variant = miniature.model_copy(update={"seed": seed})
        with stage_run("rairl", variant, log_dir=project / "metrics", root=project, card=card) as run:
            figures = {name.replace("_at_", "@"): 0.25 + 0.5 * seed for name in FIGURES}
            run.log_estimates({name: Estimate(value, 0, 1, 9) for name, value in figures.items()})
            run.register_reward(reward, 20, {"dev/score": 0.75 + seed / 8})
            run.promote_champion("dev/score")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"http://127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-m", "mlflow", "ui", "--workers", "1", "--port", host.rsplit(":", 1)[1]]
    command += ["--backend-store-uri", f"sqlite:///{project / 'mlflow.db'}"]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(command, env=environment, start_new_session=True, **quiet)
    try:
        for _ in range(1200):
            try:
                urllib.request.urlopen(f"{host}/health", timeout=1)
                break
            except OSError:
                time.sleep(0.2)
        told = dict(line.strip().split(": ", 1) for line in views(host, project))
        address = {what.removeprefix("rairl, "): place for what, place in told.items()}  # the store has another one
        with chromium(tmp_path, offline=False) as tab:
            tab.call("Emulation.setDeviceMetricsOverride", width=2400, height=900, deviceScaleFactor=1, mobile=False)
            text = "document.body.innerText"
            tab.visit(address["runs"], f"/\\b2 matching runs/.test({text}) && {text}.includes('0.75')", 200)
            page = tab.text("body")
            for column in ("rairl.dev.score", "localise.reward.exact", "seed", "reward.granularity", "Description"):
                assert column in page
            assert f"arithmetic; built-in model, {miniature.base.layers} layers; reward on" in page
            tab.visit("about:blank", "true", 5)
            tab.visit(address["compared"], f"{text}.includes('Parallel Coordinates')", 200)
            tab.visit("about:blank", "true", 5)
            tab.visit(address["by stage"], f"{text}.includes('Group by: rairl.stage')", 200)
            tab.visit(
                f"{address['registered']}/versions/2", f"{text}.includes('Schema') && /@\\schampion/.test({text})", 200
            )
            page = tab.text("body").replace("\xa0", " ")
            for part in ("dev: score 0.875", "test report", "@ champion", "rairl.commit"):
                assert part in page
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
