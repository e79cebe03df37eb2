"""Traces in and out of files: nothing is lost on the way, and a malformed line is named with its line and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rairl.core.errors import RairlError
from rairl.core.traces import (
    EXPERT,
    GENERATED,
    Step,
    Trace,
    from_dataset,
    locate_steps,
    read_traces,
    relabel,
    require_unique_ids,
    to_dataset,
    write_traces,
)

TEXT = "<think>\n3 + 4 = 7\n7 * 2 = 14\n</think>\n<answer>\n14\n</answer>"
GOOD = Trace(
    id="a",
    problem="What is (3 + 4) * 2?",
    text=TEXT,
    steps=(Step(8, 17), Step(18, 28)),
    answer="14",
    gold="14",
    correct=True,
    first_error=1,
    labelled=True,
    source="policy:sft",
    group="q1",
    meta={"logprob": -1.5, "tokens": 12, "finished": True},
)


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    text = draw(st.text(min_size=0, max_size=60))
    cuts = sorted(draw(st.sets(st.integers(0, len(text)), max_size=6)))
    steps = tuple(Step(a, b) for a, b in zip(cuts[::2], cuts[1::2], strict=False))
    labelled = draw(st.booleans())
    known = st.none() if not (labelled and steps) else st.none() | st.integers(0, len(steps) - 1)
    return Trace(
        id=draw(st.text(min_size=1, max_size=8)),
        problem=draw(st.text(min_size=1, max_size=20)),
        text=text,
        steps=steps,
        answer=draw(st.none() | st.text(max_size=5)),
        gold=draw(st.none() | st.text(min_size=1, max_size=5)),
        correct=draw(st.none() | st.booleans()),
        first_error=draw(known),
        labelled=labelled,
        source=draw(st.sampled_from(["", "expert", "policy:sft"])),
        group=draw(st.text(max_size=5)),
        meta=draw(
            st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.booleans(), max_size=3)
        ),
    )


def plain(trace: Trace) -> Trace:
    """An empty answer and no answer are one and the same in a file."""
    return relabel(trace, answer=trace.answer or None)


@given(traces())
def test_json_round_trip(trace: Trace) -> None:
    assert Trace.from_json(json.loads(json.dumps(trace.to_json()))) == plain(trace)


@given(st.lists(traces(), min_size=1, max_size=5, unique_by=lambda trace: trace.id))
def test_file_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[Trace]) -> None:
    path = tmp_path_factory.mktemp("traces") / "t.jsonl"
    write_traces(path, rows)
    assert read_traces(path) == [plain(trace) for trace in rows]
    assert [item.name for item in path.parent.iterdir()] == ["t.jsonl"]


def test_dataset_round_trip(tmp_path: Path) -> None:
    rows = [GOOD, Trace(id="b", problem="p"), Trace(id="c", problem="p", text="x", steps=(Step(0, 1),), correct=False)]
    assert from_dataset(to_dataset(rows)) == rows


def test_only_set_fields_are_written_and_false_is_set() -> None:
    assert Trace(id="b", problem="p").to_json() == {"id": "b", "problem": "p"}
    assert Trace(id="b", problem="p", correct=False).to_json()["correct"] is False
    assert (
        Trace(id="b", problem="p", text="x", steps=(Step(0, 1),), first_error=0, labelled=True).to_json()["first_error"]
        == 0
    )


def test_steps_are_spans_of_the_text() -> None:
    assert GOOD.step_texts() == ["3 + 4 = 7", "7 * 2 = 14"]
    assert GOOD.question == "q1"
    assert relabel(GOOD, group="").question == GOOD.problem
    assert (EXPERT, GENERATED) == (1.0, 0.0)


def test_steps_given_as_strings_are_located() -> None:
    row = {"id": "a", "problem": "p", "text": TEXT, "steps": ["3 + 4 = 7", "7 * 2 = 14"]}
    assert Trace.from_json(row).steps == GOOD.steps
    without_text = Trace.from_json({"id": "a", "problem": "p", "steps": ["one", "two"]})
    assert without_text.text == "one\ntwo"
    assert without_text.step_texts() == ["one", "two"]


def test_repeated_steps_are_located_one_after_the_other() -> None:
    assert locate_steps("x = 1\nx = 1\nx = 1", ["x = 1"] * 3) == (Step(0, 5), Step(6, 11), Step(12, 17))


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("{", "not valid JSON"),
        ("[1]", "a JSON object is needed, not list"),
        ({"problem": "p"}, "field 'id'"),
        ({"id": 3, "problem": "p"}, "field 'id'"),
        ({"id": "a", "problem": ""}, "field 'problem'"),
        ({"id": "a", "problem": "p", "solution": "x"}, "field 'solution' is unknown"),
        ({"id": "a", "problem": "p", "text": 5}, "field 'text' must be of type str"),
        ({"id": "a", "problem": "p", "correct": 1}, "field 'correct' must be of type bool"),
        ({"id": "a", "problem": "p", "first_error": True}, "field 'first_error' must be of type int"),
        ({"id": "a", "problem": "p", "meta": []}, "field 'meta' must be of type dict"),
        ({"id": "a", "problem": "p", "steps": "one"}, "field 'steps' must be a list"),
        ({"id": "a", "problem": "p", "text": "abc", "steps": [[0, "1"]]}, "field 'steps': item 0"),
        ({"id": "a", "problem": "p", "text": "abc", "steps": [[0, 4]]}, "steps[0] spans [0, 4)"),
        ({"id": "a", "problem": "p", "text": "abc", "steps": [[0, 2], [1, 3]]}, "steps[1] spans [1, 3)"),
        ({"id": "a", "problem": "p", "text": "abc", "steps": [[1, 1]]}, "steps[0] spans [1, 1)"),
        ({"id": "a", "problem": "p", "text": "one\ntwo", "steps": ["one", "three"]}, "item 1 ('three') does not occur"),
        ({"id": "a", "problem": "p", "text": "one, and two", "steps": ["one", "two"]}, "do not rebuild the text"),
        ({"id": "a", "problem": "p", "text": "one", "steps": ["one"], "first_error": 1}, "first_error is 1"),
        ({"id": "a", "problem": "p", "text": "one", "steps": ["one"], "first_error": -1}, "first_error is -1"),
        (
            {"id": "a", "problem": "p", "text": "one", "steps": ["one"], "first_error": 0, "labelled": False},
            "labelled is false",
        ),
        ({"id": "good", "problem": "p"}, "'good' already occurs on line 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_malformed_line_is_named(tmp_path: Path, row: Any, told: str) -> None:
    path = tmp_path / "t.jsonl"
    line = row if isinstance(row, str) else json.dumps(row)
    path.write_text(json.dumps({"id": "good", "problem": "p"}) + "\n\n" + line + "\n")
    with pytest.raises(RairlError) as error:
        read_traces(path)
    assert f"{path}, line 3: " in str(error.value)
    assert told in str(error.value)
    bad: list[str] = []
    assert [trace.id for trace in read_traces(path, skip_bad=bad)] == ["good"]
    assert len(bad) == 1


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(RairlError, match=r"absent\.jsonl does not exist"):
        read_traces(tmp_path / "absent.jsonl")
    with pytest.raises(RairlError, match="is a folder"):
        read_traces(tmp_path)
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(RairlError, match="is not UTF-8 text"):
        read_traces(path)
    path.write_text("\n")
    with pytest.raises(RairlError, match="has no usable rows"):
        read_traces(path)
    assert read_traces(path, allow_empty=True) == []


def test_line_separators_inside_a_string_do_not_end_a_row(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write_traces(path, [Trace(id="a", problem="one\u2028two\x85three")])
    assert read_traces(path)[0].problem == "one\u2028two\x85three"


def test_writing_fails_whole(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write_traces(path, [GOOD])

    def broken() -> Any:
        yield relabel(GOOD, id="b")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_traces(path, broken())
    assert read_traces(path) == [GOOD]


def test_ids_that_occur_twice_are_named() -> None:
    require_unique_ids([GOOD, relabel(GOOD, id="b")], "demos")
    with pytest.raises(RairlError, match="demos: id 'a' occurs more than once"):
        require_unique_ids([GOOD, GOOD], "demos")


# --- lines that are almost JSON --------------------------------------------------------------------------------------

ROW = '{"id": "%s", "problem": "p", "text": "%s", "meta": {"n": %s}}'


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (ROW % ("x", "t", "9" * 5000), "too many digits"),
        (ROW % ("x", "t", "-" + "1" * 4301), "too many digits"),
        (ROW % ("x", "\\ud83d", 1), "half of a surrogate pair"),
        (ROW % ("x", "a \\uDE00 b", 1), "half of a surrogate pair"),
        (ROW % ("\\uDBFF", "t", 1), "half of a surrogate pair"),
        ('{"id": "x", "problem": "p", "meta": {"\\udfff": [{"deep": 1}]}}', "half of a surrogate pair"),
        (ROW % ("x", "\\ude00\\ud83d", 1), "half of a surrogate pair"),
        (ROW % ("x", "t", "[" * 100_000), "nested too deeply"),
        ("\ufeff" + ROW % ("x", "t", 1), "not valid JSON"),  # only a file may begin with a byte order mark
        (ROW % ("x", "t", "1,"), "not valid JSON"),
    ],
)
def test_a_line_that_json_or_a_file_can_not_hold_is_named_or_skipped(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join([ROW % ("a", "t", 1), line, ROW % ("b", "t", 1)]) + "\n", encoding="utf-8")
    with pytest.raises(RairlError, match=rf"t\.jsonl, line 2: .*{said}"):
        read_traces(path)
    bad: list[str] = []
    kept = read_traces(path, skip_bad=bad)
    assert [trace.id for trace in kept] == ["a", "b"] and len(bad) == 1
    write_traces(tmp_path / "again.jsonl", kept)  # what was read can be written


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (ROW % ("x", "\\ud83d\\ude00", 1), "😀"),
        (ROW % ("x", "\\\\ud83d", 1), "\\ud83d"),
        (ROW % ("x", "t", "9" * 4300), "t"),
        (ROW % ("x", "a\\u200bb", 1), "a\u200bb"),
    ],
)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_pairs_long_numbers_and_a_byte_order_mark_are_read(tmp_path: Path, mark: str, line: str, text: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(mark + line + "\n", encoding="utf-8")
    [trace] = read_traces(path)
    assert trace.text == text
    write_traces(path, [trace])
    assert read_traces(path) == [trace]
