"""The learned reward: it learns what it should, every key acts, and a resumed run takes the same numbers."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rairl.core.errors import RairlError
from rairl.core.params import Params
from rairl.core.traces import Trace, read_traces, write_traces
from rairl.core.training_params import RewardParams
from rairl.learn import checkpoints, distributed
from rairl.learn.discriminator_batch import DiscriminatorBatch, Replay, compose
from rairl.learn.learned_reward import LearnedReward
from rairl.learn.rewards import Batch
from rairl.learn.rollouts import Completion
from rairl.models.policy import load_policy
from rairl.models.reading import encode
from rairl.models.reward import new_reward
from rairl.text.corrupt import perturb

Make = Callable[..., LearnedReward]


@pytest.fixture
def make(tiny_policy: Path, miniature: Params, demos: list[Trace]) -> Make:
    """A learned reward with some keys changed."""

    def build(fields: dict[str, object] | None = None, **changes: object) -> LearnedReward:
        params = RewardParams(**{**miniature.reward.model_dump(), **changes})
        model = new_reward(tiny_policy, params, seed=0)
        return LearnedReward(model, demos, params, 0.5, 0, **(fields or {}))  # type: ignore[arg-type]

    return build


DIGITS = str.maketrans("0123456789", "3456789012")


def rollout(problems: Sequence[Trace], tag: str) -> list[Trace]:
    """What a poor policy writes: the demonstration with wrong numbers. Every other answer passes for right."""
    return [
        replace(
            problem,
            id=f"{problem.id}/{tag}",
            text=problem.text.translate(DIGITS),
            answer=None,
            correct=index % 2 == 0,
            source="policy",
        )
        for index, problem in enumerate(problems)
    ]


def batch_of(policy: Path, demos: list[Trace]) -> Batch:
    """Groups of two: each demonstration and a corruption of it."""
    _, tokenizer = load_policy(policy)
    rng = random.Random(0)
    traces = [one for demo in demos for one in (demo, perturb(demo, rng, ["operand"])) if one is not None]
    eos = tokenizer.eos_token_id
    done = [
        Completion(row.ids[: row.prompt_tokens], [*row.ids[row.prompt_tokens :], eos], [0.0] * (len(row.ids) + 1), True)
        for row in encode(tokenizer, traces)
    ]
    return Batch(demos, done, traces, tokenizer)


def experts_of(reward: LearnedReward, key: str = "0") -> list[Trace]:
    return reward._draw(key)


def update_batch(reward: LearnedReward, fresh: list[Trace], key: str = "0") -> DiscriminatorBatch:
    rng = random.Random(f"0/update/{key}")
    return compose(experts_of(reward, key), fresh, reward.replay, reward.corruptions, reward.params, rng)


# --- it learns -------------------------------------------------------------------------------------------------------


def test_updates_separate_experts_from_corruptions(make: Make) -> None:
    reward = make(learning_rate=0.01, perturbations=2)
    first = reward.update([], "0")
    for update in range(300):
        last = reward.update([], str(update))
    assert last["discriminator/loss"] < first["discriminator/loss"] - 0.05
    assert last["discriminator/gap"] > 0.3
    assert {"discriminator/accuracy_expert", "discriminator/accuracy_perturbed", "discriminator/corr_length"} <= set(
        last
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"objective": "relativistic"},
        {"head": "linear", "train": "full"},
        {"granularity": "dense"},
        {"learning_rate_warmup": 1},
    ],
    ids=str,
)
def test_updates_raise_the_expert_above_the_policy(changes: dict[str, object], make: Make) -> None:
    reward = make(perturbations=0, learning_rate=1e-3, **changes)
    experts = experts_of(reward)
    fresh = rollout(experts, "x")

    def gap() -> float:
        mean = np.array([one.logits.mean() for one in reward.discriminator.reads([*experts, *fresh])])
        return float(mean[: len(experts)].mean() - mean[len(experts) :].mean())

    before = gap()
    for _ in range(5):
        reward.update(fresh, "0")
    assert gap() > before


def test_an_update_without_negatives_is_refused(make: Make) -> None:
    with pytest.raises(RairlError, match="no negatives"):
        make(perturbations=0).update([], "0")


def test_replay_is_bounded_first_in_first_out() -> None:
    replay = Replay(3)
    replay.add([Trace(str(index), f"p{index}") for index in range(5)])
    assert [trace.id for trace in replay.traces] == ["2", "3", "4"]
    assert len({trace.id for trace in replay.draw(10, random.Random(0))}) == 3
    assert [trace.id for trace in replay.draw(10, random.Random(0), {"p3", "p9"})] == ["3"]
    assert Replay(0, [Trace("a", "p")]).draw(2, random.Random(0)) == []


def test_the_learning_rate_rises_over_the_warm_up(make: Make) -> None:
    reward = make(learning_rate=0.01, learning_rate_warmup=4)
    rates = []
    for update in range(6):
        reward.update([], str(update))
        rates.append(reward.learner.optimizers[0].param_groups[0]["lr"])
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01])


# --- what it learns from ---------------------------------------------------------------------------------------------


def test_right_rollouts_become_positives_only_when_asked(make: Make) -> None:
    reward = make(perturbations=0)
    fresh = rollout(experts_of(reward), "x")
    assert update_batch(reward, fresh).positive.sum() == 8
    assert "discriminator/switched" not in reward.update(fresh, "0")
    switching = make(perturbations=1, switch_labels=True)
    batch = update_batch(switching, fresh)
    assert batch.positive.sum() == 8 + 4
    assert not any(
        good for good, kind in zip(batch.positive, batch.kinds, strict=True) if kind == "perturbed"
    )  # a corruption is wrong though its answer may be right
    assert switching.update(fresh, "0")["discriminator/switched"] == 4


def test_switching_changes_what_is_learned(make: Make) -> None:
    def score(switch: bool) -> float:
        reward = make(perturbations=1, switch_labels=switch, learning_rate=0.01)
        fresh = [replace(trace, correct=True) for trace in rollout(experts_of(reward), "x")]
        for _ in range(5):
            reward.update(fresh, "0")
        return float(np.mean([one.last for one in reward.model.step_logits(fresh)]))

    assert score(True) > score(False)


def test_corruptions_are_composed_up_to_the_depth(make: Make) -> None:
    def most(depth: int) -> int:
        made = update_batch(make(perturbations=8, perturbation_depth=depth), [])
        bad = [trace for trace, kind in zip(made.traces, made.kinds, strict=True) if kind == "perturbed"]
        texts = {trace.id: trace.text for trace in made.traces}
        assert all(trace.labelled and trace.text != texts[trace.meta["original"]] for trace in bad)
        return max(trace.source.count("+") + 1 for trace in bad)

    assert (most(1), most(3)) == (1, 3)


def test_others_are_the_batch_just_scored(tiny_policy: Path, make: Make, demos: list[Trace]) -> None:
    def refuse(problems: Sequence[Trace], tag: str) -> list[Trace]:
        raise AssertionError("no extra rollouts are needed")

    reward = make(rollout_prompts="others")
    batch = batch_of(tiny_policy, demos[8:12])
    reward.advantages(batch)
    assert "discriminator/accuracy_policy" in reward.learn(0, refuse)
    assert {trace.id for trace in reward.replay.traces} == {trace.id for trace in batch.traces}


def test_a_comparison_within_prompts_replays_those_prompts(make: Make) -> None:
    reward = make(objective="relativistic")
    reward.replay.add(rollout(reward.demos, "old"))
    experts = {demo.problem for demo in experts_of(reward)}
    made = update_batch(reward, [])
    assert {trace.problem for trace, kind in zip(made.traces, made.kinds, strict=True) if kind == "replay"} == experts


# --- credit ----------------------------------------------------------------------------------------------------------


def expected(reward: LearnedReward, batch: Batch, rewards: Sequence[float]) -> np.ndarray:
    values = np.array(rewards).reshape(-1, batch.group)
    centred = values - values.mean(1, keepdims=True)
    return (centred / np.maximum(values.std(1, keepdims=True), 0.5)).ravel()


@pytest.fixture
def scored(tiny_policy: Path, demos: list[Trace]) -> Batch:
    return batch_of(tiny_policy, demos[:3])


def logits_of(reward: LearnedReward, batch: Batch) -> list[np.ndarray]:
    with torch.no_grad():
        reads = reward.model.eval().read(batch.traces)
        logits = reward.model.logits(reads).numpy()
    return [logits[reads.trace.numpy() == index] for index in range(len(batch.traces))]


@pytest.mark.parametrize("credit", ["last", "mean", "return", "difference", "min"])
@pytest.mark.parametrize("granularity", ["step", "interval", "dense"])
def test_advantages_cover_every_token_and_are_centred(credit: str, granularity: str, make: Make, scored: Batch) -> None:
    reward = make(credit=credit, granularity=granularity)
    advantages, metrics = reward.advantages(scored)
    assert [len(values) for values in advantages] == [len(item.ids) for item in scored.completions]
    assert all(np.isfinite(values).all() for values in advantages)
    assert np.isfinite(list(metrics.values())).all()
    if credit in ("last", "mean"):
        for good, bad in zip(advantages[::2], advantages[1::2], strict=True):
            assert good[0] == pytest.approx(-bad[0])


def test_mean_and_last_and_clip_by_hand(make: Make, scored: Batch) -> None:
    for credit, take in (("last", lambda reads: reads[-1]), ("mean", np.mean)):
        reward = make(credit=credit)
        logits = logits_of(reward, scored)
        advantages, metrics = reward.advantages(scored)
        made = [values[0] for values in advantages]
        np.testing.assert_allclose(made, expected(reward, scored, [take(one) for one in logits]), atol=1e-5)
        bound = float(np.median(np.abs([one[-1] for one in logits])))
        clipped, same = make(credit=credit, clip=bound).advantages(scored)
        hand = expected(reward, scored, [take(np.clip(one, -bound, bound)) for one in logits])
        np.testing.assert_allclose([values[0] for values in clipped], hand, atol=1e-5)
        assert not np.allclose(made, hand) and same == metrics  # metrics tell of the reads themselves


# --- how accurate it is ----------------------------------------------------------------------------------------------


def test_memorisation_is_seen_on_held_out_experts(make: Make, demos: list[Trace]) -> None:
    assert "discriminator/memorisation" not in make().update([], "0")
    reward = make({"held_out": demos[:4]})
    with torch.no_grad():
        reward.model.head[-1].weight.zero_()  # type: ignore[index]
        reward.model.head[-1].bias.fill_(1.0)  # type: ignore[index]
    made = reward.update([], "0")
    assert (made["discriminator/accuracy_held_out"], made["discriminator/memorisation"]) == (1.0, 0.0)


def test_a_reward_that_knows_its_experts_by_heart_is_told_so(make: Make, demos: list[Trace]) -> None:
    """Held-out 'experts' that look like the negatives: right on the trained ones, wrong on these."""
    reward = make({"held_out": rollout(demos, "unseen")}, learning_rate=0.01, perturbations=0)
    for _ in range(60):
        made = reward.update(rollout(experts_of(reward), "x"), "0")
    assert made["discriminator/memorisation"] > 0.5


# --- resuming --------------------------------------------------------------------------------------------------------

EVERYTHING = {
    "learning_rate_warmup": 5,
    "perturbation_depth": 3,
    "switch_labels": True,
    "objective": "relativistic",
    "updates_per_iteration": 2,
    "dropout": 0.1,
}


@pytest.mark.parametrize(
    "changes",
    [EVERYTHING, {"rollout_prompts": "others"}, {"head": "linear", "train": "full"}],
    ids=["all", "others", "full"],
)
def test_a_resumed_reward_takes_the_same_numbers(
    changes: dict[str, object], make: Make, scored: Batch, demos: list[Trace], tmp_path: Path
) -> None:
    def iterate(reward: LearnedReward, iteration: int) -> dict[str, float]:
        advantages, metrics = reward.advantages(scored)
        return {
            **metrics,
            **reward.learn(iteration, rollout),
            "advantage": float(advantages[0][0]),
        }

    whole = make({"held_out": demos[:4]}, **changes)
    for iteration in range(2):
        iterate(whole, iteration)
    checkpoints.save(tmp_path, 2, lambda folder: whole.state(folder))
    rows = [iterate(whole, iteration) for iteration in (2, 3)]
    again = make({"held_out": demos[:4]}, **changes)
    found = checkpoints.load(tmp_path)
    assert found is not None
    again.restore(*found)
    assert [iterate(again, iteration) for iteration in (2, 3)] == rows
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


# --- several processes -----------------------------------------------------------------------------------------------

SHARED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_discriminator import learn_settings
learn_settings(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def learn_settings(policy: Path, folder: Path) -> None:
    """Three iterations under each setting in ``folder``; what was measured and the matrices' sizes, in a file."""
    rank, processes = distributed.world()
    demos, rows = read_traces(folder / "demos.jsonl"), []
    for changes in json.loads((folder / "settings.json").read_text()):
        params = RewardParams(**changes)
        model = new_reward(policy, params, seed=0)
        reward = LearnedReward(model, demos, params, 0.5, 0, held_out=demos[:4])
        rows += [reward.learn(iteration, rollout) for iteration in range(3)]
        # Not the biases: under 'relativistic' the last one has no gradient but the noise of rounding.
        rows += [{"size": value.abs().sum().item()} for value in model.head.parameters() if value.ndim == 2]
    (folder / f"rows-{processes}-{rank}.json").write_text(json.dumps(rows))


def test_two_processes_learn_what_one_does(
    tiny_policy: Path, miniature: Params, demos: list[Trace], tmp_path: Path
) -> None:
    """Shares of an update add up to it; what differs is the order of sums (float32: 1e-4)."""
    write_traces(tmp_path / "demos.jsonl", demos)
    settings: list[dict[str, object]] = [
        {},
        {"objective": "relativistic", "switch_labels": True},
    ]
    values = [{**miniature.reward.model_dump(), **changes} for changes in settings]
    (tmp_path / "settings.json").write_text(json.dumps(values))
    (tmp_path / "run.py").write_text(SHARED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, str(tmp_path / "run.py"), str(tiny_policy), str(tmp_path), str(Path(__file__).parent)]
    shared = {**os.environ, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        subprocess.Popen(command, env={**shared, "RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    ]
    learn_settings(tiny_policy, tmp_path)
    for process in started:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors[-2000:]
    alone, first, second = (json.loads((tmp_path / f"rows-{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    assert first == second
    for row, other in zip(first, alone, strict=True):
        assert row == pytest.approx(other, rel=1e-4, abs=1e-4)
