"""The tracking run of a stage: what is recorded goes to a file first, and from there to MLflow, in batches.

A stage never fails because of MLflow and hardly waits for it. What MLflow doesn't take, because its server is down or
slow or because this process is killed, stays in the file; the next run in the same project sends it, or ``rairl sync``.

Records go to ``MLFLOW_TRACKING_URI`` if it is set, else to ``mlflow.db`` (sqlite) with the files under
``mlartifacts/``, both in the project's folder. In a run of Kubeflow Pipelines, whose id is in ``RAIRL_KFP_RUN``, all
stages share one parent that carries this id.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from rairl.core.errors import RairlError
from rairl.core.params import Params
from rairl.tracking.delivery import RECORDS, Delivery, lock_of, outbox, send_leftovers
from rairl.tracking.provenance import data_tag, file_digest, flatten, git_commit, metric_name, model, now, pipeline_tag
from rairl.tracking.store import reason

if TYPE_CHECKING:
    from rairl.core.stats import Estimate

logger = logging.getLogger(__name__)

_LEAST, _MOST = 10.0, 300.0  # seconds between two batches
_SHARE = 20  # the pause is so many times as long as the last batch took: a slow server costs a stage 5 % of its time


class Run:
    """What a stage records. Without a journal nothing is kept: for tests, and for all but the first of its processes.

    A method raises FileNotFoundError for a path that isn't there.
    """

    def __init__(self, journal: Journal | None = None) -> None:
        self._journal = journal
        self._digests: dict[str, str] = {}

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics of one training step."""
        if self._journal:
            at = now()
            rows = [(metric_name(key), float(value), at, int(step)) for key, value in metrics.items()]
            self._journal.write("metrics", rows=rows)

    def log_estimates(self, figures: Mapping[str, Estimate]) -> None:
        """Record final figures: with ``.low``, ``.high`` and ``.n`` on the stage's run, values on the pipeline's."""
        if self._journal:
            at = now()
            known = {metric_name(key): figure for key, figure in figures.items() if not math.isnan(figure.value)}
            values = [(key, float(figure.value), at, 0) for key, figure in known.items()]
            bounds = [
                (f"{key}.{part}", float(getattr(figure, part)), at, 0)
                for key, figure in known.items()
                for part in ("low", "high", "n")
                if not math.isnan(getattr(figure, part))
            ]
            self._journal.write("metrics", rows=values + bounds)
            self._journal.write("metrics", rows=values, of_pipeline=True)

    def log_input(self, path: str | Path, *, name: str) -> None:
        """Record that the stage reads a file: an MLflow dataset input with 32 digits of its SHA-256."""
        if self._journal:
            self._digests[name] = file_digest(path)[:32]
            self._journal.write("input", name=name, path=str(path), digest=self._digests[name])

    def log_artifact(self, path: str | Path, *, of_pipeline: bool = False) -> None:
        """Keep a file, or a folder under its own name, with the stage's run, or with the pipeline's."""
        if self._journal:
            self._journal.write("artifact", file=self._journal.copy(Path(path)), of_pipeline=of_pipeline)

    def register_reward(
        self, folder: str | Path, step: int, metrics: Mapping[str, float], tags: Mapping[str, str] | None = None
    ) -> None:
        """Make a reward checkpoint a LoggedModel and a version of ``params.tracking.registered_model``.

        Args:
            folder: what ``RewardModel.save_pretrained`` wrote. It is copied, so it may change or go afterwards.
            step: training step of the checkpoint.
            metrics: dev scores. They are tied to the model, to the input named ``dev`` if that was logged, and become
                tags of the version under their names.
            tags: further tags of the version.
        """
        if self._journal:
            if not Path(folder).is_dir():
                raise RairlError(f"{folder} does not exist; a saved reward model is needed to register one")
            self._journal.write(
                "reward",
                file=self._journal.copy(Path(folder)),
                step=int(step),
                scores={metric_name(key): float(value) for key, value in metrics.items()},
                tags=dict(tags or {}),
                dev=self._digests.get("dev"),
            )

    def promote_champion(self, criterion: str, *, higher_is_better: bool = True) -> None:
        """Give the best version of this pipeline run the alias ``champion``, by one of its registered metrics.

        See :func:`rairl.tracking.champion.promote` for when a present champion stays. Nothing happens where
        ``RAIRL_PROMOTE`` is ``no``: a pipeline sets it whose last task decides, when all is measured.

        Args:
            criterion: a key of the ``metrics`` of :meth:`register_reward`.
            higher_is_better: whether larger values win.
        """
        if self._journal and os.environ.get("RAIRL_PROMOTE") != "no":
            self._journal.write("champion", criterion=criterion, higher_is_better=higher_is_better)


@contextmanager
def stage_run(name: str, params: Params, *, root: Path = Path("."), card: Path | None = None) -> Iterator[Run]:
    """Track one stage: a child of the pipeline's run, which is found by parameters and commit or made.

    The run ends as FINISHED, as KILLED on Ctrl-C, and as FAILED on any other exception.

    Args:
        name: the stage.
        params: logged whole, as ``section.key``.
        root: the project's folder, home of the default store and of what is still to be sent.
        card: the data card (``data/card.json``), whose digest becomes the tag ``rairl.data``.
    """
    with _folder(root) as folder:
        journal = Journal(folder, _head(name, params, root, card), root)
        try:
            yield Run(journal)
        except BaseException as error:
            status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
            with suppress(OSError):  # of a full disk; the error itself says so
                journal.close(status, f"{type(error).__name__}: {error}")
            raise
        journal.close("FINISHED")


class Journal:
    """The records of one stage, in the order of their making, and their way to MLflow.

    Args:
        folder: of the records; its lock is held by this process.
        head: see :class:`~rairl.tracking.delivery.Delivery`.
        root: the project's folder, where earlier stages may have left records.
    """

    def __init__(self, folder: Path, head: Mapping[str, Any], root: Path) -> None:
        self._folder = folder
        self._copies = 0
        self._warned = False
        (folder / RECORDS).write_text(json.dumps(head) + "\n", encoding="utf-8")
        self._file = (folder / RECORDS).open("a", encoding="utf-8")
        self._delivery = Delivery(folder, root)
        for _, problem in send_leftovers(root, only=self._delivery.uri):
            if problem:
                self._warn(problem)
                break
        self._send()

    def write(self, kind: str, **values: Any) -> None:
        """Keep a record: from here on it survives this process. Takes microseconds, and every ten seconds a request."""
        self._file.write(json.dumps({"kind": kind, **values}) + "\n")
        self._file.flush()
        if time.monotonic() > self._due:
            self._send()

    def copy(self, path: Path) -> str:
        """Copy a file or folder to where it stays until it is sent; its place in the journal's folder."""
        self._copies += 1
        place = Path(str(self._copies)) / path.name
        (self._folder / place).parent.mkdir()
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, self._folder / place)
        return str(place)

    def close(self, status: str, error: str = "") -> None:
        """End the run as ``FINISHED``, ``FAILED`` or ``KILLED``, and send what isn't sent yet if MLflow takes it."""
        self._due = math.inf
        try:
            self.write("end", status=status, error=error[:500], at=now())
        finally:
            self._file.close()
            self._send(closed=True)

    def _send(self, *, closed: bool = False) -> None:
        start = time.monotonic()
        try:
            self._delivery.send(closed=closed)
        except Exception as error:  # MLflow and its stores raise anything; training must not end for it
            self._warn(error)
        self._due = time.monotonic() + min(max(_LEAST, _SHARE * (time.monotonic() - start)), _MOST)

    def _warn(self, problem: Exception) -> None:
        if not self._warned:
            logger.warning(
                "MLflow at %s does not take what stages record (%s). The stage goes on; what MLflow misses is kept in "
                "%s, and the next run here sends it, or `rairl sync`. Check %s.",
                self._delivery.uri,
                reason(problem),
                self._folder.parent,
                "MLFLOW_TRACKING_URI" if "MLFLOW_TRACKING_URI" in os.environ else "mlflow.db in the project's folder",
            )
        self._warned = True


@contextmanager
def _folder(root: Path) -> Iterator[Path]:
    """A new folder for records, with its lock held: who can take the lock knows that the stage's process is gone."""
    place = outbox(root)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError:  # a place where nothing may be written; the stage's outputs may be elsewhere
        place = Path(tempfile.mkdtemp(prefix="rairl-tracking-"))
    folder = place / f"{now()}-{uuid4().hex[:8]}"
    with lock_of(folder):
        folder.mkdir()
        yield folder


def _head(stage: str, params: Params, root: Path, card: Path | None) -> dict[str, Any]:
    tags = {
        "rairl.params": params.digest(),
        "rairl.commit": git_commit(root),
        "rairl.data": data_tag(card),
        **pipeline_tag(),
    }
    labels = {
        "stage": stage,
        "policy": model(params.base.source, getattr(params.base, "revision", None)),
        "backbone": model(params.reward.backbone, params.reward.revision),
        "granularity": params.reward.granularity,
        "seed": str(params.seed),
    }
    return {
        "stage": stage,
        "started": now(),
        "uri": os.environ.get("MLFLOW_TRACKING_URI", ""),
        "experiment": params.tracking.experiment,
        "registered_model": params.tracking.registered_model,
        "title": f"{params.dataset.name}-{tags['rairl.params']}",
        "tags": tags,
        "labels": labels,
        "params": flatten(params),
    }
