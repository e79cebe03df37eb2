"""The preset on real text, at a small size: experts and logged candidates in, a reward with honest figures out."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from rairl.cli.main import app
from rairl.core.traces import read_traces
from rairl.evaluate.candidates import read_candidates
from rairl.models.reward import RewardModel
from rairl.use.apply import localise_rows, location_figures
from rairl.use.user_files import read_own

ROOT = Path(__file__).parents[1]


def small(values: dict[str, Any], data: Path) -> dict[str, Any]:
    """The preset with few traces and a tiny base."""
    for key in ("demos", "logged"):
        values["dataset"][key] = str(data / values["dataset"][key].split("/data/")[1])
    # MR-Ben's traces are the longest; two sets show that there may be several
    values["dataset"]["labelled"] = [str(data / path.split("/data/")[1]) for path in values["dataset"]["labelled"][:2]]
    values["dataset"] |= {"max_demos": 150, "dev": 30, "held_out": 0.05}
    values["base"] |= {"hidden_size": 32, "layers": 2, "heads": 2, "vocab_size": 600, "corpus": 100}
    values["sft"]["epochs"] = 1
    values["reward"] |= {"warmup_updates": 4, "demos_per_update": 8, "register_every": 2}
    values["report"]["bootstrap"] = 100
    return values


def every_third(path: Path, folder: Path) -> str:
    """A file with every third row of a file of labelled traces, in a folder of the same name."""
    part = folder / path.parent.name / path.name
    part.parent.mkdir()
    with path.open() as rows:
        part.write_text("".join(islice(rows, 0, None, 3)))
    return str(part)


def test_the_logged_preset_runs_on_real_text(tmp_path: Path, shared_data: Path) -> None:
    values = small(yaml.safe_load((ROOT / "rairl" / "presets" / "gsm8k-logged.yaml").read_text()), shared_data)
    values["dataset"]["labelled"] = [every_third(Path(path), tmp_path) for path in values["dataset"]["labelled"]]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "rairl.cli.main", "run", "--dir", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    out = tmp_path / "out"
    figures = json.loads((out / "metrics.json").read_text())
    for name in (
        *(
            f"rerank.{key}"
            for key in ("random", "reward", "majority", "logprob", "shortest", "oracle", "model_name", "n")
        ),
        *(
            f"localise.{name}.{key}.exact"
            for name in ("processbench", "bigbench_mistake")
            for key in ("reward", "chance")
        ),
    ):
        assert set(figures[name]) == {"value", "low", "high", "n"}, name
    assert figures["localise.reward.exact"] == figures["localise.processbench.reward.exact"], "the first set leads"
    assert not [name for name in figures if name.startswith("posttrain.")]  # no policy is in the loop
    assert figures["rerank.random"]["value"] < figures["rerank.oracle"]["value"]
    held_out = {trace.question for trace in read_candidates(out / "candidates" / "logged.test.jsonl")}
    trained_on = {trace.question for trace in read_traces(out / "data" / "logged_train.jsonl")}
    assert not held_out & trained_on
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert again.stderr.count("finished before") == 12
    own_files_give_the_same(out, values["dataset"]["labelled"], figures)


def own_files_give_the_same(out: Path, files: list[str], figures: dict[str, Any]) -> None:
    """The labelled files as they are, on the command line, against the localise stage's figures."""
    model = RewardModel.from_pretrained(out / "models" / "reward")
    for file in files:
        own = read_own(Path(file))
        rows = list(localise_rows(own.traces, model))
        found = location_figures(own.traces, rows, model.calibration.locator, draws=10)
        for name in ("reward.exact", "chance.exact", "longest.within1", "reward.f1", "reward.step_auc"):
            assert found[name].value == pytest.approx(figures[f"localise.{own.form}.{name}"]["value"]), name
    words = ["localise", files[1], "--reward", str(out / "models" / "reward"), "-o", str(out / "rows.jsonl")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert f"{files[1]}: 100 traces in the format bigbench_mistake" in done.stderr
    assert "first wrong step of 81 wrong traces, exact:" in done.stderr


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    values = small(yaml.safe_load((ROOT / "rairl" / "presets" / "gsm8k-logged.yaml").read_text()), tmp_path)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "rairl.cli.main", "run", "--dir", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert str(tmp_path / "gsm8k" / "train.jsonl") in done.stderr
    assert "Traceback" not in done.stderr


def test_the_preset_names_files_beside_the_project() -> None:
    values = yaml.safe_load((ROOT / "rairl" / "presets" / "gsm8k-logged.yaml").read_text())["dataset"]
    for path in (values["demos"], values["logged"], *values["labelled"]):
        assert path.startswith("../shared/data/")
