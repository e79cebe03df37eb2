"""The reward model: reads where it says, features equal a plain loop, folders load back, also in plain transformers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rairl.errors import RairlError
from rairl.models.policy import encode, token_at
from rairl.models.reward import Calibration, RewardModel, new_reward, read_tokens, token_surprise
from rairl.params import Params, RewardParams
from rairl.traces import Trace


def change(params: Params, **values: object) -> RewardParams:
    return RewardParams(**{**params.reward.model_dump(), **values})


@pytest.fixture
def surprisal(tiny_policy: Path, miniature: Params) -> RewardModel:
    return new_reward(tiny_policy, miniature.reward, seed=1)


@pytest.fixture
def linear(tiny_policy: Path, miniature: Params) -> RewardModel:
    model = new_reward(tiny_policy, change(miniature, head="linear", train="full"), seed=1)
    torch.nn.init.normal_(model.head[-1].weight)
    return model


def test_granularities_read_where_they_say(tiny_policy: Path, miniature: Params, demos: list[Trace]) -> None:
    model = new_reward(tiny_policy, miniature.reward, seed=1)
    trace = demos[0]
    item = encode(model.tokenizer, [trace])[0]
    last = len(item.ids) - 1
    assert read_tokens(item, trace, "sparse", 15) == [last]
    assert read_tokens(item, trace, "dense", 15) == list(range(item.prompt_tokens, last + 1))
    steps = read_tokens(item, trace, "step", 15)
    assert steps == [*(token_at(item, step.end) for step in trace.steps), last]
    grid = read_tokens(item, trace, "interval", 7)
    assert grid[0] == item.prompt_tokens + 6 and grid[-1] == last
    assert set(np.diff(grid[:-1])) <= {7}


def test_features_equal_a_plain_loop(surprisal: RewardModel, demos: list[Trace]) -> None:
    surprisal.eval()
    with torch.no_grad():
        reads = surprisal.read(demos[:4])
    row = 0
    for trace in demos[:4]:
        item = encode(surprisal.tokenizer, [trace])[0]
        ids = torch.tensor([item.ids])
        with torch.no_grad():
            out = surprisal.backbone(input_ids=ids, output_hidden_states=True)
        hidden = torch.cat(out.hidden_states[1:], -1)[0]
        surprise = token_surprise(out.logits, ids)[0]
        start = item.prompt_tokens
        for end in read_tokens(item, trace, "step", 15):
            unit, sofar = surprise[start : end + 1], surprise[item.prompt_tokens : end + 1]
            expected = torch.cat(
                [
                    hidden[end],
                    hidden[start : end + 1].mean(0),
                    unit.mean(0),
                    unit[:, 0].min()[None],
                    torch.stack([sofar[:, 0].mean(), sofar[:, 0].min(), sofar[:, 1].mean()]),
                ]
            )
            torch.testing.assert_close(reads.features[row], expected, atol=1e-4, rtol=1e-4)
            start = end + 1
            row += 1
    assert row == len(reads.features)


def test_scores_do_not_depend_on_the_company(surprisal: RewardModel, demos: list[Trace]) -> None:
    together = surprisal.score(demos)
    for trace, scores in zip(demos, together, strict=True):
        alone = surprisal.score([trace])[0]
        np.testing.assert_allclose(scores.steps, alone.steps, atol=1e-4)
        assert scores.last == pytest.approx(alone.last, abs=1e-4)
        assert len(scores.steps) == len(trace.steps)


def test_a_step_between_two_reads_takes_the_next_one(tiny_policy: Path, miniature: Params, demos: list[Trace]) -> None:
    model = new_reward(tiny_policy, change(miniature, granularity="sparse"), seed=1)
    scores = model.score(demos[:1])[0]
    assert set(scores.steps.tolist()) == {scores.last}


def test_future_steps_do_not_change_the_read(surprisal: RewardModel, demos: list[Trace]) -> None:
    """The logit of a prefix is a function of the prefix: a later corruption leaves earlier reads as they were."""
    from dataclasses import replace

    trace = demos[0]
    cut = trace.steps[1].start
    other = replace(trace, text=trace.text[:cut] + trace.text[cut:].translate(str.maketrans("123456789", "234567891")))
    assert other.text != trace.text
    mine, theirs = surprisal.score([trace])[0], surprisal.score([other])[0]
    assert mine.steps[0] == pytest.approx(theirs.steps[0], abs=1e-5)


@pytest.mark.parametrize("kind", ["surprisal", "linear"])
def test_folder_loads_back(kind: str, request: pytest.FixtureRequest, demos: list[Trace], tmp_path: Path) -> None:
    model: RewardModel = request.getfixturevalue(kind)
    model.calibration = Calibration("min", "argmin", -0.5)
    model.save_pretrained(tmp_path)
    again = RewardModel.from_pretrained(tmp_path)
    assert again.calibration == model.calibration and again.params == model.params
    for one, other in zip(model.score(demos), again.score(demos), strict=True):
        np.testing.assert_allclose(one.steps, other.steps, atol=1e-5)
    assert not list(tmp_path.glob("*.bin")) and not list(tmp_path.glob("*.pt"))  # safetensors only


def test_linear_head_loads_in_plain_transformers(linear: RewardModel, demos: list[Trace], tmp_path: Path) -> None:
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    from rairl.models.policy import render_prompt

    linear.save_pretrained(tmp_path)
    plain = AutoModelForTokenClassification.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = render_prompt(tokenizer, demos[0].problem) + demos[0].text
    with torch.no_grad():
        logits = plain(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits
    assert logits.shape[-1] == 1
    assert logits[0, -1, 0].item() == pytest.approx(linear.score(demos[:1])[0].last, abs=1e-4)


def test_a_frozen_backbone_stays_and_the_head_moves(surprisal: RewardModel) -> None:
    names = {name for name, parameter in surprisal.named_parameters() if parameter.requires_grad}
    assert names and all(name.startswith("head.") for name in names)


def test_gradient_reaches_a_trained_backbone(linear: RewardModel, demos: list[Trace]) -> None:
    linear.train()
    linear.logits(linear.read(demos[:2])).sum().backward()
    assert all(parameter.grad is not None for name, parameter in linear.named_parameters() if "layers" in name)


def test_prompts_and_foreign_folders_are_refused(surprisal: RewardModel, tmp_path: Path) -> None:
    with pytest.raises(RairlError, match="'p' has no text"):
        surprisal.score([Trace("p", "problem")])
    with pytest.raises(RairlError, match=r"reward\.json is missing"):
        RewardModel.from_pretrained(tmp_path)
    (tmp_path / "reward.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(RairlError, match="format 99"):
        RewardModel.from_pretrained(tmp_path)
