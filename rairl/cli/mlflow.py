"""Commands on MLflow: its page, the champion among the registered rewards, and what is still to be sent."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from rairl.cli.app import PARAMS, app
from rairl.core.errors import RairlError
from rairl.core.params import load_params


@app.command()
def promote(
    params: PARAMS = Path("params.yaml"),
    folder: Annotated[Path, typer.Option("--dir", help="folder of the finished run")] = Path("."),
) -> None:
    """Make the run's best registered reward champion if it beats the present one on dev; the rairl stage does, too."""
    from rairl.evaluate.calibrate import CRITERION
    from rairl.tracking.champion import promote as decide
    from rairl.tracking.provenance import data_tag

    card = folder / "data" / "card.json"
    if not card.is_file():
        raise RairlError(f"{card} does not exist; name the folder of a finished run with --dir")
    print(decide([load_params(params)], data=data_tag(card), criterion=CRITERION, root=folder).text)


@app.command()
def sync(
    folder: Annotated[Path, typer.Option("--dir", help="the project's folder")] = Path("."),
    to: Annotated[str, typer.Option(help="send to this address, wherever the records were to go")] = "",
) -> None:
    """Send to MLflow what stages could not: its server was away, or they were killed, which ends their runs as FAILED.

    The next stage that runs in the folder does the same.
    """
    from rairl.tracking.delivery import outbox, send_leftovers
    from rairl.tracking.store import reason

    problems = []
    for stage, problem in send_leftovers(folder, to=to):
        print(f"{stage}: {f'MLflow does not take it ({reason(problem)})' if problem else 'sent'}")
        problems.append(problem)
    if any(problems):
        raise RairlError(f"what MLflow does not take is still in {outbox(folder)}; run it again when MLflow is there")
    if not problems:
        print("nothing to send")


@app.command()
def ui(
    folder: Annotated[Path, typer.Option("--dir", help="folder of a run")] = Path("."),
    port: Annotated[int, typer.Option(help="port on this machine")] = 5000,
) -> None:
    """Open the MLflow page of the folder's own store, or name the tracking server that is in use."""
    from rairl.tracking.store import tracking_uri

    uri = tracking_uri(folder)
    if uri.startswith("http"):
        print(f"runs are tracked at {uri}")
        return
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise RairlError(f"{folder / 'mlflow.db'} does not exist; run `make repro`, or name a run's folder with --dir")
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # eight idle worker processes otherwise
    print(f"http://127.0.0.1:{port}  (Ctrl-C ends it)", flush=True)
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--port", str(port)]
    os.execv(sys.executable, command)
