"""Corruptions of known kind and place: by hand, confirmed by the oracle, and none of training's own making."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st

from rairl.core.traces import Trace, locate_steps, relabel
from rairl.datasets import arithmetic, arithmetic_problem, choice
from rairl.evaluate.probes import (
    SEEN,
    UNSEEN,
    Probe,
    corrupted,
    originals,
    probe_figures,
    turned_round,
    with_step,
)
from rairl.report.labels import KIND_LABELS
from rairl.text.corrupt import CHOICE_KINDS
from rairl.text.segment import compose


def solved(number: int) -> Trace:
    problem = arithmetic.generate(random.Random(number), arithmetic.IN_RANGE)
    return relabel(arithmetic.trace(problem, f"q{number}", solved=True), group=f"q{number}")


@given(st.integers(0, 500))
@examples(25)
def test_every_corruption_is_what_its_label_says(seed: int) -> None:
    traces = [solved(seed), solved(seed + 1), solved(seed + 2)]
    for kind in (*SEEN, *UNSEEN):
        for row, bad in corrupted(traces, kind, seed):
            assert bad.labelled and bad.text != traces[row].text and bad.problem == traces[row].problem
            assert bad.id == f"{traces[row].id}/{kind}"
            assert arithmetic_problem.first_error(bad.problem, bad.step_texts()) == bad.first_error
            assert (bad.first_error is None) == (kind == "answer") and kind not in CHOICE_KINDS


def test_every_unseen_kind_applies_and_is_drawn_alike_each_time() -> None:
    traces = [solved(number) for number in range(12)]
    for kind in UNSEEN:
        found = corrupted(traces, kind, 0)
        assert len(found) >= 4, kind
        assert found == corrupted(traces, kind, 0)
    assert not set(UNSEEN) & set(SEEN)


def test_every_kind_has_words_for_tables() -> None:
    assert list(KIND_LABELS) == [*SEEN, *UNSEEN]


def test_questions_with_options_are_probed_with_their_own_kinds() -> None:
    problem = choice.problem_of("What swells the parotid?", ["Measles", "Mumps", "German measles"])
    reasons = ["Mumps is an infection of glands.", "Children get a fever.", "The parotid swells in mumps."]
    text, spans = compose(reasons, "B")
    trace = Trace("c", problem, text, spans, "B", "B", True, group="c")
    for kind, first in (("option", None), ("negated", 0), ("entity", 0), ("contradiction", 2)):
        [(row, bad)] = corrupted([trace], kind, 0)
        assert (row, bad.first_error, bad.text != trace.text) == (0, first, True)
    assert corrupted([replace(trace, problem="What swells the parotid?")], "negated", 0) == []
    probes = [Probe("entity", corrupted([trace], "entity", 0)[0][1], {"reward": -1.0}, {"reward": 0})]
    figures = probe_figures(probes, "localise", draws=100, seed=0)
    assert (
        figures["localise.kind.entity.reward.exact"].value == figures["localise.family.seen.reward.prefers"].value == 1
    )


STEPS = [
    "So Ben has 12 - 5 = 7 eggs.",
    "So Cleo has 7 + 4 = 11 eggs.",
    "So Dan has 3 * 11 = 33 eggs.",
    "That is 2 - 2 = 0.",
]


def plain(name: str, steps: list[str], **known: object) -> Trace:
    text = "\n".join(steps)
    return Trace(name, f"What is {name}?", text, locate_steps(text, steps), correct=True, **known)  # type: ignore[arg-type]


def test_operands_are_turned_round_by_hand() -> None:
    trace = plain("t", STEPS)
    [(bad, at)] = turned_round(trace, "-/")
    assert at == 0 and bad.step_texts()[0] == "So Ben has 5 - 12 = 7 eggs." and bad.step_texts()[1:] == STEPS[1:]
    right = turned_round(trace, "+*")
    assert [(at, one.step_texts()[at]) for one, at in right] == [
        (1, "So Cleo has 4 + 7 = 11 eggs."),
        (2, "So Dan has 11 * 3 = 33 eggs."),
    ]
    longer = with_step(trace, 1, "So Cleo has lots and lots of eggs.")
    assert longer.step_texts() == [STEPS[0], "So Cleo has lots and lots of eggs.", *STEPS[2:]]


def test_other_data_get_only_the_kinds_that_need_no_oracle() -> None:
    traces = [plain("a", STEPS), plain("b", ["Seven is prime.", "So 9 - 2 = 7."])]
    assert {kind for kind in UNSEEN if corrupted(traces, kind, 0)} == {"foreign", "reversed"}
    [(_, bad), *_] = corrupted(traces, "foreign", 0)
    assert bad.first_error is not None
    assert bad.step_texts()[bad.first_error] in traces[1].step_texts()
    assert corrupted(traces[:1], "foreign", 0) == [], "a question has no other question to take a step from"


def test_originals_are_right_in_every_step_and_one_per_question() -> None:
    good, bad = plain("a/1", STEPS, group="a"), plain("a/0", STEPS, group="a", first_error=0, labelled=True)
    other = plain("b/0", STEPS, group="b")
    assert originals([bad, good, good, other], 9) == [good, other]
    assert originals([bad, good, other], 1) == [good]


def test_probe_figures_by_hand() -> None:
    broken = [plain(f"{q}/x", STEPS, group=q, first_error=1, labelled=True) for q in "abcd"]
    gaps, guesses = [-1.0, -2.0, 0.0, 3.0], [1, 1, 0, 2]
    probes = [
        Probe("operator", trace, {"reward": gap}, {"reward": guess})
        for trace, gap, guess in zip(broken, gaps, guesses, strict=True)
    ]
    probes.append(Probe("answer", plain("e", STEPS), {"reward": -1.0}, {"reward": 0}))
    values = {name: figure.value for name, figure in probe_figures(probes, "x", draws=100, seed=0).items()}
    assert values == {
        "x.kind.operator.reward.prefers": 2.5 / 4,
        "x.kind.operator.reward.exact": 0.5,
        "x.kind.operator.chance.exact": 0.25,
        "x.kind.answer.reward.prefers": 1, "x.family.seen.reward.prefers": pytest.approx(3.5 / 5),
        "x.family.seen.reward.exact": 0.5, "x.family.seen.chance.exact": 0.25,
    }  # fmt: skip
