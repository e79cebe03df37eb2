"""Resumable state of a training run, kept apart from the stage's outputs (which DVC deletes before it runs a stage).

The folder's name holds a hash of the parameters, of every input file and of the learning code, so a run never resumes
from the state of a different configuration. A checkpoint appears whole or not at all; only the newest is kept, and one
more where a run asks for it. Of several processes the first one writes; all read, from a file system that they share.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from rairl.core.params import Params
from rairl.learn.distributed import barrier, by_first, world


def checkpoint_folder(stage: str, params: Params, inputs: Sequence[Path]) -> Path:
    """``.rairl/checkpoints/<stage>/<hash>`` under the working directory (or under RAIRL_CHECKPOINTS)."""
    digest = hashlib.sha256(json.dumps(params.model_dump(exclude={"tracking", "report"}), sort_keys=True).encode())
    package = Path(__file__).parents[1]
    for path in (*inputs, package / "learn", package / "models", package / "text"):
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and file.suffix != ".pyc":
                digest.update(file.name.encode())
                digest.update(hashlib.sha256(file.read_bytes()).digest())
    root = Path(os.environ.get("RAIRL_CHECKPOINTS", ".rairl/checkpoints"))
    return root / stage / digest.hexdigest()[:16]


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint, or None."""
    return max(folder.glob("at-*"), key=lambda path: int(path.name.removeprefix("at-")), default=None)


def place(folder: Path, at: int) -> Path:
    """Folder of the checkpoint of a position."""
    return folder / f"at-{at:06d}"


def save(folder: Path, at: int, make: Callable[[Path], dict[str, Any]], *, keep: int | None = None) -> None:
    """Write the checkpoint of position ``at``, which is above that of all before it, and remove the older ones.

    Args:
        make: ``make(draft)`` returns the state and may add files to ``draft``. It is called in every process, because
            it may also tidy up; what the first one makes is kept.
        keep: position of an older checkpoint that stays.
    """

    def write() -> None:
        draft = folder / f".part-{at}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        torch.save(make(draft), draft / "state.pt")
        target = place(folder, at)
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)
        kept = {target} if keep is None else {target, place(folder, keep)}
        for older in set(folder.glob("at-*")) - kept:
            shutil.rmtree(older)

    if world()[0]:
        with tempfile.TemporaryDirectory() as scratch:
            make(Path(scratch))
    by_first(write)


def load(folder: Path, at: int | None = None) -> tuple[dict[str, Any], Path] | None:
    """State and folder of the checkpoint of a position, else of the newest; None without any.

    Only tensors and plain values are unpickled.
    """
    found = latest(folder) if at is None else place(folder, at)
    return None if found is None else (torch.load(found / "state.pt", weights_only=True), found)


def clear(folder: Path) -> None:
    """Remove the checkpoints of a run that has finished."""
    barrier()  # another process may still be reading
    by_first(lambda: shutil.rmtree(folder, ignore_errors=True))
