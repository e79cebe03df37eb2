import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rairl.core.errors import RairlError
from rairl.core.params import Params, load_params
from rairl.core.traces import Trace, read_traces, relabel, write_traces
from rairl.datasets import build, question_key
from rairl.datasets.overlap import near_duplicates, shingles
from rairl.stages.prepare import check, prepare
from rairl.text.segment import compose
from rairl.tracking.run import NullRun

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"


TEXTS = st.text("ab ", min_size=1, max_size=30)


def params_with(dataset: dict[str, Any], seed: int = 0) -> Params:
    values = load_params(ROOT / "params.yaml").model_dump()
    return Params.model_validate({**values, "dataset": dataset, "seed": seed})


def arithmetic(**sizes: int) -> dict[str, Any]:
    return {"name": "arithmetic", "demos": 4, "prompts": 6, "dev": 3, "test": 5, "ood": 2, **sizes}


def solved(key: str, problem: str, answer: str = "3") -> Trace:
    text, spans = compose(["1 + 2 = 3"], answer)
    return Trace(key, problem, text, spans, answer, answer, True, source="expert")


def asked(key: str, problem: str, gold: str | None = "3") -> Trace:
    return Trace(key, problem, gold=gold)


def own_files(folder: Path, **splits: list[Trace]) -> dict[str, Any]:
    usual = {
        "demos": [solved("d0", "one")],
        "prompts": [asked("p0", "two", None)],
        "dev": [solved("v0", "three")],
        "test": [asked("t0", "four")],
    }
    for name, traces in {**usual, **splits}.items():
        write_traces(folder / f"{name}.jsonl", traces)
    return {"name": "file", **{name: str(folder / f"{name}.jsonl") for name in usual}}


def test_the_card_says_what_the_files_hold(tmp_path: Path) -> None:
    figures = prepare(params_with(arithmetic()), NullRun(), data=tmp_path / "data")
    card = json.loads((tmp_path / "data" / "card.json").read_text())
    assert set(card["splits"]) == {"demos", "prompts", "dev", "test", "ood_longer", "ood_operators", "ood_numbers",
                                   "ood_wording"}  # fmt: skip
    assert {path.name for path in (tmp_path / "data").iterdir()} == {
        "card.json",
        *(f"{n}.jsonl" for n in card["splits"]),
    }
    for name, row in card["splits"].items():
        path = tmp_path / "data" / f"{name}.jsonl"
        assert row["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert row["rows"] == row["problems"] == len(read_traces(path)) == figures[f"data.{name}.rows"].value
    assert 2 <= card["splits"]["demos"]["steps"]["mean"] <= 4  # a demonstration has two to four steps
    assert card["dataset"]["name"] == "arithmetic"
    assert set(card["shared_problems"].values()) == {0}
    seen = {pair.split("/")[0] for pair in card["near_duplicates"]}
    assert seen == {"demos", "dev", "prompts"}
    assert card["near_duplicates"]["demos/test"]["closest"] <= 1


def test_near_duplicates_by_hand() -> None:
    told = "Ana has 3 eggs and Ben has 4 eggs. How many eggs do they have?"  # 15 words, 11 shingles
    changed = told.replace("Ana has 3", "Ana has 9")  # the first three shingles hold the number
    other = "A train runs at 80 km per hour for two hours."
    found = near_duplicates([told], [changed, other])
    assert (found["near"], found["closest"]) == (0, round(8 / 14, 3))
    assert near_duplicates([told], [changed, other], near=0.5)["near"] == 1
    assert found["pair"] == [question_key(told), question_key(changed)]
    assert near_duplicates([told, other], [told.upper()])["near"] == 0, "a copy is not a near duplicate"
    assert near_duplicates([told], [other]) == {"near": 0, "closest": 0.0, "pair": []}
    assert near_duplicates(["two words"], ["two words more"])["closest"] == 0


@given(st.lists(TEXTS, min_size=1, max_size=5), TEXTS)
@examples(60)
def test_near_duplicates_are_the_jaccard_similarity_of_sets(many: list[str], one: str) -> None:
    def similar(a: str, b: str) -> float:
        left, right = set(shingles(question_key(a))), set(shingles(question_key(b)))
        return len(left & right) / len(left | right)

    rivals = [text for text in many if question_key(text) != question_key(one)]
    expected = max((similar(text, one) for text in rivals), default=0)
    assert near_duplicates(many, [one])["closest"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.skipif(not DATA.exists(), reason="../shared/data is not here")
def test_gsm8k_test_has_no_question_of_train_and_no_near_one() -> None:
    train, test = (
        [json.loads(line)["question"] for line in (DATA / f"gsm8k/{name}.jsonl").read_text().splitlines()]
        for name in ("train", "test")
    )
    found = near_duplicates(train, test)
    assert not {question_key(text) for text in train} & {question_key(text) for text in test}
    assert found["near"] == 0 and 0.5 < found["closest"] < 0.8


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    def digests(folder: Path, seed: int) -> dict[str, str]:
        prepare(params_with(arithmetic(), seed), NullRun(), data=folder)
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}

    assert digests(tmp_path / "a", 1) == digests(tmp_path / "b", 1)
    assert digests(tmp_path / "c", 2)["demos.jsonl"] != digests(tmp_path / "a", 1)["demos.jsonl"]


@examples(8)
@given(st.integers(0, 2**31), st.integers(1, 30))
def test_no_problem_is_in_two_splits(seed: int, size: int) -> None:
    splits, _ = build(params_with(arithmetic(demos=size, prompts=2 * size), seed))
    keys = [question_key(trace.problem) for traces in splits.values() for trace in traces]
    assert len(keys) == len(set(keys))
    assert set(check(splits).values()) == {0}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("How many pens?", "how  many pens", True),
        ("A 5-year plan", "a 5 year plan!", True),
        ("He has 3.5", "He has 35", False),
        ("He has 1 2", "He has 12", False),
    ],
)
def test_question_key(one: str, other: str, same: bool) -> None:
    assert (question_key(one) == question_key(other)) is same


def test_own_files_are_brought_to_the_canonical_form(tmp_path: Path) -> None:
    demos = [
        Trace("a", "p1", "1 + 2 = 3\n3 + 4 = 7\n#### 7"),
        Trace("b", "p2", "It is 3.5 apples. So 2 * 3.5 = 7.", gold="7"),
        Trace("c", "p3", "Step 1: x\nmore\nStep 2: y", answer="B", gold="A"),
        solved("d", "p4"),
    ]
    prepare(params_with(own_files(tmp_path, demos=demos)), NullRun(), data=tmp_path / "data")
    a, b, c, d = read_traces(tmp_path / "data" / "demos.jsonl")
    assert a.text == "<think>\n1 + 2 = 3\n3 + 4 = 7\n</think>\n<answer>\n7\n</answer>"
    assert b.step_texts() == ["It is 3.5 apples.", "So 2 * 3.5 = 7."]
    assert c.step_texts() == ["Step 1: x more", "Step 2: y"]
    assert (a.gold, a.correct, c.correct, a.source) == ("7", True, False, "expert")
    assert d == demos[3]
    card = json.loads((tmp_path / "data" / "card.json").read_text())
    assert "grpo" in card["notes"]["prompts"]


def test_first_errors_of_own_demonstrations_survive(tmp_path: Path) -> None:
    wrong = relabel(solved("v0", "three"), first_error=0, labelled=True)
    splits, _ = build(params_with(own_files(tmp_path, dev=[wrong])))
    assert splits["dev"][0].first_error == 0


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"demos": [Trace("d", "one", gold="3")]}, r"demos\.jsonl: trace 'd' has no text"),
        ({"demos": [Trace("d", "one", "because")]}, r"demos\.jsonl: trace 'd' has no answer"),
        ({"test": [asked("t", "four", None)]}, "split 'test': trace 't' has no gold answer"),
        ({"test": [asked("t", "ONE!")]}, "splits 'demos' and 'test' share 1 problems, for example 'd0' and 't'"),
        ({"dev": [solved("v", "two")]}, "splits 'prompts' and 'dev' share 1 problems"),
        ({"test": [asked("t", "four"), asked("t", "five")]}, r"test\.jsonl, line 2: field 'id': 't' already occurs"),
        ({"test": []}, r"test\.jsonl has no usable rows"),
    ],
)
def test_own_files_that_cannot_be_used(tmp_path: Path, splits: dict[str, list[Trace]], message: str) -> None:
    with pytest.raises(RairlError, match=message):
        prepare(params_with(own_files(tmp_path, **splits)), NullRun(), data=tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_malformed_line_is_named(tmp_path: Path) -> None:
    dataset = own_files(tmp_path)
    with Path(dataset["dev"]).open("a") as file:
        file.write('{"id": "v1"}\n')
    with pytest.raises(RairlError, match=r"dev\.jsonl, line 2: field 'problem'"):
        prepare(params_with(dataset), NullRun(), data=tmp_path / "data")


def test_prompts_may_repeat_demonstrated_problems_of_own_files_only(tmp_path: Path) -> None:
    splits = {"demos": [solved("d", "one")], "prompts": [asked("p", "One?")], "test": [asked("t", "x")]}
    assert check(splits, may_repeat_demos=True) == {"demos/prompts": 1, "demos/test": 0, "prompts/test": 0}
    with pytest.raises(RairlError, match="share 1 problems"):
        check(splits)


def test_check_refuses_empty_splits_double_ids_and_prompts_among_demos() -> None:
    with pytest.raises(RairlError, match="split 'ood_longer' is empty"):
        check({"demos": [solved("d", "one")], "ood_longer": []})
    with pytest.raises(RairlError, match="split 'prompts': id 'p' occurs more than once"):
        check({"prompts": [asked("p", "a"), asked("p", "b")]})
    with pytest.raises(RairlError, match="split 'demos': trace 'p' has no steps"):
        check({"demos": [asked("p", "a")]})


WORDS = st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, max_size=4)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(["demos", "prompts", "dev", "test", "ood_x"]), WORDS, min_size=2))
def test_check_passes_exactly_the_disjoint_splits(problems: dict[str, list[str]]) -> None:
    splits = {
        name: [solved(f"{name}{index}", word) for index, word in enumerate(words)] for name, words in problems.items()
    }
    disjoint = sum(len(set(words)) for words in problems.values()) == len(set().union(*problems.values()))
    if disjoint:
        assert set(check(splits).values()) == {0}
    else:
        with pytest.raises(RairlError, match="share"):
            check(splits)
