"""The review page as a reviewer uses it, in a real browser without a network, and what becomes of the labels."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, chromium, needs_browser
from conftest import FixedReward

from rairl.core.errors import RairlError
from rairl.core.traces import Trace, read_traces, write_traces
from rairl.use.apply import localise_rows, location_figures
from rairl.use.review import traces_page, with_labels


def solution(key: str, group: str, reads: list[float], **more: Any) -> Trace:
    steps = [f"step {number} of {key}" for number in range(len(reads))]
    return Trace.from_json(
        {"id": key, "problem": f"problem {group}", "steps": steps, "group": group, "meta": {"reads": reads}, **more}
    )


@pytest.fixture
def traces() -> list[Trace]:
    """Two solutions of one problem and one of another; the reward suspects steps 2, 1 and 1."""
    return [
        solution("a1", "a", [1.0, 2.0, -3.0], gold="7", answer="8", correct=False),
        solution("a2", "a", [1.0, -1.0, 0.0]),
        solution("b1", "b", [0.5, 0.25], source="</script><b>odd</b>"),
    ]


@pytest.fixture
def page(tmp_path: Path, traces: list[Trace]) -> Path:
    rows = list(localise_rows(traces, FixedReward()))  # type: ignore[arg-type]
    path = tmp_path / "review.html"
    path.write_text(traces_page(traces, rows, "drop", "mine.jsonl", review=True), encoding="utf-8")
    return path


# --- the browser ------------------------------------------------------------------------------------------------------


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with chromium(tmp_path) as tab:
        yield tab


@needs_browser
def test_a_reviewer_pages_marks_downloads_and_the_labels_are_scored(
    browser: Browser, page: Path, traces: list[Trace], tmp_path: Path
) -> None:
    browser.open(page)
    assert browser.text("#position") == "1 of 3"
    assert "problem a" in browser.text("#trace") and "reward points here" in browser.text("#trace li:nth-child(3)")
    browser.press("h")
    assert "reward" not in browser.text("#trace") and "Score" not in browser.text("#trace")
    assert (
        browser.value("getComputedStyle(document.querySelector('#trace li')).backgroundColor") == "rgb(255, 255, 255)"
    )
    browser.press("h")
    assert "Score" in browser.text("#trace")
    browser.press("ArrowDown", "Enter")
    assert "you: first wrong step" in browser.text("#trace li:nth-child(2)")
    browser.press("c")
    assert browser.value("document.querySelectorAll('#trace ol').length") == 2
    assert "step 0 of a2" in browser.text("#trace")
    browser.press("ArrowRight", "n")
    assert browser.value("document.getElementById('none').getAttribute('aria-pressed')") == "true"
    browser.press("ArrowRight")
    assert browser.text("#position") == "3 of 3"
    assert "No other solution of this problem" in browser.text("#trace")
    browser.value("document.querySelector('#trace li button').click()")  # the mouse does it, too
    browser.press("u")
    browser.value("document.getElementById('comment').focus()")
    browser.press(*"née d")  # letters typed into the comment are no commands
    assert browser.text("#marked") == "2 of 3 marked"

    browser.open(page)  # closed and opened again: what was marked is still there
    assert browser.text("#marked") == "2 of 3 marked"
    browser.press("d")
    labels = tmp_path / "downloads" / "mine.labels.jsonl"
    for _ in range(100):
        if labels.exists():
            break
        time.sleep(0.1)
    assert browser.problems == []

    given = {row.id: row for row in read_traces(labels)}
    assert (given["a1"].first_error, given["a1"].labelled) == (1, True)
    assert (given["a2"].first_error, given["a2"].labelled) == (None, True)
    assert (given["b1"].labelled, given["b1"].meta) == (False, {"comment": "née d"})
    judged = with_labels(traces, labels)
    assert [trace.labelled for trace in judged] == [True, True, False]
    figures = location_figures(judged, list(localise_rows(judged, FixedReward())), "drop")  # type: ignore[arg-type]
    assert (figures["reward.exact"].value, figures["reward.exact"].n) == (0.0, 1)  # it pointed at step 2


@needs_browser
def test_the_page_without_review_still_pages(browser: Browser, traces: list[Trace], tmp_path: Path) -> None:
    rows = list(localise_rows(traces, FixedReward()))  # type: ignore[arg-type]
    path = tmp_path / "look.html"
    path.write_text(traces_page(traces, rows, "drop", "mine.jsonl"), encoding="utf-8")
    browser.open(path)
    browser.value("document.getElementById('trace').focus()")
    browser.press("ArrowRight", "ArrowRight")
    assert browser.text("#position") == "3 of 3"
    assert "written by </script><b>odd</b>" in browser.text("#trace")
    assert browser.value("document.getElementById('download')") is None
    assert browser.problems == []


# --- the page and the labels without a browser ------------------------------------------------------------------------


def test_the_page_needs_no_other_file(page: Path) -> None:
    text = page.read_text()
    assert "src=" not in text and "@import" not in text and "http" not in text.replace("http-equiv", "")
    assert '"reads"' not in text  # meta stays out of it


def test_labels_for_something_else_are_refused(traces: list[Trace], tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    write_traces(path, [solution("z", "a", [1.0])])
    with pytest.raises(RairlError, match=r"labels\.jsonl, line 1: field 'id': no trace 'z'"):
        with_labels(traces, path)
    write_traces(path, [solution("b1", "b", [1.0])])
    with pytest.raises(RairlError, match="'b1' was labelled with another text or other steps"):
        with_labels(traces, path)
