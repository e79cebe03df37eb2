"""Submitting and looking, against a server that speaks the v2beta1 API of Kubeflow Pipelines over real HTTP."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2
from kfp_server_api import V2beta1Experiment, V2beta1Run
from typer.testing import CliRunner

from rairl.cli.main import app
from rairl.core.errors import RairlError
from rairl.core.params import Params
from rairl.kubeflow.task import configure, read_params, variants

ROOT = Path(__file__).parents[1]
API = "/apis/v2beta1"


class Server(ThreadingHTTPServer):
    """State of the double; what it takes is checked against the models that kfp generates from the server's API."""

    token: str | None = None
    states: list[str]

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.experiments: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.states = ["SUCCEEDED"]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """Health, experiments and runs."""

    server: Server

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def reply(self, body: dict[str, Any], code: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, code: int, message: str) -> None:
        self.reply({"error": message, "code": code, "message": message, "details": []}, code)

    def allowed(self) -> bool:
        wanted = self.server.token
        if wanted is None or self.headers.get("Authorization") == f"Bearer {wanted}":
            return True
        self.refuse(401, "Unauthenticated")
        return False

    def do_GET(self) -> None:
        if not self.allowed():
            return
        url = urlsplit(self.path)
        if url.path == f"{API}/healthz":
            self.reply({"multi_user": False})
        elif url.path == f"{API}/experiments":
            [predicate] = json.loads(parse_qs(url.query)["filter"][0])["predicates"]
            found = [it for it in self.server.experiments.values() if it["display_name"] == predicate["stringValue"]]
            self.reply({"experiments": found, "total_size": len(found)})
        elif url.path.startswith(f"{API}/runs/"):
            run = self.server.runs.get(url.path.rsplit("/", 1)[1])
            if run is None:
                self.refuse(404, "run not found")
            else:
                states = self.server.states
                state = states.pop(0) if len(states) > 1 else states[0]
                error = {"error": {"code": 13, "message": "task rairl failed"}} if state == "FAILED" else {}
                details = {"task_details": [{"display_name": "prepare", "state": "SUCCEEDED"}]}
                self.reply({**run, "state": state, "run_details": details, **error})
        else:
            self.refuse(404, "Not Found")

    def do_POST(self) -> None:
        if not self.allowed():
            return
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        path = urlsplit(self.path).path
        model = {f"{API}/experiments": V2beta1Experiment, f"{API}/runs": V2beta1Run}.get(path)
        if model is None:
            self.refuse(404, "Not Found")
        elif set(body) - set(model.attribute_map.values()):
            self.refuse(400, f"unknown fields {sorted(set(body) - set(model.attribute_map.values()))}")
        elif model is V2beta1Experiment:
            made = {**body, "experiment_id": f"experiment-{len(self.server.experiments)}"}
            self.server.experiments[made["experiment_id"]] = made
            self.reply(made)
        else:
            self.create_run(body)

    def create_run(self, body: dict[str, Any]) -> None:
        spec = body["pipeline_spec"]
        try:
            parsed = json_format.ParseDict(spec.get("pipeline_spec", spec), pipeline_spec_pb2.PipelineSpec())
        except json_format.ParseError as error:
            self.refuse(400, f"Failed to create a new run: invalid pipeline spec: {error}")
            return
        given, wanted = body["runtime_config"]["parameters"], parsed.root.input_definitions.parameters
        missing = {name for name, it in wanted.items() if not it.is_optional} - set(given)
        if missing or set(given) - set(wanted):
            self.refuse(400, f"Failed to create a new run: parameters {sorted(missing or set(given) - set(wanted))}")
            return
        made = {**body, "run_id": f"run-{len(self.server.runs)}", "state": "PENDING"}
        self.server.runs[made["run_id"]] = made
        self.reply(made)


@pytest.fixture
def server() -> Iterator[Server]:
    double = Server()
    thread = threading.Thread(target=double.serve_forever, daemon=True)
    thread.start()
    yield double
    double.shutdown()
    double.server_close()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pipelines.run import compile_pipeline

    path = tmp_path_factory.mktemp("package") / "rairl.yaml"
    compile_pipeline(path)
    return path


def call(*words: str | Path) -> Any:
    return CliRunner().invoke(app, ["pipeline", *map(str, words)])


PARAMS = ("--params", ROOT / "tests" / "miniature.yaml")


def test_a_run_is_submitted_with_the_parameters_and_fields_that_were_given(
    server: Server, package: Path, miniature: Params
) -> None:
    fields = ("--seed", "1", "--seed", "2", "--granularity", "dense", "--experiment", "night")
    places = ("--tracking-uri", "http://mlflow:5000", "--service-account", "rairl", "--name", "first")
    done = call("submit", "--endpoint", server.url, *PARAMS, "--file", package, *fields, *places)
    assert done.exit_code == 0, done.output
    assert done.stdout == "run-0\n"
    [experiment] = server.experiments.values()
    assert experiment["display_name"] == "night"
    [run] = server.runs.values()
    assert (run["display_name"], run["experiment_id"], run["service_account"]) == ("first", "experiment-0", "rairl")
    spec, platform = yaml.safe_load_all(package.read_text())
    assert run["pipeline_spec"] == {"pipeline_spec": spec, "platform_spec": platform}
    given = run["runtime_config"]["parameters"]
    assert {key: value for key, value in given.items() if key != "params"} == {
        "seeds": [1, 2], "granularities": ["dense"], "experiment": "night", "tracking_uri": "http://mlflow:5000",
    }  # fmt: skip
    assert read_params(given["params"]) == (miniature, None)
    # what the first two tasks of the pipeline make of it
    configured = configure(given["params"], experiment=given["experiment"], tracking_uri=given["tracking_uri"])
    assert len(variants(configured, seeds=given["seeds"], granularities=given["granularities"])) == 2


def test_an_experiment_that_is_there_is_used_and_a_pipeline_is_compiled_on_the_way(server: Server) -> None:
    server.experiments["e"] = {"experiment_id": "e", "display_name": "rairl"}
    cluster = ("--cluster", ROOT / "pipelines" / "cluster.yaml")
    done = call("submit", "--endpoint", server.url, *PARAMS, *cluster)
    assert done.exit_code == 0, done.output
    assert set(server.experiments) == {"e"}
    assert server.runs["run-0"]["experiment_id"] == "e"
    assert server.runs["run-0"]["runtime_config"]["parameters"]["seeds"] == []


def test_the_state_of_a_run_and_of_its_tasks(server: Server) -> None:
    server.runs["r"] = {"run_id": "r"}
    server.states = ["RUNNING"]
    done = call("status", "r", "--endpoint", server.url)
    assert (done.exit_code, done.stdout) == (0, "prepare: SUCCEEDED\nrun r: RUNNING\n")
    server.states = ["PENDING", "RUNNING", "FAILED"]
    done = call("status", "r", "--endpoint", server.url, "--wait", "--every", "0.1")
    assert (done.exit_code, done.stdout) == (1, "prepare: SUCCEEDED\nrun r: FAILED\ntask rairl failed\n")
    server.states = ["SUCCEEDED"]
    assert call("status", "r", "--endpoint", server.url, "--wait").exit_code == 0


def test_a_token_is_read_from_a_file_and_needed_where_the_server_asks(server: Server, tmp_path: Path) -> None:
    server.token = "sesame"
    server.runs["r"] = {"run_id": "r"}
    (tmp_path / "token").write_text("sesame\n")
    assert call("status", "r", "--endpoint", server.url, "--token-file", tmp_path / "token").exit_code == 0
    (tmp_path / "token").write_text("other")
    for words in ((), ("--token-file", tmp_path / "token")):
        done = call("status", "r", "--endpoint", server.url, *words)
        assert isinstance(done.exception, RairlError)
        assert "401" in str(done.exception) and "--token-file" in str(done.exception)
        assert "sesame" not in done.output and "other" not in str(done.exception)
    done = call("status", "r", "--endpoint", server.url, "--token-file", tmp_path / "none")
    assert "a file with the token alone" in str(done.exception)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_an_endpoint_that_is_not_there_is_named_at_once() -> None:
    done = call("submit", "--endpoint", f"http://127.0.0.1:{free_port()}", *PARAMS)
    assert isinstance(done.exception, RairlError)
    assert "can't be reached" in str(done.exception) and "port-forward" in str(done.exception)
    assert "--endpoint" in call("submit", *PARAMS).output  # a missing one is asked for


def test_what_is_no_such_server_or_run_is_named(server: Server, tmp_path: Path) -> None:
    done = call("status", "r", "--endpoint", f"{server.url}/elsewhere")
    assert "no Kubeflow Pipelines 2 at this address" in str(done.exception)
    done = call("status", "gone", "--endpoint", server.url)
    assert "no such run" in str(done.exception) and "run not found" in str(done.exception)


def test_a_login_page_is_recognised(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def page(self: Handler, *_: Any) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>who are you?</html>")

    monkeypatch.setattr(Handler, "do_GET", page)
    assert "login page" in str(call("status", "r", "--endpoint", server.url).exception)


def test_what_is_no_compiled_pipeline_is_not_sent(server: Server, tmp_path: Path) -> None:
    for text, message in ((None, "rairl pipeline compile"), ("a: b", "is no compiled pipeline"), ("[", "no compiled")):
        file = tmp_path / "other.yaml"
        if text is not None:
            file.write_text(text)
        done = call("submit", "--endpoint", server.url, *PARAMS, "--file", file)
        assert isinstance(done.exception, RairlError)
        assert message in str(done.exception)
    assert not server.runs


def test_what_the_server_says_is_wrong_with_a_pipeline_is_told(server: Server, package: Path, tmp_path: Path) -> None:
    spec, platform = yaml.safe_load_all(package.read_text())
    del spec["root"]["inputDefinitions"]["parameters"]["tracking_uri"]
    file = tmp_path / "rairl.yaml"
    file.write_text(yaml.safe_dump_all([spec, platform]))
    done = call("submit", "--endpoint", server.url, *PARAMS, "--file", file)
    assert isinstance(done.exception, RairlError)
    assert "tracking_uri" in str(done.exception)
    assert not server.runs


def test_wrong_parameters_and_variants_are_named_before_anything_is_sent(server: Server, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("seed: 0\n")
    done = call("submit", "--endpoint", server.url, "--params", tmp_path / "params.yaml")
    assert "key 'dataset' is missing" in str(done.exception)
    done = call("submit", "--endpoint", server.url, *PARAMS, "--granularity", "word")
    assert "reward.granularity" in str(done.exception)
    assert not server.experiments
