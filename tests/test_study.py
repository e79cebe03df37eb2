"""Studies: what runs share, in which order things are done, what a failure costs, and what the tables say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rairl.core.errors import RairlError
from rairl.core.params import Params, parse_params
from rairl.core.stats import NOTHING, Estimate
from rairl.evaluate.questions import one_each, read_questions, sums, write_questions
from rairl.study.execute import carry_out, run_studies
from rairl.study.plan import Task, changed, load_studies, plan, read_study
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
    assert list(study.runs) == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert study.runs["b", 2].seed == 2
    assert study.runs["b", 2].reward.switch_labels
    assert not study.runs["a", 2].reward.switch_labels
    assert study.command == f"rairl study {tmp_path / 'mini.yaml'} --params {MINIATURE}"


@pytest.mark.parametrize("written", ["1e-5", "1e-05", "1E-5", "0.00001", "1.0e-5"])
def test_a_variant_may_write_a_number_with_an_exponent(tmp_path: Path, written: str) -> None:
    path = write_study(tmp_path)
    path.write_text(path.read_text().replace("reward.switch_labels: true", f"policy.learning_rate: {written}"))
    assert read_study(path, MINIATURE).runs["b", 1].policy.learning_rate == 1e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "c"}, "baseline 'c' is none of the variants: a, b"),
        ({"variants": {"a": {"seed": 3}}}, "variant 'a' changes 'seed'"),
        ({"variants": {"a": {"reward.heads": 3}}}, "variant 'a': unknown key 'reward.heads'"),
        ({"variants": {"a": {"rewards.head": 3}}}, "variant 'a': unknown key 'rewards.head'"),
        ({"variants": {"a": {"reward.objective": "wgan"}}}, "needs a Lipschitz bound"),
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


# --- sharing ---------------------------------------------------------------------------------------------------------

SHARED = {"prepare", "base", "sft", "second_model", "grpo"} | {
    f"sample.{policy}" for policy in ("base", "sft", "sft_last", "second_model", "grpo")
}
OWN = {"rairl", "sample.rairl", "sample", "posttrain", "rerank", "localise", "audit"}


def tasks_of(params: Params) -> dict[str, Task]:
    return {task.name: task for task in plan(params, Path("out"), Path("log"))}


def differing(miniature: Params, **changes: Any) -> set[str]:
    """Tasks that a change of the parameters makes another run do anew."""
    values = changed(miniature.model_dump(), {key.replace("__", "."): value for key, value in changes.items()})
    first, second = tasks_of(miniature), tasks_of(parse_params(values))
    return {name for name in first if first[name].folder != second[name].folder}


def test_variants_share_what_their_parameters_do_not_tell_apart(miniature: Params) -> None:
    assert set(tasks_of(miniature)) == SHARED | OWN
    assert differing(miniature) == set()
    assert differing(miniature, reward__switch_labels=True) == OWN
    assert differing(miniature, guard__action="off") == OWN
    assert differing(miniature, reward__switch_labels=True, policy__kl=0.5) == OWN | {"grpo", "sample.grpo"}
    without = tasks_of(parse_params(changed(miniature.model_dump(), {"reward.backbone": "sft"})))
    assert set(without) == (SHARED | OWN) - {"sample.second_model"}
    # What is ranked is read by the second_model, too.
    kept = {
        name for name, task in tasks_of(miniature).items() if name in without and without[name].folder == task.folder
    }
    assert kept == SHARED - {"second_model", "sample.second_model", "sample.sft", "sample.grpo"}
    assert differing(miniature, policy__kl=0.5) == OWN | {"grpo", "sample.grpo"}
    assert differing(miniature, sft__epochs=3) == (SHARED | OWN) - {"prepare", "base", "sample.base"}
    assert differing(miniature, rerank__n=2) == {"rerank", "localise", "audit"}
    assert differing(miniature, sample__extra_n=3) == {"posttrain", "rerank", "localise", "audit"} | {
        name for name in SHARED | OWN if name.startswith("sample")
    }
    assert differing(miniature, seed=1) == SHARED | OWN


def test_code_and_input_files_are_part_of_a_tasks_name(miniature: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    import rairl.study.plan

    before, digest = tasks_of(miniature), rairl.study.plan._code
    monkeypatch.setattr("rairl.study.plan._code", lambda stage: "edited" if stage == "rerank" else digest(stage))
    after = tasks_of(miniature)
    assert {name for name in before if before[name].folder != after[name].folder} == {"rerank", "localise", "audit"}
    monkeypatch.setattr("rairl.study.plan.input_files_digest", lambda params: "other files")
    assert tasks_of(miniature)["prepare"].folder != before["prepare"].folder


def test_every_task_reads_what_earlier_ones_write(miniature: Params) -> None:
    seen: set[Path] = set()
    for task in plan(miniature, Path("out"), Path("log")):
        assert task.needs <= seen
        if task.stage != "sample" or task.name == "sample":
            assert all(any(path.is_relative_to(folder) for folder in task.needs) for path in task.inputs.values())
        seen.add(task.folder)


def test_logged_traces_have_one_share_of_candidates(miniature: Params) -> None:
    logged = {
        "name": "gsm8k-logged", "demos": "d", "revision": None, "logged": "l", "labelled": [], "dev": 2,
        "held_out": 0.5, "max_demos": None,
    }  # fmt: skip
    names = set(tasks_of(parse_params(miniature.model_dump() | {"dataset": logged})))
    assert {name for name in names if name.startswith("sample")} == {"sample", "sample.logged"}


# --- the order of things ---------------------------------------------------------------------------------------------


def note(task: Task, root: Path) -> None:
    """Stand-in for a task: leaves a trace of itself, or fails, or dies."""
    if task.name == "fails":
        raise RairlError("no luck\nat all")
    if task.name == "dies":
        os._exit(9)
    task.folder.mkdir(parents=True)
    (task.folder / "threads").write_text(os.environ["OMP_NUM_THREADS"])
    (task.folder / "finished").touch()


def chain(root: Path, miniature: Params, **needs: str) -> list[Task]:
    """Tasks named by the arguments, each needing the space-separated others."""
    return [
        Task(
            name, miniature, {}, root / name, frozenset(root / other for other in text.split()),
            root / "logs" / name / "log.txt",
        )
        for name, text in needs.items()
    ]  # fmt: skip


def test_a_failure_stops_only_what_needs_it(tmp_path: Path, miniature: Params) -> None:
    tasks = chain(tmp_path, miniature, a="", fails="a", b="fails", c="fails b a", d="a", e="d")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "finished").touch()  # done before: not done again, or there would be a file in it
    failed = carry_out(tasks, tmp_path, 2, note)
    assert {path.name for path in failed} == {"fails", "b", "c"}
    assert set(failed.values()) == {f"fails: no luck (see {tmp_path / 'logs/fails/log.txt'})"}
    assert [task.name for task in tasks if task.finished] == ["a", "d", "e"]
    assert not (tmp_path / "a" / "threads").exists()
    assert int((tmp_path / "e" / "threads").read_text()) >= 1
    assert carry_out([task for task in tasks if task.finished], tmp_path, 2, note) == {}


def test_a_killed_process_is_reported_and_the_rest_goes_on(tmp_path: Path, miniature: Params) -> None:
    failed = carry_out(chain(tmp_path, miniature, dies="", a="", b="a", c="dies"), tmp_path, 1, note)
    assert {path.name for path in failed} == {"dies", "c"}
    assert "the process was killed" in failed[tmp_path / "dies"]
    assert (tmp_path / "b" / "finished").exists()


def test_failed_runs_are_named_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed 2 of variant b fails; the tables are made of what is there, and say so."""
    study = read_study(write_study(tmp_path), MINIATURE)
    folders = {
        run: {task.folder for task in plan(params, tmp_path / "out", Path("log"))} for run, params in study.runs.items()
    }
    broken = folders["b", 2] - folders["a", 2]

    def fake(tasks: Any, root: Path, jobs: int) -> dict[Path, str]:
        for task in tasks:
            if task.folder not in broken:
                task.metrics.parent.mkdir(parents=True, exist_ok=True)
                task.metrics.write_text("{}")
                write_questions(task.folder / "plots" / task.name, {"audit.test.auroc": {"q": [1, 2]}})
        return dict.fromkeys(broken, "rairl: no luck (see log.txt)")

    monkeypatch.setattr("rairl.study.execute.carry_out", fake)
    with pytest.raises(RairlError, match=r"1 of 4 runs failed.*\nmini, variant b, seed 2: rairl: no luck \(see log"):
        run_studies([study], tmp_path / "out", jobs=1, docs=tmp_path / "docs.md")
    text = (tmp_path / "docs.md").read_text()
    assert "- **b**: `reward.switch_labels: true`; **not finished: seeds 2**" in text
    assert "(1 to 2 seeds, 2 questions in all)" in text
    saved = json.loads((tmp_path / "out/mini/study.json").read_text())
    assert saved["seeds"] == {"b": [1], "a": [1, 2]}
    assert saved["per_seed"]["a"]["1"]["audit.test.auroc"] == 0.5
    assert (tmp_path / "out/mini/a/seed-1/metrics.json").exists()
    assert (tmp_path / "out/mini/a/seed-1/plots/audit/questions.json").exists()


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
def test_a_study_runs_resumes_and_shares(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    words = ["study", path.name, "--params", str(MINIATURE), "--dir", "out", "--docs", "docs.md", "--jobs", "2"]
    (tmp_path / "docs.md").write_text("# Ours\n\nProse.\n")

    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "rairl.cli.main", *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    done = run()
    assert done.returncode == 0, done.stderr[-3000:]
    out = tmp_path / "out"
    counts = {folder.name: len(list(folder.iterdir())) for folder in (out / "tasks").iterdir()}
    assert counts == dict.fromkeys(SHARED, 2) | dict.fromkeys(OWN, 4)
    first = (out / "mini/a/seed-1/models/sft/model.safetensors").stat()
    second = (out / "mini/b/seed-1/models/sft/model.safetensors").stat()
    assert first.st_ino == second.st_ino
    for run_folder in (out / "mini").glob("*/seed-*"):
        figures = json.loads((run_folder / "metrics.json").read_text())
        assert {"posttrain.rairl.pass@1", "rerank.logratio", "localise.logratio_drop.exact"} <= set(figures)
        assert "--- rairl" in (run_folder / "log.txt").read_text()
    text = (tmp_path / "docs.md").read_text()
    assert text.startswith("# Ours\n\nProse.\n")
    assert "(2 seeds, 24 questions in all)" in text
    assert (tmp_path / "plots" / "mini.png").exists()
    stamps = {path: path.stat().st_mtime_ns for path in (out / "tasks").glob("*/*/finished")}
    assert run().returncode == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "tasks").glob("*/*/finished")} == stamps
    assert (tmp_path / "docs.md").read_text() == text
