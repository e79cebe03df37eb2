import json
import random
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from conftest import examples
from hypothesis import example, given
from hypothesis import strategies as st

from rairl.core.traces import Trace, relabel
from rairl.datasets import arithmetic, arithmetic_problem, choice, gsm8k
from rairl.text.corrupt import CHOICE_KINDS, KINDS, perturb, perturb_once
from rairl.text.edits import Kind
from rairl.text.equations import equations, evaluate
from rairl.text.segment import compose, segment

PROBLEM = "Tom has 50 books. Jack has 21 fewer than Tom. Gina has as many as Tom and Jack together. How many has Gina?"
STEPS = ["Jack has 50 - 21 = 29 books.", "Gina has 50 + 29 = 79 books."]


def expert(steps: list[str] = STEPS, answer: str = "79", problem: str = PROBLEM) -> Trace:
    text, spans = compose(steps, answer)
    return Trace("t", problem, text, spans, answer, answer, True, source="expert")


def variants(trace: Trace, kind: Kind, draws: int = 200) -> list[Trace]:
    made = [perturb_once(trace, random.Random(seed), kind) for seed in range(draws)]
    return [item for item in made if item is not None]


def arithmetic_expert(seed: int, kinds: tuple[str, ...] = arithmetic_problem.DEMONSTRATED) -> Trace:
    problem = arithmetic.generate(random.Random(seed), arithmetic.Range(kinds=kinds))
    return arithmetic.trace(problem, f"p{seed}", solved=True)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("12 + 5 = 17", [(17, 17)]),
        ("12+5=$17", [(17, 17)]),
        ("3 x 4 = 12", [(12, 12)]),
        ("so 48/2 = 24 clips, and 24 × 2=48", [(24, 24), (48, 48)]),
        ("(1 + 2) * 3 = 9", [(9, 9)]),
        ("2 + 3 * 4 = 14", [(14, 14)]),
        ("10 - 3 - 4 = 3", [(3, 3)]),
        ("$5 * 2 = $10", [(10, 10)]),
        ("50% * 8 = 4", [(4, 4)]),
        ("1,000 + 2 = 1,003.", [(1002, 1003)]),
        ("2 * 3 = 6 + 1 = 7", [(7, 7)]),
        ("16 pounds - 3 - 4 = 9", []),
        ("a 5-year plan, 3/4 of it, x = 4", []),
        ("5 / 0 = 3", []),
        ("5 - (2 = 3", []),
        ("6 boxes x 2 = 12", []),
    ],
)
def test_equations(text: str, found: list[tuple[int, int]]) -> None:
    assert [(evaluate(item.left), item.result.value) for item in equations(text)] == found


def test_percent_on_both_sides_holds() -> None:
    assert equations("20% + 30% = 50%")[0].holds
    assert not equations("20% + 30% = 50")[0].holds


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_differs_is_labelled_and_judged(kind: Kind) -> None:
    trace = expert()
    made = variants(trace, kind)
    assert made
    for item in made:
        assert item.text != trace.text
        assert item.labelled
        assert item.source == f"perturbed:{kind}"
        assert item.correct is (item.answer == "79")
        assert item.gold == "79"
        assert item.steps == segment(item.text, "tags")


def test_first_errors_by_hand() -> None:
    assert {item.first_error for item in variants(expert(), "operand")} == {0, 1}
    assert {item.first_error for item in variants(expert(), "answer")} == {None}
    assert {item.first_error for item in variants(expert(), "dropped")} == {0}
    swapped = variants(expert(), "swapped")[0]
    assert (swapped.step_texts(), swapped.first_error) == (STEPS[::-1], 0)
    assert variants(expert(), "dropped")[0].step_texts() == STEPS[1:]


def test_an_operator_that_changes_nothing_is_rejected() -> None:
    trace = expert(["It is 2 * 2 = 4."], "4", "Two times two?")
    assert {item.step_texts()[0] for item in variants(trace, "operator")} == {
        "It is 2 - 2 = 4.", "It is 2 - 2 = 0.", "It is 2 / 2 = 4.", "It is 2 / 2 = 1.",
    }  # fmt: skip
    one = expert(["It is 5 / 1 = 5."], "5", "?")
    assert not any("5 * 1" in item.text for item in variants(one, "operator"))
    zero = expert(["It is 0 * 5 = 0."], "0", "?")
    assert not any("is 0 * " in item.text for item in variants(zero, "operand"))


def test_a_false_result_can_be_carried_to_the_answer() -> None:
    made = {item.text: item for item in variants(expert(), "result", 400)}
    carried = compose(["Jack has 50 - 21 = 30 books.", "Gina has 50 + 30 = 80 books."], "80")[0]
    kept = compose(["Jack has 50 - 21 = 30 books.", STEPS[1]], "79")[0]
    assert (made[carried].first_error, made[carried].correct) == (0, False)
    assert (made[kept].first_error, made[kept].correct) == (0, True)


def test_every_result_corruption_leaves_a_false_equation() -> None:
    for item in variants(expert(), "result"):
        assert item.first_error is not None
        assert not equations(item.step_texts()[item.first_error])[0].holds


@pytest.mark.parametrize("kind", ["dropped", "swapped"])
@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        (["a is 5 + 4 = 9", "b is 50 + 21 = 71"], PROBLEM),  # not used by the next step
        (["a is 50 - 21 = 29", "b is 50 + 29 = 79"], PROBLEM + " Ann is 29."),  # the problem gives the number too
        (["a is 6 / 2 = 3", "b is 3 + 50 = 53"], PROBLEM + " Three come."),  # in words
        (["a is 5 + 2 = 7", "b is 7 * 50 = 350"], PROBLEM),  # seven days need no derivation
        (["no equations", "here"], PROBLEM),
    ],
)
def test_order_corruptions_need_a_real_dependency(kind: Kind, steps: list[str], problem: str) -> None:
    assert variants(expert(steps, "79", problem), kind, 20) == []


def test_kinds_that_do_not_apply_give_none() -> None:
    words = expert(["It is a virus."], "B", "Which?")
    assert all(variants(words, kind, 5) == [] for kind in KINDS)
    assert perturb(words, random.Random(0)) is None
    assert perturb(Trace("p", "a prompt", gold="3"), random.Random(0)) is None
    wrong = relabel(expert(), correct=False)
    assert perturb(wrong, random.Random(0)) is None


def test_false_equations_of_the_original_are_left_alone() -> None:
    assert variants(expert(["It is 5 + 5 = 11."], "11", "?"), "operator", 20) == []


def test_decimals_commas_and_currency_keep_their_form() -> None:
    made = {item.step_texts()[0] for item in variants(expert(["It is $2.50 * 2 = $5.00."], "5", "?"), "result")}
    assert "It is $2.50 * 2 = $6.00." in made
    made = {item.step_texts()[0] for item in variants(expert(["It is 1,000 + 2 = 1,002."], "1002", "?"), "result")}
    assert "It is 1,000 + 2 = 1,003." in made


SEEDS = st.integers(0, 2**32)


@examples(150)
@given(SEEDS, SEEDS, st.integers(1, 3), st.sets(st.sampled_from(KINDS), min_size=1), st.booleans())
@example(2855, 11976413, 3, {"dropped", "operator", "swapped"}, False)  # ends in 15.00, which is the right 15
def test_the_label_is_what_the_oracle_says(seed: int, draw: int, n: int, kinds: set[Kind], unseen: bool) -> None:
    allowed = arithmetic_problem.DEMONSTRATED + (arithmetic_problem.UNSEEN if unseen else ())
    trace = arithmetic_expert(seed, allowed)
    made = perturb(trace, random.Random(draw), sorted(kinds), n)
    if made is None:
        return
    assert made.text != trace.text
    assert made.id != trace.id
    assert made.labelled
    assert made.first_error == arithmetic_problem.first_error(made.problem, made.step_texts())
    assert made.correct is (made.answer is not None and Fraction(made.answer) == Fraction(trace.gold))
    assert made.first_error is not None or made.correct is False
    assert perturb(trace, random.Random(draw), sorted(kinds), n) == made


@examples(50)
@given(SEEDS)
def test_later_corruptions_keep_the_earlier_first_error(seed: int) -> None:
    rng = random.Random(seed)
    first = perturb_once(arithmetic_expert(seed), rng, "result")
    assert first is not None
    for kind in KINDS:
        again = perturb_once(first, rng, kind)
        assert again is None or again.first_error == first.first_error


@given(st.text(alphabet="12 +-*/x×()=$%.,a", max_size=30))
def test_any_text_parses(text: str) -> None:
    for equation in equations(text):
        assert isinstance(equation.result.value, Fraction)
        assert text[equation.result.start : equation.result.end].replace(",", "")


def test_composed_corruptions_name_their_kinds() -> None:
    sources = {perturb(expert(), random.Random(seed), n=3).source for seed in range(60)}  # type: ignore[union-attr]
    assert any("+" in source for source in sources)
    assert all(source.startswith("perturbed:") for source in sources)


# --- multiple choice -------------------------------------------------------------------------------------------------

ASKED = choice.problem_of("What swells the parotid?", ["Measles", "Mumps", "German measles", "None of the above"])
REASONS = ["Mumps is an infection of glands.", "It may also hit the pancreas.", "The parotid swells in mumps."]


def chosen(steps: list[str] = REASONS, answer: str = "B") -> Trace:
    text, spans = compose(steps, answer)
    return Trace("c", ASKED, text, spans, answer, answer, True, source="expert")


def test_choice_kinds_by_hand() -> None:
    def first_steps(kind: Kind) -> set[tuple[str, ...]]:
        return {tuple(item.step_texts()) for item in variants(chosen(), kind)}

    assert {item.answer for item in variants(chosen(), "option")} == {"A", "C", "D"}
    assert {item.first_error for item in variants(chosen(), "option")} == {None}
    assert first_steps("negated") == {("Mumps is not an infection of glands.", *REASONS[1:])}
    assert first_steps("entity") == {
        ("Measles is an infection of glands.", *REASONS[1:]),
        ("German measles is an infection of glands.", *REASONS[1:]),
    }  # fmt: skip
    assert first_steps("contradiction") == {
        (*REASONS[:2], "The parotid swells in measles."), (*REASONS[:2], "The parotid swells in german measles."),
    }  # fmt: skip
    for kind, first in (("negated", 0), ("entity", 0), ("contradiction", 2)):
        made = variants(chosen(), kind)  # type: ignore[arg-type]
        assert {(item.first_error, item.answer, item.correct) for item in made} == {(first, "B", True)}


@pytest.mark.parametrize(
    "step", ["Mumps is not rare.", "It may be mumps.", "Consider mumps.", "Is it mumps?", "Option B, mumps, is likely."]
)
def test_what_is_weighed_or_excluded_is_left_alone(step: str) -> None:
    assert all(variants(chosen([step]), kind, 20) == [] for kind in ("negated", "entity", "contradiction"))  # type: ignore[arg-type]


def test_numbers_in_multiple_choice_keep_their_kinds() -> None:
    kinds = {perturb(chosen(["6 * 7 = 42 days, as in mumps."]), random.Random(seed)).source for seed in range(80)}  # type: ignore[union-attr]
    assert {f"perturbed:{kind}" for kind in ("operator", "operand", "result", "option", "contradiction")} <= kinds
    assert not any(kind in CHOICE_KINDS for seed in range(20) for kind in perturb(expert(), random.Random(seed)).source)  # type: ignore[union-attr]


def test_on_real_rationales_each_choice_kind_acts(shared_data: Path) -> None:
    """Right outputs of the strongest model on MMLU-Pro's health questions."""
    made: Counter[str] = Counter()
    traces = []
    for line in (shared_data / "mmlu_pro" / "health_model_outputs.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        output = next(item for item in row["outputs"] if item["model"].startswith("gemini"))
        problem = choice.problem_of(row["question"], row["options"])
        trace = choice.expert(str(row["question_id"]), problem, row["answer"], output["text"])
        if output["pred"] == row["answer"] and isinstance(trace, Trace):
            traces.append(trace)
    for trace in traces:
        for kind in CHOICE_KINDS:
            bad = perturb_once(trace, random.Random(trace.id), kind)
            if bad is None:
                continue
            made[kind] += 1
            changed = [
                index
                for index, pair in enumerate(zip(trace.step_texts(), bad.step_texts(), strict=True))
                if len(set(pair)) > 1
            ]
            assert changed == ([] if kind == "option" else [bad.first_error])
            assert (bad.answer == trace.gold) is (kind != "option") and bad.correct is (kind != "option")
            assert bad.steps == segment(bad.text, "tags")
    shares = {kind: round(made[kind] / len(traces), 2) for kind in CHOICE_KINDS}
    assert shares == {"option": 1.0, "negated": 0.67, "entity": 0.12, "contradiction": 0.37}, len(traces)


def test_on_real_gsm8k_solutions_each_kind_acts(shared_data: Path) -> None:
    traces = gsm8k.load(str(shared_data / "gsm8k" / "test.jsonl"))[:300]
    for kind in KINDS:
        made = [(trace, perturb_once(trace, random.Random(trace.id), kind)) for trace in traces]
        applied = [(trace, bad) for trace, bad in made if bad is not None]
        assert len(applied) > 0.3 * len(traces), kind
        assert all(bad.text != trace.text and bad.labelled for trace, bad in applied)
        assert all((bad.first_error is None) is (kind == "answer") for _, bad in applied)
