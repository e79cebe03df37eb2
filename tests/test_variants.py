"""Variants say what the original says."""

from __future__ import annotations

import random

import pytest
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st

from rairl.core.traces import Trace, locate_steps, relabel
from rairl.datasets import arithmetic
from rairl.evaluate.variants import VARIANTS, overlap
from rairl.text.answers import extract_answer
from rairl.text.equations import equations


def solved(number: int) -> Trace:
    problem = arithmetic.generate(random.Random(number), arithmetic.IN_RANGE)
    return relabel(arithmetic.trace(problem, f"q{number}", solved=True), group="q")


@given(st.integers(0, 2000), st.sampled_from(sorted(VARIANTS)))
@examples(80)
def test_a_variant_changes_the_form_and_says_the_same(number: int, name: str) -> None:
    trace = solved(number)
    other = VARIANTS[name](trace)
    assert other is not None and (other.problem, other.text) != (trace.problem, trace.text)
    assert (other.question, other.correct, other.first_error, other.id) == ("q", True, None, trace.id)
    assert extract_answer(other.text) == trace.answer
    assert len(other.steps) == len(trace.steps)
    said = [[token.value for equation in equations(step) for token in equation.left] for step in trace.step_texts()]
    assert [
        [token.value for equation in equations(step) for token in equation.left] for step in other.step_texts()
    ] == said


def test_variants_by_hand() -> None:
    text = "So Ana has 12 + 5 = 17 eggs.\nDone."
    trace = Trace("t", "Tom has 12 eggs. How many?", text, locate_steps(text, text.split("\n")), "17", "17", True)
    changed = {name: change(trace) for name, change in VARIANTS.items()}
    assert changed["restyled"].step_texts() == ["12 + 5 = 17. So Ana has 17 eggs.", "Done."]
    assert changed["numbered"].step_texts() == ["Step 1: So Ana has 12 + 5 = 17 eggs.", "Step 2: Done."]
    assert changed["untagged"].text == text + "\nThe answer is 17."
    assert changed["distracted"].problem == "Tom has 12 eggs. A bus with 7 seats goes by. How many?"
    assert changed["asked"].problem.startswith("Question: Tom") and changed["asked"].question == trace.problem
    assert changed["boxed"] is None, "the answer stands in no block"
    assert changed["reworded"] is None, "not the built-in benchmark's"
    inside = relabel(trace, text=text + "\n<answer>17</answer>")
    assert VARIANTS["boxed"](inside).text.endswith("<answer>\\boxed{17}</answer>")
    assert VARIANTS["distracted"](relabel(trace, problem="How many?")) is None


def test_overlap_by_hand() -> None:
    assert overlap("a b c", "a b d") == pytest.approx(1 / 3)
    assert overlap("a b", "a b") == 1 and overlap("", "") == 1 and overlap("a b", "c d") == 0
