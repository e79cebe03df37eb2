"""What a reviewer marked comes back: as negatives from the first wrong step on, and as natural errors on dev."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rairl.core.errors import RairlError
from rairl.core.params import Params, load_params
from rairl.core.traces import Trace, read_traces, write_traces
from rairl.core.training_params import RewardParams
from rairl.evaluate.calibrate import Dev, dev_scores
from rairl.learn.discriminator_batch import DiscriminatorBatch, compose
from rairl.learn.learned_reward import LearnedReward
from rairl.models.reads import Scores
from rairl.models.reward import new_reward
from rairl.stages.prepare import prepare
from rairl.tracking.run import NullRun

STEPS = ["1 + 2 = 3", "3 + 4 = 8", "8 - 1 = 7"]


def marked(key: str, problem: str, first_error: int | None = 1, **more: Any) -> Trace:
    row = {"id": key, "problem": problem, "steps": STEPS, "first_error": first_error, "labelled": True, **more}
    return Trace.from_json(row)


# --- prepare ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., Params]:
    """Parameters over four small files and labels."""

    def build(labels: list[Trace] = [], dev_labels: list[Trace] = []) -> Params:  # noqa: B006
        answered = {"answer": "3", "gold": "3"}
        splits = {
            "demos": [Trace.from_json({"id": "d", "problem": "one", "steps": ["1 + 2 = 3"], **answered})],
            "prompts": [Trace("p", "two", gold="3")],
            "dev": [Trace.from_json({"id": "v", "problem": "three", "steps": ["1 + 2 = 3"], **answered})],
            "test": [Trace("t", "four", gold="3")],
            "labels": labels,
            "dev_labels": dev_labels,
        }
        for name, traces in splits.items():
            write_traces(tmp_path / f"{name}.jsonl", traces)
        dataset: dict[str, Any] = {"name": "file"}
        dataset |= {name: str(tmp_path / f"{name}.jsonl") for name in ("demos", "prompts", "dev", "test")}
        for name in ("labels", "dev_labels"):
            if splits[name]:
                dataset[name] = [str(tmp_path / f"{name}.jsonl")]
        values = load_params(Path(__file__).with_name("miniature.yaml")).model_dump()
        return Params.model_validate({**values, "dataset": dataset})

    return build


def test_labels_become_splits_of_their_own(files: Callable[..., Params], tmp_path: Path) -> None:
    comment = replace(marked("c", "two", None), labelled=False, meta={"comment": "not sure"})
    params = files([marked("a", "one"), marked("b", "two", None), comment], [marked("e", "three", 2)])
    figures = prepare(params, NullRun(), data=tmp_path / "data")
    assert figures["data.labels_train.rows"].value == 2
    assert read_traces(tmp_path / "data" / "labels_train.jsonl") == [marked("a", "one"), marked("b", "two", None)]
    assert read_traces(tmp_path / "data" / "labels_dev.jsonl") == [marked("e", "three", 2)]
    card = json.loads((tmp_path / "data" / "card.json").read_text())
    assert card["splits"]["labels_train"]["with_error"] == 1
    assert card["notes"]["labels_train"]["left_out"] == [f"{tmp_path}/labels.jsonl, line 3: no label, only a comment"]


def test_without_labels_there_are_no_such_splits(files: Callable[..., Params], tmp_path: Path) -> None:
    prepare(files(), NullRun(), data=tmp_path / "data")
    assert not list((tmp_path / "data").glob("labels_*"))


@pytest.mark.parametrize(
    ("labels", "dev_labels", "message"),
    [
        ([marked("a", "four")], [], "splits 'test' and 'labels_train' share 1 problems"),
        ([marked("a", "three")], [], "splits 'dev' and 'labels_train' share 1 problems"),
        ([], [marked("a", "one")], "splits 'demos' and 'labels_dev' share 1 problems"),
        ([marked("a", "five")], [marked("b", "five")], "splits 'labels_train' and 'labels_dev' share 1 problems"),
        ([replace(marked("a", "one", None), labelled=False)], [], r"labels\.jsonl has no label; mark the first wrong"),
        ([Trace("a", "one", "well", labelled=True)], [], "trace 'a' has no steps, so its label says nothing"),
    ],
)
def test_labels_that_cannot_be_used(
    files: Callable[..., Params], tmp_path: Path, labels: list[Trace], dev_labels: list[Trace], message: str
) -> None:
    with pytest.raises(RairlError, match=message):
        prepare(files(labels, dev_labels), NullRun(), data=tmp_path / "data")


def test_two_reviewers_of_one_trace_must_be_reconciled(files: Callable[..., Params], tmp_path: Path) -> None:
    params = files([marked("a", "one")])
    write_traces(tmp_path / "second.jsonl", [marked("a", "one", 2)])
    dataset = params.dataset.model_copy(update={"labels": [*params.dataset.labels, str(tmp_path / "second.jsonl")]})  # type: ignore[union-attr]
    with pytest.raises(RairlError, match=r"second\.jsonl: trace 'a' is labelled in .*labels\.jsonl, too; keep one"):
        prepare(params.model_copy(update={"dataset": dataset}), NullRun(), data=tmp_path / "data")


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def learner(tiny_policy: Path, miniature: Params, demos: list[Trace]) -> Callable[..., LearnedReward]:
    def build(labelled: list[Trace], **changes: Any) -> LearnedReward:
        params = RewardParams(**{**miniature.reward.model_dump(), "dropout": 0.0, **changes})
        return LearnedReward(new_reward(tiny_policy, params, seed=0), demos, params, 0.5, 0, labelled=labelled)

    return build


@pytest.mark.parametrize("granularity", ["step", "dense"])
def test_reads_before_the_first_wrong_step_count_for_neither_class(
    learner: Callable[..., LearnedReward], demos: list[Trace], granularity: str
) -> None:
    """The loss is that of the reads by hand: a wrong step's and all later ones'."""
    reward = learner([], label_smoothing=0.0, granularity=granularity)
    torch.nn.init.normal_(reward.model.head[-1].weight, generator=torch.Generator().manual_seed(0))
    wrong = marked("a", demos[0].problem)
    batch = DiscriminatorBatch([demos[0], wrong], ["expert", "labelled"], np.array([True, False]))
    assert (batch.since(0), batch.since(1)) == (0, wrong.steps[1].start)
    reward.model.eval()
    loss, last = reward.discriminator.loss(batch)
    good, bad = (one.logits for one in reward.discriminator.reads([demos[0], wrong]))
    assert last[1] == pytest.approx(bad[-1], abs=1e-5)
    # Step by step that is all but the first read, token by token what follows the line break behind step 0.
    tokens = reward.model.tokenizer
    right = 1 if granularity == "step" else len(tokens(wrong.text[: wrong.steps[1].start])["input_ids"])
    assert len(bad) == (3 if granularity == "step" else len(tokens(wrong.text)["input_ids"]))
    expected = np.logaddexp(0, -good).mean() / 2 + np.logaddexp(0, bad[right:]).mean() / 2
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    whole = replace(batch, kinds=["expert", "policy"])  # the same trace as somebody's rollout counts as a whole
    assert reward.discriminator.loss(whole)[0].item() == pytest.approx(
        np.logaddexp(0, -good).mean() / 2 + np.logaddexp(0, bad).mean() / 2, abs=1e-5
    )


def test_a_right_trace_is_a_positive_and_a_draw_is_no_larger_than_the_experts(
    learner: Callable[..., LearnedReward], demos: list[Trace]
) -> None:
    labels = [marked(f"l{number}", "p", None if number % 2 else 1) for number in range(9)]
    reward = learner(labels)
    made = compose(demos[:4], [], reward.replay, reward.corruptions, reward.params, random.Random(0), labels)
    drawn = [
        (trace, positive)
        for trace, kind, positive in zip(made.traces, made.kinds, made.positive, strict=True)
        if kind == "labelled"
    ]
    assert len(drawn) == 4
    assert all(positive == (trace.first_error is None) for trace, positive in drawn)


@pytest.mark.parametrize("changes", [{}, {"objective": "relativistic"}])
def test_what_was_marked_is_learned(
    learner: Callable[..., LearnedReward], demos: list[Trace], changes: dict[str, Any]
) -> None:
    """Of two rewards of the same seed the one with the labels trusts a slip less that nothing else shows it."""
    slipped = [[*demo.step_texts()[:-1], "It rains."] for demo in demos]
    wrong = [
        Trace.from_json(
            {
                "id": f"l{number}",
                "problem": demo.problem,
                "steps": steps,
                "first_error": len(steps) - 1,
                "labelled": True,
            }
        )
        for number, (demo, steps) in enumerate(zip(demos, slipped, strict=True))
    ]
    rollouts = [replace(demo, text=demo.text.translate(str.maketrans("0123456789", "3456789012"))) for demo in demos]
    after = []
    for labels in ([], wrong):
        reward = learner(labels, learning_rate=0.01, perturbations=0, **changes)
        for number in range(20):
            reward.update(rollouts, str(number))
        marks = [one.steps[-1] for one in reward.model.step_logits(wrong)]
        after.append(np.mean(marks) - np.mean([one.steps[-1] for one in reward.model.step_logits(demos)]))
    assert after[1] < after[0]


def test_without_labels_the_numbers_are_what_they_were(
    learner: Callable[..., LearnedReward], demos: list[Trace]
) -> None:
    """No random number is drawn for labels that are not there."""
    rng, same = random.Random(0), random.Random(0)
    reward = learner([])
    compose(demos[:4], [], reward.replay, reward.corruptions, reward.params, rng)
    compose(demos[:4], [], reward.replay, reward.corruptions, reward.params, same, [])
    assert rng.random() == same.random()


# --- dev --------------------------------------------------------------------------------------------------------------


def test_marked_errors_choose_the_threshold() -> None:
    expert, bad = replace(marked("e", "p", None), labelled=False), marked("c", "p")
    reads = {"e": [2.0, 3.0, 4.0], "c": [1.0, -1.0, -1.5], "l": [1.0, 0.25, 0.5], "r": [2.0, 1.8, 3.0]}
    model = SimpleNamespace(step_logits=lambda rows: [Scores(np.array(reads[r.id]), reads[r.id][-1]) for r in rows])
    dev = Dev([expert], [bad], [0], [], [], [])
    plain, before = dev_scores(model, dev)  # type: ignore[arg-type]
    assert "dev/exact_labelled" not in plain
    # By the fall from step to step the corruption's error is at -2; midway to the largest fall of anything right, -.5.
    assert (before.locator, before.threshold) == ("drop", pytest.approx(-1.25))
    # The marked error falls by .75 only; a right trace of another policy falls by .2, so the threshold is between them.
    labelled = [marked("l", "q"), marked("r", "q", None)]
    scores, after = dev_scores(model, replace(dev, labelled=labelled))  # type: ignore[arg-type]
    assert scores["dev/exact_labelled"] == 1
    assert after.threshold == pytest.approx((-0.75 - 0.5) / 2)
    assert scores["dev/score"] == plain["dev/score"]  # the checkpoint is chosen as before
