"""The second model: the recipe of the stages base and sft from another seed, resumable in both parts, if asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rairl.core.params import Params, parse_params
from rairl.core.traces import write_traces
from rairl.datasets import arithmetic
from rairl.models.policy import load_policy
from rairl.stages.base import base
from rairl.stages.second_model import SEED_OFFSET, second_model
from rairl.stages.sft import sft
from rairl.tracking.run import Run


@pytest.fixture
def params(miniature: Params) -> Params:
    values = miniature.model_dump()
    values["base"] |= {"corpus": 64}
    return parse_params(values)


@pytest.fixture
def data(params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAIRL_CHECKPOINTS", str(tmp_path / "work"))
    folder = tmp_path / "data"
    for name, traces in arithmetic.build(params.dataset, params.seed).items():
        write_traces(folder / f"{name}.jsonl", traces)
    (folder / "card.json").write_text("{}")
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_policy(folder)[0].state_dict()


def equal(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return all(first[name].shape == second[name].shape and torch.equal(first[name], second[name]) for name in first)


def test_a_peer_is_what_base_and_sft_make_from_another_seed(params: Params, data: Path, tmp_path: Path) -> None:
    figures = second_model(params, Run(), data=data, model=tmp_path / "second_model")
    made = {}
    for seed in (params.seed, params.seed + SEED_OFFSET):
        own, folder = params.model_copy(update={"seed": seed}), tmp_path / str(seed)
        made[seed] = base(own, Run(), data=data, model=folder / "base")
        paths = {name: folder / name for name in ("base", "model", "last")}
        made[seed] |= sft(own, Run(), data=data, **paths)
    twin = made[params.seed + SEED_OFFSET]
    assert figures == {
        "second_model.parameters": twin["base.parameters"],
        "second_model.dev_loss": twin["sft.dev_loss"],
    }
    assert equal(tmp_path / "second_model", tmp_path / str(params.seed + SEED_OFFSET) / "model")
    assert not equal(tmp_path / "second_model", tmp_path / str(params.seed) / "model")
    assert (tmp_path / "second_model" / "manifest.json").exists()
    assert not [path for path in (tmp_path / "work").rglob("*") if path.is_file()]


@pytest.mark.parametrize("backbone", ["sft", "base", "some/model"])
def test_without_being_asked_for_there_is_no_peer(backbone: str, params: Params, tmp_path: Path) -> None:
    own = params.model_copy(update={"reward": params.reward.model_copy(update={"backbone": backbone})})
    assert second_model(own, Run(), data=tmp_path / "none", model=tmp_path / "second_model") == {}
    assert not (tmp_path / "second_model").exists()


def test_a_peer_killed_in_its_second_part_has_not_lost_the_first(
    params: Params, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import rairl.learn.language_model

    class Killed(Run):
        def log(self, metrics: Any, step: int) -> None:
            if "sft/dev/loss" in metrics:
                raise KeyboardInterrupt

    second_model(params, Run(), data=data, model=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        second_model(params, Killed(), data=data, model=tmp_path / "cut")
    trained: list[str] = []
    epoch = rairl.learn.language_model._epoch
    monkeypatch.setattr("rairl.learn.language_model._epoch", lambda *args: trained.append(args[-1]) or epoch(*args))
    second_model(params, Run(), data=data, model=tmp_path / "cut")
    assert set(trained) == {"second model sft"}
    assert equal(tmp_path / "cut", tmp_path / "whole")
