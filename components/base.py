"""The base stage as a Kubeflow component."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components import component


@component
def base(
    params: dict,
    data: Input[Dataset],
    model: Output[Model],
    metrics: Output[Metrics],
) -> None:
    """Build, train or fetch the base model."""
    from rairl.kubeflow.task import run_task

    run_task("base", params, metrics, data=data, model=model)
