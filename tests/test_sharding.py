"""Training whose weights, gradients and optimiser state are split among two processes gives what one process gives."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "sharded.py"


def launch(configuration: str, folder: Path, *cases: str) -> None:
    """``accelerate launch`` with a file of rairl/kubeflow/accelerate; without a GPU the processes talk over gloo."""
    root = SCRIPT.parents[1]
    config = root / "rairl" / "kubeflow" / "accelerate" / f"{configuration}.yaml"
    words = ["--config_file", str(config), "--num_processes", "2", str(SCRIPT), str(folder), *cases]
    environment = {**os.environ, "PYTHONPATH": str(root), "TQDM_DISABLE": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *words],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    assert {path.name for path in folder.glob("fine-*")} == {f"fine-{case}-{rank}" for case in cases for rank in (0, 1)}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fsdp_gives_what_one_process_gives_and_resumes(tiny_policy: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_policy, tmp_path / "policy")
    launch("fsdp", tmp_path, "sft", "resume", "policy", "reward")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is no dependency")
@pytest.mark.parametrize("stage", [2, 3])
def test_zero_gives_what_one_process_gives_and_resumes(stage: int, tiny_policy: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_policy, tmp_path / "policy")
    launch(f"deepspeed-zero{stage}", tmp_path, "sft", "resume", "policy")
