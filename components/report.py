"""The report stage as a Kubeflow component."""

from kfp.dsl import HTML, Artifact, Dataset, Input, Markdown, Metrics, Output

from components import component


@component
def report(
    params: dict,
    data: Input[Dataset],
    candidates: Input[Dataset],
    grpo_history: Input[Artifact],
    rairl_history: Input[Artifact],
    rerank_scores: Input[Artifact],
    localise_scores: Input[Artifact],
    posttrain_plots: Input[Artifact],
    rerank_plots: Input[Artifact],
    localise_plots: Input[Artifact],
    audit_plots: Input[Artifact],
    prepare_metrics: Input[Metrics],
    base_metrics: Input[Metrics],
    sft_metrics: Input[Metrics],
    second_model_metrics: Input[Metrics],
    grpo_metrics: Input[Metrics],
    rairl_metrics: Input[Metrics],
    sample_metrics: Input[Metrics],
    posttrain_metrics: Input[Metrics],
    rerank_metrics: Input[Metrics],
    localise_metrics: Input[Metrics],
    audit_metrics: Input[Metrics],
    report: Output[Artifact],
    summary: Output[Artifact],
    metrics: Output[Metrics],
    page: Output[HTML],
    tables: Output[Markdown],
) -> None:
    """Write the report, its plots and the merged metrics."""
    import shutil
    from pathlib import Path

    from rairl.kubeflow import pages as views
    from rairl.kubeflow.task import run_task

    metrics_dir = {
        "prepare": prepare_metrics,
        "base": base_metrics,
        "sft": sft_metrics,
        "second_model": second_model_metrics,
        "grpo": grpo_metrics,
        "rairl": rairl_metrics,
        "sample": sample_metrics,
        "posttrain": posttrain_metrics,
        "rerank": rerank_metrics,
        "localise": localise_metrics,
        "audit": audit_metrics,
    }
    run_task(
        "report",
        params,
        metrics,
        data=data,
        candidates=candidates,
        grpo_history=grpo_history,
        rairl_history=rairl_history,
        rerank_scores=rerank_scores,
        localise_scores=localise_scores,
        posttrain_plots=posttrain_plots,
        rerank_plots=rerank_plots,
        localise_plots=localise_plots,
        audit_plots=audit_plots,
        metrics_dir=metrics_dir,
        report=report,
        summary=summary,
    )
    shutil.copyfile(Path(report.path) / "report.html", page.path)
    Path(tables.path).write_text(views.tables(Path(summary.path)), encoding="utf-8")
