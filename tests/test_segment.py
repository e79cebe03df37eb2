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
