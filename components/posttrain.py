"""The posttrain stage as a Kubeflow component."""

from kfp.dsl import Artifact, Dataset, Input, Metrics, Output

from components import component


@component
def posttrain(
    params: dict,
    data: Input[Dataset],
    candidates: Input[Dataset],
    plots: Output[Artifact],
    metrics: Output[Metrics],
) -> None:
    """Measure pass@k of every policy."""
    from rairl.kubeflow.task import run_task

    run_task("posttrain", params, metrics, data=data, candidates=candidates, plots=plots)
