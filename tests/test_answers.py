import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rairl.text.answers import (
    answers_match,
    extract_answer,
    format_number,
    grade,
    group_answers,
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
        ("12,34", Fraction(617, 50)),
        ("abc", None),
        ("", None),
        ("7" * 61, None),
        ("1e5", 100000),
        ("5 km", None),
        ("x^2", None),
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


# --- kinds of input that went wrong elsewhere: as reported by users of other graders, and their neighbours ------------

MATCHES: dict[str, list[tuple[str, str, bool]]] = {
    "mixed numbers": [
        (r"1\frac{1}{2}", "5.5", False), (r"1\frac{1}{2}", "1.5", True), (r"-1\frac12", "-1.5", True),
        (r"2 \dfrac{3}{4}", "11/4", True), ("2 1/2", "2.5", True), ("2½", "2.5", True), ("3 ⅓ cups", "10/3", True),
        (r"1\frac{1}{2}", r"\frac{11}{2}", False), (r"12\frac{1}{2}\%", "12.5", True), (r"0.\overline{3}", "1/3", True),
        (r"0.1\overline{6}", r"\frac{1}{6}", True),
    ],
    "one number is not the whole answer": [
        ("(1,2)", "(1,7)", False), ("1,2,3", "1,5,9", False), ("[2,5)", "2", False), (r"\{1,2\}", r"\{1,3\}", False),
        ("(1, 2)", "(1,2)", True), ("x^2", "2", False), ("√2", "2", False), ("sqrt(2)", "2", False), ("5!", "5", False),
        ("x^2", "y^2", False), ("log 2", "2", False), ("Type 2 diabetes", "Type 2 hypersensitivity", False),
        (r"1 - \frac{1}{\mathrm{e}}", r"1 + \frac{1}{\mathrm{e}}", False), ("COVID-19", "19 days", False),
        ("stage 2 lung cancer", "stage 2 breast cancer", False),
        (r"1 - \frac{1}{\mathrm{e}}", r"1-\frac{1}{e}", True), ("[2,5)", "(2,5]", False), ("(1,2)", "(2,1)", False),
        (r"\{1,2\}", r"\{2, 1\}", True), ("1 and 2", "1, 2", True), ("2 or 3", "2", False), ("x=5", "5", True),
        ("x=5", "y=5", False), ("x^2=4", "4", False), ("3 + 4 = 7", "7", True), ("Type 2 diabetes", "2", False),
        ("type 2 Diabetes", "Type 2 diabetes", True), ("19th", "19", False), ("10:30", "10", False),
        ("Article 6 GDPR", "Article 6 ECHR", False), ("§ 230", "230 days", False), ("Section 12(b)", "12", False),
        ("the 4th Amendment", "4", False), ("IL-2", "2", False), ("vitamin B12", "12", False), ("H1N1", "N1H1", False),
        ("5 ml of saline", "5 ml of water", False), ("3 pears", "3 apples", False), ("42 apples", "42", True),
        ("Tom has 42 apples", "42", True), ("2x", "2", False), ("x+1", "1+x", True), ("|x|", "x", False),
        (r"\Delta", r"\delta", False), ("2^{100}", "2^{100}+1", False), ("1, 2, 3, ...", "1, 2, 3", False),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 3 \end{pmatrix}", False), ("1/2/3", "1", False),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", True), ("> 5", "5", False),
        ("at least 5", "5", False), ("5 or more", "5", False), ("5 and a half", "5", False),
        ("1.8 billion", "1.8", False),
        ("第3项", "3", False), ("3到5", "3", False), ("§ 5 Abs. 2", "§ 5 Abs. 3", False),
    ],
    "units": [
        ("72cm", "72", True), ("12 m^2", "12", True), ("10km/h", "10", True), ("$5/hour", "5", True),
        ("12m^2", "2", False), ("72cm", "72m", False), ("5 kg", "5 g", False), ("1 m", "100 cm", False),
        ("12 m²", "12 square meters", True), ("10 miles per hour", "10 mph", True),
        ("$5/hour", "5 dollars per hour", True),
        ("$5", "5 dollars", True), ("$5", "€5", False), ("$5", "5 kg", False), ("5 km", "5 km/h", False),
        (r"12\,\text{cm}", "12 cm", True), (r"30^\circ", "30 degrees", True), ("37 °C", "37", True),
        ("37 °C", "37 °F", False), ("50%", "50", True), ("50%", "50 percent", True), ("50%", "0.5", False),
        (r"50\%", "50%", True), ("5 mg/dL", "5 mmol/L", False), ("120 mmHg", "120", True), ("3,50 €", "3.5", True),
        ("20 Stunden", "20 hours", True), ("14个", "14", True), ("14元", "14", True), ("14 元", "14 yuan", True),
        ("5 litres of water", "5 litres", True), ("approx. 5 litres", "5", True), ("19 days", "19 years", False),
        ("2 μg", "2 mcg", True), ("6 ft", "6 feet", True), ("$1,000.00", "1000", True), ("5 (five)", "5", True),
    ],
    "notations": [
        ("1e6", "1000000", True), ("1.5 × 10^6", "1500000", True), ("10^6", "1000000", True), ("1 000", "1000", True),
        ("3,5", "3.5", True), ("1.234,56", "1234.56", True), ("3,5", "3", False), ("1,234", "1234", True),
        ("1\u00a0000", "1000", True), ("1\u202f234,5", "1234.5", True), ("1'000", "1000", True),
        ("1,00,000", "100000", True), ("1.234.567", "1234567", True), ("0,333", "333", False), ("0,333", "0.333", True),
        (r"1{,}000", "1000", True), (r"10\,000", "10000", True), (r"1.5 \times 10^{-3}", "0.0015", True),
        ("1.5 x 10^6 m", "1.5e6", True), ("1.8 billion", "1800000000", True), ("2 dozen", "24", True),
        ("3,5 Millionen", "3500000", True), ("3万", "30000", True), ("１４", "14", True), ("−3", "-3", True),
        ("3, 5", "3.5", False), ("3, 5", "3,5", True), ("1, 234", "1234", False), ("1.234", "1234", False),
        (r"\frac{\sqrt2}{2}", "0.707107", True), (r"\pi", "3.14", False), ("2^10", "1024", True),
    ],
    "empty": [
        ("", "", False), ("", "5", False), ("5", "", False), (" ", "  ", False), (".", ",", False), ("$$", "**", False),
        ("<answer></answer>", "", False), ("0", "", False), ("0", "0", True), ("?", "?", True),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("one", "other", "same"), [row for rows in MATCHES.values() for row in rows])
def test_answers_are_equal_as_wholes_and_both_ways_round(one: str, other: str, same: bool) -> None:
    pytest.importorskip("math_verify", reason="math-verify is not installed here")
    assert answers_match(one, other) is same
    assert answers_match(other, one) is same
    assert answers_match(one, one) is bool(one.strip())


READ: dict[str, list[tuple[str, str | None]]] = {
    "position": [
        ("<think>\nmaybe \\boxed{7}\n</think>\nThe answer is 12.", "12"),
        ("<think>\nMaybe the answer is 7. Wait, let me", None), ("work \\boxed{2}, final answer: 3", "3"),
        ("The answer is 3. No: \\boxed{2}", "2"), ("#### 3\nThe answer is 4.", "4"), ("Answer: 3\n#### 4", "4"),
        ("The answer is 7.\n</think>\n\nThe answer is 14.", "14"), ("<think>\nThe answer is 7.\n</think>", "7"),
        ("<think>a</think>The answer is 3. <think>Or is the answer 4? The answer is 4", None),
        ("<think>\n<answer>7</answer>?\n</think>\n<answer>8</answer>", "8"), ("The answer is 3. \\boxed{4", None),
        ("\\boxed{7}. The answer is obtained by adding the numbers 3 and 4.", "7"),
        ("The answer is 6. The answer is not 5.", "6"), ("\\boxed{2}\n\n**Final Answer**\n3", "3"),
        ("Die Antwort ist 3. Korrektur: Die Antwort ist 4.", "4"), ("答案是3。不对，答案是4。", "4"),
        ("<think>\n3 + 4 = 7\n<answer>\n7\n</answer>", "7"), ("<answer\n7\n</answer>", None),
    ],
    "marks": [
        ("**Answer**: 4.", "4"), ("**Final Answer**\n73", "73"), ("The final answer is:\n\n73", "73"),
        ("Answer = 73", "73"), ("Answer：14", "14"), ("The answer is approx. 5 litres.", "approx. 5 litres"),
        ("The answer is St. Louis.", "St. Louis"), ("**Answer:** 4", "4"), ("__Answer__: 4", "4"), ("ANSWER: 42", "42"),
        ("### Final Answer\n\n\\[\n73\n\\]", "73"), ("So the answer is\n\n$$73$$", "73"),
        ("Answer (in dollars): 42", "42"),
        ("The answer to the question is 5.", "5"), ("The answer is therefore 5.", "5"),
        ("The answers are 2 and 3.", "2 and 3"),
        ("The answer is 5 because 2 + 3 = 5.", "5"), ("The answer is Dr. Smith. He signed.", "Dr. Smith"),
        ("Final Answer: The final answer is $\\frac{1}{2}$. I hope it is correct.", "$\\frac{1}{2}$"),
        ("Answer:\nLet's think step by step.\nSo 7.", None), ("The answer is $1,000.50.", "$1,000.50"),
        ("Die Antwort ist 3,5.", "3,5"), ("Antwort: 1.234,56", "1.234,56"), ("Lösung: 42", "42"),
        ("Die Antwort lautet 7 Äpfel. Fertig.", "7 Äpfel"), ("**Ergebnis:** 12 cm", "12 cm"), ("答案是14。", "14"),
        ("答案：14", "14"), ("所以答案为 \\boxed{14}。", "14"), ("最终答案：14", "14"), ("答：14个。", "14个"),
        ("I answer the phone 3 times", None), ("She gave an answer. It was 3.", None),
    ],
    "boxes": [
        ("\\fbox{5}", "5"), ("\\boxed {5}", "5"), ("\\boxed5", "5"), ("\\framebox{5}", "5"), ("$\\boxed{ 5 }$", "5"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"), ("\\boxed{\\left\\{1\\right.}", "\\left\\{1\\right."),
        ("\\boxed{\\text{Type 2}}", "\\text{Type 2}"), ("\\boxed{1} or \\fbox{2}", "2"), ("\\boxed{}", None),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("text", "answer"), [row for rows in READ.values() for row in rows])
def test_the_last_mark_counts_whatever_it_looks_like(text: str, answer: str | None) -> None:
    assert read_answer(text, "How many?") == answer


COLOURS = "Which?\nA. red\nB. blue\nC. green\nD. grey"
LETTERS = [
    ("\\boxed{\\langle H\\rangle \\ll \\Delta E} holds.\n\n**Answer: D**", "D"),
    ("The answer is C because it is so.", "C"),
    ("B — a safe choice", "B"), ("B - blue", "B"), ("I think it is C", "C"), ("\\boxed{\\textbf{C}}", "C"),
    ("\\boxed{\\mathbf{C}}", "C"), ("\\boxed{\\mathrm{(C)}}", "C"), ("The answer is B — a safe choice.", "B"),
    ("The answer is B - blue.", "B"), ("\\boxed{\\text{(C) green}}", "C"), ("\\boxed{\\textbf{(C)}\\ green}", "C"),
    ("Answer: C: green", "C"), ("The answer is C, since it is so.", "C"), ("C", "C"), ("**C. green**", "C"),
    ("Option C is correct.", "C"), ("The correct option is C.", "C"), ("C is correct.", "C"),
    ("This is option (C).", "C"),
    ("I would go with C.", "C"), ("The best answer would be (C) green.", "C"), ("Final Answer:\nC. green", "C"),
    ("The answer is B (blue).", "B"), ("The answer is blue.", "B"), ("答案：C", "C"), ("故选C。", "C"),
    ("答案选C", "C"),
    ("正确答案是 C。", "C"), ("Die richtige Antwort ist C.", "C"), ("Antwort: C, weil es grün ist.", "C"),
    ("The answer is a cat.", "a cat"), ("A cat", None), ("The answer is B and C.", "B and C"), ("A is wrong.", None),
    ("I don't know", None), ("Red is warm. It is a colour.", None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "letter"), LETTERS)
def test_a_letter_is_read_however_it_is_dressed(text: str, letter: str | None) -> None:
    assert read_answer(text, COLOURS) == letter


def test_equal_answers_share_a_group() -> None:
    pytest.importorskip("math_verify", reason="math-verify is not installed here")
    root = [r"\frac{\sqrt2}{2}", r"\frac{1}{\sqrt2}", "2^{-1/2}"]
    groups = group_answers([*root, "0.7", "0.70", None, "", "1,000", "$1000.00", "5 kg", "5 g", "(1,2)", "(1, 2)"])
    assert len(set(groups[:3])) == 1 and groups[3] == groups[4] == "0.7" != groups[0]
    assert groups[5:9] == [None, None, "1000", "1000"]
    assert groups[9] != groups[10] and groups[11] == groups[12]


def test_formulas_are_compared_off_the_main_thread() -> None:
    pytest.importorskip("math_verify", reason="math-verify is not installed here")
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(answers_match, "\\sqrt{25}", "5").result()
        assert not pool.submit(answers_match, "(\\sqrt{25}, 1)", "(5, 2)").result()
        assert pool.submit(answers_match, "\\{\\sqrt{25}, 1\\}", "\\{1, 5\\}").result()


@pytest.mark.parametrize(
    "answer",
    [
        "9^{9^9}", "9^{9^{9^{9}}}", "1000000000!", "((99!)!)!", "e^{e^{e^{e^{e^{9}}}}}", "x^{x^{x^{x^{1000}}}}",
        "1" * 5000,
        "\\binom{1000000000}{500000000}", "\\sum_{k=1}^{1000000000} k", "\\int_0^1 x^x dx", "(" * 190, "2^" * 90 + "2",
        "(x+y+z)^{100000}", "\\{9^{9^9}, 2\\}", "x^{9}=\\sin(x)", "1e99999999",
        "\\log(\\begin{pmatrix}1\\\\2\\end{pmatrix})", "9**9**9**9",
        "\\sqrt{" * 60 + "2" + "}" * 60,
    ],
)  # fmt: skip
def test_nothing_hangs(answer: str) -> None:
    pytest.importorskip("math_verify", reason="math-verify is not installed here")
    start = time.perf_counter()
    for gold in ("3", "\\frac{x}{2}", "(1, 2)", "x=2"):
        assert not answers_match(answer, gold)
    assert time.perf_counter() - start < 10


def test_a_written_answer_keeps_its_case_and_its_value() -> None:
    assert normalise_answer(r"1\frac{1}{2}") == "1.5"
    assert normalise_answer("**St. Louis**.") == "St. Louis"
    assert normalise_answer("42 apples") == "42"
