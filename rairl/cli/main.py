"""The command line: the stages, whole runs, and the reward on a user's own traces.

Only the standard library, typer and the parameter schema are imported at the top, so that ``--help`` answers at once.
"""

from __future__ import annotations

import errno
import logging
import signal
import sys
import traceback

from rairl.cli import mlflow, plan, user_files  # noqa: F401 (importing them adds their commands)
from rairl.cli.app import app, say
from rairl.cli.pipeline import app as pipeline_app
from rairl.cli.stages import stage_app
from rairl.core.errors import RairlError
from rairl.core.processes import end_quickly

app.add_typer(stage_app, name="stage")
app.add_typer(pipeline_app, name="pipeline")


_FULL = (
    "No space left on device",
    "os error 28",
    "PytorchStreamWriter failed writing",
    "unexpected pos",
    "database or disk is full",
)


def _disk_full(error: BaseException | None) -> bool:
    """Whether ``error``, or what it came from, says that the disk is full (torch says it in its own words)."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(error) for words in _FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def _explain(error: Exception) -> int:
    """Tell the user what went wrong; return the exit code."""
    if _disk_full(error):
        say("error: the disk is full; finished stages are kept; free some space and run the same command again")
        return 1
    if isinstance(error, RairlError):
        say(f"error: {error}")
        return 2
    if isinstance(error, PermissionError):
        say(f"error: {error.filename}: {error.strerror}")
        return 1
    traceback.print_exception(error)
    return 1


def main() -> None:
    """Entry point; exits with 0, 1 (failure), 2 (a mistake the user can mend) or 130 (interrupted)."""
    end_quickly()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("rairl").setLevel(logging.INFO)
    try:
        app()
    except SystemExit as stop:
        if stop.code == 128 + signal.SIGINT:
            say("interrupted; finished stages are kept; run the same command again to resume")
        raise
    except Exception as error:
        sys.exit(_explain(error))


if __name__ == "__main__":
    main()
