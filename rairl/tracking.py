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

import hashlib
import json
import logging
import math
import os
import re
import sqlite3
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rairl import dashboard
from rairl.errors import RairlError
from rairl.params import Params
from rairl.processes import uncollected

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun
    from mlflow.entities.model_registry import ModelVersion

    from rairl.stats import Estimate

logger = logging.getLogger(__name__)

CHAMPION = "champion"
"""Registry alias of the best reward model by a dev criterion."""

CANDIDATE = "candidate"
"""Registry alias of the version that was last compared with the champion, whether it won or not."""

_FLUSH_SECONDS = 10.0
_RETRY_SECONDS = 60.0  # doubles with each failure: a server that hangs costs its timeout at every attempt
_BATCH = 1000  # most metrics that one MLflow request takes
_PARAM_BATCH = 100
_SETTINGS = {
    # MLflow's own defaults (120 s, 7 retries with doubling pauses) would hold training up for minutes. A large model
    # behind a slow artifact proxy may need a longer timeout: what the user has set stays.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_NOISY = ("mlflow", "alembic", "urllib3.connectionpool")


class Run:
    """The tracking run of one stage, as the process that delivers its records has it (:mod:`rairl.courier`).

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
            "rairl.params": params.digest(),
            "rairl.commit": git_commit(root),
            "rairl.data": data_tag(card),
            **_pipeline_tag(),
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
            verdict = _crown(client, name, _versions(client, [self._params], self._tags), criterion, higher_is_better)
            (logger.info if verdict.version else logger.warning)("%s", verdict.text)

        self._send("champion", send)

    def _register(
        self, client: MlflowClient, folder: Path, step: int, scores: dict[str, float], labels: dict[str, str]
    ) -> None:
        from mlflow.entities import LoggedModelOutput, Metric

        from rairl.serve import save_pyfunc

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
        _create_once(
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
        with _default_store(self._uri):
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
        with _quiet():
            self._deliver()

    def _deliver(self) -> None:
        """Empty the outbox in order, until it is empty or the store cannot be reached."""
        while self.run_id is None or self._outbox:
            what, operation = self._outbox.popleft() if self.run_id else ("the run", self._open)
            try:
                if self._client is None:
                    self._client = _connect(self._uri)
                operation(self._client)
            except Exception as error:  # MLflow and its stores raise anything; training must not end for it
                if _unreachable(error):
                    if self.run_id:
                        self._outbox.appendleft((what, operation))
                    self._retry_at, self._pause = time.monotonic() + self._pause, 2 * self._pause
                    self._warn(f"MLflow at {self._uri} cannot be reached ({_reason(error)})")
                    return
                if self.run_id is None:
                    self._off = True
                    self._outbox.clear()
                    self._warn(f"MLflow at {self._uri} does not take the run ({_reason(error)})")
                    return
                logger.warning("MLflow did not take %s: %s", what, _reason(error))
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
        database = _database(self._uri)
        place = (database.parent / "mlartifacts").as_uri() if database else None
        if client.get_experiment_by_name(name) is None:
            _create_once(lambda: client.create_experiment(name, artifact_location=place))
        experiment = client.get_experiment_by_name(name)
        self._experiment_id = experiment.experiment_id
        for key, value in dashboard.experiment_tags(self._experiment_id).items():
            kept = key == dashboard.NOTE and key in experiment.tags  # somebody's own words
            if experiment.tags.get(key) != value and not kept:
                client.set_experiment_tag(self._experiment_id, key, value)
        self.parent_id = self._parent(client)
        tags = {
            **_context(self._stage, self._tags["rairl.commit"]),
            **self._tags,
            "rairl.stage": self._stage,
            "mlflow.parentRunId": self.parent_id,
        }
        run = client.create_run(self._experiment_id, self._started, tags, run_name=self._stage)
        _log_params(client, run.info.run_id, self._params)
        self.run_id = run.info.run_id

    def _parent(self, client: MlflowClient) -> str:
        def first() -> str | None:
            return _oldest(client, self._experiment_id, _parent_key(self._tags))

        found = first()
        if found is None:
            known = {name: self._tags[name] for name in ("rairl.params", "rairl.commit")}
            tags = {**_context("pipeline", known["rairl.commit"]), **known, **_parent_key(self._tags)}
            title = f"{self._params.dataset.name}-{known['rairl.params']}"
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


class Verdict(NamedTuple):
    """What became of a candidate for the alias ``champion``."""

    promoted: bool
    version: str
    """The candidate; empty when no version of the run has the criterion."""
    value: float
    """The candidate's."""
    text: str


def promote(
    variants: Sequence[Params], *, data: str, criterion: str, higher_is_better: bool = True, root: Path = Path(".")
) -> Verdict:
    """Give the alias ``champion`` to the best registered reward of some runs, if it beats the present champion.

    The present champion stays when it was chosen by the same criterion on the same data and is better; on a tie the
    newer version takes over. Criterion and value become tags of the champion. Two calls at the same moment may see the
    same champion: let one task of a pipeline decide, after all others.

    Args:
        variants: the parameters of the runs; their versions compete.
        data: :func:`data_tag` of what they learned from.
        criterion: a key of the ``metrics`` of :meth:`Run.register_reward`.
        higher_is_better: whether larger values win.
        root: the project's folder, home of the default store.

    Raises:
        RairlError: when MLflow can't be reached, or has no version of these runs.
    """
    uri = tracking_uri(root)
    name = variants[0].tracking.registered_model
    tags = {"rairl.commit": git_commit(root), "rairl.data": data}
    try:
        with _quiet():
            client = _connect(uri)
            verdict = _crown(client, name, _versions(client, variants, tags), criterion, higher_is_better)
    except Exception as error:  # MLflow and its stores raise anything
        raise RairlError(f"MLflow at {uri} does not answer ({_reason(error)}); the champion is as it was") from error
    if not verdict.version:
        raise RairlError(
            f"{verdict.text}; MLflow at {uri} holds none with these parameters, this commit and this data: run the "
            "stage rairl with that store"
        )
    return verdict


@contextmanager
def open_store(root: Path = Path(".")) -> Iterator[MlflowClient]:
    """A client of the tracking store for somebody who asks, not for a run: a store that is not there is an error.

    Raises:
        RairlError: when there is no store, or it refuses or does not answer what is asked inside the context.
    """
    uri = tracking_uri(root)
    database = _database(uri)
    if database is not None and not database.exists():
        raise RairlError(f"{database} does not exist; name a run's folder with --dir, or set MLFLOW_TRACKING_URI")
    try:
        with _quiet(), _default_store(uri):
            yield _connect(uri)
    except RairlError:
        raise
    except Exception as error:  # MLflow and its stores raise anything
        raise RairlError(f"MLflow at {uri}: {_reason(error)}") from error


@contextmanager
def registered_reward(name: str, root: Path = Path(".")) -> Iterator[Path]:
    """The reward's folder inside a registered model, while it is being read.

    Args:
        name: ``models:/name@alias`` or ``models:/name/version``.
        root: the project's folder, home of the default store.

    Raises:
        RairlError: when the registry has no such model, or it holds no reward.
    """
    with tempfile.TemporaryDirectory() as scratch:
        with open_store(root):
            from mlflow.artifacts import download_artifacts
            from mlflow.models import Model

            place = Path(download_artifacts(artifact_uri=name, dst_path=scratch))
            flavor = Model.load(str(place)).flavors.get("python_function", {})
        found = flavor.get("artifacts", {}).get("reward")
        if found is None:
            raise RairlError(f"{name} is registered but was not made by rairl; `rairl registry list` shows what was")
        yield place / found["path"]


def _versions(client: MlflowClient, variants: Sequence[Params], tags: Mapping[str, str]) -> list[ModelVersion]:
    """The registered rewards of runs: same parameters (of one of them), commit and data."""
    found: list[ModelVersion] = []
    for params in variants:
        wanted = {"rairl.params": params.digest(), **{key: tags[key] for key in ("rairl.commit", "rairl.data")}}
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in wanted.items())
        found += client.search_model_versions(f"name = '{params.tracking.registered_model}' and {query}")
    return found


def promote_version(name: str, version: int, *, criterion: str, root: Path = Path(".")) -> Verdict:
    """Let one registered version compete with the present champion, by the rules of :func:`promote`.

    Raises:
        RairlError: when MLflow can't be reached, or the version is not there or has no value of the criterion.
    """
    with open_store(root) as client:
        verdict = _crown(client, name, [client.get_model_version(name, str(version))], criterion, True)
    if not verdict.version:
        raise RairlError(f"version {version} of {name} has no {metric_name(criterion)!r}, by which champions compare")
    return verdict


def _crown(
    client: MlflowClient, name: str, versions: Sequence[ModelVersion], criterion: str, higher_is_better: bool
) -> Verdict:
    criterion, sign = metric_name(criterion), 1 if higher_is_better else -1
    scored = [version for version in versions if not math.isnan(_score(version, criterion))]
    if not scored:
        text = f"no registered version of this run has the metric {criterion!r}, so none becomes champion"
        return Verdict(False, "", math.nan, text)
    best = max(scored, key=lambda version: (sign * _score(version, criterion), int(version.version)))
    value = _score(best, criterion)
    client.set_registered_model_alias(name, CANDIDATE, best.version)
    alias = client.get_registered_model(name).aliases.get(CHAMPION)
    if alias is not None and str(alias) != str(best.version):
        holder = client.get_model_version(name, str(alias))
        held = _score(holder, criterion)
        if _comparable(holder, best.tags.get("rairl.data", "none"), criterion, sign) and sign * held > sign * value:
            text = (
                f"version {alias} of {name} stays champion: its {criterion} is {held:.4g}, the best of this run, "
                f"version {best.version}, has {value:.4g}"
            )
            return Verdict(False, str(best.version), value, text)
    client.set_model_version_tag(name, best.version, "champion.criterion", criterion)
    client.set_model_version_tag(name, best.version, "champion.direction", "max" if sign > 0 else "min")
    client.set_model_version_tag(name, best.version, "champion.value", repr(value))
    client.set_registered_model_alias(name, CHAMPION, best.version)
    text = f"version {best.version} of {name} is champion: its {criterion} is {value:.4g}"
    return Verdict(True, str(best.version), value, text)


def views(host: str, root: Path = Path(".")) -> list[str]:
    """Lines that say where the prepared views of each experiment are on a page of MLflow at ``host``."""
    with open_store(root) as client:
        marked = [item for item in client.search_experiments() if item.tags.get(f"{dashboard.VIEW}runs")]
        models = [model.name for model in client.search_registered_models()]
    return [
        f"  {item.name}, {what}: {address}"
        for item in marked
        for what, address in dashboard.addresses(f"{host}/", item.experiment_id).items()
    ] + [f"  registered: {host}/#/models/{name}" for name in models]


def run_links(stage: str, params: Params, root: Path = Path(".")) -> dict[str, str]:
    """Ids of the newest tracking run of a stage and of its parent, to be kept with a task's figures; {} without any."""
    uri = tracking_uri(root)
    tags = {"rairl.params": params.digest(), "rairl.commit": git_commit(root), "rairl.stage": stage, **_pipeline_tag()}
    try:
        with _quiet():
            client = _connect(uri)
            experiment = client.get_experiment_by_name(params.tracking.experiment)
            runs = _search(client, experiment.experiment_id, tags) if experiment else []
        newest = max(runs, key=lambda run: run.info.start_time, default=None)
        if newest is None:
            return {}
        parent = newest.data.tags["mlflow.parentRunId"]
        return {"mlflow.tracking_uri": uri, "mlflow.run_id": newest.info.run_id, "mlflow.parent_id": parent}
    except Exception as error:  # the figures matter more than the way to them
        logger.warning("the tracking run of %s can't be named: %s", stage, _reason(error))
        return {}


def close_pipeline(params: Params, *, status: str, error: str = "", root: Path = Path(".")) -> None:
    """Settle the status of a pipeline's run: of stages side by side, the last to end has left its own there.

    Args:
        params: of the pipeline.
        status: ``FINISHED``, ``FAILED`` or ``KILLED``.
        error: becomes the tag ``rairl.error``.
        root: the project's folder, home of the default store.
    """
    tags = {"rairl.params": params.digest(), "rairl.commit": git_commit(root), **_pipeline_tag()}
    try:
        with _quiet():
            client = _connect(tracking_uri(root))
            experiment = client.get_experiment_by_name(params.tracking.experiment)
            found = _oldest(client, experiment.experiment_id, _parent_key(tags)) if experiment else None
            if found is not None:
                if error:
                    client.set_tag(found, "rairl.error", error[:500])
                client.set_terminated(found, status)
    except Exception as problem:  # the pipeline has ended in any case
        logger.warning("MLflow at %s did not take the end of the run: %s", tracking_uri(root), _reason(problem))


def _pipeline_tag() -> dict[str, str]:
    """The run of Kubeflow Pipelines that this process is a task of, if any."""
    run = os.environ.get("RAIRL_KFP_RUN")
    return {"rairl.kfp_run": run} if run else {}


def _parent_key(tags: Mapping[str, str]) -> dict[str, str]:
    """What tells a pipeline's run: the run of Kubeflow Pipelines, else parameters and commit."""
    names = ("rairl.kfp_run",) if "rairl.kfp_run" in tags else ("rairl.params", "rairl.commit")
    return {**{name: tags[name] for name in names}, "rairl.stage": "pipeline"}


def _search(client: MlflowClient, experiment_id: str, tags: Mapping[str, str]) -> list[MlflowRun]:
    query = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    return list(client.search_runs([experiment_id], query, max_results=100))


def _oldest(client: MlflowClient, experiment_id: str, tags: Mapping[str, str]) -> str | None:
    runs = _search(client, experiment_id, tags)
    return min(((run.info.start_time, run.info.run_id) for run in runs), default=(0, None))[1]


def data_tag(card: Path | None) -> str:
    """Twelve digits of the data card's hash; ``none`` without a card."""
    return file_digest(card)[:12] if card is not None and card.is_file() else "none"


def tracking_uri(root: Path = Path(".")) -> str:
    """``MLFLOW_TRACKING_URI``, else the sqlite file in the project's folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve() / 'mlflow.db'}"


def _database(uri: str) -> Path | None:
    """The file of a sqlite store; artifacts lie beside it, in ``mlartifacts``."""
    return Path(uri.removeprefix("sqlite:///")).resolve() if uri.startswith("sqlite:///") else None


def relocate(database: Path) -> None:
    """Make a sqlite store follow a project that was moved or copied.

    MLflow has no call for it, so this rewrites the absolute paths below the old ``mlartifacts`` folder in the database.
    """
    place = (database.parent / "mlartifacts").as_uri()
    if not database.exists():
        return
    columns = {
        "experiments": ("artifact_location",),
        "runs": ("artifact_uri",),
        "logged_models": ("artifact_location",),
        "model_versions": ("source", "storage_location"),
    }
    with closing(sqlite3.connect(database, timeout=20)) as store, store:
        if store.execute("SELECT 1 FROM sqlite_master WHERE name = 'logged_models'").fetchone() is None:
            return  # MLflow has not set it up yet
        query = "SELECT DISTINCT artifact_location FROM experiments WHERE artifact_location LIKE 'file://%/mlartifacts'"
        for (old,) in store.execute(query).fetchall():
            if old == place:
                continue
            for table, names in columns.items():
                for name in names:
                    moved = f"UPDATE {table} SET {name} = ? || substr({name}, ?) WHERE substr({name} || '/', 1, ?) = ?"
                    store.execute(moved, (place, len(old) + 1, len(old) + 1, old + "/"))
            logger.info("%s kept its artifacts in %s; it now points to %s", database, old, place)


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


def _connect(uri: str) -> MlflowClient:
    database = _database(uri)
    if database is not None:
        relocate(database)

    with uncollected():  # the client imports what its store needs
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=uri)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep MLflow's migrations, retries and tracebacks off the console; what matters is reported by the caller."""
    for key, value in _SETTINGS.items():
        os.environ.setdefault(key, value)
    with uncollected():
        import mlflow  # noqa: F401  (sets its own log levels on import)

    levels = {name: logging.getLogger(name).level for name in _NOISY}
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def _default_store(uri: str) -> Iterator[None]:
    """Make ``uri`` MLflow's global store for a moment: a sqlite registry looks up ``models:/`` there, not in its own.

    Setting it globally also sets the environment variable, which would then pass for the user's choice.
    """
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)  # MLflow's own way to unset it
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


def _context(stage: str, commit: str) -> dict[str, str]:
    return {
        "mlflow.source.name": f"rairl {stage}",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": commit,
        "mlflow.user": os.environ.get("USER", "unknown"),
    }


def _log_params(client: MlflowClient, run_id: str, params: Params) -> None:
    from mlflow.entities import Param

    values = [Param(key, value) for key, value in flatten(params).items()]
    for start in range(0, len(values), _PARAM_BATCH):
        client.log_batch(run_id, params=values[start : start + _PARAM_BATCH])


def _log_rows(client: MlflowClient, run_id: str, rows: list[tuple[str, float, int, int]]) -> None:
    from mlflow.entities import Metric

    for start in range(0, len(rows), _BATCH):
        client.log_batch(run_id, [Metric(*row) for row in rows[start : start + _BATCH]])


def _create_once(create: Callable[[], Any]) -> None:
    from mlflow.exceptions import MlflowException

    try:
        create()
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _score(version: ModelVersion, criterion: str) -> float:
    return float(version.tags.get(criterion, "nan"))


def _comparable(holder: ModelVersion, data: str, criterion: str, sign: int) -> bool:
    expected = {"rairl.data": data, "champion.criterion": criterion, "champion.direction": "max" if sign > 0 else "min"}
    return data != "none" and all(holder.tags.get(key) == value for key, value in expected.items())


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _unreachable(error: BaseException) -> bool:
    """Whether the store may answer later: the network, or a database that is locked or cannot be opened."""
    from requests.exceptions import RequestException
    from sqlalchemy.exc import OperationalError

    return any(
        isinstance(link, (RequestException, OperationalError, sqlite3.OperationalError)) for link in _chain(error)
    )


def _reason(error: BaseException) -> str:
    """The first line of the innermost message: of a refused connection the refusal, not the layers around it."""
    *_, root = _chain(error)
    return (str(root).strip() or type(root).__name__).splitlines()[0][:300]
