"""Sampling completions from a policy: each prompt is read once, its samples share the read, finished rows drop out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rairl.core.traces import Trace
from rairl.datasets import arithmetic_problem
from rairl.learn.distributed import gather, mine
from rairl.models.reading import encode_prompts, end_tokens, pad
from rairl.text.answers import answers_match, read_answer
from rairl.text.segment import think_lines

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Completion:
    """One sampled completion.

    Attributes:
        prompt_ids: token ids of the rendered prompt.
        ids: sampled token ids; the end token is the last one when ``finished``.
        logprobs: log-probability of each sampled token at temperature 1, in nats (same length as ``ids``).
        finished: False when the length cap cut it off.
    """

    prompt_ids: list[int]
    ids: list[int]
    logprobs: list[float]
    finished: bool


@torch.inference_mode()
def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[str],
    *,
    n: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    first: int = 0,
    rows_per_batch: int = 512,
) -> list[Completion]:
    """Draw ``n`` completions for each problem; the n of one problem are adjacent in the result.

    Each token's randomness is one uniform number that belongs to (seed, problem's index, sample, position) alone, so
    neither the batches nor a split of the problems among processes changes what is drawn.

    Args:
        temperature: 0 decodes greedily (then n is usually 1).
        seed: equal arguments give equal samples, whatever ran before.
        first: index of the first problem in the list that this is a part of.
    """
    if not problems:
        return []
    prompts = encode_prompts(tokenizer, problems)
    per_batch = max(1, rows_per_batch // n)
    completions: list[Completion] = []
    for start in range(0, len(prompts), per_batch):
        batch = prompts[start : start + per_batch]
        draws = [uniforms(seed, first + start + index, (n, max_new_tokens)) for index in range(len(batch))]
        completions += _sample_batch(model, tokenizer, batch, n, temperature, torch.from_numpy(np.concatenate(draws)))
    return completions


def sample_together(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, problems: Sequence[str], **options: Any
) -> list[Completion]:
    """What :func:`sample` gives, each process having drawn its share of the problems."""
    indices = mine(range(len(problems)))
    first = indices[0] if indices else 0
    return gather(sample(model, tokenizer, mine(problems), first=first, **options))


def uniforms(seed: int, index: int, shape: tuple[int, int]) -> np.ndarray:
    """Numbers in [0, 1) of the problem at ``index``: one per sample and position."""
    return np.random.default_rng((seed, index)).random(shape)


def _sample_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    n: int,
    temperature: float,
    draws: Tensor,
) -> list[Completion]:
    from transformers import DynamicCache

    from rairl.models.cache import sampling

    model.eval()
    device = next(model.parameters()).device
    ends = end_tokens(model, tokenizer)
    stops = torch.tensor(ends, device=device)
    ids, mask = (part.to(device) for part in pad(prompts, tokenizer.pad_token_id, left=True))
    position = mask.cumsum(-1) - 1
    read = DynamicCache(config=model.config)
    out = model(
        input_ids=ids, attention_mask=mask, position_ids=position.clamp(min=0), past_key_values=read, logits_to_keep=1
    )
    logits = out.logits[:, -1].repeat_interleave(n, dim=0)
    position = position[:, -1].repeat_interleave(n, dim=0)
    alive = torch.arange(len(position), device=device)
    tokens: list[tuple[Tensor, Tensor, Tensor]] = []
    draws = draws.to(device)
    with sampling(model, read, mask, n) as cache:
        width = mask.shape[1]
        mask = torch.nn.functional.pad(mask, (0, draws.shape[1]), value=1).repeat_interleave(n, dim=0)
        for step in range(draws.shape[1]):
            picked, logprob = draw(logits, temperature, draws[alive, step])
            tokens.append((alive.cpu(), picked.cpu(), logprob.cpu()))
            going = ~torch.isin(picked, stops)
            if step + 1 == draws.shape[1] or not going.any():
                break
            # Dropping finished rows costs a copy of the cache, so it waits until a quarter of the batch is done.
            if going.float().mean() < 0.75:
                keep = going.nonzero().squeeze(-1)
                cache.batch_select_indices(keep)
                alive, picked, mask, position = alive[keep], picked[keep], mask[keep], position[keep]
            position = position + 1
            logits = model(
                input_ids=picked[:, None],
                attention_mask=mask[:, : width + step + 1],
                position_ids=position[:, None],
                past_key_values=cache,
            ).logits[:, -1]
    return _collect(tokens, prompts, n, ends)


def draw(logits: Tensor, temperature: float, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Pick one token per row by the inverse of the cumulative distribution, or greedily at temperature 0.

    Args:
        logits: ``(B, V)``.
        uniform: ``(B,)`` numbers in [0, 1), float64.

    Returns:
        Ids ``(B,)`` and their log-probabilities at temperature 1, in nats.
    """
    # One exponential a token serves the distribution and its normaliser; the vocabulary is the long axis here.
    shifted = logits.float() - logits.amax(-1, keepdim=True)
    likelihoods = shifted.exp()
    if temperature == 0:
        picked = shifted.argmax(-1, keepdim=True)
    else:
        cumulative = (likelihoods if temperature == 1 else (shifted / temperature).exp()).cumsum(-1)
        total = cumulative[:, -1:]
        # Below the total in its own precision, so that the token found always has a probability above 0.
        at = torch.minimum(uniform[:, None] * total, total.nextafter(torch.zeros_like(total))).float()
        picked = torch.searchsorted(cumulative, at, right=True)
    logprob = shifted.gather(-1, picked) - likelihoods.sum(-1, keepdim=True).log()
    return picked.squeeze(-1), logprob.squeeze(-1)


def _collect(
    tokens: list[tuple[Tensor, Tensor, Tensor]], prompts: list[list[int]], n: int, ends: Sequence[int]
) -> list[Completion]:
    """From each step's samples, tokens and log-probabilities; a sample may be drawn on after its end."""
    ids = np.full((len(prompts) * n, len(tokens)), ends[0])
    logprobs = np.zeros(ids.shape, np.float32)
    for step, (alive, picked, logprob) in enumerate(tokens):
        ids[alive, step], logprobs[alive, step] = picked, logprob
    over = (ids[..., None] == np.array(ends)).any(-1)
    finished = over.any(-1)
    lengths = np.where(finished, over.argmax(-1) + 1, len(tokens))
    return [
        Completion(prompts[row // n], ids[row, :end].tolist(), logprobs[row, :end].tolist(), bool(finished[row]))
        for row, end in enumerate(lengths)
    ]


def to_traces(
    completions: Sequence[Completion],
    prompts: Sequence[Trace],
    tokenizer: PreTrainedTokenizerBase,
    *,
    source: str,
    tag: str = "",
    meta: Mapping[str, object] | None = None,
) -> list[Trace]:
    """Completions as judged traces; ``len(completions) / len(prompts)`` of them belong to each prompt, in order.

    ``correct`` and, where the built-in oracle knows the problem, ``first_error`` are filled in for metrics and for the
    outcome baseline. The learned reward never reads them.
    """
    n = len(completions) // len(prompts)
    texts = tokenizer.batch_decode(
        [item.ids[:-1] if item.finished else item.ids for item in completions], skip_special_tokens=False
    )
    traces = []
    for index, (item, text) in enumerate(zip(completions, texts, strict=True)):
        prompt = prompts[index // n]
        trace = Trace(
            id=f"{prompt.id}/{tag}{index % n}",
            problem=prompt.problem,
            text=text or "\n",
            steps=think_lines(text),
            answer=read_answer(text, prompt.problem) if item.finished else None,
            gold=prompt.gold,
            source=source,
            group=prompt.group or prompt.id,
            meta={
                "logprob": round(sum(item.logprobs), 4),
                "tokens": len(item.ids),
                "finished": item.finished,
                **(meta or {}),
            },
        )
        traces.append(judge(trace))
    return traces


def judge(trace: Trace) -> Trace:
    """Fill in ``correct`` from the reference answer, and ``first_error`` where the exact oracle knows the problem."""
    changes: dict[str, object] = {}
    if trace.gold is not None:
        changes["correct"] = answers_match(trace.answer, trace.gold)
    if arithmetic_problem.is_problem(trace.problem):
        changes["first_error"] = arithmetic_problem.first_error(trace.problem, trace.step_texts())
        changes["labelled"] = True
    return replace(trace, **changes)  # type: ignore[arg-type]


def character_ends(tokenizer: PreTrainedTokenizerBase, completions: Sequence[Sequence[int]]) -> list[list[int]]:
    """Per completion, where each token's characters end in the decoded text; tokens of one character share an end."""
    texts = tokenizer.batch_decode(completions, skip_special_tokens=False)
    tokens = {token for ids in completions for token in ids}
    single = {token: tokenizer.decode([token], skip_special_tokens=False) for token in tokens}
    ends = []
    for ids, text in zip(completions, texts, strict=True):
        if "".join(single[token] for token in ids) == text:
            ends.append(np.cumsum([len(single[token]) for token in ids], dtype=int).tolist())
        else:
            heads = (tokenizer.decode(list(ids[: at + 1]), skip_special_tokens=False) for at in range(len(ids)))
            ends.append([len(head) for head in heads])
    return ends
