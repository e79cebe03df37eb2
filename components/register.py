"""The gate of the model registry: not a stage, because ``dvc repro`` on one machine decides at the end of rairl."""

from kfp.dsl import Dataset, Input, Markdown, Metrics, Output

from components import component


@component
def register(
    variants: list,
    data: Input[Dataset],
    reports: Input[list[Markdown]],
    verdict: Output[Markdown],
    metrics: Output[Metrics],
) -> None:
    """Make the best reward by dev champion if it beats the present one; all reports are written by then."""
    from pathlib import Path

    from rairl.kubeflow.task import register

    found = register(variants, Path(data.path))
    Path(verdict.path).write_text(f"{found.text}\n", encoding="utf-8")
    metrics.log_metric("promoted", float(found.promoted))
    metrics.log_metric("criterion", found.value)
    metrics.metadata["version"] = found.version
