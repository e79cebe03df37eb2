"""The rerank stage as a Kubeflow component."""

from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from components import component


@component
def rerank(
    params: dict,
    data: Input[Dataset],
    candidates: Input[Dataset],
    reward: Input[Model],
    scores: Output[Artifact],
    plots: Output[Artifact],
    metrics: Output[Metrics],
) -> None:
    """Measure best-of-N selection by the reward against every baseline."""
    from rairl.stages import run_task

    run_task("rerank", params, metrics, data=data, candidates=candidates, reward=reward, scores=scores, plots=plots)
