"""Where a result comes from: data, parameters, commit, files."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rairl.core.params import Params


def pipeline_tag() -> dict[str, str]:
    """The run of Kubeflow Pipelines that this process is a task of, if any."""
    run = os.environ.get("RAIRL_KFP_RUN")
    return {"rairl.kfp_run": run} if run else {}


def parent_key(tags: Mapping[str, str]) -> dict[str, str]:
    """What tells a pipeline's run: the run of Kubeflow Pipelines, else parameters and commit."""
    names = ("rairl.kfp_run",) if "rairl.kfp_run" in tags else ("rairl.params", "rairl.commit")
    return {**{name: tags[name] for name in names}, "rairl.stage": "pipeline"}


def data_tag(card: Path | None) -> str:
    """Twelve digits of the data card's hash; ``none`` without a card."""
    return file_digest(card)[:12] if card is not None and card.is_file() else "none"


def git_commit(root: Path) -> str:
    """HEAD of the repository around ``root``, with ``-dirty`` when the package's own files differ from it.

    ``RAIRL_COMMIT`` goes first, for images without a repository; ``none`` when there is neither.
    """
    if os.environ.get("RAIRL_COMMIT"):
        return os.environ["RAIRL_COMMIT"]
    head = _git(root, "rev-parse", "HEAD")
    if not head:
        return "none"
    return head + ("-dirty" if _git(root, "status", "--porcelain", "--untracked-files=no", "--", "rairl") else "")


def _git(root: Path, *words: str) -> str:
    try:
        done = subprocess.run(("git", "-C", str(root), *words), capture_output=True, text=True)
    except FileNotFoundError:  # no git on this machine
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def metric_name(name: str) -> str:
    """``name`` in the characters that MLflow takes: ``pass@1`` becomes ``pass_at_1``, anything else odd ``_``."""
    return re.sub(r"[^\w\-. :/]", "_", name.replace("@", "_at_"), flags=re.ASCII)


def flatten(params: Params) -> dict[str, str]:
    """Parameters as ``section.key`` -> JSON text (strings as they are)."""
    flat: dict[str, Any] = {}
    for name, value in params.model_dump().items():
        flat.update(
            {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
        )
    return {key: item if isinstance(item, str) else json.dumps(item) for key, item in flat.items()}


def now() -> int:
    """The time in milliseconds, as MLflow counts it."""
    return int(time.time() * 1000)


def run_tags(stage: str, commit: str) -> dict[str, str]:
    return {
        "mlflow.source.name": f"rairl {stage}",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": commit,
        "mlflow.user": os.environ.get("USER", "unknown"),
    }


def model(source: str, revision: str | None) -> str:
    """A model in words, with the first nine digits of its commit on the hub, if it has one."""
    return source if revision is None else f"{source}@{revision[:9]}"
