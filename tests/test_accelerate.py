"""The configurations for several processes, and models on the GPU of their process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file

from rairl.core.errors import RairlError
from rairl.core.params import Params
from rairl.kubeflow.task import ACCELERATE
from rairl.kubeflow.trainjob import FSDP
from rairl.learn import distributed
from rairl.learn.language_model import adamw

CONFIGS = {
    "cpu-2": ("MULTI_GPU", 2, False),
    "gpu-1": ("NO", 1, False),
    "gpu-8": ("MULTI_GPU", 8, False),
    "fsdp": ("FSDP", 8, False),
}


def test_every_configuration_is_known_here() -> None:
    assert {path.stem for path in ACCELERATE.glob("*.yaml")} == set(CONFIGS)


@pytest.mark.parametrize(("name", "expected"), CONFIGS.items())
def test_a_configuration_is_one_that_accelerate_loads(name: str, expected: tuple[str, int, bool]) -> None:
    config = load_config_from_file(str(ACCELERATE / f"{name}.yaml"))  # refuses keys that it does not know
    kind = getattr(config.distributed_type, "value", config.distributed_type)
    assert (kind, config.num_processes, config.use_cpu) == expected
    assert config.mixed_precision == "no"


def environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``accelerate launch`` with a configuration would set, for two processes of which this is one."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    file = ACCELERATE / f"{name}.yaml"
    given = launch_command_parser().parse_args(["--config_file", str(file), "script.py"])
    args, _, _ = _validate_launch_command(given)
    for key, value in prepare_multi_gpu_env(args).items():
        if key.startswith(("ACCELERATE_", "FSDP_")):
            monkeypatch.setenv(key, value)
    monkeypatch.setattr(distributed, "world", lambda: (0, 2))


def test_a_configuration_says_how_training_is_sharded(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.utils import FullyShardedDataParallelPlugin

    assert not distributed.sharded()  # a process that is alone
    with monkeypatch.context() as patch:
        environment("gpu-8", patch)
        assert not distributed.sharded()
    with monkeypatch.context() as patch:
        environment("fsdp", patch)
        assert distributed.sharded()
        plugin = FullyShardedDataParallelPlugin()
        assert (plugin.fsdp_version, plugin.reshard_after_forward, plugin.activation_checkpointing) == (2, True, False)
        assert set(FSDP.items()) <= set(os.environ.items())  # a TrainJob's processes are told the same
    with monkeypatch.context() as patch:
        environment("gpu-8", patch)
        patch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
        with pytest.raises(RairlError, match="DeepSpeed is not supported"):
            distributed.sharded()


def test_what_sharding_can_not_do_is_refused(
    tiny_policy: Path, miniature: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rairl.learn.learner import Learner
    from rairl.learn.sharding import language_learner, reward_learner
    from rairl.models.policy import load_policy
    from rairl.models.reward import new_reward

    monkeypatch.setattr(distributed, "sharded", lambda: True)
    head = reward_learner(new_reward(tiny_policy, miniature.reward, seed=0), adamw)
    assert type(head) is Learner  # too small to be split
    model, _ = load_policy(tiny_policy)
    for key, value in {"FSDP_VERSION": "1", "FSDP_OFFLOAD_PARAMS": "true"}.items():
        monkeypatch.setenv("FSDP_VERSION", "2")
        monkeypatch.setenv(key, value)
        with pytest.raises(RairlError, match="in version 2 and without offloading"):
            language_learner(model, adamw)


def test_models_go_to_the_gpu_of_their_process(
    tiny_policy: Path, tmp_path: Path, miniature: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU, on the device that computes nothing: seen is that all of a model goes where it is told to."""
    from rairl.models.base import load_source, new_model
    from rairl.models.policy import load_policy
    from rairl.models.reward import RewardModel, new_reward

    params = {head: miniature.reward.model_copy(update={"head": head}) for head in ("linear", "surprisal")}
    for head, it in params.items():
        new_reward(tiny_policy, it, seed=0).save_pretrained(tmp_path / head)
    _, tokenizer = load_policy(tiny_policy)
    with monkeypatch.context() as patch:
        patch.setattr("rairl.models.policy.gpu", lambda: torch.device("meta"))
        models = [
            load_policy(tiny_policy)[0],
            load_source("base.source", str(tiny_policy), None)[0],
            new_model(miniature.base, tokenizer, max_tokens=64, seed=0),
            *(new_reward(tiny_policy, it, seed=0) for it in params.values()),
            *(RewardModel.from_pretrained(tmp_path / head) for head in params),
        ]
    for model in models:
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_each_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from rairl.models.policy import gpu

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu() is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert gpu() == torch.device("cuda", 3)
    monkeypatch.delenv("LOCAL_RANK")
    assert gpu() == torch.device("cuda", 0)
