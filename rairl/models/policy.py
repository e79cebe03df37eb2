"""The policy: a causal language model that solves problems, and the likelihood it gives to a trace."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from rairl.errors import RairlError
from rairl.models.adapters import add_lora, merged, twin
from rairl.params import PolicyParams
from rairl.traces import Trace

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.utils import ModelOutput

Take = Callable[[Tensor], Tensor]

AT_ONCE = 2**18
"""Logits that are turned into probabilities at a time on a processor."""
LONG = 1024
"""Tokens from which on a trace that is alone is read in one pass without a mask, whose size is their square."""


def gpu() -> torch.device | None:
    """This process's GPU, if the machine has any."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if torch.cuda.is_available() else None


def placed(model: PreTrainedModel) -> PreTrainedModel:
    """The model on this process's GPU, where there is one; all that is computed from it follows it there."""
    device = gpu()
    if device is not None:
        return model if model.device == device else model.to(device)
    for layer in model.modules():
        # On a CPU bitsandbytes rearranges 4-bit weights in a pass without gradients, and no gradient comes back after.
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
    return model


def load_policy(
    folder: str | Path, *, dtype: str | None = None, four_bit: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a policy saved by :func:`save_policy`, ready for evaluation.

    Args:
        dtype, four_bit: see :func:`precision`.

    Raises:
        RairlError: when the folder is missing or holds no model.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet()
    if not (Path(folder) / "config.json").is_file():
        raise RairlError(f"{folder} holds no model (config.json is missing); run the stage that makes it")
    model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **precision(dtype, four_bit))
    return placed(model.eval()), AutoTokenizer.from_pretrained(folder)


def precision(dtype: str | None, four_bit: bool) -> dict[str, Any]:
    """Options of ``from_pretrained``.

    Args:
        dtype: the type to hold weights in and to compute with, ``bfloat16`` say; None for the one they are stored in.
        four_bit: hold the weights of the projections in 4 bits: NF4, its scales quantised too (Dettmers et al. 2023).

    Raises:
        RairlError: when bitsandbytes is needed and not installed.
    """
    options: dict[str, Any] = {} if dtype is None else {"dtype": getattr(torch, dtype)}
    if not four_bit:
        return options
    if find_spec("bitsandbytes") is None:
        raise RairlError(
            "load_in_4bit needs bitsandbytes, which is not installed: pip install 'rairl[quantised]', or switch it off"
        )
    from transformers import BitsAndBytesConfig

    quantised = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=options.get("dtype", torch.bfloat16),
    )
    return {**options, "quantization_config": quantised, "device_map": {"": gpu() or torch.device("cpu")}}


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


def recomputes(model: nn.Module) -> bool:
    """Whether :func:`checkpoint_gradients` was called on a model, or transformers' own switch is on."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


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


def render_prompt(tokenizer: PreTrainedTokenizerBase, problem: str) -> str:
    """The problem as the model reads it, through the tokenizer's chat template."""
    messages = [{"role": "user", "content": problem}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


@dataclass(frozen=True)
class Encoded:
    """A prompt and completion as token ids, with the completion's character offsets.

    Attributes:
        ids: token ids of prompt and completion, without end token.
        prompt_tokens: how many of them belong to the prompt.
        ends: for each completion token, the end of its characters in ``Trace.text``; ascending.
    """

    ids: list[int]
    prompt_tokens: int
    ends: np.ndarray

    @property
    def tail(self) -> int:
        """Tokens from the prompt's last one on."""
        return len(self.ids) - self.prompt_tokens + 1


def encode(tokenizer: PreTrainedTokenizerBase, traces: Sequence[Trace]) -> list[Encoded]:
    """Tokenise rendered prompt + text as one string; positions come from character offsets, never from counting.

    A token belongs to the completion when it ends inside it: one that straddles the border is read with the completion.
    """
    rendered = {problem: render_prompt(tokenizer, problem) for problem in {trace.problem for trace in traces}}
    prompts = [rendered[trace.problem] for trace in traces]
    batch = tokenizer(
        [prompt + trace.text for prompt, trace in zip(prompts, traces, strict=True)],
        add_special_tokens=False,
        return_offsets_mapping=True,
    )
    rows = []
    for prompt, ids, offsets in zip(prompts, batch["input_ids"], batch["offset_mapping"], strict=True):
        ends = np.array([end for _, end in offsets], dtype=int) - len(prompt)
        count = int(np.searchsorted(ends, 0, side="right"))
        rows.append(Encoded(ids, count, ends[count:]))
    return rows


def token_at(encoded: Encoded, character: int) -> int:
    """Index (in the whole sequence) of the token that holds completion character ``character - 1``, i.e. a span's end.

    Works whatever the tokenizer: the first completion token whose characters reach ``character``.
    """
    return encoded.prompt_tokens + int(np.searchsorted(encoded.ends, character))


def pad(rows: Sequence[Sequence[int]], value: int, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Stack ragged ids: ``(ids, mask)``, both int64 of shape ``(B, T)``; mask is 1 on real tokens."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), value, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        at = slice(width - len(row), width) if left else slice(0, len(row))
        ids[index, at] = torch.tensor(row, dtype=torch.long)
        mask[index, at] = 1
    return ids, mask


def batches_by_length(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Indices in batches of similar length whose padded size stays within ``tokens`` (at least one row each)."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and lengths[index] * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@dataclass(frozen=True)
class SharedPrompts:
    """Rows of prompt and completion whose distinct prompts are read once, however many completions each has.

    A row's *tail* is the prompt's last token and the completion: the model's output there covers the place that each
    completion token was drawn from, and the token itself. Everything is padded on the right, where causal attention
    never looks.

    Attributes:
        heads, mask: ``(P, H)``, the distinct prompts without their last token.
        owner: ``(B,)``, index of each row's prompt.
        tails: ``(B, T)``.
    """

    heads: Tensor
    mask: Tensor
    owner: Tensor
    tails: Tensor

    @classmethod
    def of(
        cls, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad_id: int, device: torch.device
    ) -> SharedPrompts:
        """From the token ids of each row's prompt (at least one) and completion."""
        number: dict[tuple[int, ...], int] = {}
        owner = [number.setdefault(tuple(prompt), len(number)) for prompt in prompts]
        heads, mask = pad([prompt[:-1] for prompt in number], pad_id)
        tails, _ = pad([[prompt[-1], *rest] for prompt, rest in zip(prompts, completions, strict=True)], pad_id)
        return cls(heads.to(device), mask.to(device), torch.tensor(owner, device=device), tails.to(device))

    @classmethod
    def of_encoded(cls, rows: Sequence[Encoded], pad_id: int, device: torch.device) -> SharedPrompts:
        """From encoded traces."""
        prompts = [row.ids[: row.prompt_tokens] for row in rows]
        return cls.of(prompts, [row.ids[row.prompt_tokens :] for row in rows], pad_id, device)

    def read(self, model: PreTrainedModel, **options: Any) -> ModelOutput:
        """What the model says of the tails, ``(B, T, ...)`` in every field; gradients flow through the prompts, too.

        Args:
            options: of the model's call, such as ``output_hidden_states``. Logits are as the model gives them where
                they say how many to keep.
        """
        from rairl.models.attention import replaceable

        if not self.heads.shape[1]:
            return model(input_ids=self.tails, use_cache=False, **options)
        # The mask of a long trace is large, and a layer that is recomputed would not find our attention in place.
        alone = len(self.heads) == len(self.tails) == 1 and self.heads.shape[1] + self.tails.shape[1] > LONG
        whole = alone or (model.training and recomputes(model)) or not replaceable(model)
        out, tails_of = (self._read_whole if whole else self._read_in_one_pass)(model, options)
        for name, value in out.items():
            if isinstance(value, tuple):
                out[name] = tuple(tails_of(part) for part in value)
            elif isinstance(value, Tensor) and (name != "logits" or "logits_to_keep" not in options):
                out[name] = tails_of(value)
        return out

    def _read_in_one_pass(self, model: PreTrainedModel, options: dict[str, Any]) -> tuple[ModelOutput, Take]:
        """All heads, then all tails in one row; returns what the model says of it, and what takes the tails of that."""
        from rairl.models.attention import OnePass, by_cache

        seen, (rows, width) = self.mask[self.owner], self.tails.shape
        look = torch.cat([seen, torch.ones_like(self.tails)], -1).bool()[:, None, None].repeat(1, 1, width, 1)
        look[..., -width:] = look.new_ones(width, width).tril()
        before = torch.arange(self.heads.shape[1], device=seen.device).repeat(len(self.heads))
        after = seen.sum(-1, keepdim=True) + torch.arange(width, device=seen.device)
        keep = {} if model.get_output_embeddings() is None else {"logits_to_keep": rows * width}
        with by_cache(model):
            out = model(
                input_ids=torch.cat([self.heads.flatten(), self.tails.flatten()])[None],
                position_ids=torch.cat([before, after.flatten()])[None],
                past_key_values=OnePass(tuple(self.heads.shape), (rows, width), self.owner, look),
                use_cache=False,
                **{**keep, **options},
            )
        return out, lambda value: value[0, -rows * width :].unflatten(0, (rows, width))

    def _read_whole(self, model: PreTrainedModel, options: dict[str, Any]) -> tuple[ModelOutput, Take]:
        """Each tail behind its own head, right for any causal model: there is no gap, and padding is on the right."""
        before = self.mask[self.owner].sum(-1, keepdim=True)
        heads, rows = self.heads.shape[1], torch.cat([self.heads[self.owner], self.tails], -1)
        at = torch.arange(rows.shape[1], device=rows.device).expand_as(rows)
        ids = rows.gather(1, torch.where(at < before, at, at + heads - before).clamp(max=rows.shape[1] - 1))
        tails = before + torch.arange(self.tails.shape[1], device=rows.device)
        each = torch.arange(len(rows), device=rows.device)[:, None]
        return model(input_ids=ids, use_cache=False, **options), lambda value: value[each, tails]


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """Logits over the temperature; at 1 the very same, since a copy of all logits takes time."""
    return logits if temperature == 1 else logits / temperature


def token_surprise(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probability of each token and entropy of what it was drawn from: ``(B, T, 2)``; token 0 has zeros."""
    if logits.device.type == "cpu" and not torch.is_grad_enabled():
        # Some rows at a time: three more copies of all logits leave the cache, and are fresh pages of memory each time.
        rows = max(1, AT_ONCE // logits[0].numel())
        parts = zip(logits.split(rows), ids.split(rows), strict=True)
        return torch.cat([_token_surprise(*part) for part in parts])
    return _token_surprise(logits, ids)


def _token_surprise(logits: Tensor, ids: Tensor) -> Tensor:
    # One exponential a token serves both; the vocabulary is the long axis here.
    logits = logits[:, :-1].float()
    shifted = logits - logits.detach().amax(-1, keepdim=True)
    likelihoods = shifted.exp()
    total = likelihoods.sum(-1)
    picked = shifted.gather(-1, ids[:, 1:, None]).squeeze(-1) - total.log()
    entropy = total.log() - torch.linalg.vecdot(likelihoods, shifted) / total
    return torch.nn.functional.pad(torch.stack([picked, entropy], -1), (0, 0, 1, 0))


class LogProbs(NamedTuple):
    """What a policy says of a trace, in nats, end token excluded.

    Attributes:
        steps, mean_steps: log-probability of each step, and the same per token: ``(n_steps,)``.
        total: log-probability of the whole completion.
        tokens: of the completion.
        entropies: mean entropy of the policy where it read each step's tokens: ``(n_steps,)``.
        entropy: the same over the whole completion.
    """

    steps: np.ndarray
    mean_steps: np.ndarray
    total: float
    tokens: int
    entropies: np.ndarray
    entropy: float

    @property
    def per_token(self) -> float:
        """Log-probability per token of the completion."""
        return self.total / max(self.tokens, 1)


@torch.inference_mode()
def completion_surprise(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    traces: Sequence[Trace],
    *,
    temperature: float = 1.0,
    batch_tokens: int = 4096,
    progress: bool = False,
) -> list[tuple[Encoded, np.ndarray]]:
    """Each trace's tokens, and log-probability and entropy, in nats, of the completion's: ``(T, 2)``, else NaN.

    Args:
        temperature: of the distribution that both are of.
    """
    encoded = encode(tokenizer, traces)
    found: dict[int, np.ndarray] = {}
    device = next(model.parameters()).device
    bar = tqdm(total=len(traces), desc="log-probabilities", unit="trace", disable=not progress)
    for batch in batches_by_length([row.tail for row in encoded], batch_tokens):
        rows = SharedPrompts.of_encoded([encoded[index] for index in batch], tokenizer.pad_token_id or 0, device)
        logits = tempered(rows.read(model).logits, temperature)
        surprise = token_surprise(logits, rows.tails).cpu().double().numpy()
        for index, read in zip(batch, surprise, strict=True):
            item = encoded[index]
            found[index] = np.full((len(item.ids), 2), np.nan)
            found[index][item.prompt_tokens :] = read[1 : item.tail]
        bar.update(len(batch))
    bar.close()
    return [(item, found[index]) for index, item in enumerate(encoded)]


def step_logprobs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, traces: Sequence[Trace], *, progress: bool = False
) -> list[LogProbs]:
    """Log-probability and entropy of every step and of the whole completion."""
    found = completion_surprise(model, tokenizer, traces, progress=progress)
    return [by_step(trace, *one) for trace, one in zip(traces, found, strict=True)]


def by_step(trace: Trace, item: Encoded, surprise: np.ndarray) -> LogProbs:
    """A trace's surprise ``(T, 2)``, as :func:`completion_surprise` gives it, step by step."""
    bounds = [(token_at(item, step.start + 1), token_at(item, step.end) + 1) for step in trace.steps]
    sums = np.array([surprise[start:end].sum(axis=0) for start, end in bounds]).reshape(-1, 2)
    means = sums / np.maximum([end - start for start, end in bounds], 1).reshape(-1, 1)
    whole = surprise[item.prompt_tokens :]
    total, entropy = float(whole[:, 0].sum()), float(whole[:, 1].sum()) / max(len(whole), 1)
    return LogProbs(sums[:, 0], means[:, 0], total, len(whole), means[:, 1], entropy)
