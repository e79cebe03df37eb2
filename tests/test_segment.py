import pytest
from hypothesis import given
from hypothesis import strategies as st

from rairl.core.errors import RairlError
from rairl.core.traces import Step, locate_steps
from rairl.text.segment import compose, guess, merge_numbered, pieces, segment

WORDS = ["Step 2: ", "Mr. ", "<think>", "</think>", "<answer>", "Solution: ", *"ab 3.5!?\n\r\t\"'"]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=40).map("".join)
HOWS = st.sampled_from(["lines", "sentences", "numbered", "tags"])


def texts(text: str, how: str) -> list[str]:
    return [text[step.start : step.end] for step in segment(text, how)]


@given(TEXTS | st.text(max_size=60), HOWS)
def test_gaps_and_steps_rebuild_the_text(text: str, how: str) -> None:
    steps = segment(text, how)
    parts = pieces(text, steps)
    assert "".join(parts) == text
    assert len(parts) == 2 * len(steps) + 1
    assert all(part == part.strip() and part for part in parts[1::2])
    ends = [0, *(step.end for step in steps)]
    assert all(end <= step.start < step.end for end, step in zip(ends, steps, strict=False))


@given(TEXTS, st.sampled_from(["lines", "sentences", "numbered"]))
def test_between_steps_there_is_only_white_space(text: str, how: str) -> None:
    assert all(not gap.strip() for gap in pieces(text, segment(text, how))[::2])


def test_lines() -> None:
    assert texts("  a b\n\n c\r\nd", "lines") == ["a b", "c", "d"]
    assert segment("", "lines") == ()


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("It costs 3.5 dollars. So 2 * 3.5 = 7. Done!", ["It costs 3.5 dollars.", "So 2 * 3.5 = 7.", "Done!"]),
        ("Mr. Lee and Dr. J. Smith came. They left.", ["Mr. Lee and Dr. J. Smith came.", "They left."]),
        ("Some fruit, e.g. apples. Then at 5 p.m. he ate.", ["Some fruit, e.g. apples.", "Then at 5 p.m. he ate."]),
        ("He came at 5 p.m. Then he ate.", ["He came at 5 p.m.", "Then he ate."]),
        ("He took no. 5. It fits.", ["He took no. 5.", "It fits."]),
        ('She said "Stop!" He did.', ['She said "Stop!"', "He did."]),
        ("1. Add them. 2. Multiply.", ["1. Add them.", "2. Multiply."]),
        ("So it is B. Then A fails.", ["So it is B.", "Then A fails."]),
        ("no end\nnew line", ["no end", "new line"]),
        ("Really?! Yes...", ["Really?!", "Yes..."]),
    ],
)
def test_sentences(text: str, steps: list[str]) -> None:
    assert texts(text, "sentences") == steps


def test_numbered_merges_bodies_preamble_and_keeps_the_solution_apart() -> None:
    text = "Let us see.\nStep 1: first\nbody of 1\n\n**Step 2:** second\nStep 10. third\nSolution: B\nso B"
    assert texts(text, "numbered") == [
        "Let us see.\nStep 1: first\nbody of 1",
        "**Step 2:** second",
        "Step 10. third",
        "Solution: B\nso B",
    ]
    assert texts("a\nb", "numbered") == ["a", "b"]


def test_merge_numbered_gives_indices_of_items() -> None:
    items = ["intro", "Step 1: a", "more", "Step 2: b", "tail", "Solution: c"]
    assert merge_numbered(items) == [[0, 1, 2], [3, 4], [5]]
    assert merge_numbered(["Solution: early", "Step 1: a"]) == [[0, 1]]
    assert merge_numbered([]) == []


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("<think>\na\nb\n</think>\n<answer>\n3\n</answer>", ["a", "b"]),
        ("a\nb\n</think>\n<answer>3</answer>", ["a", "b"]),
        ("<think>\na\nb", ["a", "b"]),
        ("<think>a\n<answer>3</answer>", ["a"]),
        ("junk <think> a </think>", ["a"]),
        ("<think></think>", []),
    ],
)
def test_tags(text: str, steps: list[str]) -> None:
    assert texts(text, "tags") == steps


@pytest.mark.parametrize(
    ("text", "how"),
    [
        ("<think>\na\n</think>", "tags"),
        ("a\nb\n<answer>\n4\n</answer>", "tags"),  # the answer's block is no step, whoever left out the other one
        ("Step 1: a\nx\nStep 2: b", "numbered"),
        ("a\nb", "lines"),
        ("A. B. C is so. D is.", "sentences"),
    ],
)
def test_guess(text: str, how: str) -> None:
    assert guess(text) == how


STEP = st.text(alphabet="ab 3.=+\n\t", min_size=1).filter(str.strip)


@given(st.lists(STEP, min_size=1, max_size=6), st.none() | st.just("7"))
def test_composed_text_is_read_back_alike(steps: list[str], answer: str | None) -> None:
    text, spans = compose(steps, answer)
    assert segment(text, "tags") == spans
    assert locate_steps(text[len("<think>\n") :], [text[s.start : s.end] for s in spans]) is not None
    assert text.endswith("</answer>") is (answer is not None)


def test_compose() -> None:
    text, spans = compose(["a  b\nc", "d"], "5")
    assert text == "<think>\na b c\nd\n</think>\n<answer>\n5\n</answer>"
    assert spans == (Step(8, 13), Step(14, 15))


@pytest.mark.parametrize("steps", [[], ["a", " "], ["a</think>"]])
def test_compose_refuses(steps: list[str]) -> None:
    with pytest.raises(RairlError, match="step"):
        compose(steps, None)


# --- how many steps a text shows --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Under sec. 3 the claim fails.", 1),
        ("Smith v. Jones was overruled.", 1),
        ("The U.S. law applies.", 1),
        ("He wrote to J. Smith for help.", 1),
        ("He came on Jan. 5 and left.", 1),
        ("The song (Prod. by Ann Lee) won.", 1),
        ("第一步算3+4=7。然后乘以2得14。", 2),
        ("In Smith v. The Queen the court held otherwise. So it fails.", 2),
        ("See 42 U.S.C. § 1983 and Fed. R. Civ. P. 12(b)(6). The motion fails.", 2),
        ("Brown v. Board of Educ., 347 U.S. 483 (1954), controls. We agree.", 2),
        ("The firm (Acme Corp.) sued Beta Ltd. in 2001. Then it lost.", 2),
        ("Under Art. 5 para. 2 of the Act, see id. at 7, notice is due.", 1),
        ("The plaintiff sued Google Inc. for $5 million. It settled.", 2),
        ("Dr. J. R. R. Tolkien wrote it. He lived in the U.K. Then he died.", 3),
        ("Infections by E. coli and S. aureus differ. The latter forms clusters.", 2),
        ("There are 5! = 120 ways. Dividing by 2! gives 60.", 2),
        ("“Stop!” he said. Then he left.", 2),
        ("Step 1. Add 3 and 4.", 1),
        ("Am 3. Mai kamen z. B. Äpfel, d. h. Obst, an. Dann waren es 5.", 2),
        ("Nach § 3 Abs. 1 S. 2 BGB gilt das bzw. jenes. Also ist es falsch.", 2),
        ("Das kostet ca. 5 Euro usw. und ist teuer.", 1),
        ("为什么？因为3+4=7！所以答案是7。", 3),
        ("他说：“好。”然后他走了。", 2),
        ("设x=3.5。则2x=7。", 2),
        ("He earned a Ph.D. in 1990. She has an M.D. The two met.", 3),
        ("The answer is $5.$ Then we add.", 2),
        ("**So x = 2.** Then y = 3.", 2),
        ("She was born on Feb. 29, 2000, at 5 a.m. in Washington, D.C. with a twin.", 1),
        ("Let x = 2.5. Let y = 3. Then z = 5.5.", 3),
        ("The patient has temp. 38.5 °C, i.e. fever, vs. normal. Give paracetamol.", 2),
        ("Wait... so it is 7. Good.", 2),
        ("See p. 5 and pp. 7–9. It is there.", 2),
        ("We solve for x. Then we solve for y.", 2),
        ("He took 5 of type B. One of type A is left.", 2),
        ("There are A, B, C and D. Passengers board.", 2),
        ("यह पहला है। यह दूसरा है।", 2),
        ("The patient, aged approx. 45 yrs. old, presents with dyspnea. Order a CT.", 2),
        ("Give 5 mg/kg b.i.d. for 7 days. Then stop.", 2),
        ("The H. pylori test was neg. and the stool antigen pos. Treat her.", 2),
        (
            "Per Fed. R. Evid. 403, it may be excluded. See United States v. Smith, 123 F.3d 456 (9th Cir. 1997).",
            2,
        ),
        ("Marbury v. Madison, 5 U.S. (1 Cranch) 137 (1803). It controls.", 2),
        ("Pursuant to 15 U.S.C. Sec. 78j(b), liability attaches. The claim stands.", 2),
        ("The contract (cf. Ex. A, ¶ 4) is void. Hence no duty.", 2),
        ("Mr. and Mrs. Lee paid $3.50 for no. 2 pencils. They got 7.", 2),
        ("She reads 1.5 hrs. a day, i.e. 90 min. per day. In total 10.5 hrs. a week.", 2),
        ("Since f(x) = x^2 - 1, f(2) = 3. Hence n! = 6. Done.", 3),
        ("We have $a_1 = 2$. By induction, $a_n = 2^n$. Q.E.D.", 3),
        ("The answer is (C). Because A. and B. are wrong.", 2),
        ("Therefore, the correct option is D. Glucose is not a lipid.", 2),
        ("Herr Dr. Müller kaufte 3 Äpfel zu je 0,50 €. Er zahlte 1,50 €. Wie viel bleibt?", 3),
        ("Es sind 12 St. à 2 kg, also insg. 24 kg. Antwort: 24 kg.", 2),
        ("Gem. § 433 Abs. 1 BGB ist K zur Zahlung verpflichtet. V. a. ist nichts anderes vereinbart.", 2),
        ("解：设小明有x个苹果。根据题意，x+5=12。所以x=7。", 3),
        ("小红说：“我有3个。”小明问：“真的吗？”她点头。", 3),
        ("第1步：3×4=12；第2步：12÷2=6。答：6个。", 2),
        ("今日は3個買った。明日は2個買う！合計5個です。", 3),
        ("Visit www.example.com. It is free. Version 2.0.1 is out.", 3),
        ("He scored 3 pts. vs. 5 pts. for her. She won.", 2),
        ("At 3 p.m. on Sept. 3rd, Lt. Col. J. B. Smith Jr. left. Nobody saw him.", 2),
        ("In the U.S. Supreme Court, Justice S. Day O'Connor wrote. It was 1981.", 2),
        ("Why? Because 2 + 2 = 4. OK!", 3),
        ("1. First, add. 2. Then, divide. 3. Done.", 3),
        ("a) 3 + 4 = 7. b) 7 * 2 = 14.", 2),
        ("The mean is 3.2 (SD 0.4). The median is 3.", 2),
        ("E.g. 3 + 4 = 7. I.e. seven.", 2),
        ('He said, "It is 5." She said, "No."', 2),
    ],
)
def test_sentences_end_where_a_reader_would_end_them(text: str, count: int) -> None:
    assert len(texts(text, "sentences")) == count


@pytest.mark.parametrize(
    ("text", "count"),
    [
        # a chat template has written <think>, or an empty block was written
        ("3 + 4 = 7\n7 * 2 = 14\n</think>\n\nThe answer is 14.", 2),
        ("So the claim fails. It is late.\nIt is barred.\n</think>\n**Answer:** B", 2),
        ("\n3 + 4 = 7\n</think>\n<answer>\n7\n</answer>", 1),
        ("</think>\n3 + 4 = 7\n7 * 2 = 14", 2),
        ("<think>\n\n</think>\n\n3 + 4 = 7\n7 * 2 = 14\n\n<answer>14</answer>", 2),
        ("3 + 4 = 7\n</think>\nI <think> so", 1),
        ("第一步：3+4=7\n第二步：7*2=14\n</think>\n答案是14。", 2),
        ("<think></think>", 0),
        # what marks a block is no step
        ("We get\n\\[\nx = 1\n\\]\nso x is 1.", 3),
        ("Run\n```python\nx = 1\n```\nDone.", 3),
        ("We get\n$$\nx = 1\n$$\nso.", 3),
        ("We get\n\\begin{align*}\nx &= 1 \\\\\ny &= 2\n\\end{align*}\nso.", 4),
        ("a = 1\n---\nb = 2\n***\nc = 3", 3),
        ("| a | b |\n|---|:-:|\n| 1 | 2 |", 2),
        ("First\n~~~\ncode\n~~~\nlast", 3),
        ("x = 1\n\\],\ny = 2", 2),
        ("<details>\n<summary>\nwork\n</summary>\na = 1\n</details>", 2),
        ("\\[ x = 1 \\]\n\\[ y = 2 \\]", 2),
        ("    ```\n    a = 1\n    ```\nb = 2", 2),
        ("- \na\n-\nb", 2),
        # nor is what can't be seen
        ("a = 3\n\u200b\nb = 4", 2),
        ("a = 3\n\ufeff\nb = 4", 2),
        ("a = 3\n\u2060\u200d\nb = 4", 2),
        ("a = 3\n\xad\nb = 4", 2),
        ("a = 3\n \u200e \nb = 4", 2),
        ("a = 3\n\u2800\nb = 4", 2),
        ("a = 3\n\x00\nb = 4", 2),
        ("\ufeffa = 3\nb = 4\u200b", 2),
        ("a = 3\u2028b = 4", 2),
    ],
)
def test_only_what_says_something_is_a_step(text: str, count: int) -> None:
    found = texts(text, guess(text))
    assert len(found) == count
    assert not any("think>" in step and "I " not in step for step in found)
    assert not any("\u200b" in step or "\ufeff" in step for step in found)


def test_given_steps_may_leave_markup_between_them() -> None:
    text = "We get\n\\[\nx = 1\n\\]\n\u200b\nso x is 1."
    steps = texts(text, "lines")
    assert steps == ["We get", "x = 1", "so x is 1."]
    assert locate_steps(text, steps) == segment(text, "lines")
    with pytest.raises(RairlError, match="do not rebuild"):
        locate_steps(text, [steps[0], steps[2]])


@pytest.mark.parametrize("step", ["\u200b", "\ufeff \u2060"])
def test_a_step_that_can_not_be_seen_is_refused(step: str) -> None:
    with pytest.raises(RairlError, match=r"steps\[1\]"):
        compose(["a", step], None)
