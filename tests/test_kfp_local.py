"""The Kubeflow pipeline, run on this machine, gives the figures of ``dvc repro`` for the same parameters and seed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import in_environment

from rairl.stages import STAGES


def test_the_same_figures_as_dvc(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes((finished / "params.yaml").read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.run_local"],
        cwd=tmp_path,
        env=in_environment(finished),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    results = dict(
        line.split(": ", 1)
        for line in done.stdout.splitlines()
        if line.startswith(("report: ", "summary: ", "reward: "))
    )
    mine, theirs = (json.loads(path.read_text()) for path in (Path(results["summary"]), finished / "metrics.json"))
    assert set(mine) == set(theirs)
    for name in mine:
        if not name.startswith("time."):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-6), name
    assert {name for name in mine if name.startswith("time.")} == {
        f"time.{stage}" for stage in STAGES if stage != "report"
    }
    assert (Path(results["report"]) / "report.html").exists()
    assert (Path(results["reward"]) / "reward.json").exists()
