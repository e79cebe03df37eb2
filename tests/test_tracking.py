"""What a user finds in MLflow after a stage, and what happens when MLflow is not there."""

from __future__ import annotations

import hashlib
import inspect
import json
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
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import until

from rairl.core.errors import RairlError
from rairl.core.params import Params
from rairl.core.stats import Estimate
from rairl.tracking import dashboard
from rairl.tracking.champion import Verdict, promote
from rairl.tracking.courier import stage_run
from rairl.tracking.pipeline_runs import close_pipeline, run_links, views
from rairl.tracking.provenance import data_tag, file_digest, flatten, git_commit, metric_name
from rairl.tracking.pyfunc import EXAMPLE
from rairl.tracking.run import NullRun, Run
from rairl.tracking.store import open_store, registered_reward, tracking_uri

NAMES = [name for name, _ in inspect.getmembers(Run, inspect.isfunction) if not name.startswith("_")]


@pytest.fixture
def card(project: Path) -> Path:
    path = project / "card.json"
    path.write_text('{"dataset": "arithmetic"}')
    return path


@pytest.fixture
def reward(project: Path) -> Path:
    """Stands for a saved reward model: registering copies it and does not look inside."""
    folder = project / "checkpoint"
    folder.mkdir()
    (folder / "reward.json").write_text("{}")
    return folder


@pytest.fixture
def track(project: Path, miniature: Params) -> Callable[..., object]:
    """``stage_run`` with this test's project and parameters."""

    def start(stage: str = "rairl", params: Params = miniature, **options: Path) -> object:
        return stage_run(stage, params, **{"log_dir": project / "metrics", "root": project, **options})

    return start


def runs_of(client: object) -> tuple[list, dict[str, object]]:
    """Parents, and children by stage, of the experiment."""
    experiment = client.get_experiment_by_name("rairl")
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    parents = [run for run in runs if run.data.tags["rairl.stage"] == "pipeline"]
    return parents, {run.data.tags["rairl.stage"]: run for run in runs if run not in parents}


def other(params: Params, **values: object) -> Params:
    return params.model_copy(update=values)


# --- what is recorded -----------------------------------------------------------------------------------------------


def test_a_fresh_store_is_made_without_a_word_on_the_console(first_store: tuple[Path, str]) -> None:
    database, console = first_store
    assert database.is_file()
    assert console == ""


def test_stages_of_one_pipeline_share_a_parent(
    client, track, project: Path, miniature: Params, card: Path, tmp_path: Path
) -> None:
    demos, plots = project / "demos.jsonl", project / "plots"
    demos.write_text('{"id": "a"}\n')
    plots.mkdir()
    (plots / "curve.png").write_bytes(b"png")
    with track("sft", card=card) as run:
        run.log_input(demos, name="demos")
        for step in range(3):
            run.log({"train/loss": 1 / (step + 1), "odd (name)": step}, step)
        run.log_estimates(
            {"posttrain.sft.pass@1": Estimate(0.5, 0.4, 0.6, 20), "absent": Estimate(*[float("nan")] * 3, 0)}
        )
        run.log_artifact(demos)
        run.log_artifact(plots)
    with track("posttrain", card=card):
        pass

    (parent,), children = runs_of(client)
    assert set(children) == {"sft", "posttrain"}
    sft = children["sft"]
    assert sft.data.tags["mlflow.parentRunId"] == parent.info.run_id == run.parent_id
    assert sft.info.run_id == run.run_id
    assert sft.info.run_name == "sft"
    assert sft.info.status == parent.info.status == "FINISHED"
    for one in (parent, sft):
        assert one.data.params == flatten(miniature)
        assert one.data.tags["rairl.core.params"] == miniature.digest()
        assert one.data.tags["rairl.commit"] == git_commit(project)
        assert one.data.tags["rairl.data"] == hashlib.sha256(card.read_bytes()).hexdigest()[:12]
    series = client.get_metric_history(run.run_id, "train/loss")
    assert [(point.step, point.value) for point in series] == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert sft.data.metrics["odd _name_"] == 2
    figures = {key: value for key, value in sft.data.metrics.items() if key.startswith("posttrain")}
    name = "posttrain.sft.pass_at_1"
    assert figures == {name: 0.5, f"{name}.low": 0.4, f"{name}.high": 0.6, f"{name}.n": 20}
    assert parent.data.metrics == {name: 0.5}
    ((dataset,),) = [[item.dataset for item in sft.inputs.dataset_inputs]]
    assert (dataset.name, dataset.digest) == ("demos", hashlib.sha256(demos.read_bytes()).hexdigest()[:32])
    assert str(demos) in dataset.source
    assert {item.path for item in client.list_artifacts(run.run_id)} == {"demos.jsonl", "plots"}
    assert (project / "mlartifacts" / run.run_id / "artifacts" / "plots" / "curve.png").read_bytes() == b"png"


def test_other_params_or_another_commit_make_another_pipeline(
    client, track, miniature: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAIRL_COMMIT", "one")
    with track() as first, track("report") as same:
        pass
    with track(params=other(miniature, seed=7)) as reseeded:
        pass
    monkeypatch.setenv("RAIRL_COMMIT", "two")
    with track() as recoded:
        pass
    assert first.parent_id == same.parent_id
    assert len({first.parent_id, reseeded.parent_id, recoded.parent_id}) == 3


def test_stages_that_start_together_agree_on_the_older_parent(client, track) -> None:
    with track("sft") as run:
        pass
    parent = client.get_run(run.parent_id)
    tags = {key: value for key, value in parent.data.tags.items() if key.startswith("rairl.")}
    client.create_run(parent.info.experiment_id, parent.info.start_time + 1, tags)
    with track("grpo") as later:
        pass
    assert later.parent_id == run.parent_id


def test_many_rows_arrive_complete_and_in_order(client, track) -> None:
    with track() as run:
        start = time.perf_counter()
        for step in range(500):
            run.log({f"m{index}": step for index in range(5)}, step)
        spent = time.perf_counter() - start
    assert [point.value for point in client.get_metric_history(run.run_id, "m3")] == list(range(500))
    assert spent < 5  # two requests, not 2500


@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyboardInterrupt(), "KILLED"), (RairlError("no answers"), "FAILED"), (SystemExit(1), "FAILED")],
)
def test_an_end_by_exception_shows_and_the_next_stage_clears_it(
    client, track, error: BaseException, status: str
) -> None:
    runs = []

    def stage() -> None:
        with track("sft") as run:
            runs.append(run)
            run.log({"loss": 1.0}, 0)
            raise error

    with pytest.raises(type(error)):
        stage()
    run = runs[0]
    child, parent = client.get_run(run.run_id), client.get_run(run.parent_id)
    assert child.info.status == parent.info.status == status
    assert child.data.metrics == {"loss": 1.0}
    assert child.data.tags["rairl.error"] == f"{type(error).__name__}: {error}"
    with track("sft"):
        until(lambda: client.get_run(run.parent_id).info.status == "RUNNING")
    assert client.get_run(run.parent_id).info.status == "FINISHED"


def test_a_null_run_takes_every_call(tmp_path: Path) -> None:
    run = NullRun()
    arguments = {
        "log": ({"loss": 1.0}, 0),
        "log_estimates": ({},),
        "log_input": (tmp_path / "none",),
        "log_artifact": (tmp_path / "none",),
        "register_reward": (tmp_path / "none", 0, {}),
        "promote_champion": ("dev",),
        "open": (),
        "close": ("FINISHED",),
    }
    assert sorted(arguments) == NAMES
    for name, values in arguments.items():
        assert inspect.signature(getattr(Run, name)) == inspect.signature(getattr(NullRun, name))
        options = {"name": "demos"} if name == "log_input" else {}
        assert getattr(run, name)(*values, **options) is None
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_there_cannot_be_recorded(track, project: Path) -> None:
    with track() as run:
        with pytest.raises(RairlError, match="nowhere does not exist"):
            run.register_reward(project / "nowhere", 1, {})
        with pytest.raises(FileNotFoundError):
            run.log_artifact(project / "nowhere")
        with pytest.raises(FileNotFoundError):
            run.log_input(project / "nowhere", name="demos")


def test_names_digests_and_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert metric_name("posttrain.sft.pass@1") == "posttrain.sft.pass_at_1"
    assert metric_name("train/loss é=1%") == "train/loss __1_"
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_digest(tmp_path / "abc").startswith("ba7816bf8f01cfea414140de5dae2223")  # FIPS 180-2, appendix B.1
    monkeypatch.delenv("RAIRL_COMMIT", raising=False)
    assert git_commit(tmp_path) == "none"
    (tmp_path / "rairl").mkdir()
    (tmp_path / "rairl" / "code.py").write_text("1")
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "all"]):
        subprocess.run(["git", "-C", tmp_path, *words], check=True)
    head = git_commit(tmp_path)
    assert len(head) == 40
    (tmp_path / "abc").write_bytes(b"abcd")  # not the package: a pipeline's own files change while it runs
    assert git_commit(tmp_path) == head
    (tmp_path / "rairl" / "code.py").write_text("2")
    assert git_commit(tmp_path) == head + "-dirty"


def test_params_are_flat_json() -> None:
    params = SimpleNamespace(
        model_dump=lambda: {"seed": 0, "base": {"source": "builtin", "revision": None, "rate": 0.1}}
    )
    assert flatten(params) == {"seed": "0", "base.source": "builtin", "base.revision": "null", "base.rate": "0.1"}  # type: ignore[arg-type]


# --- the registry ---------------------------------------------------------------------------------------------------


def champion(client: object) -> str:
    return str(client.get_registered_model("rairl-reward").aliases.get("champion"))


def test_a_checkpoint_becomes_a_logged_model_and_a_version(
    client, track, project: Path, miniature: Params, card: Path, reward: Path
) -> None:
    dev = project / "dev.jsonl"
    dev.write_text("{}\n")
    with track(card=card) as run:
        run.log_input(dev, name="dev")
        run.register_reward(reward, 2, {"dev.auroc": 0.75, "dev.hit@1": 0.5}, {"note": "early"})
        run.register_reward(reward, 4, {"dev.auroc": 0.5})

    versions = {version.tags["step"]: version for version in client.search_model_versions("name = 'rairl-reward'")}
    assert {step: version.version for step, version in versions.items()} == {"2": 1, "4": 2}
    first = versions["2"]
    expected = {
        "rairl.data": file_digest(card)[:12],
        "rairl.commit": git_commit(project),
        "rairl.core.params": miniature.digest(),
        "rairl.parent": run.parent_id,
        "stage": "rairl",
        "policy": f"built-in model, {miniature.base.layers} layers",
        "backbone": miniature.reward.backbone,
        "granularity": miniature.reward.granularity,
        "seed": str(miniature.seed),
        "step": "2",
        "dev.auroc": "0.75",
        "dev.hit_at_1": "0.5",
        "note": "early",
    }
    assert first.tags == expected
    assert first.run_id == run.run_id
    experiment = client.get_experiment_by_name("rairl")
    place = f"#/experiments/{experiment.experiment_id}/runs/"
    assert "**dev:** dev.auroc 0.750, dev.hit_at_1 0.500" in first.description
    assert f"[test report]({place}{run.parent_id}/artifacts)" in first.description
    assert f"data `{file_digest(card)[:12]}`" in first.description
    model = client.get_logged_model(first.source.removeprefix("models:/"))
    assert (model.name, str(model.status), model.source_run_id) == ("reward-step2", "READY", run.run_id)
    assert model.params == flatten(miniature)
    assert {metric.key: (metric.value, metric.step) for metric in model.metrics} == {
        "dev.auroc": (0.75, 2),
        "dev.hit_at_1": (0.5, 2),
    }
    assert {metric.dataset_digest for metric in model.metrics} == {file_digest(dev)[:32]}
    outputs = client.get_run(run.run_id).outputs.model_outputs
    assert {(output.model_id, output.step) for output in outputs} >= {(model.model_id, 2)}
    (reward / "reward.json").write_text("changed")  # the registered copy is its own
    place = Path(client.get_model_version_download_uri("rairl-reward", "1").removeprefix("file://"))
    assert place.is_relative_to(project / "mlartifacts")
    assert (place / "artifacts" / reward.name / "reward.json").read_text() == "{}"
    assert (place / "code" / "rairl" / "use" / "mlflow_model.py").is_file()
    assert "torch==" in (place / "requirements.txt").read_text()
    assert "+" not in (place / "requirements.txt").read_text()
    assert json.loads((place / "input_example.json").read_text()) == [EXAMPLE]
    assert "signature:" in (place / "MLmodel").read_text()


def test_the_page_has_views_with_columns_and_charts_that_runs_fill(
    client, track, project: Path, card: Path, miniature: Params
) -> None:
    """MLflow opens a view by its name; what it names must be there under exactly that name."""
    report = project / "report"
    report.mkdir()
    (report / "report.html").write_text("<p>figures</p>")
    with track("report", card=card) as run:
        run.log_estimates({name.replace("_at_", "@"): Estimate(0.5, 0.4, 0.6, 20) for name in dashboard.FIGURES})
        run.log_artifact(report, of_pipeline=True)
    experiment = client.get_experiment_by_name("rairl")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    shared = {name: json.loads(experiment.tags[f"mlflow.sharedViewState.{name}"]) for name in ("runs", "stages")}
    (parent,) = client.search_runs([experiment.experiment_id], shared["runs"]["searchFilter"])
    assert parent.info.run_id == run.parent_id
    for column in shared["runs"]["selectedColumns"]:
        kind, _, name = column.partition(".")
        name = name.strip("`")
        values = {"metrics": parent.data.metrics, "params": parent.data.params, "tags": parent.data.tags}
        assert kind == "attributes" or name in values[kind], column
    parallel = shared["runs"]["compareRunCharts"][0]
    assert set(parallel["selectedMetrics"]) <= set(parent.data.metrics)
    assert set(parallel["selectedParams"]) <= set(parent.data.params)
    assert shared["stages"]["groupBy"]["groupByKeys"] == [{"mode": "tag", "groupByData": "rairl.stage"}]
    assert f"data {file_digest(card)[:12]}" in parent.data.tags["mlflow.note.content"]
    assert [item.path for item in client.list_artifacts(run.parent_id)] == ["report"]
    client.set_tag(run.parent_id, "mlflow.note.content", "our best one")  # what people write stays
    client.set_experiment_tag(experiment.experiment_id, "mlflow.note.content", "our experiment")
    with track("audit", card=card):
        pass
    assert client.get_run(run.parent_id).data.tags["mlflow.note.content"] == "our best one"
    assert client.get_experiment_by_name("rairl").tags["mlflow.note.content"] == "our experiment"
    found = views("http://host", project)
    assert (
        found[0] == f"  rairl, runs: http://host/#/experiments/{experiment.experiment_id}/runs?viewStateShareKey=runs"
    )


def test_the_best_by_a_dev_criterion_is_champion(
    client, track, miniature: Params, card: Path, reward: Path, caplog
) -> None:
    caplog.set_level(logging.INFO, "rairl.tracking.run")

    def pipeline(seed: int, scores: list[float], **options: object) -> str:
        with track(params=other(miniature, seed=seed), card=card) as run:
            for step, score in enumerate(scores):
                run.register_reward(reward, step, {"dev.hit@1": score, "dev.loss": score})
            run.promote_champion(**{"criterion": "dev.hit@1", **options})
        return champion(client)

    assert pipeline(0, [0.2, 0.6, 0.4]) == "2"
    tags = client.get_model_version("rairl-reward", "2").tags
    assert tags["champion.criterion"] == "dev.hit_at_1"
    assert tags["champion.value"] == "0.6"
    assert pipeline(1, [0.5]) == "2"
    assert (
        "version 2 of rairl-reward stays champion: its dev.hit_at_1 is 0.6, the best of this run, version 4, has 0.5"
        in caplog.text
    )
    assert pipeline(2, [0.6]) == "5"  # a tie: the newer
    card.write_text("other data")
    assert pipeline(3, [0.1]) == "6"  # not comparable any more
    assert pipeline(4, [0.3, 0.05], criterion="dev.loss", higher_is_better=False) == "8"
    assert pipeline(5, [0.2], criterion="dev.loss", higher_is_better=False) == "8"
    assert pipeline(6, [0.9], criterion="dev.missing") == "8"
    assert "no registered version of this run has the metric 'dev.missing'" in caplog.text


def test_without_a_data_card_no_two_champions_compare(client, track, miniature: Params, reward: Path) -> None:
    for seed, score in enumerate((0.9, 0.1)):
        with track(params=other(miniature, seed=seed)) as run:
            run.register_reward(reward, 0, {"dev": score})
            run.promote_champion("dev")
    assert champion(client) == "2"


def test_a_refused_record_is_told_and_costs_nothing_else(
    client, track, miniature: Params, reward: Path, caplog
) -> None:
    tracking = miniature.tracking.model_copy(update={"registered_model": "not/allowed"})
    with track(params=other(miniature, tracking=tracking)) as run:
        run.register_reward(reward, 3, {"dev": 1.0})
        run.log({"loss": 1.0}, 0)
    assert "MLflow did not take reward model of step 3" in caplog.text
    assert client.get_run(run.run_id).info.status == "FINISHED"
    assert client.get_run(run.run_id).data.metrics["loss"] == 1.0


def test_a_moved_project_keeps_its_models_and_writes_to_its_new_place(
    track, project: Path, tmp_path: Path, miniature: Params, reward: Path
) -> None:
    from mlflow import MlflowClient

    with track() as run:
        run.register_reward(reward, 1, {"dev": 1.0})
        run.promote_champion("dev")
    moved = tmp_path / "another place"
    project.rename(moved)
    with track(root=moved) as later:
        later.log_artifact(moved / "checkpoint" / "reward.json")
    assert later.parent_id == run.parent_id
    assert not project.exists()
    client = MlflowClient(tracking_uri(moved))
    place = client.get_model_version_download_uri("rairl-reward", "1")
    assert place.startswith((moved / "mlartifacts").as_uri())
    from mlflow.artifacts import download_artifacts

    copy = download_artifacts(place + f"/artifacts/{reward.name}/reward.json", dst_path=str(tmp_path / "copy"))
    assert Path(copy).read_text() == "{}"
    assert [item.path for item in client.list_artifacts(later.run_id)] == ["reward.json"]
    assert (moved / "mlartifacts" / later.run_id).is_dir()


# --- without a tracking server --------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_refused_connection_costs_one_warning(track, project: Path, reward: Path, monkeypatch, caplog) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    (project / "demos.jsonl").write_text("{}\n")
    start = time.monotonic()
    with track() as run:
        for step in range(2000):
            run.log({"loss": 1.0, "accuracy": 0.5}, step)
        run.log_input(project / "demos.jsonl", name="demos")
        run.register_reward(reward, 1, {"dev": 1.0})
        run.promote_champion("dev")
        run.log_estimates({"time.rairl": Estimate(1, 1, 1, 1)})
    assert time.monotonic() - start < 20
    assert run.run_id is None
    (warning,) = warnings_of(caplog)
    for part in ("Connection refused", str(project / "metrics"), "MLFLOW_TRACKING_URI"):
        assert part in warning


def test_a_server_that_hangs_costs_one_warning(track, project: Path, monkeypatch, caplog) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        with track() as run:
            for step in range(2000):
                run.log({"loss": 1.0}, step)
        assert time.monotonic() - start < 20
    (warning,) = warnings_of(caplog)
    assert "cannot be reached" in warning


def test_an_address_that_makes_no_sense_costs_one_warning(track, monkeypatch, caplog) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "gopher://nowhere")
    with track() as run:
        run.log({"loss": 1.0}, 0)
    (warning,) = warnings_of(caplog)
    assert "gopher://nowhere" in warning


@pytest.fixture
def server(project: Path, tmp_path: Path, monkeypatch) -> Iterator[SimpleNamespace]:
    """A real tracking server on the project's database, to be started and killed."""
    port, running = free_port(), []
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{project / 'mlflow.db'}",
        "--artifacts-destination",
        str(tmp_path / "remote"),
    ]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")

    def start() -> None:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        running.append(process)
        for _ in range(2400):  # a busy machine takes minutes to import MLflow
            try:
                if urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).status == 200:
                    return
            except OSError:
                time.sleep(0.1)
        raise TimeoutError("the tracking server did not come up")

    def kill() -> None:
        process = running.pop()
        os.killpg(process.pid, signal.SIGKILL)  # its own session, so its workers go with it
        process.wait()

    yield SimpleNamespace(start=start, kill=kill)
    for _ in list(running):
        kill()


def test_a_server_killed_mid_run_loses_nothing_once_it_is_back(
    server: SimpleNamespace, track, client, reward: Path, caplog
) -> None:
    server.start()
    with track("sft") as first:
        first.log_estimates({"before": Estimate(1, 1, 1, 1)})
        until(lambda: "sft" in runs_of(client)[1] and "before" in runs_of(client)[1]["sft"].data.metrics)
        server.kill()
        start = time.monotonic()
        first.log_estimates({"after": Estimate(2, 2, 2, 1)})
        first.log({"loss": 1.0}, 1)
    assert time.monotonic() - start < 20
    (warning,) = warnings_of(caplog)
    assert "cannot be reached" in warning
    sent = client.get_run(first.run_id)
    assert sent.info.status == "RUNNING"
    assert sent.data.metrics["before"] == 1
    assert "after" not in sent.data.metrics

    with track("rairl") as second:
        second.log({"loss": 0.5}, 1)
        second.register_reward(reward, 1, {"dev": 1.0})
        second.promote_champion("dev")
        server.start()
    assert second.parent_id == first.parent_id
    run = client.get_run(second.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["loss"] == 0.5
    assert champion(client) == "1"


def test_a_reward_travels_over_http(
    server: SimpleNamespace, track, project: Path, tiny_policy: Path, miniature: Params, demos, monkeypatch
) -> None:
    """Registered through a real server, and read elsewhere by its alias: artifacts go through the server, too."""
    import torch
    from mlflow.models import get_model_info

    from rairl.models.reward import new_reward
    from rairl.tracking.registry import read_versions
    from rairl.use.load import load

    server.start()
    model = new_reward(tiny_policy, miniature.reward, seed=0).calibrated(aggregator="min", threshold=-1.0)
    torch.nn.init.normal_(model.head[-1].weight, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(project / "checkpoint")
    with track() as run:
        run.register_reward(project / "checkpoint", 3, {"dev/score": 0.75})
        run.promote_champion("dev/score")
    shutil.rmtree(project / "checkpoint")
    monkeypatch.chdir(project.parent)
    read = load("models:/rairl-reward@champion")
    assert read.calibration == model.calibration
    for one, other in zip(read.step_logits(demos[:3]), model.step_logits(demos[:3]), strict=True):
        assert one.steps.tolist() == pytest.approx(other.steps.tolist(), abs=1e-5)
    (version,) = read_versions("rairl-reward")
    assert (version.number, version.aliases, version.scores) == (1, ("candidate", "champion"), {"dev/score": 0.75})
    with open_store():
        info = get_model_info("models:/rairl-reward@champion")
    assert info.signature is not None and info.saved_input_example_info is not None
    with pytest.raises(RairlError, match="nobody"), registered_reward("models:/rairl-reward@nobody"):
        pass
    server.kill()
    with pytest.raises(RairlError, match=r"MLflow at http://127\.0\.0\.1"):
        load("models:/rairl-reward@champion")


# --- a run of Kubeflow Pipelines ------------------------------------------------------------------------------------


def test_stages_of_one_kubeflow_run_share_a_parent_that_carries_its_id(
    client, track, project: Path, miniature: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAIRL_KFP_RUN", "run-1")
    with track("prepare"):
        pass
    variant = other(miniature, seed=3)
    with track("rairl", variant):
        pass
    [parent], children = runs_of(client)
    assert parent.data.tags["rairl.kfp_run"] == "run-1"
    assert {child.data.tags["mlflow.parentRunId"] for child in children.values()} == {parent.info.run_id}
    assert children["rairl"].data.tags["rairl.kfp_run"] == "run-1"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project / 'mlflow.db'}")
    links = run_links("rairl", variant, project)
    assert (links["mlflow.run_id"], links["mlflow.parent_id"]) == (children["rairl"].info.run_id, parent.info.run_id)
    assert links["mlflow.tracking_uri"] == f"sqlite:///{project / 'mlflow.db'}"
    assert run_links("sft", variant, project) == {}
    monkeypatch.setenv("RAIRL_KFP_RUN", "run-2")
    with track("prepare"):
        pass
    assert len(runs_of(client)[0]) == 2
    close_pipeline(miniature, status="FAILED", error="no node", root=project)
    ended = {run.data.tags["rairl.kfp_run"]: run for run in runs_of(client)[0]}
    assert (ended["run-1"].info.status, ended["run-2"].info.status) == ("FINISHED", "FAILED")
    assert ended["run-2"].data.tags["rairl.error"] == "no node"


def test_without_mlflow_a_task_has_no_links_and_the_end_is_only_a_warning(
    project: Path, miniature: Params, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert run_links("sft", miniature, project) == {}
    close_pipeline(miniature, status="FINISHED", root=project)
    assert "did not take the end of the run" in caplog.text
    with pytest.raises(RairlError, match=r"does not answer .* the champion is as it was"):
        promote([miniature], data="none", criterion="dev", root=project)


def test_a_gate_lets_variants_compete_and_keeps_a_better_champion(
    client, track, project: Path, miniature: Params, card: Path, reward: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def learn(seed: int, score: float) -> Params:
        variant = other(miniature, seed=seed)
        with track(params=variant, card=card) as run:
            run.register_reward(reward, 1, {"dev/score": score})
            run.promote_champion("dev/score")
        return variant

    def gate(*params: Params) -> Verdict:
        return promote(params, data=data_tag(card), criterion="dev/score", root=project)

    monkeypatch.setenv("RAIRL_PROMOTE", "no")
    first, second = learn(0, 0.4), learn(1, 0.6)
    assert "champion" not in client.get_registered_model("rairl-reward").aliases
    verdict = gate(first, second)
    assert (verdict.promoted, verdict.version, verdict.value) == (True, "2", 0.6)
    assert champion(client) == "2"
    assert gate(first, second).promoted  # the same call again changes nothing
    worse = gate(learn(2, 0.5))
    assert (worse.promoted, worse.version) == (False, "3")
    assert "version 2 of rairl-reward stays champion" in worse.text
    assert champion(client) == "2"
    assert gate(learn(3, 0.7)).promoted and champion(client) == "4"
    with pytest.raises(RairlError, match="holds none with these parameters"):
        gate(other(miniature, seed=9))
    monkeypatch.delenv("RAIRL_PROMOTE")
    learn(4, 0.8)  # without a pipeline around it the stage decides itself
    assert champion(client) == "5"


def test_the_command_line_promotes(
    client, track, project: Path, miniature: Params, reward: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import yaml
    from typer.testing import CliRunner

    from rairl.cli.main import app

    (project / "data").mkdir()
    (project / "data" / "card.json").write_text("{}")
    (project / "params.yaml").write_text(yaml.safe_dump(miniature.model_dump()))
    monkeypatch.setenv("RAIRL_PROMOTE", "no")
    with track(card=project / "data" / "card.json") as run:
        run.register_reward(reward, 1, {"dev/score": 0.5})
    words = ["promote", "--params", str(project / "params.yaml"), "--dir", str(project)]
    done = CliRunner().invoke(app, words)
    assert done.output == "version 1 of rairl-reward is champion: its dev/score is 0.5\n"
    assert champion(client) == "1"
    (project / "data" / "card.json").unlink()
    assert "name the folder of a finished run" in str(CliRunner().invoke(app, words).exception)
