"""Resumable state of a training run, kept apart from the stage's outputs (which DVC deletes before it runs a stage).

The folder's name holds a hash of the parameters, of every input file and of the learning code, so a run never resumes
from the state of a different configuration. A checkpoint appears whole or not at all; only the newest is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rairl.params import Params


def checkpoint_folder(stage: str, params: Params, inputs: Sequence[Path]) -> Path:
    """``.rairl/checkpoints/<stage>/<hash>`` under the working directory (or under RAIRL_CHECKPOINTS)."""
    digest = hashlib.sha256(json.dumps(params.model_dump(exclude={"tracking", "report"}), sort_keys=True).encode())
    package = Path(__file__).parents[1]
    for path in (*inputs, package / "learn", package / "models", package / "perturb.py"):
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and file.suffix != ".pyc":
                digest.update(file.name.encode())
                digest.update(hashlib.sha256(file.read_bytes()).digest())
    root = Path(os.environ.get("RAIRL_CHECKPOINTS", ".rairl/checkpoints"))
    return root / stage / digest.hexdigest()[:16]


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint, or None."""
    return max(folder.glob("at-*"), default=None)


def save(folder: Path, at: int, make: Callable[[Path], dict[str, Any]]) -> None:
    """Write the checkpoint of position ``at``; ``make(draft)`` returns the state and may add files to ``draft``."""
    import torch

    draft = folder / f".part-{at}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    torch.save(make(draft), draft / "state.pt")
    older = latest(folder)
    target = folder / f"at-{at:06d}"
    shutil.rmtree(target, ignore_errors=True)
    draft.rename(target)
    if older is not None and older != target:
        shutil.rmtree(older)


def load(folder: Path) -> tuple[dict[str, Any], Path] | None:
    """The newest checkpoint's state and its folder, or None. Only tensors and plain values are unpickled."""
    import torch

    newest = latest(folder)
    return None if newest is None else (torch.load(newest / "state.pt", weights_only=True), newest)


def clear(folder: Path) -> None:
    """Remove the checkpoints of a run that has finished."""
    shutil.rmtree(folder, ignore_errors=True)
