"""Check the pipeline's parameters and put the fields of its form into them: not a stage, it has no files."""

from components import component


@component
def configure(params: dict, experiment: str, tracking_uri: str) -> dict:
    """Check the parameters before anything costs time."""
    from rairl.kubeflow.task import configure

    return configure(params, experiment=experiment, tracking_uri=tracking_uri)
