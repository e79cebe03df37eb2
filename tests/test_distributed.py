"""Two processes do what one does, within rounding, and write once."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch

from rairl.learn.distributed import barrier, by_first, gather, mine, sum_gradients, total, world

LAUNCH = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
"""``accelerate launch`` for two processes on one machine; without a GPU they talk over gloo."""

TOLERANCE = 1e-4
"""Shares have other micro-batches than the whole, and so other last digits; Adam's first steps magnify them."""


def run(folder: Path, *command: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "RAIRL_COMMIT": "none"}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def test_a_single_process_is_the_whole_world() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([1.0, 2.0])
    sum_gradients([weight])
    barrier()
    assert world() == (0, 1) and mine([1, 2, 3]) == gather([1, 2, 3]) == [1, 2, 3]
    assert total(1.5) == 1.5 and by_first(lambda: "made") == "made"
    assert weight.grad.tolist() == [1, 2]


COLLECTIVES = """
from pathlib import Path

import torch
from rairl.learn.distributed import barrier, by_first, gather, mine, sum_gradients, total, world

rank, size = world()
assert size == 2
assert mine(range(5)) == [[0, 1], [2, 3, 4]][rank] and mine(["only"]) == [[], ["only"]][rank]
assert gather(mine("abcde")) == list("abcde")
assert total(rank + 0.5) == 2.0
called = []
assert by_first(lambda: called.append(rank) or rank) == 0 and len(called) == 1 - rank
both, one, none = (torch.nn.Parameter(torch.zeros(shape)) for shape in ((2, 3), (2,), (1,)))
both.grad = torch.full((2, 3), rank + 1.0)
if rank == 1:
    one.grad = torch.tensor([4.0, 5.0])
sum_gradients([both, one, none])
assert both.grad.tolist() == [[3.0] * 3] * 2 and one.grad.tolist() == [4, 5] and none.grad.tolist() == [0]
barrier()
Path(f"fine{rank}").touch()
"""


def test_two_processes_share_gather_and_sum(tmp_path: Path) -> None:
    (tmp_path / "collectives.py").write_text(COLLECTIVES)
    run(tmp_path, *LAUNCH, "collectives.py")
    assert {path.name for path in tmp_path.glob("fine*")} == {"fine0", "fine1"}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_processes_train_as_one_and_write_once(root: Path, project: Path) -> None:
    shutil.copyfile(root / "tests" / "miniature.yaml", project / "params.yaml")
    run(project, *LAUNCH, "-m", "rairl", "stage", "prepare")  # one process's work: the other waits
    for stage in ("base", "second_model"):
        run(project, "rairl", "stage", stage)
    alone, together = project, project.with_name("together")
    shutil.copytree(alone, together)
    launchers: dict[Path, list[str]] = {alone: [], together: [*LAUNCH, "-m"]}
    for folder, launcher in launchers.items():
        for stage in ("sft", "rairl"):
            run(folder, *launcher, "rairl", "stage", stage)
    losses, histories, files = [], [], []
    for folder in launchers:
        losses.append(json.loads((folder / "metrics" / "sft.json").read_text())["sft.dev_loss"]["value"])
        histories.append(json.loads((folder / "history" / "rairl" / "history.json").read_text()))
        written = (path.relative_to(folder) for path in folder.rglob("*"))
        files.append(sorted(str(path) for path in written if path.parts[0] != "mlartifacts"))
    assert losses[1] == pytest.approx(losses[0], abs=TOLERANCE)
    assert files[0] == files[1]
    for one, two in zip(*histories, strict=True):
        assert set(one) == set(two)
        for key in one:
            if not key.startswith("time/"):
                assert two[key] == pytest.approx(one[key], rel=TOLERANCE, abs=TOLERANCE), key
    rollouts = [(folder / "rollouts" / "iteration-00000.jsonl").read_text() for folder in launchers]
    assert rollouts[0] == rollouts[1]
    with closing(sqlite3.connect(together / "mlflow.db")) as store:
        assert store.execute("SELECT count(*) FROM runs WHERE name = 'rairl'").fetchone() == (1,)
