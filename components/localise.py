"""The localise stage as a Kubeflow component."""

from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from components import component


@component
def localise(
    params: dict,
    data: Input[Dataset],
    candidates: Input[Dataset],
    reward: Input[Model],
    base: Input[Model],
    sft: Input[Model],
    second_model: Input[Model],
    rerank_scores: Input[Artifact],
    scores: Output[Artifact],
    plots: Output[Artifact],
    metrics: Output[Metrics],
) -> None:
    """Measure how often the reward points at the first wrong step."""
    from rairl.kubeflow.task import run_task

    run_task(
        "localise",
        params,
        metrics,
        data=data,
        candidates=candidates,
        reward=reward,
        base=base,
        sft=sft,
        second_model=second_model,
        rerank_scores=rerank_scores,
        scores=scores,
        plots=plots,
    )
