"""The sample stage as a Kubeflow component."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components import component


@component
def sample(
    params: dict,
    data: Input[Dataset],
    base: Input[Model],
    sft: Input[Model],
    sft_last: Input[Model],
    grpo: Input[Model],
    policy: Input[Model],
    second_model: Input[Model],
    candidates: Output[Dataset],
    metrics: Output[Metrics],
) -> None:
    """Draw candidates from every policy."""
    from rairl.kubeflow.task import run_task

    run_task(
        "sample",
        params,
        metrics,
        data=data,
        base=base,
        sft=sft,
        sft_last=sft_last,
        grpo=grpo,
        policy=policy,
        second_model=second_model,
        candidates=candidates,
    )
