"""Compile the pipeline, or run it on this machine. The image of all tasks is fixed when the components are imported."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rairl.core.params import Params
from rairl.stages.runner import code_digest, input_files_digest

CLUSTER = Path(__file__).with_name("cluster.yaml")


def without_nulls(value: Any) -> Any:
    """``value`` without the None entries of its dicts, which a pipeline's dict parameter cannot hold."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return value


def arguments(
    params: Params, seeds: Sequence[int], granularities: Sequence[str], experiment: str = "", tracking_uri: str = ""
) -> dict[str, Any]:
    """The pipeline's arguments, checked as its first tasks will check them.

    Raises:
        RairlError: for variants that are not valid parameters.
    """
    from rairl.kubeflow.task import configure, variants

    values = without_nulls(params.model_dump())
    variants(values, seeds=seeds, granularities=granularities)
    configure(values, experiment=experiment, tracking_uri=tracking_uri)
    fields = {"seeds": list(seeds), "granularities": list(granularities)}
    return {"params": values, **fields, "experiment": experiment, "tracking_uri": tracking_uri}


def compile_pipeline(target: Path, cluster: Path | None = None) -> None:
    """Write the specification (YAML, with a second document for Kubernetes) of the pipeline for a cluster.

    Args:
        target: the file to write.
        cluster: the cluster's description; without one the :data:`CLUSTER` of the package.
    """
    from kfp import compiler

    from pipelines.cluster import load_cluster, place
    from pipelines.pipeline import cluster_pipeline

    described = load_cluster(cluster or CLUSTER)
    pipeline = cluster_pipeline(lambda task, name: place(task, name, described))
    target.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(pipeline, str(target))


def run_local(
    params: Params,
    root: Path,
    *,
    seeds: Sequence[int] = (),
    granularities: Sequence[str] = (),
    experiment: str = "",
    tracking_uri: str = "",
    runner: Callable[[Any], Any] | None = None,
) -> dict[str, list[Path]]:
    """Run every stage under ``root``, each task in a process of its own.

    Tasks whose code, parameters and inputs are unchanged come from kfp's cache under ``root``.

    Args:
        params: all parameters.
        root: folder of the tasks' outputs.
        seeds: of the rairl stage; see :func:`rairl.kubeflow.task.variants`.
        granularities: of the reward.
        experiment: of MLflow; empty for that of the parameters.
        tracking_uri: of MLflow; empty for MLFLOW_TRACKING_URI, else a file in the working directory.
        runner: makes another of kfp's runners, given the module ``kfp.local``.

    Returns:
        Paths of the report, the merged metrics and the reward model of each variant.
    """
    if runner is None:
        # kfp's cache sees neither the package nor the files that the parameters name; the image's tag stands for both
        os.environ["RAIRL_IMAGE"] = f"rairl-python:{code_digest()}-{input_files_digest(params)}"
    from kfp import local

    from pipelines.pipeline import Outputs, local_pipeline

    chosen = runner(local) if runner else local.SubprocessRunner(use_venv=False)
    local.init(runner=chosen, pipeline_root=str(root.resolve()), enable_caching=True)
    done = local_pipeline()(**arguments(params, seeds, granularities, experiment, tracking_uri))
    return {name: [Path(artifact.path) for artifact in done.outputs[name]] for name in Outputs._fields}
