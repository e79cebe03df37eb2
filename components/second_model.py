"""The second model stage as a Kubeflow component."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components import component


@component
def second_model(params: dict, data: Input[Dataset], model: Output[Model], metrics: Output[Metrics]) -> None:
    """Train a second model by the same recipe, for the reward to read with."""
    from rairl.kubeflow.task import run_task

    run_task("second_model", params, metrics, data=data, model=model)
