"""``rairl pipeline``: compile, run on this machine, submit, look. kfp is imported when a command needs it."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from rairl.core.errors import RairlError
from rairl.core.params import load_params

app = typer.Typer(no_args_is_help=True, help="The stages as a Kubeflow pipeline.")

PARAMS = Annotated[Path, typer.Option("--params", help="parameter file")]
CLUSTER = Annotated[
    Path | None,
    typer.Option("--cluster", help="the cluster's description; by default the package's pipelines/cluster.yaml"),
]
IMAGE = Annotated[
    str | None,
    typer.Option("--image", envvar="RAIRL_IMAGE", help="image of every task; a new build needs a new tag"),
]
SEEDS = Annotated[
    list[int] | None, typer.Option("--seed", help="seed of the rairl stage; several give a run each", min=0)
]
GRANULARITIES = Annotated[
    list[str] | None, typer.Option("--granularity", help="of the reward; several give a run each, with every seed")
]
EXPERIMENT = Annotated[str, typer.Option(help="of MLflow (and Kubeflow); by default that of the parameters")]
TRACKING_URI = Annotated[str, typer.Option(help="address of MLflow as the tasks see it")]
ENDPOINT = Annotated[str, typer.Option("--endpoint", envvar="KFP_ENDPOINT", help="address of Kubeflow Pipelines")]
TOKEN_FILE = Annotated[Path | None, typer.Option("--token-file", help="file with a bearer token for the endpoint")]
NAMESPACE = Annotated[str | None, typer.Option("--namespace", help="of a multi-user installation")]

OVER = {"SUCCEEDED": 0, "SKIPPED": 0, "FAILED": 1, "CANCELED": 1, "CANCELLED": 1}
"""Exit code of a run's final states."""


@app.command("compile")
def compile_(
    output: Annotated[Path, typer.Option("--output", "-o", help="file to write")] = Path("rairl.yaml"),
    cluster: CLUSTER = None,
    image: IMAGE = None,
) -> None:
    """Write the pipeline for a cluster as YAML, to be uploaded or submitted."""
    _use(image)
    from pipelines.run import compile_pipeline

    compile_pipeline(output, cluster)
    print(f"wrote {output}", file=sys.stderr)


@app.command("run-local")
def run_local_(
    params: PARAMS = Path("params.yaml"),
    root: Annotated[Path, typer.Option("--root", help="folder of the tasks' outputs")] = Path("local_outputs"),
    seeds: SEEDS = None,
    granularities: GRANULARITIES = None,
    experiment: EXPERIMENT = "",
    tracking_uri: TRACKING_URI = "",
) -> None:
    """Run the pipeline on this machine; what has not changed comes from kfp's cache."""
    from pipelines.run import run_local

    found = run_local(
        load_params(params),
        root,
        seeds=seeds or (),
        granularities=granularities or (),
        experiment=experiment,
        tracking_uri=tracking_uri,
    )
    for name, paths in found.items():
        for path in paths:
            typer.echo(f"{name}: {path}")  # kfp replaces print by one that indents, and its threads may leave it so


@app.command()
def submit(
    endpoint: ENDPOINT,
    params: PARAMS = Path("params.yaml"),
    cluster: CLUSTER = None,
    image: IMAGE = None,
    file: Annotated[Path | None, typer.Option("--file", help="submit this compiled pipeline instead")] = None,
    seeds: SEEDS = None,
    granularities: GRANULARITIES = None,
    experiment: EXPERIMENT = "",
    tracking_uri: TRACKING_URI = "",
    name: Annotated[str, typer.Option(help="of the run")] = "rairl",
    token_file: TOKEN_FILE = None,
    namespace: NAMESPACE = None,
    service_account: Annotated[str | None, typer.Option(help="of the tasks' pods")] = None,
) -> None:
    """Compile the pipeline and start a run of it; prints the run's id."""
    _use(image)
    from pipelines.client import Endpoint
    from pipelines.run import arguments, compile_pipeline

    known = load_params(params)
    values = arguments(known, seeds or (), granularities or (), experiment, tracking_uri)
    server = Endpoint(endpoint, _token(token_file), namespace)
    with tempfile.TemporaryDirectory() as scratch:
        package = file or Path(scratch) / "rairl.yaml"
        if file is None:
            compile_pipeline(package, cluster)
        with redirect_stdout(sys.stderr):  # kfp's client prints; the id alone is for scripts
            run_id = server.submit(
                package,
                values,
                name=name,
                experiment=experiment or known.tracking.experiment,
                service_account=service_account,
            )
    print(run_id)
    print(f"its page: {server.page(run_id)}\nits state: rairl pipeline status {run_id}", file=sys.stderr)


@app.command()
def status(
    run_id: Annotated[str, typer.Argument(help="as `rairl pipeline submit` printed it")],
    endpoint: ENDPOINT,
    token_file: TOKEN_FILE = None,
    namespace: NAMESPACE = None,
    wait: Annotated[bool, typer.Option("--wait", help="until the run is over")] = False,
    every: Annotated[float, typer.Option(help="seconds between two looks", min=0.1)] = 30,
) -> None:
    """Print the state of a run and of its tasks; the exit code is 1 when it has failed."""
    from pipelines.client import Endpoint

    server = Endpoint(endpoint, _token(token_file), namespace)
    found = server.status(run_id)
    while wait and found.state not in OVER:
        time.sleep(every)
        found = server.status(run_id)
    for task, state in found.tasks.items():
        print(f"{task}: {state}")
    print(f"run {run_id}: {found.state}" + (f"\n{found.error}" if found.error else ""))
    raise typer.Exit(OVER.get(found.state, 0))


def _use(image: str | None) -> None:
    """Fix the image before the components are imported."""
    if image:
        os.environ["RAIRL_IMAGE"] = image


def _token(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        return file.read_text(encoding="utf-8").strip()
    except FileNotFoundError as error:
        raise RairlError(f"{file} does not exist; --token-file names a file with the token alone") from error
