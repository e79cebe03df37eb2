"""The grpo stage as a Kubeflow component."""

from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from components import component


@component
def grpo(
    params: dict,
    data: Input[Dataset],
    base: Input[Model],
    sft: Input[Model],
    model: Output[Model],
    history: Output[Artifact],
    metrics: Output[Metrics],
) -> None:
    """Train the outcome-reward baseline from where R-AIRL starts."""
    from rairl.kubeflow.task import run_task

    run_task("grpo", params, metrics, data=data, base=base, sft=sft, model=model, history=history)
