"""The exit handler: not a stage, it runs whatever became of the others."""

from kfp.dsl import PipelineTaskFinalStatus

from components import component


@component
def finish(params: dict, experiment: str, tracking_uri: str, status: PipelineTaskFinalStatus) -> None:
    """Settle the status of the pipeline's tracking run."""
    from rairl.kubeflow.task import finish

    finish(params, experiment=experiment, tracking_uri=tracking_uri, state=status.state, error=status.error_message)
