"""The MLflow store: where it is, a client of it, and what its errors mean."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from rairl.core.errors import RairlError
from rairl.core.processes import uncollected

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

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


@contextmanager
def open_store(root: Path = Path(".")) -> Iterator[MlflowClient]:
    """A client of the tracking store for somebody who asks, not for a run: a store that is not there is an error.

    Raises:
        RairlError: when there is no store, or it refuses or does not answer what is asked inside the context.
    """
    uri = tracking_uri(root)
    database = database_file(uri)
    if database is not None and not database.exists():
        raise RairlError(f"{database} does not exist; name a run's folder with --dir, or set MLFLOW_TRACKING_URI")
    try:
        with quietly(), default_store(uri):
            yield connect(uri)
    except RairlError:
        raise
    except Exception as error:  # MLflow and its stores raise anything
        raise RairlError(f"MLflow at {uri}: {reason(error)}") from error


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
            raise RairlError(f"{name} is registered but was not made by rairl; `rairl ui` shows what was")
        yield place / found["path"]


def search_runs(client: MlflowClient, experiment_id: str, tags: Mapping[str, str]) -> list[MlflowRun]:
    query = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    return list(client.search_runs([experiment_id], query, max_results=100))


def oldest_run(client: MlflowClient, experiment_id: str, tags: Mapping[str, str]) -> str | None:
    runs = search_runs(client, experiment_id, tags)
    return min(((run.info.start_time, run.info.run_id) for run in runs), default=(0, None))[1]


def tracking_uri(root: Path = Path(".")) -> str:
    """``MLFLOW_TRACKING_URI``, else the sqlite file in the project's folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or default_uri(root)


def default_uri(root: Path) -> str:
    """The sqlite file in the project's folder."""
    return f"sqlite:///{root.resolve() / 'mlflow.db'}"


def database_file(uri: str) -> Path | None:
    """The file of a sqlite store; artifacts lie beside it, in ``mlartifacts``."""
    return Path(uri.removeprefix("sqlite:///")).resolve() if uri.startswith("sqlite:///") else None


def connect(uri: str) -> MlflowClient:
    database = database_file(uri)
    if database is not None and not database.exists():
        _create(database)
    with uncollected():  # the client imports what its store needs
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=uri)


def _create(database: Path) -> None:
    """Set up a sqlite store, whole or not at all: MLflow can't mend one that two processes or half a process set up."""
    from mlflow import MlflowClient

    draft = database.with_name(f"{database.name}.part")
    with FileLock(f"{database}.lock", timeout=120):
        if not database.exists():
            draft.unlink(missing_ok=True)
            MlflowClient(tracking_uri=f"sqlite:///{draft}")
            draft.replace(database)


@contextmanager
def quietly() -> Iterator[None]:
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
def default_store(uri: str) -> Iterator[None]:
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


def create_once(create: Callable[[], Any]) -> None:
    from mlflow.exceptions import MlflowException

    try:
        create()
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def refused(error: BaseException) -> bool:
    """Whether MLflow will never take this record. Any other error may pass: a server that is down, a login, a disk."""
    codes = ("INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS")
    return getattr(error, "error_code", "") in codes


def reason(error: BaseException) -> str:
    """The first line of the innermost message: of a refused connection the refusal, not the layers around it."""
    *_, root = _chain(error)
    return (str(root).strip() or type(root).__name__).splitlines()[0][:300]
