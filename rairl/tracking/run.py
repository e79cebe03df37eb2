"""The MLflow adapter: one parent run per pipeline run, a child run per stage, and the registry of reward models.

Tracking never stands in the way of training. Everything to be recorded goes through an outbox that is delivered in
order; a tracking server that is down (from the start, or from some moment on) costs one warning, is tried again now
and then, and what it has missed is delivered as soon as it answers. Metrics are in files in any case.

Where the records go: ``MLFLOW_TRACKING_URI`` if set, else ``mlflow.db`` (sqlite) with the files under ``mlartifacts/``,
both in the project's folder. MLflow stores the place of every artifact as an absolute path, so moving a project would
send new artifacts to the old folder; opening the store from a new place therefore rewrites these paths first
(:func:`relocate`). In a run of Kubeflow Pipelines, whose id is in ``RAIRL_KFP_RUN``, all stages share one parent that
carries this id.

MLflow is imported inside functions only: it takes over a second.
"""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rairl.core.params import Params
from rairl.tracking import dashboard
from rairl.tracking.champion import CHAMPION, crown, run_versions
from rairl.tracking.provenance import (
    data_tag,
    file_digest,
    flatten,
    git_commit,
    metric_name,
    now,
    parent_key,
    pipeline_tag,
    run_tags,
)
from rairl.tracking.store import (
    connect,
    create_once,
    database_file,
    default_store,
    oldest_run,
    quietly,
    reason,
    tracking_uri,
    unreachable,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from rairl.core.stats import Estimate

logger = logging.getLogger(__name__)


_FLUSH_SECONDS = 10.0
_RETRY_SECONDS = 60.0  # doubles with each failure: a server that hangs costs its timeout at every attempt
_BATCH = 1000  # most metrics that one MLflow request takes
_PARAM_BATCH = 100


class Run:
    """The tracking run of one stage, as the process that delivers its records has it (:mod:`rairl.tracking.courier`).

    Attributes:
        run_id: of the stage's run, None until the store has answered.
        parent_id: of the pipeline's run, likewise.
    """

    run_id: str | None = None
    parent_id: str | None = None

    def __init__(self, stage: str, params: Params, *, log_dir: Path, root: Path, card: Path | None) -> None:
        self._stage = stage
        self._params = params
        self._log_dir = log_dir
        self._tags = {
            "rairl.core.params": params.digest(),
            "rairl.commit": git_commit(root),
            "rairl.data": data_tag(card),
            **pipeline_tag(),
        }
        self._uri = tracking_uri(root)
        self._started = now()
        self._experiment_id = ""
        self._client: MlflowClient | None = None
        self._rows: list[tuple[str, float, int, int]] = []
        self._outbox: deque[tuple[str, Callable[[MlflowClient], None]]] = deque()
        self._digests: dict[str, str] = {}
        self._flushed = time.monotonic()
        self._retry_at = 0.0
        self._pause = _RETRY_SECONDS
        self._warned = False
        self._off = False

    def log(self, metrics: Mapping[str, float], step: int, *, at: int | None = None) -> None:
        """Record metrics of one training step. Buffered: a call costs microseconds, every ten seconds a request.

        Args:
            at: when they were measured, in milliseconds of the clock; now, if it isn't said.
        """
        at = at or now()
        self._rows += [(metric_name(key), float(value), at, step) for key, value in metrics.items()]
        if len(self._rows) >= _BATCH or time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._flush()

    def log_estimates(self, figures: Mapping[str, Estimate]) -> None:
        """Record final figures: with ``.low``, ``.high`` and ``.n`` on the stage's run, values on the pipeline's."""
        at = now()
        known = {metric_name(key): figure for key, figure in figures.items() if not math.isnan(figure.value)}
        for key, figure in known.items():
            parts = {key: figure.value, f"{key}.low": figure.low, f"{key}.high": figure.high, f"{key}.n": figure.n}
            self._rows += [(name, float(value), at, 0) for name, value in parts.items() if not math.isnan(value)]
        values = [(key, float(figure.value), at, 0) for key, figure in known.items()]
        self._send("figures", lambda client: _log_rows(client, self.parent_id or "", values))

    def log_input(self, path: str | Path, *, name: str) -> None:
        """Record that the stage reads a file: an MLflow dataset input with 32 digits of its SHA-256."""
        path = Path(path)
        digest = file_digest(path)[:32]
        self._digests[name] = digest

        def send(client: MlflowClient) -> None:
            from mlflow.entities import Dataset, DatasetInput, InputTag

            source = json.dumps({"uri": str(path)})
            dataset = Dataset(name=name, digest=digest, source_type="local", source=source)
            context = InputTag("mlflow.data.context", self._stage)
            client.log_inputs(self.run_id or "", datasets=[DatasetInput(dataset, [context])])

        self._send(f"input {name}", send)

    def log_artifact(self, path: str | Path, *, of_pipeline: bool = False) -> None:
        """Keep a file, or a folder under its own name, with the stage's run, or with the pipeline's."""
        path = Path(path)
        folder = path.name if path.is_dir() else None

        def send(client: MlflowClient) -> None:
            keeper = (self.parent_id if of_pipeline else self.run_id) or ""
            if folder:
                client.log_artifacts(keeper, str(path), artifact_path=folder)
            else:
                client.log_artifact(keeper, str(path))

        self._send(f"artifact {path.name}", send)

    def register_reward(
        self, folder: str | Path, step: int, metrics: Mapping[str, float], tags: Mapping[str, str] | None = None
    ) -> None:
        """Make a reward checkpoint a LoggedModel and a version of ``params.tracking.registered_model``.

        Args:
            folder: what ``RewardModel.save_pretrained`` wrote. It is copied, so it may change or go afterwards; only
                while the tracking server is down it must stay until the end of the stage.
            step: training step of the checkpoint.
            metrics: dev scores. They are tied to the model, to the input named ``dev`` if that was logged, and become
                tags of the version under their names.
            tags: further tags of the version.
        """
        folder = Path(folder)
        scores = {metric_name(key): float(value) for key, value in metrics.items()}
        labels = {
            **self._tags,
            "stage": self._stage,
            "policy": dashboard.policy(self._params),
            "backbone": dashboard.body(self._params),
            "granularity": self._params.reward.granularity,
            "seed": str(self._params.seed),
            "step": str(step),
            **{key: repr(value) for key, value in scores.items()},
            **(tags or {}),
        }
        self._send(f"reward model of step {step}", lambda client: self._register(client, folder, step, scores, labels))

    def promote_champion(self, criterion: str, *, higher_is_better: bool = True) -> None:
        """Give the best version of this pipeline run the alias ``champion``, by one of its registered metrics.

        See :func:`promote` for when a present champion stays. Nothing happens where ``RAIRL_PROMOTE`` is ``no``: a
        pipeline sets it whose last task decides, when all is measured.

        Args:
            criterion: a key of the ``metrics`` of :meth:`register_reward`.
            higher_is_better: whether larger values win.
        """
        if os.environ.get("RAIRL_PROMOTE") == "no":
            return
        name = self._params.tracking.registered_model

        def send(client: MlflowClient) -> None:
            verdict = crown(client, name, run_versions(client, [self._params], self._tags), criterion, higher_is_better)
            (logger.info if verdict.version else logger.warning)("%s", verdict.text)

        self._send("champion", send)

    def _register(
        self, client: MlflowClient, folder: Path, step: int, scores: dict[str, float], labels: dict[str, str]
    ) -> None:
        from mlflow.entities import LoggedModelOutput, Metric

        from rairl.tracking.pyfunc import save_pyfunc

        run_id = self.run_id or ""
        model = client.create_logged_model(
            self._experiment_id, f"reward-step{step}", run_id, labels, flatten(self._params), model_type="reward"
        )
        with tempfile.TemporaryDirectory() as scratch:
            save_pyfunc(folder, Path(scratch) / "model", model=model, run_id=run_id)
            client.log_model_artifacts(model.model_id, str(Path(scratch) / "model"))
        client.finalize_logged_model(model.model_id, "READY")
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
        data = ("dev", self._digests["dev"]) if "dev" in self._digests else (None, None)
        client.log_batch(
            run_id,
            [Metric(key, value, now(), step, model.model_id, *data, run_id) for key, value in scores.items()],
        )
        name = self._params.tracking.registered_model
        create_once(
            lambda: client.create_registered_model(
                name, description=f"Reward models of rairl. The alias {CHAMPION!r} is the best by a dev criterion."
            )
        )
        labels = {**labels, "rairl.parent": self.parent_id or ""}
        note = dashboard.version_note(
            self._params,
            labels,
            step,
            scores,
            experiment_id=self._experiment_id,
            run_id=run_id,
            parent_id=self.parent_id or "",
        )
        with default_store(self._uri):
            client.create_model_version(
                name, f"models:/{model.model_id}", run_id, labels, description=note, model_id=model.model_id
            )

    def _send(self, what: str, operation: Callable[[MlflowClient], None]) -> None:
        self._queue_rows()
        self._outbox.append((what, operation))
        self._flush()

    def _queue_rows(self) -> None:
        rows, self._rows = self._rows, []
        if rows:
            self._outbox.append(("metrics", lambda client: _log_rows(client, self.run_id or "", rows)))

    def _flush(self, *, last: bool = False) -> None:
        self._queue_rows()
        self._flushed = time.monotonic()
        if self._off or (self._flushed < self._retry_at and not last):
            return
        with quietly():
            self._deliver()

    def _deliver(self) -> None:
        """Empty the outbox in order, until it is empty or the store cannot be reached."""
        while self.run_id is None or self._outbox:
            what, operation = self._outbox.popleft() if self.run_id else ("the run", self._open)
            try:
                if self._client is None:
                    self._client = connect(self._uri)
                operation(self._client)
            except Exception as error:  # MLflow and its stores raise anything; training must not end for it
                if unreachable(error):
                    if self.run_id:
                        self._outbox.appendleft((what, operation))
                    self._retry_at, self._pause = time.monotonic() + self._pause, 2 * self._pause
                    self._warn(f"MLflow at {self._uri} cannot be reached ({reason(error)})")
                    return
                if self.run_id is None:
                    self._off = True
                    self._outbox.clear()
                    self._warn(f"MLflow at {self._uri} does not take the run ({reason(error)})")
                    return
                logger.warning("MLflow did not take %s: %s", what, reason(error))
            else:
                self._pause = _RETRY_SECONDS

    def _warn(self, problem: str) -> None:
        if not self._warned:
            where = (
                "MLFLOW_TRACKING_URI" if "MLFLOW_TRACKING_URI" in os.environ else "mlflow.db in the project's folder"
            )
            logger.warning(
                "%s. The stage goes on, and its metrics are still in %s; what MLflow misses is sent if it answers "
                "before the stage ends. Check %s.",
                problem,
                self._log_dir,
                where,
            )
        self._warned = True

    def _open(self, client: MlflowClient) -> None:
        """Find or make the experiment and the pipeline's run, and make the stage's run."""
        name = self._params.tracking.experiment
        database = database_file(self._uri)
        place = (database.parent / "mlartifacts").as_uri() if database else None
        if client.get_experiment_by_name(name) is None:
            create_once(lambda: client.create_experiment(name, artifact_location=place))
        experiment = client.get_experiment_by_name(name)
        self._experiment_id = experiment.experiment_id
        for key, value in dashboard.experiment_tags(self._experiment_id).items():
            kept = key == dashboard.NOTE and key in experiment.tags  # somebody's own words
            if experiment.tags.get(key) != value and not kept:
                client.set_experiment_tag(self._experiment_id, key, value)
        self.parent_id = self._parent(client)
        tags = {
            **run_tags(self._stage, self._tags["rairl.commit"]),
            **self._tags,
            "rairl.stage": self._stage,
            "mlflow.parentRunId": self.parent_id,
        }
        run = client.create_run(self._experiment_id, self._started, tags, run_name=self._stage)
        _log_params(client, run.info.run_id, self._params)
        self.run_id = run.info.run_id

    def _parent(self, client: MlflowClient) -> str:
        def first() -> str | None:
            return oldest_run(client, self._experiment_id, parent_key(self._tags))

        found = first()
        if found is None:
            known = {name: self._tags[name] for name in ("rairl.core.params", "rairl.commit")}
            tags = {**run_tags("pipeline", known["rairl.commit"]), **known, **parent_key(self._tags)}
            title = f"{self._params.dataset.name}-{known['rairl.core.params']}"
            made = client.create_run(self._experiment_id, self._started, tags, run_name=title).info.run_id
            found = first() or made
            if found != made:  # a stage that started at the same moment was first
                client.delete_run(made)
            else:
                _log_params(client, made, self._params)
        client.update_run(found, status="RUNNING")
        data = self._tags["rairl.data"]
        if data != "none":
            client.set_tag(found, "rairl.data", data)
            if dashboard.NOTE not in client.get_run(found).data.tags:
                client.set_tag(
                    found, dashboard.NOTE, dashboard.run_note(self._params, data, self._tags["rairl.commit"])
                )
        return found

    def open(self) -> None:
        """Make the run, if the store answers."""
        self._flush()

    def close(self, status: str, error: str = "") -> None:
        """End the run, and deliver what is still to be delivered, if the store answers.

        Args:
            status: ``FINISHED``, ``FAILED`` or ``KILLED``.
            error: becomes the tag ``rairl.error``.
        """

        def send(client: MlflowClient) -> None:
            if error:
                client.set_tag(self.run_id or "", "rairl.error", error[:500])
            client.set_terminated(self.run_id or "", status)
            client.set_terminated(self.parent_id or "", status)

        self._queue_rows()
        self._outbox.append(("the end of the run", send))
        self._flush(last=True)


class SentRun(Run):
    """A run whose records somebody else takes.

    Args:
        send: is called with the name of a method of :class:`Run` and its arguments, all of plain values.
    """

    def __init__(self, send: Callable[..., None]) -> None:
        self._pass = send

    def open(self) -> None:
        """Send it."""
        self._pass("open")

    def close(self, status: str, error: str = "") -> None:
        """Send it."""
        self._pass("close", status, error)

    def log(self, metrics: Mapping[str, float], step: int, *, at: int | None = None) -> None:
        """Send it, with the time."""
        self._pass("log", {key: float(value) for key, value in metrics.items()}, step, at=at or now())

    def log_estimates(self, figures: Mapping[str, Estimate]) -> None:
        """Send it."""
        self._pass("log_estimates", dict(figures))

    def log_input(self, path: str | Path, *, name: str) -> None:
        """Send it; the file has to stay until the run is closed."""
        self._pass("log_input", Path(path), name=name)

    def log_artifact(self, path: str | Path, *, of_pipeline: bool = False) -> None:
        """Send it; file or folder have to stay until the run is closed."""
        self._pass("log_artifact", Path(path), of_pipeline=of_pipeline)

    def register_reward(
        self, folder: str | Path, step: int, metrics: Mapping[str, float], tags: Mapping[str, str] | None = None
    ) -> None:
        """Send it."""
        scores = {key: float(value) for key, value in metrics.items()}
        self._pass("register_reward", Path(folder), step, scores, dict(tags or {}))

    def promote_champion(self, criterion: str, *, higher_is_better: bool = True) -> None:
        """Send it."""
        self._pass("promote_champion", criterion, higher_is_better=higher_is_better)


class NullRun(SentRun):
    """A run that records nothing, for calling a stage function outside a pipeline."""

    def __init__(self) -> None:
        super().__init__(lambda *_, **__: None)


def _log_params(client: MlflowClient, run_id: str, params: Params) -> None:
    from mlflow.entities import Param

    values = [Param(key, value) for key, value in flatten(params).items()]
    for start in range(0, len(values), _PARAM_BATCH):
        client.log_batch(run_id, params=values[start : start + _PARAM_BATCH])


def _log_rows(client: MlflowClient, run_id: str, rows: list[tuple[str, float, int, int]]) -> None:
    from mlflow.entities import Metric

    for start in range(0, len(rows), _BATCH):
        client.log_batch(run_id, [Metric(*row) for row in rows[start : start + _BATCH]])
