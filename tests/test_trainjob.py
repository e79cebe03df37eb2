"""A stage in a TrainJob, against a server that speaks the Kubernetes API over real HTTP and runs the job's command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_manifests import SETTINGS, validate

from rairl.core.errors import RairlError
from rairl.core.params import Params
from rairl.kubeflow.trainjob import job_name, train_in_job

JOBS = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/team/trainjobs"


class Cluster(ThreadingHTTPServer):
    """Kubernetes with Trainer, as far as a client can see: one machine, one process."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.jobs: dict[str, dict[str, Any]] = {}
        self.created: list[str] = []
        self.installed = True

    def start(self, job: dict[str, Any]) -> None:
        """Do what Trainer's torch runtime does: run the command under PET_* variables."""
        trainer = job["spec"]["trainer"]
        known = {it["name"]: it["value"] for it in trainer["env"] if "value" in it}
        rendezvous = {"PET_NNODES": "1", "PET_NPROC_PER_NODE": "1", "PET_NODE_RANK": "0"}
        command = [*trainer["command"], *trainer["args"]]
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # torchrun of this environment

        def work() -> None:
            done = subprocess.run(
                command, env={**os.environ, "PATH": path, **known, **rendezvous}, capture_output=True, text=True
            )
            message = (done.stderr.strip().splitlines() or [""])[-1]
            kind, reason = ("Complete", "JobsCompleted") if done.returncode == 0 else ("Failed", "JobsFailed")
            job["status"] = {
                "conditions": [
                    {"type": "Suspended", "status": "False"},
                    {"type": kind, "status": "True", "reason": reason, "message": message},
                ]
            }

        threading.Thread(target=work, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    """Create, get and delete TrainJobs of one namespace."""

    server: Cluster

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def reply(self, body: dict[str, Any], code: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, code: int, reason: str) -> None:
        self.reply({"kind": "Status", "status": "Failure", "reason": reason, "code": code}, code)

    def do_POST(self) -> None:
        job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = job["metadata"]["name"]
        if self.path != JOBS or not self.server.installed:
            self.refuse(404, "NotFound")
        elif name in self.server.jobs:
            self.refuse(409, "AlreadyExists")
        else:
            try:
                validate(job)
            except Exception as error:
                self.refuse(422, str(error))
                return
            self.server.jobs[name] = job
            self.server.created.append(name)
            self.server.start(job)
            self.reply(job, 201)

    def do_GET(self) -> None:
        job = self.server.jobs.get(self.path.removeprefix(f"{JOBS}/"))
        if job is None:
            self.refuse(404, "NotFound")
        else:
            self.reply(job)

    def do_DELETE(self) -> None:
        self.reply(self.server.jobs.pop(self.path.removeprefix(f"{JOBS}/"), {}))


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    double = Cluster()
    threading.Thread(target=double.serve_forever, daemon=True).start()
    user = {"name": "me", "user": {}}
    known = {"name": "here", "cluster": {"server": f"http://127.0.0.1:{double.server_port}"}}
    context = {"name": "now", "context": {"cluster": "here", "user": "me", "namespace": "team"}}
    config = {"clusters": [known], "users": [user], "contexts": [context], "current-context": "now"}
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", **config}))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("RAIRL_CHECKPOINTS", str(tmp_path / "shared" / "checkpoints"))
    yield double
    double.shutdown()
    double.server_close()


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return {**SETTINGS, "shared": str(tmp_path / "shared")}


def test_the_files_go_there_and_come_back(
    cluster: Cluster, settings: dict[str, Any], tmp_path: Path, miniature: Params
) -> None:
    outputs = {"data": tmp_path / "task" / "data", "metrics": tmp_path / "task" / "metrics"}
    train_in_job("prepare", miniature, outputs, settings, every=0.2)
    assert (outputs["data"] / "demos.jsonl").is_file()
    assert "time.prepare" in json.loads(outputs["metrics"].read_text())
    assert cluster.created == [job_name("prepare", miniature)]
    assert not cluster.jobs  # taken away, with its files
    assert not list((tmp_path / "shared" / "jobs").iterdir())


def test_a_job_that_fails_is_told_with_its_log_and_a_new_try_is_a_new_job(
    cluster: Cluster, settings: dict[str, Any], tmp_path: Path, miniature: Params
) -> None:
    (tmp_path / "data").mkdir()  # no splits in it
    (tmp_path / "base").mkdir()
    paths = {arg: tmp_path / arg for arg in ("data", "base", "model", "last", "metrics")}
    with pytest.raises(RairlError, match=r"TrainJob rairl-sft-\w+ has failed: JobsFailed: .*kubectl -n team logs"):
        train_in_job("sft", miniature, paths, settings, every=0.2)
    assert cluster.created == [job_name("sft", miniature)]
    assert not cluster.jobs


def test_a_task_that_is_started_again_waits_for_the_job_of_its_first_try(
    cluster: Cluster, settings: dict[str, Any], tmp_path: Path, miniature: Params
) -> None:
    name = job_name("prepare", miniature)
    there = tmp_path / "shared" / "jobs" / name
    (there / "data").mkdir(parents=True)
    (there / "metrics").write_text("{}")
    cluster.jobs[name] = {"status": {"conditions": [{"type": "Complete", "status": "True"}]}}
    outputs = {"data": tmp_path / "task" / "data", "metrics": tmp_path / "task" / "metrics"}
    train_in_job("prepare", miniature, outputs, settings, every=0.2)
    assert cluster.created == []
    assert outputs["metrics"].read_text() == "{}"


def test_a_cluster_without_trainer_is_named(
    cluster: Cluster, settings: dict[str, Any], tmp_path: Path, miniature: Params
) -> None:
    cluster.installed = False
    with pytest.raises(RairlError, match=r"install Kubeflow Trainer 2 and apply deploy/rbac\.yaml"):
        train_in_job("prepare", miniature, {"data": tmp_path / "d", "metrics": tmp_path / "m"}, settings)
