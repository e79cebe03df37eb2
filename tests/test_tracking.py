"""What a user finds in MLflow after a stage, and what happens when MLflow is not there."""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from rairl.core.errors import RairlError
from rairl.core.params import Params
from rairl.core.stats import Estimate
from rairl.tracking.champion import Verdict, promote
from rairl.tracking.pipeline_runs import close_pipeline, run_links
from rairl.tracking.provenance import data_tag, file_digest, flatten, git_commit, metric_name, now
from rairl.tracking.pyfunc import EXAMPLE
from rairl.tracking.run import Run, stage_run


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
        return stage_run(stage, params, **{"root": project, **options})

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
        before = now()
        for step in range(3):
            run.log({"train/loss": 1 / (step + 1), "odd (name)": step}, step)
        after = now()
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
    assert sft.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert sft.info.run_name == "sft"
    assert sft.info.status == parent.info.status == "FINISHED"
    for one in (parent, sft):
        assert one.data.params == flatten(miniature)
        assert one.data.tags["rairl.params"] == miniature.digest()
        assert one.data.tags["rairl.commit"] == git_commit(project)
        assert one.data.tags["rairl.data"] == hashlib.sha256(card.read_bytes()).hexdigest()[:12]
    series = client.get_metric_history(sft.info.run_id, "train/loss")
    assert before <= series[0].timestamp <= series[2].timestamp <= after
    assert [(point.step, point.value) for point in series] == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert sft.data.metrics["odd _name_"] == 2
    figures = {key: value for key, value in sft.data.metrics.items() if key.startswith("posttrain")}
    name = "posttrain.sft.pass_at_1"
    assert figures == {name: 0.5, f"{name}.low": 0.4, f"{name}.high": 0.6, f"{name}.n": 20}
    assert parent.data.metrics == {name: 0.5}
    ((dataset,),) = [[item.dataset for item in sft.inputs.dataset_inputs]]
    assert (dataset.name, dataset.digest) == ("demos", hashlib.sha256(demos.read_bytes()).hexdigest()[:32])
    assert str(demos) in dataset.source
    assert {item.path for item in client.list_artifacts(sft.info.run_id)} == {"demos.jsonl", "plots"}
    assert (project / "mlartifacts" / sft.info.run_id / "artifacts" / "plots" / "curve.png").read_bytes() == b"png"


def test_other_params_or_another_commit_make_another_pipeline(
    client, track, miniature: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    for commit, stages in {"one": [("rairl", 0), ("report", 0), ("rairl", 7)], "two": [("rairl", 0)]}.items():
        monkeypatch.setenv("RAIRL_COMMIT", commit)
        for stage, seed in stages:
            with track(stage, other(miniature, seed=seed)):
                pass
    assert len(runs_of(client)[0]) == 3


def test_stages_that_start_together_agree_on_the_older_parent(client, track) -> None:
    with track("sft"):
        pass
    ((parent,), _) = runs_of(client)
    tags = {key: value for key, value in parent.data.tags.items() if key.startswith("rairl.")}
    client.create_run(parent.info.experiment_id, parent.info.start_time + 1, tags)
    with track("grpo"):
        pass
    assert runs_of(client)[1]["grpo"].data.tags["mlflow.parentRunId"] == parent.info.run_id


@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyboardInterrupt(), "KILLED"), (RairlError("no answers"), "FAILED"), (SystemExit(1), "FAILED")],
)
def test_an_end_by_exception_shows_and_the_next_stage_clears_it(
    client, track, error: BaseException, status: str
) -> None:
    def stage() -> None:
        with track("sft") as run:
            run.log({"loss": 1.0}, 0)
            raise error

    with pytest.raises(type(error)):
        stage()
    (parent,), children = runs_of(client)
    assert children["sft"].info.status == parent.info.status == status
    assert children["sft"].data.metrics == {"loss": 1.0}
    assert children["sft"].data.tags["rairl.error"] == f"{type(error).__name__}: {error}"
    with track("sft"):
        assert client.get_run(parent.info.run_id).info.status == "RUNNING"
    assert client.get_run(parent.info.run_id).info.status == "FINISHED"


def test_a_run_without_a_journal_takes_every_call_and_keeps_nothing(tmp_path: Path) -> None:
    run = Run()
    run.log({"loss": 1.0}, 0)
    run.log_estimates({})
    run.log_input(tmp_path / "none", name="demos")
    run.log_artifact(tmp_path / "none")
    run.register_reward(tmp_path / "none", 0, {})
    run.promote_champion("dev")
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
        "rairl.params": miniature.digest(),
        "rairl.parent": runs_of(client)[0][0].info.run_id,
        "stage": "rairl",
        "policy": "builtin",
        "backbone": miniature.reward.backbone,
        "granularity": miniature.reward.granularity,
        "seed": str(miniature.seed),
        "step": "2",
        "dev.auroc": "0.75",
        "dev.hit_at_1": "0.5",
        "note": "early",
    }
    assert first.tags.items() >= expected.items()
    run_id = runs_of(client)[1]["rairl"].info.run_id
    assert first.run_id == run_id
    model = client.get_logged_model(first.source.removeprefix("models:/"))
    assert (model.name, str(model.status), model.source_run_id) == ("reward-step2", "READY", run_id)
    assert model.params == flatten(miniature)
    assert {metric.key: (metric.value, metric.step) for metric in model.metrics} == {
        "dev.auroc": (0.75, 2),
        "dev.hit_at_1": (0.5, 2),
    }
    assert {metric.dataset_digest for metric in model.metrics} == {file_digest(dev)[:32]}
    outputs = client.get_run(run_id).outputs.model_outputs
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


def test_the_best_by_a_dev_criterion_is_champion(
    client, track, miniature: Params, card: Path, reward: Path, caplog
) -> None:
    caplog.set_level(logging.INFO, "rairl.tracking.delivery")

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
    assert "MLflow did not take a record of the stage rairl (reward)" in caplog.text
    sent = runs_of(client)[1]["rairl"]
    assert (sent.info.status, sent.data.metrics["loss"]) == ("FINISHED", 1.0)


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
    late = runs_of(client)[0][0]  # newest first
    killed = client.create_run(
        late.info.experiment_id, tags={"mlflow.parentRunId": late.info.run_id, "rairl.stage": ""}
    )
    close_pipeline(miniature, status="FAILED", error="no node", root=project)
    assert client.get_run(killed.info.run_id).info.status == "FAILED"
    ended = {run.data.tags["rairl.kfp_run"]: run for run in runs_of(client)[0]}
    assert (ended["run-1"].info.status, ended["run-2"].info.status) == ("FINISHED", "FAILED")
    assert ended["run-2"].data.tags["rairl.error"] == "no node"


def test_without_mlflow_a_task_has_no_links_and_the_end_is_only_a_warning(
    project: Path, miniature: Params, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
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
