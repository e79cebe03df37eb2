"""dvc.yaml says what the layout says, and the pipeline it describes runs, stands still, and travels."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import in_environment, make_clone

from rairl.core.params import Params, load_params
from rairl.stages.layout import INPUTS, OUTPUTS, STAGES

pytestmark = pytest.mark.timeout(900)  # whole pipelines: a minute each on a quiet machine, several beside other work

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def stages() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def paths(entries: list[Any]) -> list[str]:
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]


def test_the_stages_are_the_layouts_and_in_its_order(stages: dict[str, Any]) -> None:
    assert tuple(stages) == ("inputs", *STAGES)


@pytest.mark.parametrize("name", STAGES)
def test_each_stage_is_wired_as_the_layout_says(stages: dict[str, Any], name: str) -> None:
    stage = stages[name]
    assert stage["cmd"] == f"rairl stage {name}"
    expected = set(INPUTS[name].values())
    if "metrics" in expected:
        expected = expected - {"metrics"} | {f"metrics/{other}.json" for other in STAGES if other != name}
    assert {path for path in stage["deps"] if not path.startswith("rairl/")} - {"inputs.json"} == expected
    outs = stage["outs"] + stage.get("metrics", [])
    assert sorted(paths(outs)) == sorted(OUTPUTS[name].values())
    # The figures of all are in git, so that they can be compared between commits; the rest is in DVC's cache. An output
    # that is not, and no metric, would keep a stage out of the run cache.
    assert [entry for entry in outs if isinstance(entry, dict)] == (
        [{"metrics.json": {"cache": False}}] if name == "report" else []
    )


@pytest.mark.parametrize("name", STAGES)
def test_each_stage_depends_on_code_and_parameters_that_are_there(stages: dict[str, Any], name: str) -> None:
    code = [path for path in stages[name]["deps"] if path.startswith("rairl/")]
    assert f"rairl/stages/{name}.py" in code and all((ROOT / path).exists() for path in code)
    if name != "report":  # it prints them all
        assert {key.split(".")[0] for key in stages[name]["params"]} <= set(Params.model_fields)


def test_plots_refer_to_what_stages_write(stages: dict[str, Any]) -> None:
    written = {path for stage in stages.values() for path in paths(stage["outs"])}
    for plot in yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"]:
        files = [plot] if isinstance(plot, str) else list(next(iter(plot.values()))["y"])
        for file in files:
            assert file in written or str(Path(file).parent) in written


def test_analytics_are_off_and_outputs_are_staged() -> None:
    config = (ROOT / ".dvc" / "config").read_text()
    assert "analytics = false" in config
    assert "autostage = true" in config


# --- the whole pipeline in a temporary clone --------------------------------------------------------------------------


def run(clone: Path, *words: str) -> str:
    done = subprocess.run(words, cwd=clone, env=in_environment(clone), capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_the_whole_pipeline_runs(finished: Path) -> None:
    figures = json.loads((finished / "metrics.json").read_text())
    for name in (
        *(f"posttrain.{policy}.pass@1" for policy in ("base", "sft", "sft_last", "grpo", "rairl")),
        *(f"posttrain.{policy}.t0.5.pass@1" for policy in ("sft", "rairl")),
        *(f"posttrain.{policy}.greedy" for policy in ("base", "sft", "grpo", "rairl")),
        *(f"rerank.{selector}" for selector in ("random", "reward", "majority", "logprob", "logratio", "oracle", "n")),
        *(f"localise.{locator}.exact" for locator in ("reward", "logprob_drop", "logratio_drop", "chance")),
        *(f"time.{stage}" for stage in STAGES if stage != "report"),
    ):
        assert set(figures[name]) == {"value", "low", "high", "n"}
    assert any(name.startswith("audit.") for name in figures)  # no AUROC: so small a policy is never right
    for name in STAGES:
        for path in OUTPUTS[name].values():
            assert (finished / path).exists()
    page = (finished / "report" / "report.html").read_text()
    assert not re.search(r"""(src|href)=["']https?://""", page)
    assert list((finished / "report").glob("*.png"))


@pytest.mark.slow
def test_dvc_runs_it_with_the_same_figures(finished: Path, tmp_path: Path) -> None:
    clone = make_clone(tmp_path / "clone")
    assert set(ran(run(clone, "dvc", "repro"))) == {"inputs", *STAGES}
    mine, theirs = (json.loads((folder / "metrics.json").read_text()) for folder in (clone, finished))
    assert {name: row for name, row in mine.items() if not name.startswith("time.")} == {
        name: row for name, row in theirs.items() if not name.startswith("time.")
    }


@pytest.mark.slow
def test_kubeflows_local_runner_gives_the_same_figures(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes((finished / "params.yaml").read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "rairl", "pipeline", "run-local"],
        cwd=tmp_path,
        env=in_environment(finished),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    results = dict(
        line.split(": ", 1)
        for line in done.stdout.splitlines()
        if line.startswith(("report: ", "summary: ", "reward: "))
    )
    mine, theirs = (json.loads(path.read_text()) for path in (Path(results["summary"]), finished / "metrics.json"))
    assert set(mine) == set(theirs)
    for name in mine:
        if not name.startswith("time."):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-6), name
    assert {name for name in mine if name.startswith("time.")} == {
        f"time.{stage}" for stage in STAGES if stage != "report"
    }
    assert (Path(results["report"]) / "report.html").exists()
    assert (Path(results["reward"]) / "reward.json").exists()
    [page] = tmp_path.glob("local_outputs/*/*/report/page")
    assert page.read_text() == (Path(results["report"]) / "report.html").read_text()
    [tables] = tmp_path.glob("local_outputs/*/*/report/tables")
    assert f"{theirs['posttrain.sft.pass@1']['value']:.3f}" in tables.read_text()
    [verdict] = tmp_path.glob("local_outputs/*/register/verdict")
    assert "of rairl-reward is champion: its dev/score is" in verdict.read_text()


def test_nothing_changed_means_nothing_to_do(finished: Path) -> None:
    assert run(finished, "dvc", "status").split() == ["inputs:", "always", "changed"]
    assert ran(run(finished, "dvc", "repro")) == ["inputs"]


def ran(out: str) -> list[str]:
    """The stages that DVC ran, by what it said."""
    return re.findall(r"^Running stage '(\w+)'", out, re.M)


def test_an_edit_of_a_file_of_the_users_own_is_seen(tmp_path: Path) -> None:
    clone = make_clone(tmp_path / "clone")
    mine = tmp_path / "mine"  # anywhere, under no version control
    mine.mkdir()
    rows = [
        {"id": f"{n}", "problem": f"{n} + {n}?", "steps": [f"{n} + {n} = {2 * n}"], "answer": f"{2 * n}"}
        for n in range(12)
    ]
    names = ("demos", "prompts", "dev", "test")
    for number, name in enumerate(names):
        lines = rows[number * 3 : number * 3 + 3]
        (mine / f"{name}.jsonl").write_text("".join(json.dumps({**row, "gold": row["answer"]}) + "\n" for row in lines))
    params = yaml.safe_load((clone / "params.yaml").read_text())
    params["dataset"] = {"name": "file", **{name: str(mine / f"{name}.jsonl") for name in names}}
    (clone / "params.yaml").write_text(yaml.safe_dump(params))
    assert ran(run(clone, "dvc", "repro", "prepare")) == ["inputs", "prepare"]
    assert ran(run(clone, "dvc", "repro", "prepare")) == ["inputs"]
    demos = mine / "demos.jsonl"
    demos.write_text(demos.read_text().replace('"0 + 0?"', '"0 + 0 = ?"'))
    assert ran(run(clone, "dvc", "repro", "prepare")) == ["inputs", "prepare"]
    assert "0 + 0 = ?" in (clone / "data" / "demos.jsonl").read_text()


def test_going_back_to_an_old_parameter_runs_nothing_again(tmp_path: Path) -> None:
    clone = make_clone(tmp_path / "clone")
    path = clone / "params.yaml"
    figures = []
    for seed in (0, 1):
        path.write_text(re.sub(r"^seed: \d+", f"seed: {seed}", path.read_text(), flags=re.M))
        assert ran(run(clone, "dvc", "repro", "prepare")) == ["inputs", "prepare"]
        figures.append((clone / "metrics" / "prepare.json").read_text())
    path.write_text(path.read_text().replace("seed: 1", "seed: 0"))
    out = run(clone, "dvc", "repro", "prepare")
    assert ran(out) == ["inputs"] and "Stage 'prepare' is cached" in out
    assert (clone / "metrics" / "prepare.json").read_text() == figures[0]


def test_outputs_are_ignored_and_figures_are_not(finished: Path) -> None:
    changed = run(finished, "git", "status", "--porcelain", "--untracked-files=all").split("\n")
    assert {line[3:] for line in changed if line} == {"dvc.lock", "metrics.json"}


def test_a_parameter_runs_only_the_stages_that_read_it(finished: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    shutil.copytree(finished, clone, symlinks=True)
    path = clone / "params.yaml"
    path.write_text(path.read_text().replace("rerank:\n  n: 4", "rerank:\n  n: 2"))
    out = run(clone, "dvc", "status")
    assert set(re.findall(r"^(\w+):$", out, re.M)) == {"inputs", "rerank", "report"}


def test_a_reward_that_cannot_tell_right_from_wrong_trains_no_policy(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rairl.core.params import load_params
    from rairl.evaluate import calibrate
    from rairl.stages.runner import run_stage

    clone = tmp_path / "clone"
    shutil.copytree(finished, clone, symlinks=True)
    monkeypatch.chdir(clone)
    scored = calibrate.dev_scores
    monkeypatch.setattr(  # so small a policy is never right, which leaves no AUROC
        calibrate, "dev_scores", lambda *args: ({**scored(*args)[0], "dev/auroc": 0.7}, scored(*args)[1])
    )
    params = load_params(clone / "params.yaml")
    guarded = params.model_copy(update={"guard": params.guard.model_copy(update={"action": "rollback"})})
    figures = run_stage("rairl", guarded)
    assert "rairl.train_correct" not in figures and figures["rairl.step"].value == 0
    assert contents(clone / "models" / "policy") == contents(clone / "models" / "sft")
    (event,) = json.loads((clone / "history" / "rairl" / "guard.json").read_text())
    assert event["action"] == "stop" and "AUROC of 0.700" in event["reason"]
    run_stage("report", guarded)  # with a history of no iteration
    assert "AUROC of 0.700" in (clone / "report" / "report.html").read_text()


def test_figures_and_plots_can_be_looked_at(finished: Path) -> None:
    shown = json.loads(run(finished, "dvc", "metrics", "show", "--json"))
    assert list(shown[""]["data"]) == ["metrics.json"]
    diff = json.loads(run(finished, "dvc", "metrics", "diff", "--json"))
    assert "posttrain.sft.pass@1.value" in diff["metrics.json"]
    assert "dvc_plots" in run(finished, "dvc", "plots", "show")


def test_push_and_pull_round_trip(finished: Path, tmp_path: Path) -> None:
    sender, receiver = tmp_path / "sender", tmp_path / "receiver"
    shutil.copytree(finished, sender, symlinks=True)
    run(sender, "dvc", "remote", "add", "-d", "store", str(tmp_path / "store"))
    run(sender, "dvc", "push")
    run(sender, "git", "add", "-A")
    run(sender, "git", "-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "-qm", "figures")
    run(tmp_path, "git", "clone", "-q", str(sender), str(receiver))
    assert not (receiver / "data").exists()
    run(receiver, "dvc", "pull")
    for name in STAGES:
        for path in OUTPUTS[name].values():
            assert contents(receiver / path) == contents(finished / path)
    assert ran(run(receiver, "dvc", "repro")) == ["inputs"]


def contents(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else sorted(item for item in path.rglob("*") if item.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


@pytest.mark.slow
def test_an_experiment_changes_figures_and_leaves_the_workspace_alone(finished: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    shutil.copytree(finished, clone, symlinks=True)
    run(clone, "git", "config", "user.name", "test")
    run(clone, "git", "config", "user.email", "test@example.org")
    run(clone, "git", "add", "-A")
    run(clone, "git", "commit", "-qm", "figures")
    run(clone, "dvc", "exp", "run", "-n", "fewer", "-S", "rerank.n=2", "-S", "report.bootstrap=200")
    shown = run(clone, "dvc", "exp", "show", "--md")
    assert "fewer" in shown
    diff = json.loads(run(clone, "dvc", "metrics", "diff", "--json", "HEAD", "fewer"))
    assert diff["metrics.json"]["rerank.n.value"]["new"] == 2.0
    params = json.loads(run(clone, "dvc", "params", "diff", "--json", "HEAD", "fewer"))
    assert set(params["params.yaml"]) == {"rerank.n", "report.bootstrap"}


def test_a_small_number_that_dvc_writes_is_read_as_a_number(tmp_path: Path) -> None:
    from dvc.utils.hydra import apply_overrides  # what `dvc exp run -S` calls

    path = tmp_path / "params.yaml"
    shutil.copy(ROOT / "params.yaml", path)
    apply_overrides(path, ["policy.learning_rate=0.00001"])
    assert "1e-05" in path.read_text()
    assert load_params(path).policy.learning_rate == 1e-5
