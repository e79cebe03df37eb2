"""The policy: a causal language model that solves problems, and the likelihood it gives to a trace."""

from __future__ import annotations

import copy
import functools
import os
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch

from rairl.core.errors import RairlError
from rairl.core.training_params import PolicyParams
from rairl.models.adapters import add_lora, merged, twin

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def gpu() -> torch.device | None:
    """This process's GPU, if the machine has any."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if torch.cuda.is_available() else None


def placed(model: PreTrainedModel) -> PreTrainedModel:
    """The model on this process's GPU, where there is one; all that is computed from it follows it there."""
    device = gpu()
    return model if device is None or model.device == device else model.to(device)


def load_policy(folder: str | Path, *, dtype: str | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a policy saved by :func:`save_policy`, ready for evaluation.

    Args:
        dtype: see :func:`precision`.

    Raises:
        RairlError: when the folder is missing or holds no model.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet()
    if not (Path(folder) / "config.json").is_file():
        raise RairlError(f"{folder} holds no model (config.json is missing); run the stage that makes it")
    model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **precision(dtype))
    return placed(model.eval()), AutoTokenizer.from_pretrained(folder)


def precision(dtype: str | None) -> dict[str, Any]:
    """Options of ``from_pretrained``.

    Args:
        dtype: the type to hold weights in and to compute with, ``bfloat16`` say; None for the one they are stored in.
    """
    return {} if dtype is None else {"dtype": getattr(torch, dtype)}


def stored_dtype(model: PreTrainedModel) -> torch.dtype:
    """The type that the model's folder holds its weights in, which its configuration remembers."""
    kind = model.config.dtype
    if kind is None:
        return model.dtype
    return getattr(torch, kind) if isinstance(kind, str) else kind  # a model that was saved has its name there


def mixed(model: PreTrainedModel) -> PreTrainedModel:
    """Get a model ready for all its weights to learn, in place: they become float32 where they are stored in less.

    Its products are still computed in the type it is stored in (autocast). Weights of bfloat16 could not learn: with 8
    significant bits most of Adam's steps round to nothing.
    """
    stored = stored_dtype(model)
    if stored == torch.float32:
        return model
    model.float()
    forward = type(model).forward

    @functools.wraps(forward)
    def in_stored_type(self: PreTrainedModel, *args: Any, **options: Any) -> Any:
        with torch.autocast(self.device.type, stored):
            return forward(self, *args, **options)

    model.forward = MethodType(in_stored_type, model)  # a method, so that a copy of the model gets one of its own
    return model


def checkpoint_gradients(model: PreTrainedModel) -> None:
    """Let a model in training keep only what enters each layer for the backward pass, in place."""
    # Reentrant checkpoints want inputs with a gradient, which the embeddings of a frozen body don't have.
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def quiet() -> None:
    """Turn off transformers' own progress bars: loading a shard is not long work, and they tear the real bars apart."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def save_policy(folder: str | Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write config, safetensors and tokenizer into ``folder``; adapters are folded in, so any reader needs no peft.

    Weights that learned in float32 (:func:`mixed`) are written in the type the model is stored in.
    """
    quiet()
    whole = merged(model)
    if stored_dtype(whole) != whole.dtype:
        whole = copy.deepcopy(whole).to(stored_dtype(whole))
    whole.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_trainable(model: PreTrainedModel, params: PolicyParams, *, seed: int) -> PreTrainedModel:
    """Let a loaded policy learn what ``policy.train`` says, in place; returns its reference: the policy as it is now.

    full: the reference is a copy. lora: the policy gets adapters, and the reference is their frozen body, which stays
    the only copy of the weights in memory.

    Args:
        seed: of the adapters.
    """
    if params.train == "full":
        reference = copy.deepcopy(mixed(model)).requires_grad_(False)
    else:
        reference = twin(model)
        add_lora(model, params.lora_rank, seed=seed)
    if params.gradient_checkpointing:
        checkpoint_gradients(model)
    return reference
