"""The rerank stage as a Kubeflow component."""

from kfp.dsl import Artifact, ClassificationMetrics, Dataset, Input, Metrics, Model, Output

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
    roc: Output[ClassificationMetrics],
) -> None:
    """Measure best-of-N selection by the reward against every baseline."""
    from pathlib import Path

    from rairl.kubeflow import pages as views
    from rairl.kubeflow.task import run_task

    run_task("rerank", params, metrics, data=data, candidates=candidates, reward=reward, scores=scores, plots=plots)
    curve = views.roc(params, Path(candidates.path), Path(scores.path))
    roc.log_roc_curve(*curve)
    Path(roc.path).write_text(f"{len(curve[0])} points\n")  # kfp's local cache keeps a task whose outputs are all files
