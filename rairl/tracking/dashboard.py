"""What MLflow's page shows of the runs without anybody having to choose columns and charts first.

MLflow keeps views that were shared as tags of the experiment, and opens one by its name in the address; so a run leaves
two there. ``runs`` has one row per pipeline, from data and parameters to the headline figures, and as charts a
comparison by parallel coordinates and a bar chart per figure. ``stages`` has all runs, grouped by stage. Nothing here
imports MLflow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from rairl.core.params import Params
from rairl.core.training_params import BuiltinBase

FIGURES = (
    "rairl.dev.score",
    "posttrain.sft.pass_at_1",
    "posttrain.rairl.pass_at_1",
    "rerank.reward",
    "localise.reward.exact",
)
"""Headline figures of a pipeline run, in MLflow's spelling."""
COMPARED = ("seed", "reward.granularity")
"""Parameters that most runs differ in."""
NOTE = "mlflow.note.content"
"""Tag of an experiment or a run that MLflow's page shows, and lets everybody edit, as its description."""
VIEW = "mlflow.sharedViewState."
"""Beginning of the tags that hold the views; their names follow."""


def experiment_tags(experiment_id: str) -> dict[str, str]:
    """Tags of the experiment: its kind (MLflow otherwise shows the page for chat applications), text and views."""
    columns = [
        "attributes.`Description`",
        *(f"metrics.`{name}`" for name in FIGURES),
        *(f"params.`{name}`" for name in (*COMPARED, "reward.objective", "reward.credit", "reward.backbone")),
        "tags.`rairl.data`",
        "tags.`rairl.commit`",
    ]
    by_stage = {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "rairl.stage"}]}
    stages = _view(
        ["attributes.`Dataset`", "attributes.`Models`", "tags.`rairl.data`", "tags.`rairl.commit`"], groupBy=by_stage
    )
    runs = _view(
        columns,
        searchFilter="tags.`rairl.stage` = 'pipeline'",
        columnWidths={"attributes.`Description`": 260},
        compareRunSections=[{"uuid": "figures", "name": "Figures", "display": True, "isReordered": False}],
        compareRunCharts=[
            _chart(
                "PARALLEL", "parallel", selectedParams=list(COMPARED), selectedMetrics=list(FIGURES), showAllRuns=True
            ),
            *(_chart("BAR", f"bar-{number}", metricKey=name) for number, name in enumerate(FIGURES)),
        ],
    )
    return {
        "mlflow.experimentKind": "custom_model_development",
        NOTE: _about(experiment_id),
        f"{VIEW}runs": json.dumps(runs),
        f"{VIEW}stages": json.dumps(stages),
    }


def _view(columns: list[str], **changes: object) -> dict[str, object]:
    """The state of MLflow's table of runs, as its page writes it when somebody shares a view."""
    return {
        "searchFilter": "",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "columnOrder": [],
        "columnWidths": {},
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsVisibilityMap": {},
        "runsHiddenMode": "FIRST_20_RUNS",
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": False,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "autoRefreshEnabled": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
        **changes,
    }


def _chart(kind: str, uuid: str, **more: object) -> dict[str, object]:
    return {
        "type": kind,
        "uuid": uuid,
        "runsCountToCompare": 20,
        "metricSectionId": "figures",
        "deleted": False,
        "isGenerated": False,
        **more,
    }


def _about(experiment_id: str) -> str:
    links = " · ".join(f"[{what}]({address})" for what, address in addresses("", experiment_id).items())
    return (
        f"{links}\n\nA row is a run of the pipeline: the digests of its data card, of its parameters and of the code, "
        "and its headline figures. Its stages are runs below it, the report is among its artifacts. Every reward "
        "checkpoint is a version of the registered model; `champion` is the best by dev."
    )


def addresses(host: str, experiment_id: str) -> dict[str, str]:
    """Where the views are, by what they show."""
    runs = f"{host}#/experiments/{experiment_id}/runs?viewStateShareKey="
    return {
        "runs": f"{runs}runs",
        "compared": f"{runs}runs&compareRunsMode=CHART",
        "by stage": f"{runs}stages",
    }


def run_note(params: Params, data: str, commit: str) -> str:
    """The description of a pipeline's run, of which the table shows the first 50 characters as plain text.

    What learned from what comes first: digests have columns of their own.
    """
    return f"{params.dataset.name}; {policy(params)}; reward on {body(params)}; data {data}, commit {short(commit)}"


def version_note(
    params: Params,
    lineage: Mapping[str, str],
    step: int,
    scores: Mapping[str, float],
    *,
    experiment_id: str,
    run_id: str,
    parent_id: str,
) -> str:
    """The description of a registered reward, in Markdown: dev scores, where it comes from, and where to read on.

    Args:
        lineage: with ``rairl.data`` and ``rairl.commit``.
        step: training iteration of policy and reward.
        scores: on dev.
        experiment_id, run_id, parent_id: of the stage's run and the pipeline's.
    """
    found = ", ".join(f"{name.removeprefix('dev/')} {value:.3f}" for name, value in scores.items())
    data, commit = lineage.get("rairl.data", "none"), lineage.get("rairl.commit", "none")
    place = f"#/experiments/{experiment_id}/runs/"
    return (
        f"**dev:** {found}\n\n"
        f"**policy:** {policy(params)}, iteration {step}; **reward:** {body(params)}, {params.reward.granularity}\n\n"
        f"**from:** {params.dataset.name}, data `{data}`, commit `{short(commit)}`\n\n"
        f"[the run]({place}{run_id}) · [all stages]({place}{parent_id}) · [test report]({place}{parent_id}/artifacts)"
    )


def short(commit: str) -> str:
    """A commit's first nine digits, with the mark of a changed working tree."""
    head, dirty, _ = commit.partition("-dirty")
    return head[:9] + dirty


def policy(params: Params) -> str:
    """The model that learns, in words."""
    base = params.base
    if isinstance(base, BuiltinBase):
        return f"built-in model, {base.layers} layers"
    return _named(base.source, base.revision, base.source)


def body(params: Params) -> str:
    """What the reward reads with, in words."""
    return _named(params.reward.backbone, params.reward.revision, params.reward.backbone)


def _named(source: str, revision: str | None, builtin: str) -> str:
    if source == "builtin":
        return builtin
    return source if revision is None else f"{source}@{revision[:9]}"
