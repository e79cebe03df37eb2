"""The MLflow run of a whole pipeline."""

from __future__ import annotations

import logging
from pathlib import Path

from rairl.core.params import Params
from rairl.tracking.provenance import git_commit, parent_key, pipeline_tag
from rairl.tracking.store import connect, oldest_run, quietly, reason, search_runs, tracking_uri

logger = logging.getLogger(__name__)


def run_links(stage: str, params: Params, root: Path = Path(".")) -> dict[str, str]:
    """Ids of the newest tracking run of a stage and of its parent, to be kept with a task's figures; {} without any."""
    uri = tracking_uri(root)
    tags = {
        "rairl.params": params.digest(),
        "rairl.commit": git_commit(root),
        "rairl.stage": stage,
        **pipeline_tag(),
    }
    try:
        with quietly():
            client = connect(uri)
            experiment = client.get_experiment_by_name(params.tracking.experiment)
            runs = search_runs(client, experiment.experiment_id, tags) if experiment else []
        newest = max(runs, key=lambda run: run.info.start_time, default=None)
        if newest is None:
            return {}
        parent = newest.data.tags["mlflow.parentRunId"]
        return {"mlflow.tracking_uri": uri, "mlflow.run_id": newest.info.run_id, "mlflow.parent_id": parent}
    except Exception as error:  # the figures matter more than the way to them
        logger.warning("the tracking run of %s can't be named: %s", stage, reason(error))
        return {}


def close_pipeline(params: Params, *, status: str, error: str = "", root: Path = Path(".")) -> None:
    """Settle the status of a pipeline's run, which the last stage has left as its own, and of stages that were killed.

    Args:
        params: of the pipeline.
        status: ``FINISHED``, ``FAILED`` or ``KILLED``.
        error: becomes the tag ``rairl.error``.
        root: the project's folder, home of the default store.
    """
    tags = {"rairl.params": params.digest(), "rairl.commit": git_commit(root), **pipeline_tag()}
    try:
        with quietly():
            client = connect(tracking_uri(root))
            experiment = client.get_experiment_by_name(params.tracking.experiment)
            found = oldest_run(client, experiment.experiment_id, parent_key(tags)) if experiment else None
            if found is not None:
                if error:
                    client.set_tag(found, "rairl.error", error[:500])
                client.set_terminated(found, status)
                open_ones = f"tags.`mlflow.parentRunId` = '{found}' and attributes.status = 'RUNNING'"
                for run in client.search_runs([experiment.experiment_id], open_ones):  # their pods were killed
                    client.set_terminated(run.info.run_id, "KILLED" if status == "KILLED" else "FAILED")
    except Exception as problem:  # the pipeline has ended in any case
        logger.warning("MLflow at %s did not take the end of the run: %s", tracking_uri(root), reason(problem))
