"""Studies: which runs are queued, which count as finished, and what the tables say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import in_environment, make_clone

from rairl.core.errors import RairlError
from rairl.core.stats import NOTHING, Estimate
from rairl.evaluate.questions import one_each, read_questions, sums, write_questions
from rairl.study import experiments
from rairl.study.experiments import finished_runs, run_studies
from rairl.study.plan import changed, load_studies, read_study
from rairl.study.tables import Cell, Results, Table, closed, corrected, tables
from rairl.study.write import _json, markdown, spliced

ROOT = Path(__file__).parents[1]
MINIATURE = ROOT / "tests" / "miniature.yaml"


def write_study(folder: Path, **changes: Any) -> Path:
    """A study file with two variants, some of its keys changed."""
    file = {
        "title": "T",
        "seeds": [1, 2],
        "baseline": "a",
        "variants": {"b": {"reward.switch_labels": True}, "a": {}},
    }
    path = folder / "mini.yaml"
    path.write_text(yaml.safe_dump(file | changes))
    return path


# --- the file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_study_of_the_project_is_valid(path: Path) -> None:
    study = read_study(path, ROOT / "params.yaml")
    assert len(study.runs) == len(study.file.seeds) * len(study.file.variants)


def test_a_study_is_seeds_times_variants_the_baseline_first(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path), MINIATURE)
    assert list(study.runs) == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]
    run = study.runs["b", 2]
    assert run.name == "mini-b-2" and run.changes == {"reward.switch_labels": True, "seed": 2}
    assert run.params.seed == 2 and run.params.reward.switch_labels
    assert not study.runs["a", 2].params.reward.switch_labels
    assert study.command == f"rairl study {tmp_path / 'mini.yaml'}"


def test_files_are_found_from_an_experiments_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    params = yaml.safe_load(MINIATURE.read_text())
    names = ("demos", "prompts", "dev", "test")
    params["dataset"] = {"name": "file", **{name: f"mine/{name}.jsonl" for name in names}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "demos.jsonl").touch()
    run = read_study(write_study(tmp_path)).runs["a", 1]
    assert run.changes == {"seed": 1, "dataset.demos": str(tmp_path / "mine" / "demos.jsonl")}
    assert run.params.dataset.test == "mine/test.jsonl"  # type: ignore[union-attr]


@pytest.mark.parametrize("written", ["1e-5", "1e-05", "1E-5", "0.00001", "1.0e-5"])
def test_a_variant_may_write_a_number_with_an_exponent(tmp_path: Path, written: str) -> None:
    path = write_study(tmp_path)
    path.write_text(path.read_text().replace("reward.switch_labels: true", f"policy.learning_rate: {written}"))
    assert read_study(path, MINIATURE).runs["b", 1].params.policy.learning_rate == 1e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "c"}, "baseline 'c' is none of the variants: a, b"),
        ({"variants": {"a": {"seed": 3}}}, "variant 'a' changes 'seed'"),
        ({"variants": {"a": {"reward.heads": 3}}}, "variant 'a': unknown key 'reward.heads'"),
        ({"variants": {"a": {"rewards.head": 3}}}, "variant 'a': unknown key 'rewards.head'"),
        ({"variants": {"a": {"reward.head": "surprisal", "reward.train": "full"}}}, "would move the log-probabilities"),
        ({"variants": {"a/b": {}}, "baseline": "a/b"}, "mini.yaml: variants"),
        ({"seeds": [1, 1]}, "seeds names one twice"),
        ({"seeds": []}, "mini.yaml: seeds"),
        ({"repeats": 3}, "mini.yaml: repeats"),
    ],
)
def test_a_mistake_in_a_study_is_named_before_anything_runs(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RairlError) as error:
        read_study(write_study(tmp_path, **changes), MINIATURE)
    assert message in str(error.value)
    assert "mini.yaml" in str(error.value)


def test_files_of_one_name_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    with pytest.raises(RairlError, match="one name"):
        load_studies([path, path], MINIATURE)
    with pytest.raises(RairlError, match=r"absent\.yaml does not exist"):
        load_studies([tmp_path / "absent.yaml"], MINIATURE)


def test_changes_leave_the_original_alone() -> None:
    values = {"reward": {"clip": None, "band": [0, 1]}, "seed": 0}
    assert changed(values, {"reward.clip": 2.0, "seed": 4}) == {"reward": {"clip": 2.0, "band": [0, 1]}, "seed": 4}
    assert values == {"reward": {"clip": None, "band": [0, 1]}, "seed": 0}


# --- experiments -----------------------------------------------------------------------------------------------------


def run_words(folder: Path, *words: str) -> str:
    environment = in_environment(folder) | {"GIT_AUTHOR_NAME": "t", "GIT_COMMITTER_NAME": "t"}
    environment |= {"GIT_AUTHOR_EMAIL": "t@e", "GIT_COMMITTER_EMAIL": "t@e"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def experiment(folder: Path, name: str, changes: dict[str, Any], figures: dict[str, Any]) -> None:
    """A commit beside the branch with the parameters and the figures of a run, as DVC leaves it."""
    kept = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(yaml.safe_dump(changed(yaml.safe_load(kept), changes)))
    (folder / "metrics.json").write_text("{}")
    write_questions(folder / "plots" / "audit", figures)
    run_words(folder, "git", "add", "-A", "-f")
    tree = run_words(folder, "git", "write-tree").strip()
    head = run_words(folder, "git", "rev-parse", "HEAD").strip()
    commit = run_words(folder, "git", "commit-tree", "-p", head, "-m", name, tree).strip()
    run_words(folder, "git", "update-ref", f"refs/exps/{head[:2]}/{head[2:]}/{name}", commit)
    run_words(folder, "git", "reset", "-q", "--hard")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small repository of git and DVC with a study of two seeds and two variants."""
    folder = tmp_path / "project"
    (folder / "rairl" / "learn").mkdir(parents=True)
    (folder / "rairl" / "learn" / "code.py").write_text("1\n")
    (folder / "rairl" / "cli.py").write_text("1\n")
    (folder / "dvc.yaml").write_text("stages: {grpo: {cmd: 'true', deps: [data, rairl/learn]}}\n")
    shutil.copyfile(MINIATURE, folder / "params.yaml")
    write_study(folder)
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").touch()
    for words in ("git init -q -b main", "git add -A", "git commit -qm first"):
        run_words(folder, *words.split())
    monkeypatch.chdir(folder)
    return folder


def test_a_run_is_found_by_its_parameters_and_code(project: Path) -> None:
    study = read_study(Path("mini.yaml"))
    digests = {run: study.runs[run].params.digest() for run in study.runs}
    experiment(project, "any-name", {"seed": 2}, {})
    experiment(project, "other", {"seed": 2, "sft.epochs": 3}, {})
    assert list(finished_runs([study])) == [digests["a", 2]]
    (project / "rairl" / "cli.py").write_text("2\n")  # no stage depends on it
    run_words(project, "git", "commit", "-qam", "second")
    assert list(finished_runs([study])) == [digests["a", 2]]
    (project / "rairl" / "learn" / "code.py").write_text("2\n")
    assert finished_runs([study]) == {}


def test_a_run_on_files_that_were_edited_since_does_not_count(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rairl.study.experiments.input_files", lambda params: {"/mine.jsonl": "abc"})
    study = read_study(Path("mini.yaml"))
    (project / "inputs.json").write_text(json.dumps({"/mine.jsonl": "abc"}))
    experiment(project, "fresh", {"seed": 1}, {})
    (project / "inputs.json").write_text(json.dumps({"/mine.jsonl": "old"}))
    experiment(project, "stale", {"seed": 2}, {})
    assert list(finished_runs([study])) == [study.runs["a", 1].params.digest()]


def test_tables_are_made_of_what_is_finished_and_the_rest_is_named(project: Path) -> None:
    for name, changes in {"x": {"seed": 1}, "y": {"seed": 2}, "z": {"seed": 1, "reward.switch_labels": True}}.items():
        experiment(project, name, changes, {"audit.test.auroc": {"q": [1, 2]}})
    studies = load_studies([Path("mini.yaml")])
    with pytest.raises(RairlError, match=r"1 runs are not finished, .*`rairl study mini.yaml`.*\nmini-b-2: not queued"):
        run_studies(studies, Path("out"), jobs=1, docs=Path("docs.md"), tables_only=True)
    text = (project / "docs.md").read_text()
    assert "- **b**: `reward.switch_labels: true`; **not finished: seeds 2**" in text
    assert "(1 to 2 seeds, 2 questions in all)" in text
    saved = json.loads((project / "out/mini/study.json").read_text())
    assert saved["seeds"] == {"b": [1], "a": [1, 2]}
    assert saved["per_seed"]["a"]["1"]["audit.test.auroc"] == 0.5
    assert (project / "out/mini/a/seed-1/metrics.json").exists()


def test_what_is_missing_is_queued_once_baselines_first(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC's queue is a stand-in here: it notes what it is told, and every experiment fails."""
    experiment(project, "mini-a-2", {"seed": 2}, {})
    experiment(project, "mini-b-2", {"seed": 2, "sft.epochs": 3}, {})  # of other parameters
    states = {"mini-b-1": "Running", "gone": "Success"}
    told: list[str] = []

    def dvc(*words: str, **environment: str) -> str:
        told.append(" ".join(words))
        if words[:2] == ("exp", "run"):
            states[words[4]] = "Queued"
        if words[:2] == ("queue", "start"):
            assert environment["PYTHONPATH"] == "." and environment["OMP_NUM_THREADS"]
            assert environment["MLFLOW_TRACKING_URI"] == f"sqlite:///{project}/mlflow.db"
            states.update(dict.fromkeys(states, "Failed"))
        if words == ("queue", "status"):
            rows = [f"1234567  {name}  02:39 AM  {state}" for name, state in states.items()]
            return "\n".join(["Task  Name  Created  Status", *rows, "", "Worker status: 0 active, 0 idle"])
        return ""

    monkeypatch.setattr("rairl.study.experiments._dvc", dvc)
    other = write_study(project, variants={"same": {}}, baseline="same").rename("other.yaml")  # nothing of its own
    write_study(project)
    with pytest.raises(RairlError, match=r"mini-a-1: failed \(see `dvc queue logs mini-a-1`\)"):
        run_studies(load_studies([Path("mini.yaml"), other]), Path("out"), jobs=2)
    assert [line for line in told if line != "queue status"] == [
        "queue kill mini-b-1",  # it has no worker
        "exp run --queue --name mini-a-1 -S ++seed=1",
        "queue remove mini-b-1",
        "exp run --queue --name mini-b-1 -S ++reward.switch_labels=true -S ++seed=1",
        "exp remove mini-b-2",
        "exp run --queue --name mini-b-2 -S ++reward.switch_labels=true -S ++seed=2",
        "queue start --jobs 2",
    ]


def test_a_running_task_without_a_process_is_lost(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        "1111111  dead  Nov 30, 2026  Running",
        "2222222  alive  02:39 AM  Running",
        "3333333  idle  02:39 AM  Queued",
    ]
    shown = "\n".join(
        ["Task  Name  Created  Status", *rows, "4444444  dead  02:00 AM  Failed", "", "Worker status: {}"]
    )
    for task, process in {"1111111": 2**22 + 1, "2222222": os.getpid()}.items():
        (project / ".dvc/tmp/exps/run" / f"{task}abc").mkdir(parents=True)
        (project / ".dvc/tmp/exps/run" / f"{task}abc" / f"{task}abc.pid").write_text(str(process))
    monkeypatch.setattr(experiments, "_dvc", lambda *words: shown.format("0 active, 0 idle"))
    assert experiments._queue() == ({"dead": "Lost", "alive": "Running", "idle": "Queued"}, False)
    monkeypatch.setattr(experiments, "_dvc", lambda *words: shown.format("1 active, 0 idle"))
    assert experiments._queue() == ({"dead": "Running", "alive": "Running", "idle": "Queued"}, True)


def test_waiting_starts_workers_again_and_ends_when_only_lost_runs_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = iter([
        ({"a": "Running", "b": "Queued"}, True), ({"a": "Running", "b": "Queued"}, False),
        ({"a": "Lost", "b": "Running"}, True), *3 * [({"a": "Lost", "b": "Success"}, False)],
    ])  # fmt: skip
    started: list[int] = []
    monkeypatch.setattr(experiments, "_queue", lambda: next(shown))
    monkeypatch.setattr(experiments, "_start", started.append)
    monkeypatch.setattr(experiments, "PAUSE", 0)
    experiments._wait({"a", "b"}, 2)
    assert started == [2] and next(shown, None) is None


def test_outside_a_clone_it_says_what_a_study_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    study = read_study(write_study(tmp_path), MINIATURE)
    with pytest.raises(RairlError, match="from a clone of the project"):
        run_studies([study], tmp_path, jobs=1)


# --- tables ----------------------------------------------------------------------------------------------------------


def test_what_lies_behind_a_figure() -> None:
    assert one_each({"a": 0.25}) == {"a": [0.25, 1]}
    assert sums([1.0, 0.5, 0.0], ["a", "a", "b"]) == {"a": [1.5, 2], "b": [0, 1]}


def test_questions_on_disk(tmp_path: Path) -> None:
    write_questions(tmp_path, {"x": {"a": [1.0, 2.0]}})
    assert read_questions(tmp_path) == {"x": {"a": [1.0, 2.0]}}
    with pytest.raises(RairlError, match=r"questions\.json is missing or broken"):
        read_questions(tmp_path / "absent")


def three_seeds(**figures: float) -> dict[int, Any]:
    """Seeds 0 to 2 with 40 questions: each figure is its value on every question, with noise that all figures share."""
    rng = np.random.default_rng(0)
    noise = rng.normal(scale=0.2, size=(3, 40))
    return {
        seed: {name: {f"q{q}": [value + noise[seed, q], 1.0] for q in range(40)} for name, value in figures.items()}
        for seed in range(3)
    }


def test_differences_are_paired_and_rows_are_not() -> None:
    results = Results({"a": three_seeds(x=0.5, y=0.4)}, draws=300)
    value, difference = results.value(("a", "x")), results.difference(("a", "x"), ("a", "y"))
    assert value.figure.value == pytest.approx(0.5, abs=0.05)
    assert value.figure.high - value.figure.low > 0.02
    assert difference.figure.value == pytest.approx(0.1)
    assert difference.figure.high - difference.figure.low < 1e-9, "the noise is the same on both sides"
    assert difference.p is not None and difference.p < 0.001
    assert difference.figure.n == 120


def test_a_difference_uses_the_seeds_that_both_have() -> None:
    first, second = three_seeds(x=0.5), three_seeds(x=0.3)
    del second[2]
    results = Results({"a": first, "b": second}, draws=200)
    assert results.value(("a", "x")).figure.n == 120
    assert results.difference(("a", "x"), ("b", "x")).figure.n == 80
    assert not results.has(("a", "x"), ("c", "x"))
    assert not results.has(("a", "absent"))


def test_figures_with_other_denominators_have_no_p_value() -> None:
    runs = {"a": {0: {"x": {"q": [1, 2], "r": [3, 4]}}}, "b": {0: {"x": {"q": [1, 2], "r": [3, 3]}}}}
    cell = Results(runs, draws=200).difference(("a", "x"), ("b", "x"))
    assert cell.figure.value == pytest.approx(4 / 6 - 4 / 5)
    assert cell.p is None


def test_the_share_of_the_gap() -> None:
    assert closed(np.array([0.5, 0.4, 0.6])) == pytest.approx(0.5)
    assert closed(np.array([[0.4, 0.4, 0.6], [0.3, 0.4, 0.6]])).tolist() == pytest.approx([0, -0.5])


def full(reward: float, auroc: float = 0.7) -> dict[int, Any]:
    """Everything the tables know, on three seeds."""
    policies = {
        f"posttrain.{policy}.{what}": value
        for policy, value in {"sft": 0.4, "sft_last": 0.35, "grpo": 0.6, "rairl": reward}.items()
        for what in ("pass@1", "t0.5.pass@1", "process@1")
    }
    selectors = dict.fromkeys(("random", "majority", "logprob", "logratio", "shortest", "oracle"), 0.3)
    figures = policies | {f"rerank.{name}": value for name, value in {**selectors, "reward": reward}.items()}
    locators = dict.fromkeys(("chance", "logprob_drop", "logratio_drop", "last"), 0.25)
    figures |= {f"localise.{name}.exact": value for name, value in {**locators, "reward": reward}.items()}
    figures |= {f"audit.{split}.auroc": value for split, value in {"test": auroc, "ood_longer": 0.2}.items()}
    figures |= {f"audit.test.{name}": 1.0 for name in ("reward_right", "reward_wrong", "reward_gap")}
    return three_seeds(**figures)


def test_tables_by_hand() -> None:
    results = Results({"plain": full(0.5), "other": full(0.55)}, draws=200)
    found = {table.title: table for table in tables(results, ["other", "plain"], "plain", 8)}
    training = found["Training signal"]
    assert list(training.rows) == ["SFT", "SFT, last epoch", "GRPO", "R-AIRL (plain)", "R-AIRL (other)"]
    assert training.questions == 120
    row = dict(zip(training.columns, training.rows["R-AIRL (other)"], strict=True))
    for column, value in {
        "minus SFT": 0.15,
        "minus SFT, temperature 0.5": 0.15,
        "minus SFT, last epoch": 0.2,
        "share of the gap SFT → GRPO closed": 0.75,
    }.items():
        cell = row[column]
        assert isinstance(cell, Cell)
        assert cell.figure.value == pytest.approx(value)
    assert {"pass@1", "pass@1, temperature 0.5", "right answer, right steps"} <= set(training.columns)
    reranking = found["Reranking, best of 8"]
    assert "oracle (upper bound)" in reranking.rows
    assert not any("oracle" in column for column in reranking.columns), "a bound is no rival"
    assert any("log-ratio" in column for column in reranking.columns)
    locating = found["First wrong step, given there is one"]
    assert locating.rows["reward (plain)"][1].figure.value == pytest.approx(0.25)  # type: ignore[union-attr]
    verdicts = {
        label: row[1] for label, row in found["Falsification: are right chains ranked above wrong ones?"].rows.items()
    }
    assert verdicts["test (plain)"] == "supported"
    assert verdicts["longer chains (other)"] == "falsified"
    against = found["Each variant minus plain"]
    assert list(against.rows) == ["other"]
    assert [cell.figure.value for cell in against.rows["other"]] == pytest.approx([0.05] * 4 + [0])  # type: ignore[union-attr]


def test_markdown_states_seeds_questions_and_the_command(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path, seeds=[0, 1, 2]), MINIATURE)
    results = Results({"a": full(0.5), "b": full(0.55)}, draws=200)
    text = markdown(study, results, tables(results, ["a", "b"], "a", 8))
    assert text.startswith("## T\n")
    assert "**Training signal** (3 seeds, 120 questions in all)" in text
    assert f"`rairl study {tmp_path / 'mini.yaml'}" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.count("|") >= 3 for line in rows)
    assert any(line.startswith("| R-AIRL (b) |") and "+0.150 [+0.150, +0.150], p = 0.002" in line for line in rows)
    assert "nothing over SFT. p is corrected by Holm for the 12 comparisons of this table." in text


def test_tables_without_policies_or_runs_are_left_out() -> None:
    only = {name: rows for name, rows in full(0.5)[0].items() if not name.startswith(("posttrain", "localise"))}
    titles = [table.title for table in tables(Results({"a": {0: only}}, draws=200), ["a"], "a", 4)]
    assert titles == ["Reranking, best of 4", "Falsification: are right chains ranked above wrong ones?"]
    assert tables(Results({"a": {}}, draws=200), ["a"], "a", 4) == []


def test_cells() -> None:
    assert str(Cell(Estimate(0.5, 0.4, 0.6, 9))) == "0.500 [0.400, 0.600]"
    assert str(Cell(Estimate(0.5, 0.4, 0.6, 9), 0.0431, True)) == "+0.500 [+0.400, +0.600], p = 0.043"
    assert str(Cell(NOTHING)) == "–"


def test_the_p_values_of_a_table_are_corrected_for_their_number() -> None:
    some = Estimate(0.1, 0.0, 0.2, 9)
    raw: dict[str, list[Cell | str | None]] = {
        "a": [Cell(some, 0.01, True), None, Cell(some)],
        "b": [Cell(some, 0.04, True), "supported", Cell(some, 0.03)],
    }
    table = corrected(Table("T", ["x", "y", "z"], raw, 9, "N."))
    # By hand: 3 * .01, 2 * .03, and .04 may not fall below the .06 before it.
    assert [[getattr(cell, "corrected", None) for cell in row] for row in table.rows.values()] == [
        [pytest.approx(0.03), None, None],
        [pytest.approx(0.06), None, pytest.approx(0.06)],
    ]
    assert str(table.rows["b"][0]) == "+0.100 [+0.000, +0.200], p = 0.060"
    assert table.rows["b"][0].p == 0.04, "what it was by itself is kept"  # type: ignore[union-attr]
    assert table.note == "N. p is corrected by Holm for the 3 comparisons of this table."
    one = Table("T", ["x"], {"a": [Cell(some, 0.01)]}, 9)
    assert corrected(one) == one


def test_study_json_has_both_p_values(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path), MINIATURE)
    results = Results({"a": full(0.5), "b": full(0.55)}, draws=200)
    saved = _json(study, results, tables(results, ["a", "b"], "a", 8))["tables"]["Each variant minus a"]["rows"]["b"]
    assert saved["best of 8"]["p"] == pytest.approx(0.0002)
    assert saved["best of 8"]["p_corrected"] == pytest.approx(5 * 0.0002)
    assert saved["AUROC on test"]["p_corrected"] == 1


def test_prose_around_the_tables_stays() -> None:
    document = "# Results\n\nBefore.\n"
    once = spliced(document, "x", "one\n")
    assert once == "# Results\n\nBefore.\n\n<!-- study:x -->\none\n<!-- end -->\n"
    both = spliced(once + "\nAfter.\n", "y", "two")
    again = spliced(both, "x", "three")
    assert again.index("Before") < again.index("three") < again.index("After") < again.index("two")
    assert "one" not in again
    assert spliced(again, "x", "three") == again
    with pytest.raises(RairlError, match="has no <!-- end -->"):
        spliced("<!-- study:x -->\n", "x", "t")


# --- the whole -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_study_runs_shares_and_stands_still(tmp_path: Path) -> None:
    clone = make_clone(tmp_path / "clone")
    write_study(clone, seeds=[1], variants={"b": {"guard.action": "off", "sft.learning_rate": 1e-5}, "a": {}})
    words = [sys.executable, "-m", "rairl", "study", "mini.yaml", "--docs", "docs/ours.md", "--jobs", "1"]
    run_words(clone, *words)
    logs = {name: run_words(clone, "dvc", "queue", "logs", f"mini-{name}-1") for name in "ab"}
    assert "Running stage 'base'" in logs["a"] and "Stage 'base' is cached" in logs["b"]
    assert "Running stage 'sft'" in logs["b"]
    assert "(1 seeds, 12 questions in all)" in (clone / "docs/ours.md").read_text()
    assert (clone / "docs/plots/mini.png").exists() and (clone / "mlflow.db").exists()
    queued = run_words(clone, "dvc", "queue", "status")
    run_words(clone, *words)
    assert run_words(clone, "dvc", "queue", "status").split("Worker")[0] == queued.split("Worker")[0]
