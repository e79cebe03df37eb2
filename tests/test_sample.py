"""The sample stage: how many candidates each policy gets where, and which files say how likely they are."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from rairl.datasets import arithmetic
from rairl.errors import RairlError
from rairl.evaluate.candidates import candidates_path
from rairl.params import Params, parse_params
from rairl.stages.sample import sample
from rairl.traces import read_traces, write_traces
from rairl.tracking import NullRun


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rairl.stages.sample.idle_jobs", lambda: 1)


@pytest.mark.parametrize("backbone", ["peer", "sft"])
def test_as_many_candidates_as_ranking_needs_and_no_more(
    backbone: str, miniature: Params, tiny_policy: Path, tmp_path: Path
) -> None:
    values = miniature.model_dump()
    values["reward"]["backbone"] = backbone
    values["dataset"] |= {"test": 2, "ood": 1}
    values["policy"]["max_new_tokens"] = 8
    params = parse_params(values)
    for name, traces in arithmetic.build(params.dataset, 0).items():
        write_traces(tmp_path / "data" / f"{name}.jsonl", traces)
    (tmp_path / "none").mkdir()
    models = dict.fromkeys(("base", "sft", "sft_last", "grpo", "policy"), tiny_policy)
    models["peer"] = tiny_policy if backbone == "peer" else tmp_path / "none"
    figures = sample(params, NullRun(), data=tmp_path / "data", **models, candidates=tmp_path / "out")

    splits = ("test", "ood_wording", *arithmetic.OUT_OF_RANGE)
    policies = {"base", "sft", "sft_last", "grpo", "rairl"} | ({"peer"} if backbone == "peer" else set())
    assert set(figures) == {f"sample.{policy}.candidates" for policy in policies}
    for policy in policies:
        for split in splits:
            drawn = Counter(trace.question for trace in read_traces(candidates_path(tmp_path / "out", policy, split)))
            ranked = split == "test" or policy == "sft"  # R-AIRL's are ranked on test only
            assert set(drawn.values()) == {params.sample.n if ranked else params.sample.extra_n}, (policy, split)
    likely = {path.name.removesuffix(".likelihood.json") for path in (tmp_path / "out").glob("*.likelihood.json")}
    assert likely == {"rairl.test", "grpo.test", *(f"sft.{split}" for split in splits)}


def test_processes_side_by_side_draw_what_one_draws(
    miniature: Params, tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = miniature.model_dump()
    values["reward"]["backbone"] = "sft"
    values["dataset"] |= {"test": 2, "ood": 1}
    values["policy"]["max_new_tokens"] = 8
    params = parse_params(values)
    for name, traces in arithmetic.build(params.dataset, 0).items():
        write_traces(tmp_path / "data" / f"{name}.jsonl", traces)
    models = dict.fromkeys(("base", "sft", "sft_last", "grpo", "policy", "peer"), tiny_policy)
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))  # the order of sums is a matter of threads
    outputs = {}
    for jobs in (1, 2):
        monkeypatch.setattr("rairl.stages.sample.idle_jobs", lambda jobs=jobs: jobs)
        folder = tmp_path / f"out-{jobs}"
        figures = sample(params, NullRun(), data=tmp_path / "data", **models, candidates=folder)
        outputs[jobs] = figures, {path.name: path.read_bytes() for path in folder.iterdir()}
    assert outputs[1] == outputs[2]
    assert list(outputs[1][0]) == list(outputs[2][0])

    (tmp_path / "data" / "test.jsonl").write_text("no JSON\n")
    with pytest.raises(RairlError, match=r"test\.jsonl"):
        sample(params, NullRun(), data=tmp_path / "data", **models, candidates=tmp_path / "out-3")
