"""Figures of policies, against hand-worked tables."""

import math
from dataclasses import replace

import pytest
from scipy.stats import entropy as scipy_entropy

from rairl.core.errors import RairlError
from rairl.core.traces import Trace, locate_steps, write_traces
from rairl.evaluate.candidates import (
    candidates_path,
    first_questions,
    logprob,
    meta_number,
    read_candidates,
    require_answered,
    splits_of,
    temperature_label,
)
from rairl.evaluate.pass_at_k import (
    at_equal_length,
    compare,
    compare_at_equal_length,
    diversity,
    greedy_figure,
    pass_at_k_per_question,
    powers_of_two,
    process_right,
    rates,
    sample_figures,
    samples_per_question,
)


def solved(question: str, number: int, *, right: bool, error: int | None = None, labelled: bool = True) -> Trace:
    text = f"<think>\none\ntwo\n</think>\n<answer>\n{'7' if right else '8'}\n</answer>"
    return Trace(
        id=f"{question}/{number}",
        problem=f"problem {question}",
        text=text,
        steps=locate_steps(text, ["one", "two"]),
        answer="7" if right else "8",
        gold="7",
        correct=right,
        first_error=error,
        labelled=labelled,
        group=question,
        meta={"logprob": -6.0, "tokens": 12},
    )


def sampled(**rights: list[bool]) -> list[Trace]:
    return [solved(q, i, right=right) for q, row in rights.items() for i, right in enumerate(row)]


def test_pass_at_k_per_question_by_hand():
    traces = sampled(a=[True, False, False, False], b=[False] * 4, c=[True, True, False, False])
    assert pass_at_k_per_question(traces, 1) == {"a": 0.25, "b": 0.0, "c": 0.5}
    assert pass_at_k_per_question(traces, 2) == {"a": pytest.approx(0.5), "b": 0.0, "c": pytest.approx(5 / 6)}
    assert pass_at_k_per_question(traces, 4) == {"a": 1.0, "b": 0.0, "c": 1.0}
    with pytest.raises(RairlError, match="pass@5"):
        pass_at_k_per_question(traces, 5)


def test_ks_go_up_to_the_scarcest_question():
    assert powers_of_two(16) == [1, 2, 4, 8, 16]
    assert powers_of_two(12) == [1, 2, 4, 8, 12]
    assert powers_of_two(1) == [1]
    assert samples_per_question(sampled(a=[True] * 3, b=[True] * 2)) == 2


def test_a_right_answer_by_a_wrong_step_is_not_a_right_process():
    traces = [
        solved("a", 0, right=True),
        solved("a", 1, right=True, error=1),
        solved("a", 2, right=False, error=0),
        solved("a", 3, right=False, labelled=False),
    ]
    assert process_right(traces) == [True, False, False, False]
    assert process_right([*traces, solved("a", 4, right=True, labelled=False)]) is None


def test_sample_figures(tmp_path):
    traces = sampled(a=[True, False], b=[True, True])
    figures = sample_figures(traces, "posttrain.sft", tmp_path / "f", [1, 2], draws=200, seed=0)
    assert set(figures) == {
        f"posttrain.sft.{name}"
        for name in ("pass@1", "pass@2", "exact", "process@1", "format", "length", "loose_form", "wrong_answer",
                     "no_answer", "distinct", "answer_entropy", "entropy")
    }  # fmt: skip
    assert figures["posttrain.sft.entropy"].value == 0.5, "6 nats over 12 tokens"
    colder = sample_figures(traces, "posttrain.sft", tmp_path / "f", [1], draws=100, seed=0, temperature=0.5)
    assert "posttrain.sft.entropy" not in colder, "of colder samples it would not be the policy's entropy"
    assert figures["posttrain.sft.pass@1"].value == 0.75
    assert figures["posttrain.sft.pass@1"].n == 2
    assert figures["posttrain.sft.pass@2"].value == 1.0
    assert figures["posttrain.sft.exact"].value == 0.75
    assert figures["posttrain.sft.length"].value == 12


def test_lenient_and_exact_checker_part_ways_on_form(tmp_path):
    text = "one\nThe answer is 7.0"
    loose = Trace(
        "q/0", "p", text, locate_steps(text, ["one"]), "7.0", "7", True, group="q", meta={"tokens": 5, "logprob": -1.0}
    )
    figures = sample_figures([loose], "x", tmp_path / "f", [1], draws=100, seed=0)
    assert figures["x.pass@1"].value == 1
    assert figures["x.exact"].value == 0
    assert "x.process@1" not in figures
    assert set(rates([loose])) == {"pass@1"}


def test_unreadable_answers_lower_the_format_rate(tmp_path):
    mute = Trace(
        "q/0", "p", "no end", answer=None, gold="7", correct=False, group="q", meta={"tokens": 3, "logprob": -1.0}
    )
    figures = sample_figures([mute, *sampled(a=[True])], "x", tmp_path / "f", [1], draws=100, seed=0)
    assert figures["x.format"].value == 0.5


def test_what_becomes_of_a_sample_adds_up_to_one(tmp_path):
    text = "one\nThe answer is 7.0"
    meta = {"tokens": 5, "logprob": -1.0}
    loose = Trace("q/0", "p", text, locate_steps(text, ["one"]), "7.0", "7", True, group="q", meta=meta)
    mute = Trace("q/1", "p", "no end", answer=None, gold="7", correct=False, group="q", meta=meta)
    traces = [loose, mute, *sampled(q=[True, False, False])]
    figures = sample_figures(traces, "x", tmp_path / "f", [1], draws=100, seed=0)
    values = {name: figures[f"x.{name}"].value for name in ("exact", "loose_form", "wrong_answer", "no_answer")}
    assert values == pytest.approx({"exact": 0.2, "loose_form": 0.2, "wrong_answer": 0.4, "no_answer": 0.2})


def test_diversity_by_hand():
    found = diversity(sampled(a=[True, True, True, False], b=[True, True]))
    assert found["distinct"] == {"a": 0.5, "b": 0.5}
    assert found["answer_entropy"]["a"] == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert found["answer_entropy"]["b"] == 0
    assert found["answer_entropy"]["a"] == pytest.approx(scipy_entropy([3, 1]))


def test_accuracy_at_equal_length_by_hand(tmp_path):
    def long(traces, *tokens):
        return [replace(trace, meta={**trace.meta, "tokens": n}) for trace, n in zip(traces, tokens, strict=True)]

    first = long(sampled(a=[True, False], b=[True]), 100, 40, 10)
    second = long(sampled(a=[False, True, True], b=[True]), 102, 96, 41, 90)
    paths = tmp_path / "f", tmp_path / "g"
    # a: 100 beside 102 and 96, 40 beside 41: right 1, 1, 0 against 0, 1, 1; b has no two of equal length.
    assert at_equal_length(first, second, paths) == {"a": (pytest.approx(2 / 3), pytest.approx(2 / 3))}
    traces, files = {"rairl": first, "sft": second}, dict(zip(("rairl", "sft"), paths, strict=True))
    figures = compare_at_equal_length(traces, files, draws=100, seed=0)
    assert set(figures) == {"posttrain.rairl-sft.equal_length", "posttrain.rairl-sft.equal_length.p"}
    assert figures["posttrain.rairl-sft.equal_length"].value == pytest.approx(0)
    assert compare_at_equal_length({"rairl": first[2:], "sft": second[3:]}, files, draws=100, seed=0) == {}


def test_greedy_accuracy():
    assert greedy_figure(sampled(a=[True], b=[False], c=[True]), draws=100, seed=0).value == pytest.approx(2 / 3)


def test_policies_are_compared_on_the_same_questions():
    sft = sampled(**{f"q{i}": [False, i % 2 == 0] for i in range(40)})
    rairl = sampled(**{f"q{i}": [True, i % 2 == 0] for i in range(40)})
    policies = {"sft": rates(sft), "rairl": rates(rairl)}
    figures = compare(policies, "", draws=500, seed=0)
    assert set(figures) == {
        f"posttrain.rairl-sft.{metric}{end}" for metric in ("pass@1", "process@1") for end in ("", ".p")
    }
    assert figures["posttrain.rairl-sft.pass@1"] == (0.5, 0.5, 0.5, 40)
    assert figures["posttrain.rairl-sft.pass@1.p"].value < 0.001
    for place in ("ood_x", "t0.5"):
        assert f"posttrain.rairl-sft.{place}.pass@1" in compare(policies, place, draws=100, seed=0)
    with pytest.raises(RairlError, match="'q39'"):
        compare({"sft": rates(sft[:-2]), "rairl": rates(rairl)}, "", draws=100, seed=0)


def test_a_right_answer_by_wrong_steps_counts_for_pass_but_not_for_process():
    guessed = [solved("a", 0, right=True, error=1), solved("a", 1, right=True), solved("b", 0, right=False, error=0)]
    assert rates(guessed) == {"pass@1": {"a": 1.0, "b": 0.0}, "process@1": {"a": 0.5, "b": 0.0}}
    clean = [solved("a", 0, right=True), solved("b", 0, right=False, error=0)]
    figures = compare({"sft": rates(guessed), "rairl": rates(clean)}, "", draws=100, seed=0)
    assert figures["posttrain.rairl-sft.pass@1"].value == 0
    assert figures["posttrain.rairl-sft.process@1"].value == 0.25


def test_a_missing_logprob_is_an_error_that_names_file_and_trace(tmp_path):
    trace = Trace("q/3", "p", "text", group="q", meta={"tokens": 4})
    with pytest.raises(RairlError, match=r"sft\.test\.jsonl: trace 'q/3': field 'meta.logprob' is missing"):
        logprob(trace, tmp_path / "sft.test.jsonl", mean=True)
    broken = Trace("q/3", "p", "text", group="q", meta={"logprob": float("nan"), "tokens": 4})
    with pytest.raises(RairlError, match="is nan"):
        meta_number(broken, "logprob", tmp_path / "f")
    fine = Trace("q/3", "p", "text", group="q", meta={"logprob": -8.0, "tokens": 4})
    assert logprob(fine, tmp_path / "f", mean=True) == -2.0
    assert logprob(fine, tmp_path / "f", mean=False) == -8.0
    with pytest.raises(RairlError, match="at least 1"):
        logprob(Trace("q", "p", "t", meta={"logprob": -8.0, "tokens": 0}), tmp_path / "f", mean=True)


def test_candidates_files(tmp_path):
    for name in ("sft.ood_b", "sft.ood_a", "sft.test", "sft.test.greedy", "sft.dev", "rairl.test"):
        (tmp_path / f"{name}.jsonl").touch()
    assert splits_of(tmp_path, "sft") == ["test", "ood_a", "ood_b"]
    assert splits_of(tmp_path, "rairl") == ["test"]
    assert candidates_path(tmp_path, "sft", "test", "greedy").exists()
    assert candidates_path(tmp_path, "sft", "test", temperature_label(0.5)).name == "sft.test.t0.5.jsonl"
    write_traces(tmp_path / "x.jsonl", [Trace("q/0", "p", "text", group="q")])
    with pytest.raises(RairlError, match="trace 'q/0' has no 'correct'"):
        read_candidates(tmp_path / "x.jsonl")


def test_the_first_questions_are_kept_whole():
    traces = sampled(a=[True, False], b=[True], c=[False])
    assert [trace.id for trace in first_questions([traces[2], *traces], 2)] == ["b/0", "a/0", "a/1", "b/0"]
    assert first_questions(traces, 9) == traces


def test_candidates_must_cover_the_questions(tmp_path):
    write_traces(tmp_path / "test.jsonl", [Trace("a", "pa", gold="1"), Trace("b", "pb", gold="1")])
    require_answered(sampled(a=[True], b=[True]), tmp_path / "test.jsonl", tmp_path / "c")
    with pytest.raises(RairlError, match="no candidate for question 'b'"):
        require_answered(sampled(a=[True]), tmp_path / "test.jsonl", tmp_path / "c")
    with pytest.raises(RairlError, match="unknown question 'z'"):
        require_answered(sampled(a=[True], b=[True], z=[True]), tmp_path / "test.jsonl", tmp_path / "c")
