"""From a stage's file of records to MLflow, each record once.

A marker beside the records says how far they are sent. A process that is killed between MLflow's answer and the marker
sends one record again, so each is made to have the same effect twice as once: MLflow takes equal metrics, parameters,
inputs and files as one, and runs, models and versions carry a tag by which they are looked up before they are made.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from rairl.tracking.champion import CHAMPION, crown, run_versions
from rairl.tracking.provenance import parent_key, run_tags
from rairl.tracking.store import (
    connect,
    create_once,
    database_file,
    default_store,
    default_uri,
    oldest_run,
    quietly,
    reason,
    refused,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

logger = logging.getLogger(__name__)

RECORDS = "records.jsonl"
_MARKER = "sent.json"
_ORIGIN = "rairl.record"
"""Tag of whatever a record makes in MLflow: which record that was."""
_BATCH = 1000  # most metrics that one request takes
_PARAM_BATCH = 100


def outbox(root: Path) -> Path:
    """Where the stages of a project keep what MLflow doesn't have yet: a folder each.

    ``RAIRL_TRACKING`` names another place, where the project's folder goes away, as an experiment's does.
    """
    return Path(os.environ.get("RAIRL_TRACKING", root / ".rairl" / "tracking"))


def lock_of(folder: Path) -> FileLock:
    """Held by the stage that writes to a folder, or by whoever sends it, until its process ends. It doesn't wait."""
    return FileLock(folder.with_suffix(".lock"), blocking=False)


def send_leftovers(root: Path, *, only: str | None = None, to: str = "") -> Iterator[tuple[str, Exception | None]]:
    """Send what earlier stages have left, the oldest first, and end the runs of those that were killed.

    Stages that are running, and records that another process is sending, are left alone.

    Args:
        root: the project's folder.
        only: send only what is for this address.
        to: send to this address, wherever it was to go.

    Yields:
        Each stage, with what kept MLflow from taking its records, which stay then, or None.
    """
    for folder in sorted(path for path in outbox(root).glob("*") if path.is_dir()):
        with ExitStack() as stack:
            try:
                stack.enter_context(lock_of(folder))
            except Timeout:
                continue
            if not _is_whole(folder):
                _remove(folder)
                continue
            delivery, problem = Delivery(folder, root, to), None
            if only not in (None, delivery.uri):
                continue
            try:
                delivery.send(closed=True)
            except Exception as error:  # MLflow and its stores raise anything
                problem = error
        yield delivery.stage, problem


def _is_whole(folder: Path) -> bool:
    """Whether the first line is there: its process may have been killed before, or it is sent by now."""
    try:
        with (folder / RECORDS).open("rb") as file:
            return file.readline().endswith(b"\n")
    except FileNotFoundError:
        return False


def _remove(folder: Path) -> None:
    (folder / RECORDS).unlink(missing_ok=True)  # first: without it nobody sends the rest
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_suffix(".lock").unlink(missing_ok=True)


class Delivery:
    """The records of one stage on their way to MLflow; the folder's lock is to be held meanwhile.

    The first line of the records is an object with ``stage``, ``started`` (ms), ``uri`` (empty for the
    project's own store), ``experiment``, ``registered_model``, ``params`` (flat), ``title`` of the pipeline's run,
    ``tags`` of runs and versions, and ``labels``, further tags of versions. Every other line is the ``kind`` of a
    record and its values: the arguments of the method of that name.

    Attributes:
        stage: its name.
        uri: the address of the store.
    """

    def __init__(self, folder: Path, root: Path, to: str = "") -> None:
        with (folder / RECORDS).open("rb") as file:
            first = file.readline()
        self._head: dict[str, Any] = json.loads(first)
        self._folder = folder
        self.stage = self._head["stage"]
        target = to or self._head["uri"]
        self.uri = target or default_uri(root)
        self._sent: dict[str, Any] = {"uri": target, "offset": len(first), "ended": False}
        marker = folder / _MARKER
        before = json.loads(marker.read_text(encoding="utf-8")) if marker.exists() else {}
        if before.get("uri") == target:
            self._sent = before
        self._client: MlflowClient = None

    def send(self, *, closed: bool) -> None:
        """Send what isn't sent yet.

        Args:
            closed: nothing will be added. The run ends, as FAILED if the stage did not come to say how, and the folder
                is removed.

        Raises:
            Exception: whatever MLflow raises; only a warning tells what it refuses for good, such as a name.
        """
        with quietly():
            self._client = self._client or connect(self.uri)
            if "run" not in self._sent:
                self._open()
            for record, end in _merged(self._unsent()):
                self._deliver(dict(record))
                self._mark(offset=end)
                if "file" in record:
                    shutil.rmtree((self._folder / record["file"]).parent, ignore_errors=True)
            if closed and not self._sent["ended"]:
                last = int((self._folder / RECORDS).stat().st_mtime * 1000)
                error = "the stage's process was killed"
                self._deliver({"kind": "end", "status": "FAILED", "error": error, "at": last})
        if closed:
            _remove(self._folder)

    def _unsent(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Records, each with the place in the file where it ends."""
        with (self._folder / RECORDS).open("rb") as file:
            offset = file.seek(self._sent["offset"])
            for line in file:
                if not line.endswith(b"\n"):
                    return  # its process was killed
                offset += len(line)
                yield json.loads(line), offset

    def _mark(self, **values: Any) -> None:
        self._sent.update(values)
        draft = self._folder / f"{_MARKER}.part"
        draft.write_text(json.dumps(self._sent), encoding="utf-8")
        draft.replace(self._folder / _MARKER)

    def _deliver(self, record: dict[str, Any]) -> None:
        kind = record.pop("kind")
        if "file" in record and not (self._folder / record["file"]).exists():
            return  # it is in another store, where this one got its address later
        try:
            getattr(self, kind)(**record)
        except Exception as error:
            if not refused(error):
                raise
            logger.warning("MLflow did not take a record of the stage %s (%s): %s", self.stage, kind, reason(error))

    # --- the runs ----------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Find or make the experiment, the pipeline's run and the stage's run."""
        client, name = self._client, self._head["experiment"]
        if client.get_experiment_by_name(name) is None:
            database = database_file(self.uri)
            place = (database.parent / "mlartifacts").as_uri() if database else None
            # MLflow otherwise shows the page for chat applications.
            kind = {"mlflow.experimentKind": "custom_model_development"}
            create_once(lambda: client.create_experiment(name, artifact_location=place, tags=kind))
        experiment = client.get_experiment_by_name(name).experiment_id
        parent = self._parent(experiment)
        run = oldest_run(client, experiment, {_ORIGIN: self._folder.name})
        if run is None:
            tags = {"mlflow.parentRunId": parent, _ORIGIN: self._folder.name}
            run = self._make_run(experiment, self.stage, self.stage, tags)
        self._log_params(run)
        self._mark(run=run, parent=parent, experiment=experiment)

    def _parent(self, experiment: str) -> str:
        client, key = self._client, parent_key(self._head["tags"])
        found = oldest_run(client, experiment, key)
        if found is None:
            made = self._make_run(experiment, "pipeline", self._head["title"], {})
            found = oldest_run(client, experiment, key) or made
            if found != made:  # a stage that started at the same moment was first
                client.delete_run(made)
            else:
                self._log_params(made)
        client.update_run(found, status="RUNNING")
        if self._head["tags"]["rairl.data"] != "none":
            client.set_tag(found, "rairl.data", self._head["tags"]["rairl.data"])
        return found

    def _make_run(self, experiment: str, stage: str, title: str, more: dict[str, str]) -> str:
        known = self._head["tags"]
        tags = {**run_tags(stage, known["rairl.commit"]), **known, "rairl.stage": stage, **more}
        run: str = self._client.create_run(experiment, self._head["started"], tags, run_name=title).info.run_id
        return run

    def _log_params(self, run: str) -> None:
        from mlflow.entities import Param

        values = [Param(key, value) for key, value in self._head["params"].items()]
        for start in range(0, len(values), _PARAM_BATCH):
            self._client.log_batch(run, params=values[start : start + _PARAM_BATCH])

    def end(self, status: str, error: str, at: int) -> None:
        """Close the stage's run, and the pipeline's until another stage begins."""
        self._sent["ended"] = True
        if error:
            self._client.set_tag(self._sent["run"], "rairl.error", error)
        for run in (self._sent["run"], self._sent["parent"]):
            self._client.set_terminated(run, status, at)

    # --- what a stage records ----------------------------------------------------------------------------------------

    def metrics(self, rows: list[tuple[str, float, int, int]], of_pipeline: bool = False) -> None:
        """Rows of name, value, time in ms, and step."""
        from mlflow.entities import Metric

        keeper = self._sent["parent" if of_pipeline else "run"]
        self._client.log_batch(keeper, [Metric(*row) for row in rows])

    def input(self, name: str, path: str, digest: str) -> None:
        """A file that the stage read."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(name=name, digest=digest, source_type="local", source=json.dumps({"uri": path}))
        context = InputTag("mlflow.data.context", self.stage)
        self._client.log_inputs(self._sent["run"], datasets=[DatasetInput(dataset, [context])])

    def artifact(self, file: str, of_pipeline: bool) -> None:
        """A file, or a folder under its own name."""
        path, keeper = self._folder / file, self._sent["parent" if of_pipeline else "run"]
        if path.is_dir():
            self._client.log_artifacts(keeper, str(path), artifact_path=path.name)
        else:
            self._client.log_artifact(keeper, str(path))

    def reward(self, file: str, step: int, scores: dict[str, float], tags: dict[str, str], dev: str | None) -> None:
        """A reward checkpoint, which becomes a LoggedModel and a version of the registered model."""
        client, run, name = self._client, self._sent["run"], self._head["registered_model"]
        origin = {_ORIGIN: f"{self._folder.name}/{file}"}
        query = f"tags.`{_ORIGIN}` = '{origin[_ORIGIN]}'"
        if client.search_model_versions(f"name = '{name}' and {query}"):
            return
        found = client.search_logged_models([self._sent["experiment"]], query)
        values = {"step": str(step), **{key: repr(value) for key, value in scores.items()}, **tags}
        labels = {
            **self._head["tags"],
            **self._head["labels"],
            **values,
            **origin,
            "rairl.parent": self._sent["parent"],
        }
        model = (
            found[0]
            if found
            else client.create_logged_model(
                self._sent["experiment"], f"reward-step{step}", run, labels, self._head["params"], model_type="reward"
            )
        )
        self._fill(model, self._folder / file, step, scores, dev)
        about = f"Reward models of rairl. The alias {CHAMPION!r} is the best by a dev criterion."
        create_once(lambda: client.create_registered_model(name, description=about))
        with default_store(self.uri):
            client.create_model_version(name, f"models:/{model.model_id}", run, labels, model_id=model.model_id)

    def _fill(self, model: LoggedModel, folder: Path, step: int, scores: dict[str, float], dev: str | None) -> None:
        """Give a model its files, and its place among the run's outputs and metrics."""
        from mlflow.entities import LoggedModelOutput, Metric

        from rairl.tracking.pyfunc import save_pyfunc

        client, run = self._client, self._sent["run"]
        with tempfile.TemporaryDirectory() as scratch:
            save_pyfunc(folder, Path(scratch) / "model", model=model, run_id=run)
            client.log_model_artifacts(model.model_id, str(Path(scratch) / "model"))
        client.finalize_logged_model(model.model_id, "READY")
        outputs = client.get_run(run).outputs
        if model.model_id not in [output.model_id for output in (outputs.model_outputs if outputs else [])]:
            client.log_outputs(run, [LoggedModelOutput(model.model_id, step)])
        data = ("dev", dev) if dev else (None, None)
        at = model.creation_timestamp  # the same whenever this is repeated
        metrics = [Metric(key, value, at, step, model.model_id, *data, run) for key, value in scores.items()]
        client.log_batch(run, metrics)

    def champion(self, criterion: str, higher_is_better: bool) -> None:
        """Let the versions of this pipeline's run compete with the present champion."""
        name = self._head["registered_model"]
        versions = run_versions(self._client, name, self._head["tags"])
        verdict = crown(self._client, name, versions, criterion, higher_is_better)
        (logger.info if verdict.version else logger.warning)("%s", verdict.text)


def _merged(records: Iterator[tuple[dict[str, Any], int]]) -> Iterator[tuple[dict[str, Any], int]]:
    """Records, with metrics that follow one another as one record, up to what a request takes."""
    held, end = None, 0
    for record, after in records:
        if held and _fit(held, record):
            held["rows"] += record["rows"]
        else:
            if held:
                yield held, end
            held = record
        end = after
    if held:
        yield held, end


def _fit(held: dict[str, Any], record: dict[str, Any]) -> bool:
    if not record["kind"] == held["kind"] == "metrics" or record.get("of_pipeline") != held.get("of_pipeline"):
        return False
    return len(held["rows"]) + len(record["rows"]) <= _BATCH
