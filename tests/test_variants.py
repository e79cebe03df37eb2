"""Variants say what the original says; shaping moves what it should and nothing else."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st

from rairl.core.traces import Trace, locate_steps, relabel
from rairl.datasets import arithmetic
from rairl.evaluate.best_of_n import aggregate
from rairl.evaluate.shaping import learned_sums, potential, shaped
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


def test_shaping_moves_states_alike_and_ends_at_zero() -> None:
    first, second = "one\ntwo\nthree", "one\ntwo\nfour"
    traces = [
        Trace(name, "p", text, locate_steps(text, text.split("\n"))) for name, text in (("a", first), ("b", second))
    ]
    reads = [np.array([1.0, -1.0, 0.5]), np.array([1.0, -1.0, 2.0])]
    moved = shaped(traces, reads, seed=0)
    np.testing.assert_allclose(moved[0][:2], moved[1][:2])
    assert moved[0][2] == 0.5 and moved[1][2] == 2.0
    assert not np.allclose(moved[0][:2], reads[0][:2])
    size = np.std([1, -2, 1.5, 1, -2, 3])
    assert moved[0][0] == pytest.approx(1 + size * potential("p", "one", 0))
    # The whole trace's reward, a sum of increments, is what shaping leaves alone.
    assert np.diff(moved[0], prepend=0).sum() == pytest.approx(0.5)
    assert aggregate(moved[0], 0.7, "last") == 0.7
    assert shaped(traces, reads, seed=1)[0][0] != moved[0][0]
    assert shaped([], [], 0) == []


def test_potentials_are_standard_normal() -> None:
    values = [potential("p", str(number), 0) for number in range(2000)]
    assert np.mean(values) == pytest.approx(0, abs=0.08) and np.std(values) == pytest.approx(1, abs=0.06)


def test_learned_rewards_with_and_without_shaping_by_hand() -> None:
    # Trace 0 reads g, h = (1, 10), (2, 99); trace 1 reads (3, 7) only; trace 2 (0, 1), (1, 2), (-2, 5).
    terms = torch.tensor([[1.0, 10], [2, 99], [3, 7], [0, 1], [1, 2], [-2, 5]])
    trace = torch.tensor([0, 0, 1, 2, 2, 2])
    sums = learned_sums(terms, trace, 0.5)
    assert sums["g"] == [3, 3, -1]
    # 0: (1 + 5) + (2 - 10); 1: 3, as h is 0 before and after; 2: .5 + (1 + 1 - 1) + (-2 - 2).
    assert sums["f"] == [-2, 3, -2.5]
    assert learned_sums(terms, trace, 1.0)["f"] == [3, 3, -1], "without discount the potential telescopes away"
    assert learned_sums(terms[:0], trace[:0], 0.5) == {"g": [], "f": []}
