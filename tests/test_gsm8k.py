import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rairl.core.errors import RairlError
from rairl.datasets import gsm8k

FILES = Path(__file__).parents[1].parent / "shared" / "data" / "gsm8k"
real = pytest.mark.skipif(not FILES.is_dir(), reason="the public data files are not beside the project")

ROW = {
    "question": "Tom buys 2 pens at $1.50 and sells them for $1,000. What is left?",
    "answer": "He pays 2×1.50 = $<<2*1.5=3>>3.00.\n\nHe\u2019s left with 1,000-3 = $ <<1000-3=997>>997\n#### 1,997",
}


def write(path: Path, *rows: object) -> str:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return str(path)


def test_an_expert_trace_by_hand(tmp_path: Path) -> None:
    (trace,) = gsm8k.load(write(tmp_path / "train.jsonl", ROW))
    assert trace.text == (
        "<think>\nHe pays 2x1.5 = $3\nHe's left with 1000-3 = $997\n</think>\n<answer>\n1997\n</answer>"
    )
    assert trace.step_texts() == ["He pays 2x1.5 = $3", "He's left with 1000-3 = $997"]
    assert (trace.answer, trace.gold, trace.correct, trace.source) == ("1997", "1997", True, "expert")
    assert (trace.first_error, trace.labelled, trace.id) == (None, False, "gsm8k-train-0")


@pytest.mark.parametrize(
    ("line", "plain"),
    [
        ("20/4 = <<20/4=5.0>>5.0 sheep.", "20/4 = 5 sheep"),
        ("It is .5 of it", "It is 0.5 of it"),
        ("cut off <<3/440=0.00681", "cut off"),
        ("1,234,567 and 2.50, then 3.", "1234567 and 2.5, then 3"),
        ("see 1.2.3 and 12,34", "see 1.2.3 and 12,34"),
        ("so on...", "so on..."),
        ("3/4 of 10 – 2", "3/4 of 10 - 2"),
        ("<<1+1=2>>.", ""),
    ],
)
def test_plain_step(line: str, plain: str) -> None:
    assert gsm8k.plain_step(line) == plain


@given(st.text(alphabet="ab 0123,.$=–’x", max_size=40))
@example("$  0")
@example(".0,000")  # no number: written anew, its rest would look like one
def test_the_plain_form_is_final(line: str) -> None:
    once = gsm8k.plain_step(line)
    assert gsm8k.plain_step(once) == once


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{bad", "line 2: not valid JSON"),
        ("[1]", "line 2: a JSON object is needed, not list"),
        ({"answer": "#### 3"}, "line 2: field 'question'"),
        ({"question": "q", "answer": 3}, "line 2: field 'answer' must be a non-empty string"),
        ({"question": "q", "answer": "a step"}, "line 2: field 'answer' has no last line"),
        ({"question": "q", "answer": "\n#### 3"}, "line 2: field 'answer' has no step"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: object, message: str) -> None:
    path = write(tmp_path / "train.jsonl", ROW, row)
    with pytest.raises(RairlError, match=r"train\.jsonl, " + message):
        gsm8k.load(path)


def test_missing_empty_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(RairlError, match=r"none\.jsonl does not exist"):
        gsm8k.load(str(tmp_path / "none.jsonl"))
    with pytest.raises(RairlError, match="has no usable rows"):
        gsm8k.load(write(tmp_path / "empty.jsonl", ""))
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(RairlError, match="is not UTF-8 text"):
        gsm8k.load(str(tmp_path / "bytes.jsonl"))
    with pytest.raises(RairlError, match="is a folder"):
        gsm8k.load(str(tmp_path))


def test_a_hub_id_needs_a_revision() -> None:
    with pytest.raises(RairlError, match=r"set dataset\.revision"):
        gsm8k.load("openai/gsm8k")


def test_a_hub_that_cannot_be_reached_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(RairlError, match=r"no route to host.*dataset\.demos"):
        gsm8k.load("openai/gsm8k", revision="abc")


def test_hub_rows_are_read_like_lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    asked: list[tuple[object, ...]] = []

    def hub(name: str, config: str, *, revision: str, split: str) -> datasets.Dataset:
        asked.append((name, config, revision, split))
        return datasets.Dataset.from_list([ROW, ROW])

    monkeypatch.setattr(datasets, "load_dataset", hub)
    traces = gsm8k.load("openai/gsm8k", revision="abc", split="test")
    assert asked == [("openai/gsm8k", "main", "abc", "test")]
    assert [trace.id for trace in traces] == ["gsm8k-test-0", "gsm8k-test-1"]
    assert traces[0].text == gsm8k.load(write(tmp_path / "t.jsonl", ROW))[0].text


@real
@pytest.mark.parametrize(("split", "rows", "steps"), [("train", 7473, 26720), ("test", 1319, 4819)])
def test_counts_of_the_real_files(split: str, rows: int, steps: int) -> None:
    traces = gsm8k.load(str(FILES / f"{split}.jsonl"), split=split)
    assert len(traces) == rows
    assert sum(len(trace.steps) for trace in traces) == steps
    assert all(trace.gold is not None and trace.gold.lstrip("-").isdecimal() for trace in traces)
    assert not any("<<" in trace.text or ">>" in trace.text for trace in traces)
