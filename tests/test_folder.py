"""A reward model from wherever it lies, the card in its folder, and a copy to give away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from rairl.cli.main import app
from rairl.core.errors import RairlError
from rairl.core.params import Params
from rairl.core.traces import Trace
from rairl.learn.training_run import write_scores
from rairl.models.card import model_card, write_card
from rairl.models.reward import RewardModel, new_reward
from rairl.stages.prepare import prepare
from rairl.tracking.courier import stage_run
from rairl.tracking.run import NullRun
from rairl.use.load import export, load


@pytest.fixture
def saved(tmp_path: Path, tiny_policy: Path, miniature: Params) -> Path:
    """A saved reward with dev scores and no card."""
    folder = tmp_path / "reward"
    new_reward(tiny_policy, miniature.reward, seed=0).calibrated(threshold=-0.5).save_pretrained(folder)
    write_scores(folder, 6, {"dev/score": 0.875, "dev/exact": 0.25})
    return folder


def same(first: RewardModel, second: RewardModel, traces: list[Trace]) -> bool:
    pairs = zip(first.step_logits(traces), second.step_logits(traces), strict=True)
    return first.calibration == second.calibration and all(
        a.steps.tolist() == b.steps.tolist() and a.last == b.last for a, b in pairs
    )


# --- where it comes from ----------------------------------------------------------------------------------------------


def test_from_the_registry(
    project: Path, miniature: Params, saved: Path, demos: list[Trace], monkeypatch: pytest.MonkeyPatch
) -> None:
    with stage_run("rairl", miniature, log_dir=project / "metrics", root=project) as run:
        run.register_reward(saved, 6, {"dev/score": 0.875})
        run.promote_champion("dev/score")
    monkeypatch.chdir(project)
    here = RewardModel.from_pretrained(saved)
    for name in ("models:/rairl-reward@champion", "models:/rairl-reward/1"):
        assert same(load(name), here, demos[:2])
    for name, words in {
        "models:/rairl-reward@nobody": "nobody",
        "models:/rairl-reward/9": "9",
        "models:/nothing/1": "nothing",
        "models:/": "models:/",
    }.items():
        with pytest.raises(RairlError, match=f"MLflow at .*{words}"):
            load(name)
    export("models:/rairl-reward@champion", project / "mine")
    assert same(RewardModel.from_pretrained(project / "mine"), here, demos[:2])


def test_without_a_store_none_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RairlError, match="set MLFLOW_TRACKING_URI"):
        load("models:/rairl-reward@champion")
    assert list(tmp_path.iterdir()) == []


def test_from_the_hub_with_its_commit(
    tmp_path: Path, saved: Path, demos: list[Trace], monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "hub" / "models--someone--reward" / "snapshots" / commit  # as the hub's client keeps it
    snapshot.parent.mkdir(parents=True)
    saved.rename(snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    loaded = load(f"someone/reward@{commit}")
    assert same(loaded, RewardModel.from_pretrained(snapshot), demos[:2])
    with pytest.raises(RairlError, match=r"no commit 'f{40}' of 'someone/reward'"):
        load("someone/reward@" + "f" * 40)
    with pytest.raises(RairlError, match="the hub has no commit"):
        load("not/a/name@1")
    with pytest.raises(RairlError, match="a hub repository with its commit"):
        load("someone/reward")  # no pinned commit: taken for a folder


# --- the card ---------------------------------------------------------------------------------------------------------


def test_the_card_says_what_it_learned_from_and_how_good_it_is(saved: Path, tmp_path: Path, miniature: Params) -> None:
    prepare(miniature, NullRun(), data=tmp_path / "data")
    write_card(saved, tmp_path / "data" / "card.json")
    _, front, body = (saved / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "transformers"
    assert "pipeline_tag" not in front  # only a linear head is a token classifier to others
    digest = json.loads((tmp_path / "data" / "card.json").read_text())["splits"]["demos"]["sha256"][:12]
    for words in (
        f"| demos | 24 | 24 | `{digest}` |",
        "At step 6 of training",
        "| dev/score | 0.875 |",
        "## Intended use",
        "## Limits",
        "| reward.granularity | step |",
        "| calibration: threshold | -0.5 |",
    ):
        assert words in body
    assert str(tmp_path) not in body


def test_a_card_with_a_linear_head_and_nothing_known(miniature: Params) -> None:
    reward = {"params": {**miniature.reward.model_dump(), "head": "linear"}, "calibration": {}}
    text = model_card(reward, {}, {})
    assert "pipeline_tag: token-classification" in text and "AutoModelForTokenClassification" in text
    assert text.count("Not known") == 2


# --- a copy to give away ----------------------------------------------------------------------------------------------


def test_an_export_is_whole_and_gets_a_card(saved: Path, tmp_path: Path, demos: list[Trace]) -> None:
    done = CliRunner().invoke(app, ["export", str(saved), str(tmp_path / "given")])
    assert done.exit_code == 0, done.output
    assert {path.name for path in (tmp_path / "given").iterdir()} == {path.name for path in saved.iterdir()} | {
        "README.md"
    }
    before = RewardModel.from_pretrained(saved)
    saved.rename(tmp_path / "gone")
    assert same(RewardModel.from_pretrained(tmp_path / "given"), before, demos[:2])


def test_an_export_that_cannot_be_leaves_nothing(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(RairlError, match="is there already"):
        export(saved, tmp_path / "there")
    with pytest.raises(RairlError, match=r"reward\.json is missing"):
        export(tmp_path / "there", tmp_path / "new")
    (saved / "head.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        export(saved, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reward", "there"]
