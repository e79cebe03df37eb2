"""The sft stage as a Kubeflow component."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components import component


@component
def sft(
    params: dict,
    data: Input[Dataset],
    base: Input[Model],
    model: Output[Model],
    last: Output[Model],
    metrics: Output[Metrics],
) -> None:
    """Fine-tune the base model on the demonstrations."""
    from rairl.kubeflow.task import run_task

    run_task("sft", params, metrics, data=data, base=base, model=model, last=last)
