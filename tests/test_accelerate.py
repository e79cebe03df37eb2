"""The configurations for several processes, and models on the GPU of their process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file

from rairl.errors import RairlError
from rairl.learn import distributed
from rairl.params import Params
from rairl.task import ACCELERATE

CONFIGS = {
    "cpu-2": ("MULTI_GPU", 2, False),
    "gpu-1": ("NO", 1, False),
    "gpu-8": ("MULTI_GPU", 8, False),
}


def test_every_configuration_is_known_here() -> None:
    assert {path.stem for path in ACCELERATE.glob("*.yaml")} == set(CONFIGS)


@pytest.mark.parametrize(("name", "expected"), CONFIGS.items())
def test_a_configuration_is_one_that_accelerate_loads(name: str, expected: tuple[str, int, bool]) -> None:
    config = load_config_from_file(str(ACCELERATE / f"{name}.yaml"))  # refuses keys that it does not know
    kind = getattr(config.distributed_type, "value", config.distributed_type)
    assert (kind, config.num_processes, config.use_cpu) == expected
    assert config.mixed_precision == "no"


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_what_would_only_pretend_to_shard_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RairlError, match=f"configured for {name}, but every process of rairl holds all the weights"):
        distributed.world()


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
