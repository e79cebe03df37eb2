"""The rairl stage as a Kubeflow component."""

from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from components import component


@component
def rairl(
    params: dict,
    data: Input[Dataset],
    base: Input[Model],
    sft: Input[Model],
    second_model: Input[Model],
    policy: Output[Model],
    reward: Output[Model],
    checkpoints: Output[Artifact],
    rollouts: Output[Dataset],
    history: Output[Artifact],
    metrics: Output[Metrics],
) -> None:
    """Learn the reward and the policy against each other."""
    from rairl.kubeflow.task import run_task

    run_task(
        "rairl",
        params,
        metrics,
        data=data,
        base=base,
        sft=sft,
        second_model=second_model,
        policy=policy,
        reward=reward,
        checkpoints=checkpoints,
        rollouts=rollouts,
        history=history,
    )
