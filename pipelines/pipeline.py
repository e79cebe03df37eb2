"""The DAG of the stages, the same as in dvc.yaml (a test holds them equal), and the tasks around them.

Around the stages are ``configure`` (checks the parameters), ``variants`` (seeds x granularities), ``register`` (the
gate of the registry) and ``finish`` (the exit handler). From the rairl stage on, everything is done once per variant;
with one seed and one granularity that is the DAG of dvc.yaml.
"""

from collections.abc import Callable
from typing import Any, List, NamedTuple  # noqa: UP035  (kfp reads typing's List)

from kfp import dsl

from components.audit import audit
from components.base import base
from components.configure import configure
from components.finish import finish
from components.grpo import grpo
from components.localise import localise
from components.posttrain import posttrain
from components.prepare import prepare
from components.rairl import rairl
from components.register import register
from components.report import report
from components.rerank import rerank
from components.sample import sample
from components.second_model import second_model
from components.sft import sft
from components.variants import variants

EXTRA = ("configure", "variants", "register", "finish")
"""Tasks that are no stages; their modules say why."""

Place = Callable[[dsl.PipelineTask, str], None]
"""Tells a task, by its component's name, where it runs."""


class Outputs(NamedTuple):
    """What a run on this machine hands back, per variant."""

    report: List[dsl.Artifact]  # noqa: UP006
    summary: List[dsl.Artifact]  # noqa: UP006
    reward: List[dsl.Model]  # noqa: UP006


def tasks(params: Any, seeds: Any, granularities: Any, experiment: Any, tracking_uri: Any, place: Place) -> Outputs:
    """Every task but the exit handler."""

    def put(component: Any, **inputs: Any) -> dsl.PipelineTask:
        task = component(**inputs)
        place(task, component.name.replace("-", "_"))  # kfp writes a function's name with hyphens
        return task

    configured = put(configure, params=params, experiment=experiment, tracking_uri=tracking_uri)
    params = configured.output
    runs = put(variants, params=params, seeds=seeds, granularities=granularities)
    data_task = put(prepare, params=params)
    data = data_task.outputs["data"]
    base_task = put(base, params=params, data=data)
    base_model = base_task.outputs["model"]
    sft_task = put(sft, params=params, data=data, base=base_model)
    sft_model = sft_task.outputs["model"]
    second_model_task = put(second_model, params=params, data=data)
    second_model_folder = second_model_task.outputs["model"]
    grpo_task = put(grpo, params=params, data=data, base=base_model, sft=sft_model)
    with dsl.ParallelFor(runs.output) as params:
        rairl_task = put(
            rairl, params=params, data=data, base=base_model, sft=sft_model, second_model=second_model_folder
        )
        reward = rairl_task.outputs["reward"]
        sample_task = put(
            sample,
            params=params,
            data=data,
            base=base_model,
            sft=sft_model,
            sft_last=sft_task.outputs["last"],
            grpo=grpo_task.outputs["model"],
            policy=rairl_task.outputs["policy"],
            second_model=second_model_folder,
        )
        candidates = sample_task.outputs["candidates"]
        posttrain_task = put(posttrain, params=params, data=data, candidates=candidates)
        rerank_task = put(rerank, params=params, data=data, candidates=candidates, reward=reward)
        scores = rerank_task.outputs["scores"]
        localise_task = put(
            localise,
            params=params,
            data=data,
            candidates=candidates,
            reward=reward,
            base=base_model,
            sft=sft_model,
            second_model=second_model_folder,
            rerank_scores=scores,
        )
        audit_task = put(
            audit, params=params, data=data, candidates=candidates, reward=reward, sft=sft_model, rerank_scores=scores
        )
        report_task = put(
            report,
            params=params,
            data=data,
            candidates=candidates,
            grpo_history=grpo_task.outputs["history"],
            rairl_history=rairl_task.outputs["history"],
            rerank_scores=scores,
            localise_scores=localise_task.outputs["scores"],
            posttrain_plots=posttrain_task.outputs["plots"],
            rerank_plots=rerank_task.outputs["plots"],
            localise_plots=localise_task.outputs["plots"],
            audit_plots=audit_task.outputs["plots"],
            prepare_metrics=data_task.outputs["metrics"],
            base_metrics=base_task.outputs["metrics"],
            sft_metrics=sft_task.outputs["metrics"],
            second_model_metrics=second_model_task.outputs["metrics"],
            grpo_metrics=grpo_task.outputs["metrics"],
            rairl_metrics=rairl_task.outputs["metrics"],
            sample_metrics=sample_task.outputs["metrics"],
            posttrain_metrics=posttrain_task.outputs["metrics"],
            rerank_metrics=rerank_task.outputs["metrics"],
            localise_metrics=localise_task.outputs["metrics"],
            audit_metrics=audit_task.outputs["metrics"],
        )
    # Every variant is measured and reported before one of them may become champion; MLflow's state is no input that
    # a cache could see.
    reports = dsl.Collected(report_task.outputs["tables"])
    put(register, variants=runs.output, data=data, reports=reports).set_caching_options(False)
    return Outputs(
        *(dsl.Collected(task.outputs[key]) for task, key in (
            (report_task, "report"), (report_task, "summary"), (rairl_task, "reward")
        ))
    )  # fmt: skip


def local_pipeline() -> Any:
    """The pipeline without the exit handler, from which Kubeflow lets no outputs out."""

    @dsl.pipeline(name="rairl", description=DESCRIPTION)
    def rairl(
        params: dict,
        seeds: list = [],  # noqa: B006  (kfp writes the default down)
        granularities: list = [],  # noqa: B006
        experiment: str = "",
        tracking_uri: str = "",
    ) -> Outputs:
        return tasks(params, seeds, granularities, experiment, tracking_uri, lambda task, name: None)

    return rairl


def cluster_pipeline(place: Place) -> Any:
    """The pipeline for a cluster."""

    @dsl.pipeline(name="rairl", description=DESCRIPTION)
    def rairl(
        params: dict,
        seeds: list = [],  # noqa: B006
        granularities: list = [],  # noqa: B006
        experiment: str = "",
        tracking_uri: str = "",
    ) -> None:
        """Learn a reward from expert traces and use it three times.

        Args:
            params: what params.yaml holds, as one JSON object; a null is written by leaving the key out.
            seeds: of the rairl stage, one run each; empty for the seed of params. Data, base, SFT and GRPO are those
                of params.
            granularities: of the reward, one run each with every seed; empty for that of params.
            experiment: of MLflow; empty for that of params.
            tracking_uri: of the MLflow server; empty for MLFLOW_TRACKING_URI in the image or a secret.
        """
        end = finish(params=params, experiment=experiment, tracking_uri=tracking_uri).set_caching_options(False)
        place(end, "finish")
        with dsl.ExitHandler(end):
            tasks(params, seeds, granularities, experiment, tracking_uri, place)

    return rairl


DESCRIPTION = "Learn a process-level reward from expert reasoning traces and use it three times"
