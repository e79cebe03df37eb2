"""The prepare stage as a Kubeflow component."""

from kfp.dsl import Dataset, Metrics, Output

from components import component


@component
def prepare(
    params: dict,
    data: Output[Dataset],
    metrics: Output[Metrics],
) -> None:
    """Write the demonstrations, prompts, dev, test and out-of-distribution splits, and the data card."""
    from rairl.kubeflow.task import run_task

    run_task("prepare", params, metrics, data=data)
