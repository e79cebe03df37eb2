"""The sample stage: how many candidates each policy gets where, and which files say how likely they are."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
import torch

from rairl.core.errors import RairlError
from rairl.core.params import Params, parse_params
from rairl.core.traces import read_traces, write_traces
from rairl.datasets import arithmetic
from rairl.evaluate.candidates import candidates_path
from rairl.stages.sample import sample
from rairl.tracking.run import Run


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rairl.stages.sample.idle_jobs", lambda: 1)


@pytest.fixture
def arguments(tiny_policy: Path, tmp_path: Path) -> dict[str, Path]:
    """Where the stage reads; one tiny model stands for all."""
    names = ("base", "sft", "sft_last", "grpo", "policy", "second_model")
    return {"data": tmp_path / "data", **dict.fromkeys(names, tiny_policy)}


def prepared(miniature: Params, backbone: str, data: Path) -> Params:
    """Parameters of a few short samples, with their problems in ``data``."""
    values = miniature.model_dump()
    values["reward"]["backbone"] = backbone
    values["dataset"] |= {"test": 2, "ood": 1}
    values["policy"]["max_new_tokens"] = 8
    params = parse_params(values)
    for name, traces in arithmetic.build(params.dataset, 0).items():
        write_traces(data / f"{name}.jsonl", traces)
    return params


@pytest.mark.parametrize("backbone", ["second_model", "sft"])
def test_as_many_candidates_as_ranking_needs_and_no_more(
    backbone: str, miniature: Params, arguments: dict[str, Path], tmp_path: Path
) -> None:
    params = prepared(miniature, backbone, arguments["data"])
    if backbone != "second_model":
        arguments["second_model"] = tmp_path / "none"
        arguments["second_model"].mkdir()
    figures = sample(params, Run(), **arguments, candidates=tmp_path / "out")

    splits = ("test", "ood_wording", *arithmetic.OUT_OF_RANGE)
    policies = {"base", "sft", "sft_last", "grpo", "rairl"} | (
        {"second_model"} if backbone == "second_model" else set()
    )
    assert set(figures) == {f"sample.{policy}.candidates" for policy in policies}
    for policy in policies:
        for split in splits:
            drawn = Counter(trace.question for trace in read_traces(candidates_path(tmp_path / "out", policy, split)))
            ranked = split == "test" or policy == "sft"  # R-AIRL's are ranked on test only
            assert set(drawn.values()) == {params.sample.n if ranked else params.sample.extra_n}, (policy, split)
    likely = {path.name.removesuffix(".likelihood.json") for path in (tmp_path / "out").glob("*.likelihood.json")}
    assert likely == {"rairl.test", "grpo.test", *(f"sft.{split}" for split in splits)}


def test_processes_side_by_side_draw_what_one_draws(
    miniature: Params, arguments: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = prepared(miniature, "sft", arguments["data"])
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))  # the order of sums is a matter of threads
    outputs = {}
    for jobs in (1, 2):
        monkeypatch.setattr("rairl.stages.sample.idle_jobs", lambda jobs=jobs: jobs)
        folder = tmp_path / f"out-{jobs}"
        figures = sample(params, Run(), **arguments, candidates=folder)
        outputs[jobs] = figures, {path.name: path.read_bytes() for path in folder.iterdir()}
    assert outputs[1] == outputs[2]
    assert list(outputs[1][0]) == list(outputs[2][0])

    (arguments["data"] / "test.jsonl").write_text("no JSON\n")
    with pytest.raises(RairlError, match=r"test\.jsonl"):
        sample(params, Run(), **arguments, candidates=tmp_path / "out-3")


def die(*_: object, **__: object) -> int:
    """Stand-in for drawing a policy's candidates, in a process that the system kills."""
    os._exit(9)


def test_a_killed_process_is_reported(
    miniature: Params, arguments: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rairl.stages.sample.idle_jobs", lambda: 2)
    monkeypatch.setattr("rairl.stages.sample.draw", die)
    with pytest.raises(RairlError, match=r"the process was killed; .*memory.*OMP_NUM_THREADS"):
        sample(miniature, Run(), **arguments, candidates=tmp_path / "out")
