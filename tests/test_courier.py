"""The process that delivers: what the stage is spared, and what is recorded when one of the two dies."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import until

from rairl.core.params import Params
from rairl.tracking.courier import Courier, links_of, stage_run
from rairl.tracking.provenance import now

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

MINIATURE = Path(__file__).with_name("miniature.yaml")


@pytest.fixture
def hired(monkeypatch: pytest.MonkeyPatch) -> list[Courier]:
    """The couriers of this test, which takes none over from another."""
    made: list[Courier] = []
    monkeypatch.setattr("rairl.tracking.courier._idle", [])
    start = Courier.__init__

    def noted(self: Courier) -> None:
        start(self)
        made.append(self)

    monkeypatch.setattr(Courier, "__init__", noted)
    return made


def stage_of(client: MlflowClient, status: str) -> MlflowRun:
    """The run of the stage ``sft`` when it has a status; it is waited for."""
    found: list[MlflowRun] = []

    def there() -> bool:
        experiment = client.get_experiment_by_name("rairl")
        found[:] = client.search_runs([experiment.experiment_id], "tags.`rairl.stage` = 'sft'") if experiment else []
        return bool(found) and found[0].info.status == status

    until(there)
    return found[0]


def test_stages_one_after_the_other_share_a_process_and_nested_ones_do_not(
    project: Path, miniature: Params, hired: list[Courier], client: MlflowClient
) -> None:
    options = {"log_dir": project / "metrics", "root": project}
    with stage_run("sft", miniature, **options), stage_run("second_model", miniature, **options):
        pass
    assert len(hired) == 2
    with stage_run("grpo", miniature, **options):
        pass
    assert len(hired) == 2


def test_the_ids_of_a_run_come_from_the_process_that_has_mlflow_while_it_is_there(
    project: Path, miniature: Params, hired: list[Courier], client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stage_run("sft", miniature, log_dir=project / "metrics", root=project) as run:
        pass
    monkeypatch.setattr("rairl.tracking.courier.run_links", lambda *_: {"asked": "here"})
    for _ in range(2):
        links = links_of("sft", miniature, project)
        assert (links["mlflow.run_id"], links["mlflow.parent_id"]) == (run.run_id, run.parent_id)
    assert links_of("second_model", miniature, project) == {} and len(hired) == 1
    monkeypatch.setenv("RAIRL_KFP_RUN", "another")
    assert links_of("sft", miniature, project) == {}
    hired[0].process.kill()
    hired[0].process.wait()
    assert links_of("sft", miniature, project) == {"asked": "here"}


def test_a_row_has_the_time_of_its_step_not_of_its_delivery(
    project: Path, miniature: Params, hired: list[Courier], client: MlflowClient
) -> None:
    with stage_run("sft", miniature, log_dir=project / "metrics", root=project) as run:
        before = now()
        run.log({"loss": 1.0}, 0)  # the process is still importing MLflow
        after = now()
    (row,) = client.get_metric_history(run.run_id or "", "loss")
    assert before <= row.timestamp <= after


def test_a_server_that_hangs_holds_nothing_up(
    project: Path, miniature: Params, hired: list[Courier], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with stage_run("sft", miniature, log_dir=project / "metrics", root=project) as run:
            start = time.perf_counter()
            for step in range(20_000):  # more than a pipe holds
                run.log({"loss": 1.0, "accuracy": 0.5}, step)
            spent = time.perf_counter() - start
    assert spent < 20_000 * 1e-3 and run.run_id is None


def test_what_goes_before_it_is_delivered_is_told(
    project: Path, miniature: Params, hired: list[Courier], client: MlflowClient, caplog: Any
) -> None:
    with stage_run("sft", miniature, log_dir=project / "metrics", root=project) as run:
        (project / "short-lived").write_text("")
        run.log_input(project / "short-lived", name="demos")
        (project / "short-lived").unlink()  # while the process imports MLflow
        run.log({"loss": 1.0}, 0)
    assert "MLflow did not get log_input" in caplog.text and "short-lived" in caplog.text
    assert stage_of(client, "FINISHED").data.metrics == {"loss": 1.0}


def test_a_reward_may_go_once_it_is_registered(
    project: Path, miniature: Params, hired: list[Courier], client: MlflowClient
) -> None:
    """As the stage does, which clears its checkpoints before it ends."""
    folder = project / "checkpoint"
    folder.mkdir()
    (folder / "reward.json").write_text("{}")
    with stage_run("sft", miniature, log_dir=project / "metrics", root=project) as run:
        run.register_reward(folder, 1, {"dev": 1.0})
        shutil.rmtree(folder)
    assert [version.tags["step"] for version in client.search_model_versions()] == ["1"]
    assert stage_of(client, "FINISHED").info.run_id == run.run_id


CODE = """
import sys, time
from pathlib import Path
from rairl.tracking.courier import stage_run
from rairl.core.params import load_params
with stage_run("sft", load_params(sys.argv[1]), log_dir=Path("metrics")) as run:
    run.log({"loss": 1.0}, 0)
    print("going", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_command_that_is_killed_leaves_a_failed_run(project: Path, client: MlflowClient, number: int) -> None:
    command = [sys.executable, "-c", CODE, str(MINIATURE)]
    with subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None and process.stdout.readline() == b"going\n"
        (os.kill if number == signal.SIGKILL else os.killpg)(process.pid, number)  # a runner ends the whole group
    run = stage_of(client, "FAILED")
    assert run.data.tags["rairl.error"] == "the stage's process was killed"
    assert run.data.metrics == {"loss": 1.0}


def test_without_its_process_a_stage_goes_on_and_the_next_one_gets_another(
    project: Path, miniature: Params, hired: list[Courier], client: MlflowClient, caplog: Any
) -> None:
    options = {"log_dir": project / "metrics", "root": project}
    with stage_run("sft", miniature, **options) as run:
        hired[0].process.kill()
        hired[0].process.wait()
        for step in range(100):
            run.log({"loss": 1.0}, step)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warning == "The process that delivers to MLflow is gone; the stage goes on without tracking."
    with stage_run("sft", miniature, **options) as run:
        pass
    assert stage_of(client, "FINISHED").info.run_id == run.run_id
    hired[1].process.kill()  # while it waits for a stage
    hired[1].process.wait()
    with stage_run("second_model", miniature, **options) as run:
        pass
    assert run.run_id and len(hired) == 3
