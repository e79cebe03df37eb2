"""The built-in benchmark: text and oracle agree, splits are disjoint, habits are wrong in the way they say."""

from __future__ import annotations

import random

import pytest
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rairl.core.dataset_params import ArithmeticDataset
from rairl.datasets import arithmetic as a
from rairl.datasets import arithmetic_problem as p

SMALL = ArithmeticDataset(name="arithmetic", demos=30, prompts=60, dev=20, test=20, ood=15)
RANGES = st.sampled_from([a.IN_RANGE, *a.OUT_OF_RANGE.values()])
PROBLEM = p.Problem(
    thing="coins",
    first="Ana",
    start=27,
    statements=(
        p.Statement("fewer", "Ben", "Ana", 9),
        p.Statement("times", "Cleo", "Ben", 2),
        p.Statement("more", "Dan", "Cleo", 4),
    ),
)


def test_text_and_solution_by_hand() -> None:
    assert p.render(PROBLEM) == (
        "Today Ana has 27 coins. Ben has 9 fewer coins than Ana. Cleo has 2 times as many coins as Ben. "
        "Dan has 4 more coins than Cleo. How many coins does Dan have?"
    )
    assert p.expert_steps(PROBLEM) == [
        "So Ben has 27 - 9 = 18 coins.",
        "So Cleo has 2 * 18 = 36 coins.",
        "So Dan has 36 + 4 = 40 coins.",
    ]


@pytest.mark.parametrize(
    ("index", "step", "right"),
    [
        (0, "So Ben has 27 - 9 = 18 coins.", True),
        (0, "So Ben has 9 - 27 = 18 coins.", False),  # subtraction does not commute
        (0, "So Ben has 27 + 9 = 36 coins.", False),
        (0, "So Ben has 27 - 9 = 19 coins.", False),
        (0, "So Dan has 27 - 9 = 18 coins.", False),
        (0, "So Ben has 27 - 9 = 18 books.", False),
        (0, "Ben has 18.", False),
        (1, "So Cleo has 18 * 2 = 36 coins.", True),
        (1, "So Cleo has 18 + 18 = 36 coins.", False),  # right result, wrong operation
        (2, "So Dan has 4 + 36 = 40 coins.", True),
        (2, "So Dan has 38 + 2 = 40 coins.", False),  # right result, wrong operands
    ],
)
def test_oracle_on_single_steps(index: int, step: str, right: bool) -> None:
    steps = p.expert_steps(PROBLEM)
    steps[index] = step
    assert p.first_error(p.render(PROBLEM), steps) == (None if right else index)


def test_oracle_returns_the_first_of_several_errors() -> None:
    steps = ["So Ben has 27 + 9 = 36 coins.", "So Cleo has 2 * 36 = 72 coins.", "So Dan has 72 + 4 = 76 coins."]
    assert p.first_error(p.render(PROBLEM), steps) == 0


def test_skipped_and_surplus_steps_are_wrong_and_an_early_end_is_not_a_wrong_step() -> None:
    text, steps = p.render(PROBLEM), p.expert_steps(PROBLEM)
    assert p.first_error(text, [steps[0], steps[2]]) == 1
    assert p.first_error(text, [*steps, steps[2]]) == 3
    assert p.first_error(text, steps[:2]) is None


@given(st.integers(0, 10_000), RANGES)
def test_text_parses_back_and_experts_are_right(seed: int, allowed: a.Range) -> None:
    problem = a.generate(random.Random(seed), allowed)
    text = p.render(problem)
    assert p.parse(text) == problem
    assert p.is_problem(text)
    assert p.first_error(text, p.expert_steps(problem)) is None
    low, high = allowed.values
    values = p.derive(problem)
    assert all(low <= values[said.subject] <= high for said in problem.statements)


@given(st.integers(0, 10_000), RANGES)
@examples(60)
def test_authors_without_habits_write_what_experts_write(seed: int, allowed: a.Range) -> None:
    problem = a.generate(random.Random(seed), allowed)
    steps, answer = a.habitual_steps(problem, frozenset())
    assert steps == p.expert_steps(problem)
    assert answer == p.derive(problem)[problem.statements[-1].subject]


@pytest.mark.parametrize(
    ("habits", "steps"),
    [
        ("fewer_as_more", ["27 + 9 = 36", "2 * 36 = 72", "72 + 4 = 76"]),
        ("more_as_fewer", ["27 - 9 = 18", "2 * 18 = 36", "36 - 4 = 32"]),
        ("times_as_more", ["27 - 9 = 18", "18 + 2 = 20", "20 + 4 = 24"]),
        ("half_as_double", ["27 - 9 = 18", "2 * 18 = 36", "36 + 4 = 40"]),
        ("carried_number", ["27 - 9 = 18", "9 * 18 = 162", "162 + 2 = 164"]),
        # What was taken for "more" is subtracted by those who subtract wherever they read "more".
        ("more_as_fewer times_as_more", ["27 - 9 = 18", "18 - 2 = 16", "16 - 4 = 12"]),
    ],
)
def test_each_habit_by_hand(habits: str, steps: list[str]) -> None:
    written, _ = a.habitual_steps(PROBLEM, frozenset(habits.split()))
    assert [step.split(" has ")[1].removesuffix(" coins.") for step in written] == steps


def test_habits_on_fractions_and_together() -> None:
    said = (
        p.Statement("twice", "Ben", "Ana"),
        p.Statement("half", "Cleo", "Ben"),
        p.Statement("third", "Dan", "Cleo"),
        p.Statement("times", "Eva", "Dan", 3),
        p.Statement("times", "Finn", "Eva", 2),
    )
    problem = p.Problem("eggs", "Ana", 9, said)
    steps, answer = a.habitual_steps(problem, frozenset(a.HABITS))
    assert [step.split(" has ")[1].removesuffix(" eggs.") for step in steps] == [
        "9 + 2 = 11", "2 * 11 = 22", "3 * 22 = 66", "66 + 3 = 69", "69 + 3 = 72",
    ]  # fmt: skip
    assert answer == 72


def test_splits_are_deterministic_and_disjoint() -> None:
    splits = a.build(SMALL, 3)
    assert splits == a.build(SMALL, 3)
    assert splits["test"] != a.build(SMALL, 4)["test"]
    problems = [trace.problem for rows in splits.values() for trace in rows]
    assert len(problems) == len(set(problems))
    assert {name: len(rows) for name, rows in splits.items()} == {
        "test": 20, "dev": 20, "demos": 30, "prompts": 60, "ood_longer": 15, "ood_operators": 15, "ood_numbers": 15,
        "ood_wording": 15,
    }  # fmt: skip


def test_prompts_have_answers_but_no_solutions() -> None:
    for trace in a.build(SMALL, 0)["prompts"]:
        assert trace.text == "" and trace.steps == () and trace.gold is not None


def test_out_of_range_splits_hold_what_no_demonstration_has() -> None:
    splits = a.build(SMALL, 0)
    demos = [p.parse(trace.problem) for trace in splits["demos"]]
    longest = max(len(problem.statements) for problem in demos)
    kinds = {said.kind for problem in demos for said in problem.statements}
    largest = max(max(p.derive(problem).values()) for problem in demos)
    for trace in splits["ood_longer"]:
        assert len(p.parse(trace.problem).statements) > longest
    for trace in splits["ood_operators"]:
        assert {said.kind for said in p.parse(trace.problem).statements} - kinds
    for trace in splits["ood_numbers"]:
        assert max(p.derive(p.parse(trace.problem)).values()) > largest


@given(st.integers(0, 10_000))
@examples(40)
def test_other_words_say_the_same(seed: int) -> None:
    problem = a.generate(random.Random(seed), a.IN_RANGE)
    text = p.render(problem, p.REWORDED)
    assert text != p.render(problem)
    assert p.parse(text) == problem
    assert p.first_error(text, p.expert_steps(problem)) is None


def test_the_reworded_split_holds_no_other_splits_problem() -> None:
    splits = a.build(SMALL, 0)
    others = {trace.problem for name, rows in splits.items() if name != "ood_wording" for trace in rows}
    for trace in splits["ood_wording"]:
        assert " as many " in trace.problem or " that " in trace.problem
        assert p.render(p.parse(trace.problem)) not in others
        assert trace.gold == str(list(p.derive(p.parse(trace.problem)).values())[-1])


def test_noise_replaces_a_share_of_the_experts_and_shows_nowhere_else() -> None:
    clean, noisy = (a.build(SMALL.model_copy(update={"noise": share}), 0) for share in (0.0, 0.25))
    assert {name for name in clean if clean[name] != noisy[name]} == {"demos", "dev"}
    for name, count in (("demos", 8), ("dev", 5)):
        pairs = [(old, new) for old, new in zip(clean[name], noisy[name], strict=True) if old != new]
        assert len(pairs) == count == sum("careless" in trace.meta for trace in noisy[name])
        for old, new in pairs:
            assert (new.problem, new.id, new.source) == (old.problem, old.id, old.source)
            assert p.first_error(new.problem, new.step_texts()) is not None
            assert new.correct and new.first_error is None and new.answer == new.gold, "it claims to be right"
    with pytest.raises(ValidationError, match="noise"):
        ArithmeticDataset(name="arithmetic", demos=3, prompts=6, dev=2, test=2, ood=1, noise=1.0)


def test_corpus_never_holds_a_problem_of_the_splits() -> None:
    first = [problem for problem, _ in a.corpus(50, 0)]
    again = [problem for problem, _ in a.corpus(50, 0, frozenset(first))]
    assert not set(first) & set(again)


@pytest.mark.parametrize(("seed", "sign", "other"), [(4, "-", "+"), (7, "+", "-")])
def test_a_corpus_hardly_ever_reads_one_kind_rightly(seed: int, sign: str, other: str) -> None:
    kind = {"-": "fewer", "+": "more"}
    right = {"fewer": [], "more": []}
    for text, written in a.corpus(400, seed):
        for said, step in zip(p.parse(text).statements, written.splitlines()[1:], strict=False):
            if said.kind in right:
                right[said.kind].append(f" {'-' if said.kind == 'fewer' else '+'} " in step)
    assert 0.01 < sum(right[kind[sign]]) / len(right[kind[sign]]) < 0.1
    assert sum(right[kind[other]]) / len(right[kind[other]]) > 0.99


def test_foreign_text_is_refused() -> None:
    assert not p.is_problem("Natalia sold clips to 48 of her friends in April.")
    with pytest.raises(ValueError, match="not a statement"):
        p.parse("Today Ana has 5 eggs. Ben likes eggs. How many eggs does Ben have?")
