from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rairl.text.answers import (
    answers_match,
    extract_answer,
    format_number,
    grade,
    normalise_answer,
    option_letter,
    options_of,
    read_answer,
    to_number,
    well_formed,
)

WELL_FORMED = "<think>\nAna has 12 + 5 = 17 apples.\n</think>\n<answer>\n17\n</answer>"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (WELL_FORMED, "17"),
        ("<answer>3</answer> no, <answer> 4 </answer>", "4"),
        ("<answer>The answer is $\\boxed{5}$.</answer>", "5"),
        ("<answer>\n4", None),
        ("<answer>3</answer> wait <answer>", None),
        ("<answer></answer>", None),
        ("so 6 x 7 = 42\n#### 42", "42"),
        ("#### 1,000", "1,000"),
        ("He pays $3.\nA: 42", "42"),
        ("A: 41\nA: 42 ", "42"),
        ("We get \\(\\boxed{-\\frac{1}{2}}\\).", "-\\frac{1}{2}"),
        ("\\boxed{1} then \\boxed{2}", "2"),
        ("\\boxed{unclosed", None),
        ("Thus the answer is 3.5. So there.", "3.5"),
        ("The final answer is: (B).", "(B)"),
        ("Answer: 12 apples\nThat is all", "12 apples"),
        ("**The answer is 8**", "8"),
        ("Final answer: The answer is 8.", "8"),
        ("I answer the phone 3 times", None),
        ("", None),
    ],
)
def test_extract_answer(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42),
        ("$1,234.50", Fraction(2469, 2)),
        (".5", Fraction(1, 2)),
        ("25%", 25),
        ("−3", -3),
        ("-$3", -3),
        ("$-3", -3),
        ("3/4", Fraction(3, 4)),
        ("2 1/2", Fraction(5, 2)),
        ("\\frac{3}{4}", Fraction(3, 4)),
        ("-\\dfrac{3}{4}", Fraction(-3, 4)),
        ("18.", 18),
        ("3/0", None),
        ("12,34", None),
        ("abc", None),
        ("", None),
        ("7" * 61, None),
        ("1e5", None),
    ],
)
def test_to_number(text: str, value: Fraction | None) -> None:
    assert to_number(text) == value


@pytest.mark.parametrize(
    ("left", "right", "lenient"),
    [
        ("1,000", "1000", True),
        ("$18.00", "18", True),
        ("50%", "50", True),
        ("0.5", "1/2", True),
        ("42 apples", "42", True),
        ("(B).", "b", True),
        ("(3/4)", "0.75", True),
        ("18", "19", False),
        ("2 or 3", "2", False),
        ("B", "C", False),
        ("1.8 billion", "18", False),
        ("0.333", "1/3", False),
    ],
)
def test_lenient_and_exact(left: str, right: str, lenient: bool) -> None:
    assert answers_match(left, right) is lenient
    assert answers_match(left, right, exact=True) is False
    assert answers_match(right, right, exact=True) is True


def test_a_missing_answer_is_wrong() -> None:
    assert answers_match(None, "3") is False
    assert grade("no idea", "3") is False


def test_grade_exact_wants_the_form_too() -> None:
    assert grade(WELL_FORMED, "17")
    assert grade(WELL_FORMED, "17", exact=True)
    assert grade(WELL_FORMED, "17.0")
    assert not grade(WELL_FORMED, "17.0", exact=True)
    loose = "Ana has 17 apples.\n#### 17"
    assert grade(loose, "17")
    assert not grade(loose, "17", exact=True)


def test_well_formed() -> None:
    assert well_formed(WELL_FORMED)
    assert well_formed(WELL_FORMED + "\n")
    assert not well_formed(WELL_FORMED + " more")
    assert not well_formed(WELL_FORMED.replace("17\n</answer>", "\n</answer>"))
    assert not well_formed(WELL_FORMED.removesuffix("\n</answer>"))
    assert not well_formed(WELL_FORMED + "\n" + WELL_FORMED)


@given(st.fractions(min_value=-(10**6), max_value=10**6, max_denominator=10**4))
def test_formatting_and_reading_a_number_are_inverse(value: Fraction) -> None:
    assert to_number(format_number(value)) == value


@given(st.text(max_size=80) | st.text(alphabet="12 .,/$%()-B'*", max_size=12))
def test_normalising_twice_changes_nothing_and_nothing_raises(text: str) -> None:
    once = normalise_answer(text)
    assert normalise_answer(once) == once
    extract_answer(text)
    extract_answer("<answer>" + text + "</answer>")


@given(st.integers(-(10**9), 10**9))
def test_thousands_commas_do_not_matter(value: int) -> None:
    assert answers_match(f"${value:,}.00", str(value))


# --- multiple choice and formulas -------------------------------------------------------------------------------------

QUESTION = "Which one?\n\nA. Measles\nB. A low, dry place\nC. 1,000 mg\nD. A. aegypti"


def test_options_are_the_last_lines() -> None:
    assert options_of(QUESTION) == {"A": "Measles", "B": "A low, dry place", "C": "1,000 mg", "D": "A. aegypti"}
    assert options_of("Which?\n(A) one\n(B) two") == {"A": "one", "B": "two"}
    for problem in ("Tom has 3 apples.", "A. one\nC. three", "A. one", "A. one\nB. two\nWhich?", ""):
        assert options_of(problem) == {}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"), ("b", "B"), ("(B).", "B"), ("**B**", "B"), ("B. A low, dry place", "B"), ("(C) 1000 mg", "C"),
        ("option D", "D"), ("A: Measles", "A"), ("measles", "A"), ("a low dry place", "B"), ("1000 mg", "C"),
        ("\\text{(C)}", "C"), ("B. Measles", "B"),  # the letter counts
        ("E", None), ("A low", None), ("mumps", None), ("B and C", None), ("", None),
    ],
)  # fmt: skip
def test_an_option_is_named_by_letter_or_text(answer: str, letter: str | None) -> None:
    assert option_letter(answer, options_of(QUESTION)) == letter


def test_a_text_that_fits_two_options_names_neither() -> None:
    assert option_letter("3 pears", {"A": "3 apples", "B": "3 plums"}) is None
    assert option_letter("3 pears", {"A": "3 apples", "B": "4 plums"}) == "A"  # its only number


def test_the_answer_of_a_completion_is_a_letter_only_for_multiple_choice() -> None:
    assert read_answer("<think>\nx\n</think>\n<answer>\nmeasles\n</answer>", QUESTION) == "A"
    assert read_answer("A: it is not measles\nThe answer is (B).", QUESTION) == "B"
    assert read_answer("The answer is mumps.", QUESTION) == "mumps"  # given, and wrong
    assert read_answer("I don't know", QUESTION) is None
    assert read_answer(WELL_FORMED, "How many?") == "17"


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("\\sqrt{16}", "4", True), ("x=\\frac{6}{2}", "3", True), ("2\\times 10^{3}", "2000", True),
        ("\\frac{\\pi}{2}", "\\pi/2", True), ("\\left(1,2\\right)", "(1,2)", True), ("\\sqrt{2}", "2", False),
        ("\\sqrt{" + "1" * 300 + "}", "2", False),
    ],
)  # fmt: skip
def test_formulas_are_compared_by_value(left: str, right: str, same: bool) -> None:
    pytest.importorskip("math_verify", reason="math-verify is not installed here")
    assert answers_match(left, right) is same
