import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rairl.core.errors import RairlError
from rairl.datasets import labelled

FILES = Path(__file__).parents[1].parent / "shared" / "data"
real = pytest.mark.skipif(not FILES.is_dir(), reason="the public data files are not beside the project")

PROCESSBENCH: dict[str, Any] = {
    "id": "x-0",
    "generator": "some-model",
    "problem": "What is 2 + 3 + 4?",
    "steps": ["First,\n2 + 3 = 6.", "So the answer is \\boxed{10}."],
    "final_answer_correct": False,
    "label": 0,
}
MR_BEN: dict[str, Any] = {
    "Question_UUID": "u1",
    "Question": "Which  one?",
    "Options": "A: this\nB: that",
    "Ground_Truth_Answer_Modified": "B",
    "Sampled_Model": "m",
    "Model_Solution_Steps": ["Well.", "Step 1: a", "body", " ", "Step 2: b", "Step 3: c", "Solution: A"],
    "Model_Solution_Correctness": "incorrect",
    "Model_Solution_First_Error_Step": "2",
}
BIGBENCH: dict[str, Any] = {
    "input": "(1 + 2) =",
    "steps": ["1 + 2 = 4", "So the answer is 4"],
    "target": "3",
    "answer": "4",
    "mistake_index": 0,
}


def load(tmp_path: Path, *rows: dict[str, Any]) -> labelled.Labelled:
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return labelled.load(path)


def test_processbench_row(tmp_path: Path) -> None:
    name, (wrong, right), left_out = load(tmp_path, PROCESSBENCH, {**PROCESSBENCH, "id": "x-1", "label": -1})
    assert (name, left_out) == ("processbench", [])
    assert wrong.step_texts() == ["First, 2 + 3 = 6.", "So the answer is \\boxed{10}."]
    assert (wrong.first_error, wrong.labelled, wrong.correct, wrong.answer) == (0, True, False, "10")
    assert (right.first_error, right.labelled) == (None, True)
    assert wrong.question == right.question


def test_mr_ben_row_merges_lines_and_finds_the_written_number(tmp_path: Path) -> None:
    other = {**MR_BEN, "Sampled_Model": "n", "Question": "Which one? "}
    right = {"Model_Solution_Correctness": "correct", "Model_Solution_First_Error_Step": "N/A"}
    name, (wrong, good), _ = load(tmp_path, MR_BEN, {**other, **right})
    assert name == "mr_ben"
    assert wrong.step_texts() == ["Well. Step 1: a body", "Step 2: b", "Step 3: c"]
    assert (wrong.first_error, wrong.answer, wrong.gold, wrong.correct) == (1, "A", "B", False)
    assert (good.first_error, good.labelled, good.correct) == (None, True, True)
    assert wrong.question == good.question
    assert wrong.problem == "Which  one?\nA: this\nB: that"


def test_mr_ben_label_without_such_a_step_is_left_out_and_counted(tmp_path: Path) -> None:
    _, traces, left_out = load(
        tmp_path, MR_BEN, {**MR_BEN, "Sampled_Model": "n", "Model_Solution_First_Error_Step": "4"}
    )
    assert len(traces) == 1
    assert left_out == ["line 2: label 4 names no step; the numbered steps are 1 to 3"]


def test_bigbench_row(tmp_path: Path) -> None:
    name, (wrong, unmarked), _ = load(tmp_path, BIGBENCH, {**BIGBENCH, "mistake_index": None})
    assert name == "bigbench_mistake"
    assert (wrong.first_error, wrong.correct, wrong.gold, wrong.answer) == (0, False, "3", "4")
    assert (unmarked.first_error, unmarked.labelled, unmarked.correct) == (None, True, False)


@pytest.mark.parametrize(
    ("row", "change", "message"),
    [
        (PROCESSBENCH, {"label": 2}, "field 'label' is 2 but there are 2 steps"),
        (PROCESSBENCH, {"label": -2}, "field 'label' is -2"),
        (PROCESSBENCH, {"label": "1"}, "field 'label' must be an integer"),
        (PROCESSBENCH, {"label": True}, "field 'label' must be an integer"),
        (PROCESSBENCH, {"steps": []}, "field 'steps' must be a non-empty list"),
        (PROCESSBENCH, {"steps": ["a", " "]}, "field 'steps': item 1 is blank"),
        (PROCESSBENCH, {"steps": ["a", 3]}, "field 'steps' must be a non-empty list of strings"),
        (PROCESSBENCH, {"problem": ""}, "field 'problem' must be a non-empty string"),
        (PROCESSBENCH, {"final_answer_correct": None}, "field 'final_answer_correct' must be true or false"),
        (MR_BEN, {"Model_Solution_First_Error_Step": "N/A"}, "an incorrect solution needs a number"),
        (MR_BEN, {"Model_Solution_Correctness": "maybe"}, "must be 'correct' or 'incorrect'"),
        (BIGBENCH, {"mistake_index": 2}, "field 'mistake_index' is 2 but there are 2 steps"),
        (BIGBENCH, {"target": None}, "field 'target' must be a non-empty string"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(RairlError, match=rf"labels\.jsonl, line 2: .*{message}"):
        load(tmp_path, row, {**row, "id": "x-2", "Sampled_Model": "n", **change})


def test_labels_of_a_review_are_read_and_bare_comments_left_out(tmp_path: Path) -> None:
    row = {"id": "a", "problem": "p", "text": "1 + 1 = 3\nso 3", "steps": [[0, 9], [10, 14]], "first_error": 0}
    commented = {**row, "id": "b", "meta": {"comment": "hm"}}
    del commented["first_error"]
    found = load(tmp_path, row, {**row, "id": "c", "first_error": None, "labelled": True}, commented)
    assert found.name == "review"
    assert [(trace.id, trace.first_error, trace.labelled) for trace in found.traces] == [
        ("a", 0, True),
        ("c", None, True),
    ]
    assert found.left_out == ["line 3: no label, only a comment"]


def test_ids_that_occur_twice_and_unknown_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RairlError, match="'x-0' occurs more than once"):
        load(tmp_path, PROCESSBENCH, PROCESSBENCH)
    with pytest.raises(RairlError, match="not a labelled set"):
        load(tmp_path, {"text": "something"})


@real
def test_processbench_counts() -> None:
    _, traces, left_out = labelled.load(FILES / "processbench" / "gsm8k.jsonl")
    labels = Counter(trace.first_error for trace in traces)
    assert labels == {None: 193, 0: 37, 1: 61, 2: 50, 3: 31, 4: 13, 5: 12, 6: 2, 7: 1}
    assert (len(traces), left_out, len({trace.question for trace in traces})) == (400, [], 375)
    assert sum(len(trace.steps) for trace in traces) / 400 == pytest.approx(5.205)
    assert sum(trace.correct is True for trace in traces) == 200
    assert sum(trace.correct is True and trace.first_error is not None for trace in traces) == 7
    assert sum(trace.first_error == len(trace.steps) - 1 for trace in traces) == 16


@real
def test_mr_ben_counts() -> None:
    _, traces, left_out = labelled.load(FILES / "mr_ben" / "medicine.jsonl")
    labels = Counter(trace.first_error for trace in traces)
    assert labels == {None: 257, 0: 100, 1: 155, 2: 118, 3: 98, 4: 57, 5: 19, 6: 13, 7: 4, 8: 3, 9: 1, 10: 1}
    assert (len(traces), len(left_out)) == (826, 2)
    assert len({trace.question for trace in traces}) == 276  # two keys share one question text
    assert Counter(trace.source for trace in traces) == {"Claude2": 277, "GPT3.5": 275, "mistral-medium": 274}
    wrong = [trace for trace in traces if trace.first_error is not None]
    assert sum(1 / len(trace.steps) for trace in wrong) / len(wrong) == pytest.approx(0.199, abs=5e-4)


@real
def test_bigbench_counts() -> None:
    _, traces, left_out = labelled.load(FILES / "bigbench_mistake" / "multistep_arithmetic.jsonl")
    assert Counter(t.first_error for t in traces) == {None: 62, 1: 76, 2: 75, 3: 28, 4: 26, 5: 32, 7: 1}
    assert (len(traces), left_out) == (300, [])
    assert sum(trace.correct is True for trace in traces) == 45
    assert sum(trace.correct is True and trace.first_error is not None for trace in traces) == 1
    assert sum(trace.correct is False and trace.first_error is None for trace in traces) == 18
    assert sum(len(trace.steps) for trace in traces) / 300 == pytest.approx(5.02)
