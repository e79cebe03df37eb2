import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rairl.core.dataset_params import LoggedDataset
from rairl.core.errors import RairlError
from rairl.core.params import load_params
from rairl.datasets import logged, question_key
from rairl.stages.prepare import check

ROOT = Path(__file__).parents[1]
FILES = ROOT.parent / "shared" / "data"
real = pytest.mark.skipif(not FILES.is_dir(), reason="the public data files are not beside the project")


def row(number: int) -> dict[str, Any]:
    return {
        "question": f"Ann has {number} pens and 2 more. How many?",
        "ground_truth": f"She has {number} + 2 = <<{number}+2={number + 2}>>{number + 2}\nA: {number + 2}",
        "weak": {"is_correct": False, "solution": f"She has {number} * 2 = {number * 2}.0\nA: {number * 2 + 99}.0"},
        "strong": {"is_correct": True, "solution": f"She has {number} + 2 = {number + 2}\nA: {number + 2}"},
        "copy": {"is_correct": True, "solution": f"She has {number} + 2 = {number + 2}.0.\nA: {number + 2}"},
        "lost": {"is_correct": False, "solution": f"Then {number} / 3 = 0.33333"},
    }


def files(folder: Path, questions: int = 20, labelled: int = 8, experts: int = 10) -> dict[str, Any]:
    demos = [
        {"question": f"Bob walks {n} miles twice.", "answer": f"{n} * 2 = {2 * n}\n#### {2 * n}"}
        for n in range(experts)
    ]
    labels = [
        {
            "id": f"l{n}",
            "problem": row(n)["question"].upper(),
            "steps": ["1,000.", "b"],
            "label": 0,
            "final_answer_correct": False,
        }
        for n in range(labelled)
    ]
    tables = {"demos": demos, "logged": [row(n) for n in range(questions)], "labelled": labels}
    for name, rows in tables.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in rows))
    paths = {name: str(folder / f"{name}.jsonl") for name in tables}
    return {**paths, "labelled": [paths["labelled"]]}


def dataset(folder: Path, **changes: Any) -> LoggedDataset:
    values = {"name": "gsm8k-logged", "revision": None, "dev": 3, "held_out": 0.4, "max_demos": 5, **changes}
    return LoggedDataset.model_validate({**files(folder), **values})


def test_splits_by_hand(tmp_path: Path) -> None:
    traces, notes = logged.build(dataset(tmp_path), seed=0)
    assert {name: len(rows) for name, rows in traces.items()} == {
        "demos": 5,
        "dev": 3,
        "logged_train": 3 * notes["questions"]["negatives"],  # 'strong' and 'copy' say the same
        "test": 8,
        "logged_test": 32,
        "labelled_processbench": 8,
    }
    counts = notes["questions"]
    assert counts["held_out"] == 8
    assert counts["held_out"] + counts["negatives"] + counts["unused"] == counts["logged"] == 20
    assert counts["unused"] == counts["labelled"] - counts["labelled_and_held_out"]
    assert notes["identical_negatives_left_out"] == counts["negatives"]
    assert notes["models"] == {"weak": 0.0, "strong": 1.0, "copy": 1.0, "lost": 0.0}
    check(traces)


def test_candidates_look_like_experts(tmp_path: Path) -> None:
    weak, strong, copy, lost = logged.load_candidates(files(tmp_path)["logged"])[12:16]
    assert weak.text == "<think>\nShe has 3 * 2 = 6\n</think>\n<answer>\n105\n</answer>"
    assert strong.text == copy.text == "<think>\nShe has 3 + 2 = 5\n</think>\n<answer>\n5\n</answer>"
    assert (lost.text, lost.answer, lost.correct) == ("<think>\nThen 3 / 3 = 0.33333\n</think>", None, False)
    assert [t.id for t in (weak, strong, copy, lost)] == [f"gsm8k-test-3/{k}" for k in range(4)]
    assert {t.group for t in (weak, strong, copy, lost)} == {"gsm8k-test-3"}
    assert (weak.source, weak.gold, weak.labelled) == ("weak", "5", False)


def test_labelled_traces_take_the_plain_form_and_keep_their_label(tmp_path: Path) -> None:
    traces, _ = logged.build(dataset(tmp_path), seed=0)
    first = traces["labelled_processbench"][0]
    assert first.step_texts() == ["1000", "b"]
    assert (first.first_error, first.labelled, first.correct) == (0, True, False)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**31), st.floats(0.1, 0.55), st.booleans())
def test_splits_are_disjoint_and_deterministic(tmp_path: Path, seed: int, share: float, labels: bool) -> None:
    params = dataset(tmp_path, held_out=share)
    if not labels:
        params = params.model_copy(update={"labelled": []})
    traces, _ = logged.build(params, seed)
    keys = {name: {question_key(trace.problem) for trace in rows} for name, rows in traces.items()}
    others = set.union(*(keys[name] for name in keys if name not in ("logged_train",)))
    assert not keys["logged_train"] & others
    assert not keys["demos"] & keys["dev"]
    assert keys["test"] == keys["logged_test"]
    assert ("labelled_processbench" in keys) is labels
    assert logged.build(params, seed).traces == traces


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dev": 10}, r"demos\.jsonl has 10 traces; dataset\.dev = 10 leaves none"),
        ({"held_out": 0.001}, r"leaves 0 to rerank"),
        ({"held_out": 0.999}, r"and 0 as negatives"),
        ({"logged": "nowhere.jsonl"}, r"nowhere\.jsonl does not exist"),
        ({"demos": "openai/gsm8k"}, r"set dataset\.revision"),
    ],
)
def test_sizes_and_files_that_cannot_be(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RairlError, match=message):
        logged.build(dataset(tmp_path, **changes), seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": " "}, "field 'question' must be a non-empty string"),
        ({"question": row(0)["question"]}, "field 'question': the same question already stands on line 1"),
        ({"ground_truth": "no answer"}, "field 'ground_truth' has no line"),
        ({"weak": {"solution": "a\nA: 1"}}, r"field 'weak\.is_correct' must be true or false"),
        ({"weak": {"solution": "", "is_correct": True}}, r"field 'weak\.solution': field 'solution' must be"),
        (
            {"weak": {"solution": "A: 3", "is_correct": True}},
            r"field 'weak\.solution': a solution needs at least one step",
        ),
        (
            {"weak": {"solution": "a\nA: 99", "is_correct": True}},
            r"field 'weak\.is_correct' is true but its answer '99'",
        ),
        ({"weak": 1, "strong": 1, "copy": 1}, "at least two models' solutions"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "logged.jsonl"
    path.write_text(json.dumps(row(0)) + "\n" + json.dumps({**row(1), **change}) + "\n")
    with pytest.raises(RairlError, match=rf"logged\.jsonl, line 2: {message}"):
        logged.load_candidates(path)


@real
def test_real_candidates_are_judged_as_the_file_says() -> None:
    rows = [json.loads(line) for line in (FILES / "gsm8k" / "model_solutions.jsonl").open()]
    traces = logged.load_candidates(FILES / "gsm8k" / "model_solutions.jsonl")
    assert len(traces) == 5276
    for trace in traces:
        number = int(trace.group.rpartition("-")[2])
        assert trace.correct is rows[number][trace.source]["is_correct"]
        assert trace.correct is (trace.answer is not None and trace.answer == trace.gold)
    assert sum(trace.answer is None for trace in traces) == 11


@real
def test_the_preset_keeps_labelled_and_held_out_questions_out_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    params = load_params("rairl/presets/gsm8k-logged.yaml")
    assert isinstance(params.dataset, LoggedDataset)
    traces, notes = logged.build(params.dataset, params.seed)
    assert notes["questions"] == {
        "logged": 1319,
        "held_out": 528,
        "negatives": 579,
        "unused": 212,
        "labelled": 375 + 300 + 277,
        "labelled_and_held_out": 163,
    }
    wrong = {
        name: sum(trace.first_error is not None for trace in rows) for name, rows in traces.items() if "led_" in name
    }
    assert wrong == {"labelled_processbench": 207, "labelled_bigbench_mistake": 238, "labelled_mr_ben": 569}
    assert {name: len(lines) for name, lines in notes["labelled_left_out"].items()} == {
        "processbench": 0, "bigbench_mistake": 0, "mr_ben": 2,
    }  # fmt: skip
    bench = {json.loads(line)["problem"] for line in (FILES / "processbench" / "gsm8k.jsonl").open()}
    assert len(bench) == 375
    assert not bench & {trace.problem for trace in traces["logged_train"] + traces["demos"] + traces["dev"]}
    assert len(traces["logged_test"]) == 4 * len(traces["test"]) == 4 * 528
    check(traces)
