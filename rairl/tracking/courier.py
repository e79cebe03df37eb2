"""Tracking in a process of its own, so that MLflow's imports and a slow server's answers hold no stage up.

The process imports MLflow while the stage imports its own libraries. It takes the stage's records by a pipe, delivers
them as :class:`rairl.tracking.run.Run` does, sends its warnings back, and tells when the last one is delivered. It ends
with its command; a run that is open when the command is killed becomes FAILED, since the pipe breaks.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from logging.handlers import QueueHandler
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from rairl.core.errors import RairlError
from rairl.core.params import Params
from rairl.core.processes import end_quickly
from rairl.tracking.pipeline_runs import run_links
from rairl.tracking.run import Run, SentRun

logger = logging.getLogger(__name__)

_START = "import sys; sys.path[:] = {path!r}; from rairl.tracking.courier import deliver; deliver({end})"
_idle: list[Courier] = []
"""Couriers that wait for the next stage of this command."""


@contextmanager
def stage_run(
    name: str, params: Params, *, log_dir: Path, root: Path = Path("."), card: Path | None = None
) -> Iterator[Run]:
    """Track one stage: a child of the pipeline's run, which is found by parameters and commit or made.

    The run ends as FINISHED, as KILLED on Ctrl-C, and as FAILED on any other exception. The context ends when all
    records are delivered, or can't be.

    Args:
        name: the stage.
        params: logged whole, as ``section.key``.
        log_dir: where the metrics files are; named in the warning when MLflow cannot be reached.
        root: the project's folder, home of the default store.
        card: the data card (``data/card.json``), whose digest becomes the tag ``rairl.data``.

    Files and folders that the run is given have to be there, and to stay until the context ends; see :class:`StageRun`.
    """
    courier = _waiting() or Courier()
    courier.send("begin", dict(os.environ), os.getcwd(), name, params, log_dir=log_dir, root=Path(root), card=card)
    run = StageRun(courier)
    run.open()
    try:
        yield run
    except BaseException as error:
        _end(run, courier, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", error)
        raise
    _end(run, courier, "FINISHED")


def _end(run: StageRun, courier: Courier, status: str, error: BaseException | None = None) -> None:
    """Close a run, whose ids are known from then on."""
    run.close(status, "" if error is None else f"{type(error).__name__}: {error}")
    ids = courier.ask("ids")
    if ids is not None:
        run.run_id, run.parent_id = ids
        _idle.append(courier)


def _waiting() -> Courier | None:
    while _idle:
        courier = _idle.pop()
        if courier.process.poll() is None:
            return courier
    return None


def links_of(stage: str, params: Params, root: Path = Path(".")) -> dict[str, str]:
    """:func:`~rairl.tracking.pipeline_runs.run_links`, from the process that waits after a stage, which has MLflow."""
    courier = _waiting()
    if courier is not None:
        found: dict[str, str] | None = courier.ask("links", dict(os.environ), os.getcwd(), stage, params, root)
        if found is not None:
            _idle.append(courier)
            return found
    return run_links(stage, params, root)


class Courier:
    """The process, as the command sees it that has started it."""

    def __init__(self) -> None:
        self._pipe, theirs = Pipe()
        self._replies: SimpleQueue[Any] = SimpleQueue()
        self._lost = False
        code = _START.format(path=sys.path, end=theirs.fileno())
        # In a session of its own: Ctrl-C ends the command's group, and then the stage's end is still to be told.
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        Thread(target=_take, args=(self._pipe, self._sort), daemon=True).start()

    def send(self, what: str, *args: Any, **options: Any) -> None:
        """Let a method of the run be called over there, in its turn."""
        try:
            self._pipe.send((what, args, options))
        except OSError:
            self._lose()

    def ask(self, what: str, *args: Any) -> Any:
        """What comes back when all is done that was sent before; None if the process is gone."""
        self.send(what, *args)
        found = None if self._lost else self._replies.get()
        if found is None:
            self._lose()
        return found

    def _sort(self, message: Any) -> None:
        if isinstance(message, logging.LogRecord):
            origin = logging.getLogger(message.name)
            if origin.isEnabledFor(message.levelno):
                origin.handle(message)
        else:
            self._replies.put(message)

    def _lose(self) -> None:
        if not self._lost:
            logger.warning("The process that delivers to MLflow is gone; the stage goes on without tracking.")
        self._lost = True


class StageRun(SentRun):
    """The run of a stage, as the stage sees it.

    A method raises FileNotFoundError for a path that isn't there.
    """

    def __init__(self, courier: Courier) -> None:
        super().__init__(self._send_present)
        self._courier = courier

    def register_reward(
        self, folder: str | Path, step: int, metrics: Mapping[str, float], tags: Mapping[str, str] | None = None
    ) -> None:
        """Wait until it is registered: after that the stage may clear its checkpoints."""
        if not Path(folder).is_dir():
            raise RairlError(f"{folder} does not exist; a saved reward model is needed to register one")
        super().register_reward(folder, step, metrics, tags)
        self._courier.ask("wait")

    def _send_present(self, what: str, *args: Any, **options: Any) -> None:
        for path in args:
            if isinstance(path, Path) and not path.exists():
                raise FileNotFoundError(f"{path} does not exist, so it cannot be kept with the run")
        self._courier.send(what, *args, **options)


def _take(pipe: Connection, give: Callable[[Any], None]) -> None:
    """Hand on what comes out of a pipe, so that the other end never waits for room in it; at its end, None."""
    try:
        while True:
            give(pipe.recv())
    except (EOFError, OSError):
        give(None)


# --- in the process ---------------------------------------------------------------------------------------------------


def deliver(end: int) -> None:
    """What the process does until its command ends: it takes messages from a file descriptor, the pipe's end."""
    end_quickly()
    pipe, inbox = Connection(end), SimpleQueue[Any]()
    logging.raiseExceptions = False  # when the command is gone, nobody can be told
    logging.getLogger("rairl").setLevel(logging.INFO)
    logging.getLogger("rairl").addHandler(_Teller(pipe))
    Thread(target=_take, args=(pipe, inbox.put), daemon=True).start()
    run: Any = None
    for what, args, options in iter(inbox.get, None):
        if what == "begin":
            run = _begin(*args, **options)
        elif what in ("ids", "wait"):
            with suppress(OSError):
                pipe.send((run.run_id, run.parent_id))
            run = None if what == "ids" else run
        elif what == "links":
            with suppress(OSError):
                pipe.send(_links(*args))
        else:
            try:
                getattr(run, what)(*args, **options)
            except Exception as error:  # a file that is gone by now, say; what comes after it is still to be delivered
                logger.warning("MLflow did not get %s: %s", what, error)
    if run is not None:
        run.close("FAILED", "the stage's process was killed")


def _begin(environment: dict[str, str], folder: str, *args: Any, **options: Any) -> Run:
    _follow(environment, folder)
    return Run(*args, **options)


def _links(environment: dict[str, str], folder: str, *args: Any) -> dict[str, str]:
    _follow(environment, folder)
    return run_links(*args)


def _follow(environment: dict[str, str], folder: str) -> None:
    """Stand where the command stands now; it may have moved since its last stage."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)


class _Teller(QueueHandler):
    """Sends log records to the command, whose console it is."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__(SimpleQueue())
        self._pipe = pipe

    def enqueue(self, record: logging.LogRecord) -> None:
        self._pipe.send(record)
