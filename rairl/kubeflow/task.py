"""A stage as a task of a pipeline: what lies between the pipeline's parameters and artifacts and :func:`run_stage`.

The bodies of the Kubeflow components are here, so that they can be tested without Kubeflow. Where a task trains is
decided by its environment, which the pipeline sets from the cluster's description: in its own process; in several
processes of its pod (``RAIRL_ACCELERATE`` names a file of ``accelerate/``); or in a TrainJob on several machines
(``RAIRL_TRAINJOB`` holds its description).
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rairl.core.errors import RairlError
from rairl.core.params import Params, parse_params
from rairl.core.processes import end_quickly
from rairl.core.yaml_files import dump_yaml
from rairl.stages.runner import TOGETHER, run_stage, stage_command
from rairl.tracking.champion import Verdict

ACCELERATE = Path(__file__).with_name("accelerate")
STATUS = {"SUCCEEDED": "FINISHED", "CANCELLED": "KILLED", "CANCELED": "KILLED"}
"""A pipeline's final state as MLflow calls it; any other is FAILED."""


def configure(params: Mapping[str, Any], *, experiment: str, tracking_uri: str) -> dict[str, Any]:
    """The pipeline's parameters with the fields of its form put in, checked before anything costs time.

    Args:
        params: what params.yaml holds.
        experiment: replaces ``tracking.experiment`` unless empty.
        tracking_uri: becomes ``tracking.uri``, which only a pipeline's parameters have, unless empty.

    Raises:
        RairlError: naming every key that is wrong.
    """
    merged = copy.deepcopy(dict(params))
    fields = {"experiment": experiment, "uri": tracking_uri}
    merged["tracking"] = {**merged.get("tracking", {}), **{key: value for key, value in fields.items() if value}}
    read_params(merged)
    return merged


def read_params(values: Mapping[str, Any]) -> tuple[Params, str | None]:
    """A pipeline's parameters as :class:`Params`, and the address of its tracking server if it has one.

    A pipeline's dict comes back with every number as a float; whole ones are made integers again.
    """
    whole = whole_numbers(values)
    tracking = dict(whole.get("tracking", {}))
    uri = tracking.pop("uri", None)
    return parse_params({**whole, "tracking": tracking}, source="params"), uri


def variants(
    params: Mapping[str, Any], *, seeds: Sequence[float], granularities: Sequence[str]
) -> list[dict[str, Any]]:
    """The parameters of each run of the rairl stage: every seed with every granularity; without any, ``params`` alone.

    Raises:
        RairlError: for a seed or granularity that is none, or named twice.
    """
    found = []
    for seed in seeds or [params["seed"]]:
        for granularity in granularities or [params["reward"]["granularity"]]:
            variant = copy.deepcopy(dict(params))
            variant["seed"], variant["reward"]["granularity"] = seed, granularity
            read_params(variant)
            found.append(variant)
    names = [(row["seed"], row["reward"]["granularity"]) for row in found]
    if len(set(names)) < len(names):
        raise RairlError(f"seeds {list(seeds)} or granularities {list(granularities)} name one twice")
    return found


def run_task(name: str, params: Mapping[str, Any], metrics: Any, **artifacts: Any) -> None:
    """Run a stage as a pipeline task.

    The reward that the rairl stage learns is registered and becomes champion only later, by :func:`register`.

    Args:
        name: one of :data:`rairl.stages.layout.STAGES`.
        params: of the pipeline.
        metrics: the task's metrics artifact (``path``, ``log_metric``, ``metadata``), which is also told the ids of the
            tracking runs.
        artifacts: per path argument an artifact with a ``path``; ``metrics_dir`` instead is a dict that maps the
            name of a stage to its metrics artifact.
    """
    from rairl.tracking.pipeline_runs import run_links

    end_quickly()
    known, uri = read_params(params)
    gathered = artifacts.pop("metrics_dir", None)
    paths = {arg: Path(artifact.path) for arg, artifact in artifacts.items()}
    with tempfile.TemporaryDirectory() as scratch, _tracked(uri), _environment(RAIRL_PROMOTE="no"):
        if gathered is not None:
            for stage, artifact in gathered.items():
                shutil.copyfile(artifact.path, Path(scratch) / f"{stage}.json")
            paths["metrics_dir"] = Path(scratch)
        _train_or_run(name, known, {**paths, "metrics": Path(metrics.path)})
        metrics.metadata.update(run_links(name, known))
    for key, figure in json.loads(Path(metrics.path).read_text(encoding="utf-8")).items():
        metrics.log_metric(key, figure["value"])


def _train_or_run(name: str, params: Params, paths: dict[str, Path]) -> None:
    job, config = os.environ.get("RAIRL_TRAINJOB"), os.environ.get("RAIRL_ACCELERATE")
    if name in TOGETHER and job:
        from rairl.kubeflow.trainjob import train_in_job

        train_in_job(name, params, paths, json.loads(job))
    elif name in TOGETHER and config:
        launch(name, params, paths, ACCELERATE / f"{config}.yaml")
    else:
        run_stage(name, params, **paths)


def launch(name: str, params: Params, paths: Mapping[str, Path], config: Path) -> None:
    """Run a stage in several processes of this machine, by ``accelerate launch``.

    Raises:
        RairlError: when it fails; its own message is on the console.
    """
    if not config.is_file():
        raise RairlError(
            f"{config} does not exist; the cluster's description names a file of rairl/kubeflow/accelerate"
        )
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "params.yaml"
        file.write_text(dump_yaml(params.model_dump()), encoding="utf-8")
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), "-m"]
        done = subprocess.run([*command, *stage_command(name, file, paths)])
    if done.returncode:
        raise RairlError(f"stage {name} under accelerate ended with code {done.returncode}; its log is above")


def register(variants: Sequence[Mapping[str, Any]], data: Path) -> Verdict:
    """The gate: the best reward of the variants by dev becomes champion if it beats the present one.

    Args:
        variants: parameters as :func:`variants` gives them.
        data: the prepared splits.
    """
    from rairl.evaluate.calibrate import CRITERION
    from rairl.tracking.champion import promote
    from rairl.tracking.provenance import data_tag

    read = [read_params(values) for values in variants]
    with _tracked(read[0][1]):
        return promote([params for params, _ in read], data=data_tag(data / "card.json"), criterion=CRITERION)


def finish(params: Mapping[str, Any], *, experiment: str, tracking_uri: str, state: str, error: str | None) -> None:
    """Settle the status of the pipeline's tracking run, whatever became of the pipeline."""
    from rairl.tracking.pipeline_runs import close_pipeline

    known, uri = read_params(configure(params, experiment=experiment, tracking_uri=tracking_uri))
    with _tracked(uri):
        close_pipeline(known, status=STATUS.get(state, "FAILED"), error=error or "")


def whole_numbers(value: Any) -> Any:
    """``value`` with every float that is a whole number made an int, inside dicts and lists too."""
    if isinstance(value, Mapping):
        return {key: whole_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [whole_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


@contextmanager
def _tracked(uri: str | None) -> Iterator[None]:
    with _environment(**({"MLFLOW_TRACKING_URI": uri} if uri else {})):
        yield


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
