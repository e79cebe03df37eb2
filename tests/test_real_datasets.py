"""GSM8K, MMLU-Pro and MedReason: rows become traces, splits stand, and what is left out is told."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rairl.core.errors import RairlError
from rairl.core.params import Params, parse_params
from rairl.core.traces import Trace
from rairl.datasets import build, choice, gsm8k, medreason, mmlu_pro, question_key
from rairl.stages.prepare import prepare
from rairl.text.answers import options_of, read_answer
from rairl.text.segment import segment
from rairl.tracking.run import Run

OPTIONS = ["Measles", "Mumps", "Rubella"]


def on(params: Params, **dataset: object) -> Params:
    return parse_params({**params.model_dump(), "dataset": dataset})


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def mmlu_row(number: int, **changes: object) -> dict[str, Any]:
    row = {"question_id": number, "question": f"What causes sign {number}?", "options": OPTIONS, "answer": "B"}
    return {**row, "answer_index": 1, "category": "health", "cot_content": "", **changes}


def med_row(number: int, **changes: object) -> dict[str, Any]:
    return {
        "dataset_name": "medqa", "id_in_dataset": number, "question": f"What causes sign {number}?",
        "options": "Answer Choices:\nA. Measles\nB. Mumps\nC. Rubella", "answer": "Mumps. Explanation: It swells.",
        "reasoning": "### Reasoning Process:\n1. **Swelling** points to the glands.\n2. Mumps swells them.\n\n"
        "### Conclusion:\nThe answer is Mumps.", **changes,
    }  # fmt: skip


# --- rows ------------------------------------------------------------------------------------------------------------


def test_a_distilled_gsm8k_solution_by_hand() -> None:
    row = {"question": "How many?", "answer": "<think>\nFirst, 2 * 3 = 6.\n\nThen 6 + 1 = 7.\n</think>\n\\boxed{7}"}
    trace = gsm8k.expert(row, "g")
    assert trace.step_texts() == ["First, 2 * 3 = 6.", "Then 6 + 1 = 7."]
    assert (trace.answer, trace.gold, trace.correct) == ("7", "7", True)
    assert trace.text.endswith("</think>\n<answer>\n7\n</answer>")


def test_a_medreason_row_by_hand() -> None:
    trace = medreason.expert_of(med_row(1), "m")
    assert isinstance(trace, Trace)
    assert trace.problem == "What causes sign 1?\n\nA. Measles\nB. Mumps\nC. Rubella"
    assert trace.step_texts() == ["Reasoning Process: 1. Swelling points to the glands.", "2. Mumps swells them."]
    assert (trace.answer, trace.gold) == ("B", "B")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"options": ""}, "no_options"),
        ({"answer": "Scurvy"}, "answer_is_no_option"),
        ({"reasoning": "It is red.\nThe answer is Measles."}, "contradicts_the_answer"),
        ({"reasoning": "The answer is Mumps."}, "no_reasoning"),
    ],
)
def test_medreason_rows_that_cannot_be_used_say_why(changes: dict[str, str], why: str) -> None:
    assert medreason.expert_of(med_row(1, **changes), "m") == why


def test_a_rationale_loses_its_opening_and_its_conclusion() -> None:
    text = "A: Let's think step by step. Mumps swells glands, e.g. the parotid. So it is mumps. The answer is (B)."
    assert choice.steps_of(text) == ["Mumps swells glands, e.g. the parotid.", "So it is mumps."]
    assert choice.steps_of("The answer is (B).") == []
    assert choice.steps_of("The answer is (B) because glands swell.") == ["The answer is (B) because glands swell."]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question_id": "7"}, "line 2: field 'question_id'"),
        ({"options": "A. x"}, "line 2: field 'options' must be a list"),
        ({"options": ["x"]}, "line 2: field 'options' must hold 2 to 26"),
        ({"answer": "D"}, "line 2: field 'answer' must be the letter of one of 3 options, not 'D'"),
        ({"question": ""}, "line 2: field 'question'"),
    ],
)
def test_a_bad_question_is_named(miniature: Params, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    questions = write(tmp_path / "q.jsonl", [mmlu_row(1), {**mmlu_row(2), **changes}])
    params = on(miniature, name="mmlu_pro", questions=questions, rationales="none.jsonl", dev=1, test=1)
    with pytest.raises(RairlError, match=re.escape(message)):
        build(params)


def test_a_hub_id_names_its_own_revision_key(miniature: Params) -> None:
    params = on(miniature, name="mmlu_pro", questions="TIGER-Lab/MMLU-Pro", rationales="r.jsonl", dev=1, test=1)
    with pytest.raises(RairlError, match=r"dataset\.questions_revision"):
        build(params)


# --- splits ----------------------------------------------------------------------------------------------------------


def test_mmlu_pro_splits_by_hand(miniature: Params, tmp_path: Path) -> None:
    rows = [mmlu_row(number) for number in range(12)]
    rows += [mmlu_row(20, category="law"), mmlu_row(21, question="What causes sign 3??")]
    told = [{"question_id": number, "rationale": f"Gland {number} swells.\nThat is mumps."} for number in range(10)]
    told[4]["rationale"] = "It is red.\nThe answer is (A)."
    told[5]["rationale"] = "word " * 50
    params = on(
        miniature, name="mmlu_pro", questions=write(tmp_path / "q.jsonl", rows), category="health", dev=2, test=3,
        rationales=write(tmp_path / "r.jsonl", told), max_solution_words=40,
    )  # fmt: skip
    splits, notes = build(params)
    assert [len(splits[name]) for name in ("test", "dev")] == [3, 2]
    assert [trace.problem for trace in splits["prompts"]] == [trace.problem for trace in splits["demos"]]
    assert all(not prompt.text and prompt.gold == "B" for prompt in splits["prompts"])
    left_out = notes["left_out"]
    assert (left_out["other_category"], left_out["repeated_in_benchmark"]) == (1, 1)
    used = sum(len(splits[name]) for name in ("test", "dev", "demos"))
    others = (
        "contradicts_the_answer",
        "no_reasoning",
        "no_rationale",
        "long_solution",
        "long_problem",
        "repeated_question",
    )
    assert used + sum(left_out[name] for name in others) == 12
    again = params.model_copy(update={"seed": params.seed + 1})
    assert build(again).traces == splits  # the split has its own seed
    other = params.model_copy(update={"dataset": params.dataset.model_copy(update={"split_seed": 1})})
    assert build(other).traces["test"] != splits["test"]


def test_medreason_reaches_the_data_card(miniature: Params, tmp_path: Path) -> None:
    rows = [med_row(number) for number in range(10)]
    rows += [med_row(30, dataset_name="pubmedqa"), med_row(31, options="none"), med_row(2)]
    params = on(
        miniature, name="medreason", demos=write(tmp_path / "m.jsonl", rows), dev=2, test=3, max_demos=4,
        system="Think first.\nThen answer. " + "Long. " * 60,
    )  # fmt: skip
    prepare(params, Run(), data=tmp_path / "data")
    card = json.loads((tmp_path / "data" / "card.json").read_text())
    assert {name: card["splits"][name]["rows"] for name in card["splits"]} == {
        "demos": 4, "prompts": 4, "dev": 2, "test": 3,
    }  # fmt: skip
    assert card["notes"]["left_out"] == {
        "no_options": 1, "other_source": 1, "repeated_question_text": 1, "long_problem": 0, "long_solution": 0,
        "repeated_question": 0, "question_in_test": 0,
    }  # fmt: skip
    from rairl.stages.runner import input_files_digest

    assert len(input_files_digest(params)) == 12  # a long prompt is no file name


def test_too_few_traces_say_what_was_left_out(miniature: Params, tmp_path: Path) -> None:
    file = write(tmp_path / "m.jsonl", [med_row(number) for number in range(5)])
    params = on(miniature, name="medreason", demos=file, dev=2, test=2, max_solution_words=3)
    with pytest.raises(RairlError, match=r"3 expert traces, 0 after filtering .*'long_solution': 3.*dataset\.dev = 2"):
        build(params)


# --- the real files --------------------------------------------------------------------------------------------------


def test_gsm8k_on_the_real_files(miniature: Params, shared_data: Path) -> None:
    files = {name: str(shared_data / "gsm8k" / f"{name}.jsonl") for name in ("train", "test")}
    params = on(miniature, name="gsm8k", demos=files["train"], test=files["test"], dev=500, max_solution_words=100)
    splits, notes = build(params)
    assert (len(splits["test"]), len(splits["dev"])) == (1319, 500)
    assert len(splits["demos"]) == 7473 - 500 - sum(notes["left_out"].values())
    assert 0 < notes["left_out"]["long_solution"] < 1000
    keys = {name: {question_key(trace.problem) for trace in splits[name]} for name in splits}
    assert not keys["demos"] & keys["dev"] and not (keys["demos"] | keys["dev"]) & keys["test"]
    assert all(len(trace.text.split()) <= 100 for trace in splits["demos"] + splits["dev"])


def health(shared_data: Path) -> list[dict[str, Any]]:
    text = (shared_data / "mmlu_pro" / "health_model_outputs.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_mmlu_pro_on_real_questions_and_rationales(miniature: Params, shared_data: Path, tmp_path: Path) -> None:
    """The strongest model's right outputs stand in for experts' rationales."""
    told = [
        {"question_id": row["question_id"], "rationale": output["text"]}
        for row in health(shared_data)
        for output in row["outputs"]
        if output["model"] == "gemini-1.5-pro-002" and output["pred"] == row["answer"]
    ]
    params = on(
        miniature, name="mmlu_pro", questions=str(shared_data / "mmlu_pro" / "health_model_outputs.jsonl"),
        rationales=write(tmp_path / "r.jsonl", told), dev=60, test=150,
    )  # fmt: skip
    splits, notes = build(params)
    assert (len(told), notes["left_out"]["repeated_in_benchmark"]) == (611, 817 - 682)
    left_out = notes["left_out"]
    assert left_out["contradicts_the_answer"] == 0 and left_out["no_reasoning"] == 23
    assert len(splits["demos"]) + 60 + 150 + left_out["no_rationale"] + left_out["no_reasoning"] == 682
    for trace in splits["demos"] + splits["dev"]:
        assert trace.gold in options_of(trace.problem)
        assert read_answer(trace.text, trace.problem) == trace.gold
        assert trace.steps == segment(trace.text, "tags")
    ends = [trace.step_texts()[-1] for trace in splits["demos"] + splits["dev"]]
    stated = [end for end in ends if re.search(r"answer is \(?[A-J]\)?\.?$", end)]
    assert all(re.search(r"\b[A-Z]\. ", end) for end in stated)  # "Hexosaminidase A. The ...": taken for an initial
    assert len(stated) <= 5
    assert 2 < sum(len(trace.steps) for trace in splits["demos"]) / len(splits["demos"]) < 5


def disagreement(text: str, ours: str | None, options: dict[str, str]) -> str:
    """Why the extraction and the source's ``pred`` differ."""
    stated = re.findall(r"answer is \(?([A-J])\)?", text)
    if not stated:
        # The source then tries two looser patterns and at last picks a random letter. No answer is an answer of the
        # wrong form here, never a guess.
        return "invented by the source"
    if ours is None or ours not in options:
        # "The answer is B and C", "Elizabeth F. Loftus", "(E)" of four options: the source takes the first capital.
        return "no single option is named"
    # The source takes the first statement, the last one counts here: the model has changed its mind in between.
    assert len(stated) > 1 or len(re.findall("answer", text, re.IGNORECASE)) > 1
    return "another statement follows"


def test_the_extraction_agrees_with_the_official_predictions(shared_data: Path) -> None:
    agreed, why = 0, Counter[str]()
    for row in health(shared_data):
        problem = choice.problem_of(row["question"], row["options"])
        options = options_of(problem)
        assert list(options.values()) == [" ".join(option.split()) for option in row["options"]]
        for output in row["outputs"]:
            if output["pred"] is None:
                continue
            text = re.split(r"\n\s*Question:", output["text"])[0]  # some models go on with a question of their own
            ours = read_answer(text, problem)
            if ours == output["pred"]:
                agreed += 1
            else:
                why[disagreement(text, ours, options)] += 1
    total = agreed + why.total()
    assert agreed / total >= 0.99, (agreed, total, why)
    assert why == {"invented by the source": 79, "no single option is named": 6, "another statement follows": 7}
    assert agreed / (total - why["invented by the source"]) > 0.998


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_questions_of_the_benchmark_are_prompts(miniature: Params, shared_data: Path) -> None:
    file = str(shared_data / "mmlu_pro" / "health_model_outputs.jsonl")
    params = on(miniature, name="mmlu_pro", questions=file, rationales="none.jsonl", dev=1, test=1)
    asked, left_out = mmlu_pro.questions(params.dataset)  # type: ignore[arg-type]
    assert len(asked) == 682 and left_out["repeated_in_benchmark"] == 135
    assert asked[6001].gold == "E" and asked[6001].problem.endswith("G. Use of antiviral drugs")
