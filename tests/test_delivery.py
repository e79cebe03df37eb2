"""What MLflow misses while it is away, slow, or when a process is killed, comes later, once."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rairl.cli.main import app
from rairl.core.errors import RairlError
from rairl.core.params import Params
from rairl.core.stats import Estimate
from rairl.core.traces import Trace
from rairl.tracking.delivery import Delivery, outbox, send_leftovers
from rairl.tracking.run import stage_run
from rairl.tracking.store import registered_reward

MINIATURE = Path(__file__).with_name("miniature.yaml")


@pytest.fixture
def track(project: Path, miniature: Params) -> Callable[..., Any]:
    """``stage_run`` with this test's project and parameters."""
    return lambda stage="sft": stage_run(stage, miniature, root=project)


@pytest.fixture
def everything(project: Path) -> Callable[[Any], None]:
    """A function that records one of each kind, from files that are gone when it returns."""

    def record(run: Any) -> None:
        folder = project / "checkpoint"
        folder.mkdir()
        (folder / "reward.json").write_text("{}")
        run.log_input(folder / "reward.json", name="dev")
        for step in range(1500):
            run.log({"loss": step, "rate": 0.5}, step)
        run.log_artifact(folder / "reward.json", of_pipeline=True)
        run.register_reward(folder, 1, {"dev": 0.5})
        run.promote_champion("dev")
        run.log_estimates({"figure": Estimate(0.5, 0.4, 0.6, 20)})
        shutil.rmtree(folder)

    return record


def the_run(client: Any, stage: str = "sft", experiment: str = "rairl") -> Any:
    """The only run of a stage."""
    (run,) = client.search_runs(
        [client.get_experiment_by_name(experiment).experiment_id], f"tags.`rairl.stage` = '{stage}'"
    )
    return run


def assert_once(client: Any, experiment: str = "rairl", model: str = "rairl-reward") -> None:
    """All that ``everything`` records is there, and nothing twice."""
    run, parent = the_run(client, experiment=experiment), the_run(client, "pipeline", experiment)
    assert run.info.status == parent.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(step, step) for step in range(1500)]
    assert parent.data.metrics == {"figure": 0.5}
    assert [item.dataset.name for item in run.inputs.dataset_inputs] == ["dev"]
    assert [item.path for item in client.list_artifacts(parent.info.run_id)] == ["reward.json"]
    (version,) = client.search_model_versions(f"name = '{model}'")
    (logged,) = client.search_logged_models([run.info.experiment_id])
    assert [output.model_id for output in run.outputs.model_outputs] == [logged.model_id]
    assert (version.source, str(logged.status)) == (f"models:/{logged.model_id}", "READY")
    assert client.get_registered_model(model).aliases["champion"] == version.version


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_server_that_is_down_costs_one_warning_and_gets_everything_later(
    client, track, project: Path, everything: Callable[[Any], None], monkeypatch, caplog
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    start = time.monotonic()
    with track() as run:
        everything(run)
    assert time.monotonic() - start < 30
    (warning,) = warnings_of(caplog)
    for part in ("Connection refused", str(outbox(project)), "rairl sync", "Check MLFLOW_TRACKING_URI"):
        assert part in warning
    refused = CliRunner().invoke(app, ["sync", "--dir", str(project)])
    assert "sft: MLflow does not take it" in refused.output and "Connection refused" in refused.output
    assert isinstance(refused.exception, RairlError)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with track("report"):  # to another address, so it leaves alone what is meant for the first
        pass
    words = ["sync", "--dir", str(project), "--to", f"sqlite:///{project / 'mlflow.db'}"]
    assert CliRunner().invoke(app, words).output == "sft: sent\n"
    assert_once(client)
    assert CliRunner().invoke(app, words).output == "nothing to send\n"
    assert list(outbox(project).iterdir()) == []


def test_a_server_that_hangs_holds_a_stage_up_once_and_not_at_every_step(track, monkeypatch, caplog) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("rairl.tracking.run._LEAST", 0.0)  # what remains is the share of the time
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with track() as run:
            start = time.perf_counter()
            for step in range(10_000):
                run.log({"loss": 1.0}, step)
            assert time.perf_counter() - start < 10
    assert len(warnings_of(caplog)) == 1


def test_an_address_that_makes_no_sense_costs_one_warning(track, monkeypatch, caplog) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "gopher://nowhere")
    with track() as run:
        run.log({"loss": 1.0}, 0)
    (warning,) = warnings_of(caplog)
    assert "gopher://nowhere" in warning


def test_a_process_killed_between_an_answer_and_the_marker_sends_nothing_twice(
    client, track, project: Path, everything: Callable[[Any], None], monkeypatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        with track() as run:
            everything(run)

    mark, left = Delivery._mark, 0

    def dies(self: Delivery, **values: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt  # MLflow has the record, and nobody notes it
        mark(self, **values)

    monkeypatch.setattr(Delivery, "_mark", dies)
    attempts = 0
    while any(outbox(project).iterdir()):
        attempts, left = attempts + 1, 1  # each attempt gets one record further
        with suppress(KeyboardInterrupt):
            assert list(send_leftovers(project, to=f"sqlite:///{project / 'mlflow.db'}")) == [("sft", None)]
    assert attempts > 5
    assert_once(client)


def test_what_can_never_be_sent_keeps_no_later_stage_from_being_recorded(client, track, project: Path, caplog) -> None:
    left = outbox(project) / "0-broken"
    left.mkdir(parents=True)
    (left / "records.jsonl").write_text('{"stage": "old", "uri": ""}\n')
    with track():
        pass
    assert the_run(client).info.status == "FINISHED"
    assert len(warnings_of(caplog)) == 1 and left.exists()


def test_a_half_registered_reward_is_taken_up(
    client, track, project: Path, everything: Callable[[Any], None], monkeypatch
) -> None:
    from mlflow import MlflowClient

    def dies(*_: Any, **__: Any) -> None:
        raise ConnectionError("reset")

    with monkeypatch.context() as patch, track() as run:
        patch.setattr(MlflowClient, "create_model_version", dies)
        everything(run)
    with track("report"):
        pass
    assert_once(client)


STAGE = """
import sys, time
from rairl.tracking.run import stage_run
from rairl.core.params import load_params
with stage_run(sys.argv[2], load_params(sys.argv[1])) as run:
    run.log({"loss": 1.0}, 0)
    print("going", flush=True)
    time.sleep(float(sys.argv[3]))
"""


def started(project: Path, stage: str, seconds: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", STAGE, str(MINIATURE), stage, str(seconds)]
    return subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_killed_stage_is_failed_when_the_next_one_starts_and_a_running_one_is_let_alone(
    project: Path, client, track
) -> None:
    with started(project, "sft", 600) as process:
        assert process.stdout is not None and process.stdout.readline() == b"going\n"
        assert list(send_leftovers(project)) == []
        assert the_run(client).info.status == "RUNNING"
        process.kill()
        process.wait()
        (records,) = outbox(project).glob("*/records.jsonl")
        with records.open("a") as file:
            file.write('{"kind": "met')  # killed while it wrote
        with track("grpo"):
            run = the_run(client)
            assert run.info.status == "FAILED"
            assert run.data.tags["rairl.error"] == "the stage's process was killed"
            assert run.data.metrics == {"loss": 1.0}
    assert the_run(client, "pipeline").info.status == "FINISHED"
    assert list(outbox(project).iterdir()) == []


def test_stages_that_start_at_once_on_a_fresh_store_are_all_recorded(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    stages = ("sft", "second_model", "grpo")
    processes = [started(tmp_path, stage, 0) for stage in stages]
    for process in processes:
        assert process.communicate()[1] == b""
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    parent = the_run(client, "pipeline").info.run_id
    for stage in stages:
        run = the_run(client, stage)
        assert (run.info.status, run.data.tags["mlflow.parentRunId"]) == ("FINISHED", parent)
        assert run.data.metrics == {"loss": 1.0}


# --- with a real server -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, first_store: tuple[Path, str]) -> Iterator[tuple[str, int]]:
    """Address and process group of a tracking server with a store of its own."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copyfile(first_store[0], folder / "mlflow.db")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-m", "mlflow", "server", "--port", address.rsplit(":", 1)[1], "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination", str(folder)]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=environment, start_new_session=True, **quiet)
    try:
        for _ in range(2400):  # a busy machine takes minutes to import MLflow
            try:
                urllib.request.urlopen(f"{address}/health", timeout=1)
                break
            except OSError:
                time.sleep(0.1)
        yield address, process.pid
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its own session, so its workers go with it
        process.wait()


def test_a_server_that_stops_in_the_middle_gets_the_rest_from_the_next_stage(
    server: tuple[str, int], project: Path, miniature: Params, everything: Callable[[Any], None], monkeypatch, caplog
) -> None:
    from mlflow import MlflowClient

    address, group = server
    for name, value in {"TRACKING_URI": address, "HTTP_REQUEST_TIMEOUT": "2", "HTTP_REQUEST_MAX_RETRIES": "0"}.items():
        monkeypatch.setenv(f"MLFLOW_{name}", value)
    monkeypatch.setattr("rairl.tracking.run._LEAST", 0.0)
    tracking = miniature.tracking.model_copy(update={"experiment": "stops", "registered_model": "stops"})
    params = miniature.model_copy(update={"tracking": tracking})
    client = MlflowClient(address)
    try:
        with stage_run("sft", params, root=project) as run:
            assert the_run(client, experiment="stops").info.status == "RUNNING"
            os.killpg(group, signal.SIGSTOP)
            everything(run)
    finally:
        os.killpg(group, signal.SIGCONT)
    assert the_run(client, experiment="stops").info.status == "RUNNING"
    assert len(warnings_of(caplog)) == 1
    with stage_run("report", params, root=project):
        pass
    assert_once(client, "stops", "stops")


def test_a_reward_travels_over_http(
    server: tuple[str, int], project: Path, tiny_policy: Path, miniature: Params, demos: list[Trace], monkeypatch
) -> None:
    """Registered through a real server, and read elsewhere by its alias: artifacts go through the server, too."""
    import torch

    from rairl.models.reward import new_reward
    from rairl.use.load import load

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server[0])
    model = new_reward(tiny_policy, miniature.reward, seed=0).calibrated(aggregator="min", threshold=-1.0)
    torch.nn.init.normal_(model.head[-1].weight, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(project / "checkpoint")
    with stage_run("rairl", miniature, root=project) as run:
        run.register_reward(project / "checkpoint", 3, {"dev/score": 0.75})
        run.promote_champion("dev/score")
        shutil.rmtree(project / "checkpoint")
    monkeypatch.chdir(project.parent)
    read = load("models:/rairl-reward@champion")
    assert read.calibration == model.calibration
    for one, other in zip(read.step_logits(demos[:3]), model.step_logits(demos[:3]), strict=True):
        assert one.steps.tolist() == pytest.approx(other.steps.tolist(), abs=1e-5)
    with pytest.raises(RairlError, match="nobody"), registered_reward("models:/rairl-reward@nobody"):
        pass


def test_what_is_still_to_be_sent_can_be_kept_outside_a_folder_that_goes(tmp_path: Path, monkeypatch) -> None:
    assert outbox(tmp_path) == tmp_path / ".rairl" / "tracking"
    monkeypatch.setenv("RAIRL_TRACKING", str(tmp_path / "kept"))
    assert outbox(tmp_path / "experiment") == tmp_path / "kept"
