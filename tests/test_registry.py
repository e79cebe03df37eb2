"""The registry on the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from rairl.cli.main import app
from rairl.core.params import Params, load_params
from rairl.tracking.courier import stage_run
from rairl.tracking.dashboard import short
from rairl.tracking.provenance import data_tag
from rairl.tracking.registry import find, read_versions


def ask(*words: str) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["registry", *words])


@pytest.fixture(scope="module")
def filled(first_store: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs on the same data: seed 0 with two checkpoints, of which the second is champion; then seed 1, worse."""
    project = tmp_path_factory.mktemp("filled")
    shutil.copyfile(first_store[0], project / "mlflow.db")
    reward, card = project / "checkpoint", project / "card.json"
    reward.mkdir()
    (reward / "reward.json").write_text("{}")
    card.write_text("{}")
    params = load_params(Path(__file__).with_name("miniature.yaml"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAIRL_COMMIT", "0123456789abcdef-dirty")
        for seed, scores in ((0, [0.5, 0.75]), (1, [0.625])):
            variant = params.model_copy(update={"seed": seed})
            with stage_run("rairl", variant, log_dir=project / "metrics", root=project, card=card) as run:
                for step, score in enumerate(scores):
                    run.register_reward(reward, 20 * step, {"dev/score": score, "dev/exact": score / 2})
                run.promote_champion("dev/score")
    return project


@pytest.fixture
def registry(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the store in the current folder; the path of the data card."""
    shutil.copytree(filled, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project" / "card.json"


def test_list_tells_every_version_with_its_origin(registry: Path, miniature: Params) -> None:
    found = [line.split() for line in ask("list").output.splitlines() if line[:3].strip().isdigit()]
    data, params = data_tag(registry)[:7], miniature.digest()[:7]
    assert [row[:7] for row in found] == [
        ["3", "candidate", "0.625", "0", "step", "1", data],
        ["2", "champion", "0.750", "20", "step", "0", data],
        ["1", "–", "0.500", "0", "step", "0", data],
    ]
    assert [row[7] == params for row in found] == [False, True, True]
    assert {row[8] for row in found} == {"0123456*"}


def test_the_list_fits_a_console_of_80_columns(registry: Path) -> None:
    narrow = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["registry", "list"]).output
    assert "…" not in narrow
    assert [line.split() for line in narrow.splitlines()] == [line.split() for line in ask("list").output.splitlines()]


def test_show_has_lineage_scores_and_every_parameter(registry: Path, miniature: Params) -> None:
    shown = dict(line.split(": ", 1) for line in ask("show").output.splitlines())
    assert (shown["version"], shown["aliases"], shown["step"]) == ("2", "champion", "20")
    assert shown["rairl.data"] == data_tag(registry)
    assert shown["dev/score"] == "0.7500"
    assert shown["reward.granularity"] == "step"
    assert shown["policy.learning_rate"] == str(miniature.policy.learning_rate)
    assert ask("show", "3").output.startswith("version: 3\n")


def test_diff_names_what_differs_and_nothing_else(registry: Path) -> None:
    assert ask("diff", "champion", "candidate").output.splitlines() == [
        "step: 20 -> 0",
        "seed: 0 -> 1",
        "dev/exact: 0.3750 -> 0.3125",
        "dev/score: 0.7500 -> 0.6250",
    ]
    assert ask("diff", "1", "1").output == "no difference\n"


def test_promote_goes_through_the_gate(registry: Path) -> None:
    assert ask("promote", "candidate").output.startswith("version 2 of rairl-reward stays champion")
    assert ask("promote", "1").output.startswith("version 2 of rairl-reward stays champion")
    versions = read_versions("rairl-reward")
    assert (find(versions, "champion").number, find(versions, "candidate").number) == (2, 1)
    assert ask("promote", "2").output == "version 2 of rairl-reward is champion: its dev/score is 0.75\n"


def test_what_is_not_there_is_named(registry: Path, tmp_path: Path) -> None:
    assert "no version or alias '9'; there are 3, 2, 1, candidate, champion" in str(ask("show", "9").exception)
    assert "other" in str(ask("list", "--name", "other").exception)
    assert "set MLFLOW_TRACKING_URI" in str(ask("list", "--dir", str(tmp_path)).exception)


def test_a_short_commit_keeps_its_mark() -> None:
    assert short("0123456789abcdef") == "012345678"
    assert short("none") == "none"
