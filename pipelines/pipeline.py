"""The DAG of the stages, the same as in dvc.yaml (a test holds them equal)."""

from typing import NamedTuple

from kfp import dsl

from components.audit import audit
from components.base import base
from components.grpo import grpo
from components.localise import localise
from components.peer import peer
from components.posttrain import posttrain
from components.prepare import prepare
from components.rairl import rairl
from components.report import report
from components.rerank import rerank
from components.sample import sample
from components.sft import sft


class Outputs(NamedTuple):
    """What the whole pipeline hands back."""

    report: dsl.Artifact
    summary: dsl.Artifact
    reward: dsl.Model


@dsl.pipeline(
    name="rairl",
    description="Learn a process-level reward from expert reasoning traces and use it three times",
)
def pipeline(params: dict) -> Outputs:
    """All stages in order.

    Args:
        params: what params.yaml holds, as one JSON object; a null is written by leaving the key out.
    """
    data_task = prepare(params=params)
    data = data_task.outputs["data"]
    base_task = base(params=params, data=data)
    base_model = base_task.outputs["model"]
    sft_task = sft(params=params, data=data, base=base_model)
    sft_model = sft_task.outputs["model"]
    peer_task = peer(params=params, data=data)
    grpo_task = grpo(params=params, data=data, sft=sft_model)
    rairl_task = rairl(params=params, data=data, base=base_model, sft=sft_model, peer=peer_task.outputs["model"])
    reward = rairl_task.outputs["reward"]
    sample_task = sample(
        params=params,
        data=data,
        base=base_model,
        sft=sft_model,
        sft_last=sft_task.outputs["last"],
        grpo=grpo_task.outputs["model"],
        policy=rairl_task.outputs["policy"],
        peer=peer_task.outputs["model"],
    )
    candidates = sample_task.outputs["candidates"]
    posttrain_task = posttrain(params=params, data=data, candidates=candidates)
    rerank_task = rerank(params=params, data=data, candidates=candidates, reward=reward)
    scores = rerank_task.outputs["scores"]
    localise_task = localise(
        params=params,
        data=data,
        candidates=candidates,
        reward=reward,
        base=base_model,
        sft=sft_model,
        peer=peer_task.outputs["model"],
        rerank_scores=scores,
    )
    audit_task = audit(
        params=params, data=data, candidates=candidates, reward=reward, sft=sft_model, rerank_scores=scores
    )
    report_task = report(
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
        peer_metrics=peer_task.outputs["metrics"],
        grpo_metrics=grpo_task.outputs["metrics"],
        rairl_metrics=rairl_task.outputs["metrics"],
        sample_metrics=sample_task.outputs["metrics"],
        posttrain_metrics=posttrain_task.outputs["metrics"],
        rerank_metrics=rerank_task.outputs["metrics"],
        localise_metrics=localise_task.outputs["metrics"],
        audit_metrics=audit_task.outputs["metrics"],
    )
    return Outputs(report=report_task.outputs["report"], summary=report_task.outputs["summary"], reward=reward)
