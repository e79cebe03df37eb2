"""The sample stage: how many candidates each policy gets where, and which files say how likely they are."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from rairl.datasets import arithmetic
from rairl.evaluate.candidates import candidates_path
from rairl.params import Params, parse_params
from rairl.stages.sample import sample
from rairl.traces import read_traces, write_traces
from rairl.tracking import NullRun


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
