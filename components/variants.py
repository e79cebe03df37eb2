"""List the runs of the rairl stage: not a stage, it has no files."""

from components import component


@component
def variants(params: dict, seeds: list, granularities: list) -> list:
    """The parameters of every seed with every granularity."""
    from rairl.kubeflow.task import variants

    return variants(params, seeds=seeds, granularities=granularities)
