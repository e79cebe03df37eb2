"""Commands on tracked runs and registered rewards."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from rairl.cli.app import PARAMS, app
from rairl.core.errors import RairlError
from rairl.core.params import load_params

registry_app = typer.Typer(no_args_is_help=True, help="The registered reward models: look at them, compare, promote.")

STORE = Annotated[Path, typer.Option("--dir", help="folder of a run, if MLFLOW_TRACKING_URI names no server")]
NAME = Annotated[str, typer.Option("--name", help="tracking.registered_model of the parameters")]


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


@registry_app.command("list")
def registry_list(name: NAME = "rairl-reward", folder: STORE = Path(".")) -> None:
    """All versions, newest first: alias, dev score, training step, data version, digest of the parameters, commit."""
    from rich.console import Console

    from rairl.tracking.registry import read_versions, versions_table

    Console().print(versions_table(read_versions(name, folder)))


@registry_app.command("show")
def registry_show(
    which: Annotated[str, typer.Argument(help="version or alias", metavar="VERSION")] = "champion",
    name: NAME = "rairl-reward",
    folder: STORE = Path("."),
) -> None:
    """All that is known of one version: where it comes from, its dev scores, every parameter."""
    from rairl.tracking.registry import description, find, read_versions

    print(description(find(read_versions(name, folder), which)))


@registry_app.command("diff")
def registry_diff(
    first: Annotated[str, typer.Argument(help="version or alias")],
    second: Annotated[str, typer.Argument(help="version or alias")],
    name: NAME = "rairl-reward",
    folder: STORE = Path("."),
) -> None:
    """What tells two versions apart: data, commit, step, parameters and dev scores that differ."""
    from rairl.tracking.registry import difference, find, read_versions

    versions = read_versions(name, folder)
    rows = difference(find(versions, first), find(versions, second))
    print("\n".join(f"{key}: {old} -> {new}" for key, (old, new) in rows.items()) or "no difference")


@registry_app.command("promote")
def registry_promote(
    which: Annotated[str, typer.Argument(help="version or alias", metavar="VERSION")],
    name: NAME = "rairl-reward",
    folder: STORE = Path("."),
) -> None:
    """Make this version champion if it beats the present one on dev (`rairl promote` looks for a run's best itself)."""
    from rairl.evaluate.calibrate import CRITERION
    from rairl.tracking.champion import promote_version
    from rairl.tracking.registry import find, read_versions

    version = find(read_versions(name, folder), which).number
    print(promote_version(name, version, criterion=CRITERION, root=folder).text)


@app.command()
def ui(
    folder: Annotated[Path, typer.Option("--dir", help="folder of a run")] = Path("."),
    port: Annotated[int, typer.Option(help="port on this machine")] = 5000,
) -> None:
    """Open the MLflow page of the folder's own store, or name the tracking server that is in use.

    It also prints where the prepared views are: runs with their figures, compared by charts, by stage; the rewards.
    """
    from rairl.tracking.pipeline_runs import views
    from rairl.tracking.store import tracking_uri

    uri = tracking_uri(folder)
    if uri.startswith("http"):
        print(f"runs are tracked at {uri}")
        return
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise RairlError(f"{folder / 'mlflow.db'} does not exist; run `make repro`, or name a run's folder with --dir")
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # eight idle worker processes otherwise
    print(
        f"http://127.0.0.1:{port}  (Ctrl-C ends it)", *views(f"http://127.0.0.1:{port}", folder), sep="\n", flush=True
    )
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--port", str(port)]
    os.execv(sys.executable, command)
