"""The audit stage as a Kubeflow component."""

from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from components import component


@component
def audit(
    params: dict,
    data: Input[Dataset],
    candidates: Input[Dataset],
    reward: Input[Model],
    sft: Input[Model],
    rerank_scores: Input[Artifact],
    plots: Output[Artifact],
    metrics: Output[Metrics],
) -> None:
    """Check the reward for shortcuts and under distribution shift."""
    from rairl.kubeflow.task import run_task

    run_task(
        "audit",
        params,
        metrics,
        data=data,
        candidates=candidates,
        reward=reward,
        sft=sft,
        rerank_scores=rerank_scores,
        plots=plots,
    )
