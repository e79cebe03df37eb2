"""Training whose weights, gradients and optimiser state are split among two processes gives what one process gives."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "sharded.py"


def launch(folder: Path, *cases: str) -> None:
    """``accelerate launch`` with rairl/kubeflow/accelerate/fsdp.yaml; without a GPU the processes talk over gloo."""
    root = SCRIPT.parents[1]
    config = root / "rairl" / "kubeflow" / "accelerate" / "fsdp.yaml"
    words = ["--config_file", str(config), "--num_processes", "2", str(SCRIPT), str(folder), *cases]
    environment = {**os.environ, "PYTHONPATH": str(root), "TQDM_DISABLE": "1"}
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
    launch(tmp_path, "sft", "resume", "policy", "reward")
