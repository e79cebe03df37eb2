"""Several models on one set of weights: twins of a model, and low-rank adapters (LoRA, Hu et al. 2021) in one of them.

A twin is a second tree of modules over the very same parameters. Adapters put into one twin are absent from the other,
so a policy, its KL reference and a reward can share one copy of the weights and nothing is ever switched on or off:
switching an adapter in peft also switches which parameters learn, and a backward pass after it would lose gradients.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from rairl.core.errors import RairlError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

# A pattern and not a list: peft keeps a list as a set, whose order in the saved file would differ from run to run.
TARGETS = r".*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
NAME = "default"


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """A model of its own on the same parameters: a change of their values shows in both, a change of modules does not.

    Only weights that stay frozen should be shared for long.
    """
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def add_lora(model: PreTrainedModel, rank: int, *, seed: int) -> PeftModel:
    """Put fresh adapters into the attention and feed-forward projections of ``model``, in place, and freeze the rest.

    Alpha is twice the rank, so an adapter's product is added at weight 2; it starts at zero (Hu et al. 2021, section
    4.1).

    Raises:
        RairlError: when the architecture names none of its projections as Llama does.
    """
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    try:
        adapted = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS), NAME)
    except ValueError as error:
        raise RairlError(f"train 'lora' does not fit a {type(model).__name__}: {error}") from error
    adapted.peft_config[NAME].base_model_name_or_path = None  # where it was loaded from means nothing elsewhere
    return adapted


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """The model without adapters that computes the same.

    ``model`` is left as it was, and is what comes back if it has none.
    """
    if not hasattr(model, "peft_config"):
        return model
    from peft.tuners.lora import LoraLayer

    plain = twin(model)
    for name, layer in list(plain.named_modules()):
        if isinstance(layer, LoraLayer):
            plain.set_submodule(name, _folded(layer.get_base_layer(), layer.get_delta_weight(NAME)))  # type: ignore[attr-defined]
    del plain.peft_config
    return plain


@torch.no_grad()
def _folded(layer: nn.Linear, change: torch.Tensor) -> nn.Linear:
    """A plain linear layer with the weight of ``layer``, and the change added in float32."""
    plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    plain.weight = nn.Parameter((layer.weight.float() + change.float()).to(layer.weight.dtype))
    plain.bias = layer.bias
    return plain


def save_lora(folder: Path, adapted: PeftModel) -> None:
    """Write the adapters alone, as ``PeftModel.from_pretrained`` reads them."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    adapted.peft_config[NAME].save_pretrained(str(folder))
    weights = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    save_file({key: value.contiguous() for key, value in weights.items()}, folder / "adapter_model.safetensors")


def load_lora(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Put the adapters of :func:`save_lora` into ``model``, in place and frozen."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, folder)
