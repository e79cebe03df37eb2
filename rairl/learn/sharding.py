"""Learners of models that are split over several GPUs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rairl.core.errors import RairlError
from rairl.learn import distributed
from rairl.learn.learner import MAX_NORM, Learner, trained
from rairl.models.policy import checkpoint_gradients

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from rairl.learn.learner import Optimizers
    from rairl.models.reward import RewardModel


def language_learner(model: nn.Module, make: Callable[[nn.Module], Optimizers]) -> Learner:
    """The learner of a language model, sharded where ``accelerate launch`` is configured so.

    Args:
        make: gives the optimisers of a model.

    Raises:
        RairlError: for a configuration that can't be followed.
    """
    kind = distributed.sharding()
    if kind is None:
        return Learner(model, make(model))
    if kind == "zero":
        if find_spec("deepspeed") is None:
            raise RairlError("DeepSpeed is no dependency of rairl; pip install deepspeed, or use FSDP")
        return Zero(model, make)
    twin = _twin(model)
    return Fsdp(model, twin, make, twin)


def reward_learner(model: RewardModel, make: Callable[[nn.Module], Optimizers]) -> Learner:
    """The learner of a reward, whose body is sharded if it learns; a head alone is too small to be.

    Raises:
        RairlError: for a configuration that can't be followed.
    """
    kind = distributed.sharding()
    if kind is None or model.params.train == "head":
        return Learner(model, make(model))
    if kind == "zero":
        raise RairlError(
            f"DeepSpeed shards one whole model, and a reward that learns by reward.train {model.params.train!r} is a "
            "body and a head; use rairl/kubeflow/accelerate/fsdp.yaml, or reward.train: head"
        )
    twin = _twin(model)
    return Fsdp(model, twin, make, twin.backbone if twin.adapter is None else twin.adapter)


def _twin(model: nn.Module) -> Any:
    """Another tree of modules over the very same parameters and buffers."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


class _Sharded(Learner):
    """What both kinds of sharding have in common: ``whole`` is the model that everybody else uses."""

    def __init__(self, whole: nn.Module, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        super().__init__(model, optimizers)
        self.whole = whole

    def _missing(self, count: int) -> int:
        # As many micro-batches in every process, because each layer's weights come from all of them.
        return max(distributed.gather([count])) - count


class Fsdp(_Sharded):
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
        super().__init__(whole, twin, make(twin))

    def backward(self, loss: Tensor, *, last: bool) -> None:
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


class Zero(_Sharded):
    """DeepSpeed's ZeRO (Rajbhandari et al. 2020): stage 2 splits gradients and optimiser state, stage 3 weights, too.

    Args:
        whole: the model that everybody else uses; the engine has a copy.
        make: gives the optimisers of a model, of which there is one.
    """

    def __init__(self, whole: nn.Module, make: Callable[[nn.Module], Optimizers]) -> None:
        self.make = make
        self.engine = self._engine(whole)
        super().__init__(whole, self.engine, self.optimizers)

    def _engine(self, whole: nn.Module) -> DeepSpeedEngine:
        import deepspeed
        from accelerate.utils import DeepSpeedPlugin

        model = copy.deepcopy(whole)
        self.optimizers = self.make(model)
        [optimizer] = self.optimizers
        self.groups = optimizer.state_dict()["param_groups"]
        self.weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        plugin = DeepSpeedPlugin().deepspeed_config
        config = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,  # losses are divided by counts already
            "gradient_clipping": MAX_NORM,
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": next(whole.parameters()).dtype == torch.bfloat16},
            "zero_optimization": plugin["zero_optimization"],
        }
        return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]

    def zero_grad(self) -> None:
        """Nothing: the engine forgets its gradients with each step."""

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradients. DeepSpeed takes the mean over the processes, and losses are parts of a sum."""
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss * distributed.world()[1])
        if not last:
            self.engine.step()  # counts the micro-batch

    def step(self, rate: float) -> float:
        """Clip and step, which DeepSpeed does at once: a norm that is not a number has reached the weights."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        self.engine.step()
        self._publish()
        return float(self.engine.get_global_grad_norm())

    @torch.no_grad()
    def _publish(self) -> None:
        from deepspeed.runtime.zero import GatheredParameters

        for whole, split in zip(trained(self.whole), trained(self.engine.module), strict=True):
            with GatheredParameters([split]):
                whole.copy_(split)

    def state(self) -> list[dict[str, Any]]:
        """Every shard is gathered."""
        from deepspeed.utils import safe_get_full_optimizer_state

        counts = [entry["step"] for entry in self.optimizers[0].state.values() if "step" in entry]
        entries = {
            index: {
                "step": counts[0].clone().cpu(),
                **{key: safe_get_full_optimizer_state(weight, key).clone() for key in ("exp_avg", "exp_avg_sq")},
            }
            for index, weight in enumerate(self.weights)
            if counts and weight.requires_grad
        }
        return [{"state": entries, "param_groups": self.groups}]

    def restore(self, kept: Sequence[dict[str, Any]]) -> None:
        """A new engine on the whole model's weights; its state exists after a first step, of rate 0."""
        from deepspeed.utils import safe_set_full_optimizer_state

        self.engine.destroy()
        self.engine = self.model = self._engine(self.whole)
        device = next(self.whole.parameters()).device
        self.backward(
            self.engine(input_ids=torch.zeros((1, 2), dtype=torch.long, device=device)).logits.sum() * 0, last=True
        )
        self.step(0.0)
        for index, entry in kept[0]["state"].items():
            for key in ("exp_avg", "exp_avg_sq"):
                safe_set_full_optimizer_state(self.weights[index], entry[key].to(device), key)
            for own in self.optimizers[0].state.values():
                own["step"].fill_(entry["step"])
