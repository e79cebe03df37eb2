"""Learners of models that are split over several GPUs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rairl.core.errors import RairlError
from rairl.learn import distributed
from rairl.learn.learner import MAX_NORM, Learner, trained
from rairl.models.policy import checkpoint_gradients

if TYPE_CHECKING:
    from rairl.learn.learner import Optimizers
    from rairl.models.reward import RewardModel


def language_learner(model: nn.Module, make: Callable[[nn.Module], Optimizers]) -> Learner:
    """The learner of a language model, sharded where ``accelerate launch`` is configured so.

    Args:
        make: gives the optimisers of a model.

    Raises:
        RairlError: for a configuration that can't be followed.
    """
    if not distributed.sharded():
        return Learner(model, make(model))
    twin = _twin(model)
    return Fsdp(model, twin, make, twin)


def reward_learner(model: RewardModel, make: Callable[[nn.Module], Optimizers]) -> Learner:
    """The learner of a reward, whose body is sharded if it learns; a head alone is too small to be.

    Raises:
        RairlError: for a configuration that can't be followed.
    """
    if not distributed.sharded() or model.params.train == "head":
        return Learner(model, make(model))
    twin = _twin(model)
    return Fsdp(model, twin, make, twin.backbone if twin.adapter is None else twin.adapter)


def _twin(model: nn.Module) -> Any:
    """Another tree of modules over the very same parameters and buffers."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


class Fsdp(Learner):
    """PyTorch's fully sharded data parallelism (FSDP2; Zhao et al. 2023), one group per layer.

    Args:
        whole: the model that everybody else uses.
        twin: of it, to be split.
        make: gives the optimisers of a model.
        body: the part of the twin whose trained parameters are split; what learns beside it stays whole.
    """

    def __init__(
        self, whole: nn.Module, twin: nn.Module, make: Callable[[nn.Module], Optimizers], body: nn.Module
    ) -> None:
        _fully_shard(body)
        super().__init__(twin, make(twin))
        self.whole = whole

    def _missing(self, count: int) -> int:
        # As many micro-batches in every process, because each layer's weights come from all of them.
        return max(distributed.gather([count])) - count

    def backward(self, loss: Tensor) -> None:
        """Add the gradients. FSDP takes the mean over the processes, and losses are parts of a sum."""
        (loss * distributed.world()[1]).backward()

    def step(self, rate: float) -> float:
        """Clip by the norm over all shards, step, and gather the new weights."""
        from torch.distributed.tensor import DTensor

        split = [weight for weight in trained(self.model) if isinstance(weight, DTensor)]
        rest = [weight for weight in trained(self.model) if not isinstance(weight, DTensor)]
        distributed.sum_gradients(rest)
        for weight in rest:
            weight.grad = weight.grad / distributed.world()[1]
        norms = [
            torch.nn.utils.get_total_norm([it.grad for it in part if it.grad is not None]) for part in (split, rest)
        ]
        norm = torch.stack([it.full_tensor() if isinstance(it, DTensor) else it for it in norms]).norm()
        if norm.isfinite():
            for part in (split, rest):
                torch.nn.utils.clip_grads_with_norm_(part, MAX_NORM, norm)
            self._step(rate)
            self._publish()
        return float(norm)

    @torch.no_grad()
    def _publish(self) -> None:
        for whole, split in self._pairs():
            whole.copy_(split.full_tensor())

    def _pairs(self) -> Iterator[tuple[nn.Parameter, Any]]:
        """Every trained parameter of the whole model with its shards; what isn't split is one and the same in both."""
        for whole, split in zip(trained(self.whole), trained(self.model), strict=True):
            if whole is not split:
                yield whole, split

    def state(self) -> list[dict[str, Any]]:
        """Every shard is gathered."""
        return [
            {
                **kept,
                "state": {
                    index: {key: _gathered(value) for key, value in entry.items()}
                    for index, entry in kept["state"].items()
                },
            }
            for kept in super().state()
        ]

    @torch.no_grad()
    def restore(self, kept: Sequence[dict[str, Any]]) -> None:
        """Split the whole model's weights, and the state."""
        for whole, split in self._pairs():
            split.copy_(_split_like(split, whole))
        states = []
        for optimizer, state in zip(self.optimizers, kept, strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            entries = {
                index: {key: _split_like(weights[index], value) for key, value in entry.items()}
                for index, entry in state["state"].items()
            }
            states.append({**state, "state": entries})
        super().restore(states)


def _gathered(value: Any) -> Any:
    from torch.distributed.tensor import DTensor

    return value.full_tensor() if isinstance(value, DTensor) else value


def _split_like(weight: Tensor, value: Any) -> Any:
    """``value`` split as ``weight`` is; as it is where it is no tensor of the weight's shape (Adam's count)."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(weight, DTensor) or value.shape != weight.shape:
        return value
    return distribute_tensor(value.detach().to(weight.device), weight.device_mesh, weight.placements)


def _fully_shard(body: nn.Module) -> None:
    """Split the trained parameters of a transformer, layer by layer, in place."""
    from accelerate.utils import FullyShardedDataParallelPlugin
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard

    plugin = FullyShardedDataParallelPlugin()
    if plugin.fsdp_version != 2 or isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise RairlError("FSDP is used in version 2 and without offloading; see rairl/kubeflow/accelerate/fsdp.yaml")
    device = next(body.parameters()).device.type
    if plugin.activation_checkpointing:
        checkpoint_gradients(body)
    settings: dict[str, Any] = {
        "mesh": init_device_mesh(device, (distributed.world()[1],)),
        "reshard_after_forward": plugin.reshard_after_forward,
        "ignored_params": {parameter for parameter in body.parameters() if not parameter.requires_grad},
    }
    for module in list(body.modules()):
        if type(module).__name__ in body._no_split_modules:
            fully_shard(module, **settings)
    fully_shard(body, **settings)
