"""Traces as tokens, and a model that reads each prompt once for all its completions."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from rairl.core.traces import Trace
from rairl.models.base import MARKS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.utils import ModelOutput


Take = Callable[[Tensor], Tensor]
LONG = 1024
"""Tokens from which on a trace that is alone is read in one pass without a mask, whose size is their square."""


def recomputes(model: nn.Module) -> bool:
    """Whether :func:`checkpoint_gradients` was called on a model, or transformers' own switch is on."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def render_prompt(tokenizer: PreTrainedTokenizerBase, problem: str) -> str:
    """The problem as the model reads it, through the tokenizer's chat template."""
    messages = [{"role": "user", "content": problem}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def encode_prompts(tokenizer: PreTrainedTokenizerBase, problems: Sequence[str]) -> list[list[int]]:
    """Token ids of each rendered problem; a control token that a problem spells out is plain text."""
    control = _control_tokens(tokenizer)
    return [ids for ids, _ in _tokenised(tokenizer, [_prompt(tokenizer, one, control) for one in problems])]


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end what the model writes, as for ``generate`` of transformers; the first one is to be taught.

    They are those of its generation configuration, of which there may be several, and which need not hold the
    tokenizer's own; where it names none, that is the only one.
    """
    config = getattr(model, "generation_config", None)
    found = None if config is None else config.eos_token_id
    own = tokenizer.eos_token_id
    if found is None:
        return [own]
    ends = list(dict.fromkeys(found if isinstance(found, list | tuple) else [int(found)]))
    return [own, *(end for end in ends if end != own)] if own in ends else ends


@dataclass(frozen=True)
class Encoded:
    """A prompt and completion as token ids, with the completion's character offsets.

    Attributes:
        ids: token ids of prompt and completion, without end token.
        prompt_tokens: how many of them belong to the prompt.
        ends: for each completion token, the end of its characters in ``Trace.text``; ascending. Where several tokens
            spell one character, only the last of them ends it, and the others lie at fractions of it.
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
    A ``<think>`` that the chat template has written already is not read again. Control tokens that somebody else's text
    spells out, in the problem or the solution, are plain text; what a policy wrote is read as it wrote it.
    """
    control = _control_tokens(tokenizer)
    foreign = control - set(MARKS)  # a solution has think and answer blocks of its own
    prompts = {problem: _prompt(tokenizer, problem, control) for problem in {trace.problem for trace in traces}}
    lengths = {problem: sum(len(part) for part, _ in pieces) for problem, pieces in prompts.items()}
    texts, cuts = [], []
    for trace in traces:
        prompt = prompts[trace.problem]
        cuts.append(_written_already(prompt[-1][0], trace.text))
        text = trace.text[cuts[-1] :]
        texts.append([*prompt, *([(text, False)] if trace.by_policy else _split(text, foreign))])
    rows = []
    for trace, cut, (ids, ends) in zip(traces, cuts, _tokenised(tokenizer, texts), strict=True):
        ends = ends - lengths[trace.problem]
        count = int(np.searchsorted(ends, 0, side="right"))
        rows.append(Encoded(ids, count, ends[count:] + cut))
    return rows


def token_at(encoded: Encoded, character: float) -> int:
    """Index (in the whole sequence) of the token that ends completion character ``character - 1``, i.e. a span's end.

    Works whatever the tokenizer: the first completion token whose characters reach ``character``.
    """
    return encoded.prompt_tokens + int(np.searchsorted(encoded.ends, character))


def first_token_of(encoded: Encoded, character: int) -> int:
    """Index (in the whole sequence) of the first token of completion character ``character``, i.e. a span's start."""
    return encoded.prompt_tokens + int(np.searchsorted(encoded.ends, character, side="right"))


def told_apart(ends: Sequence[float] | np.ndarray) -> np.ndarray:
    """Ends of tokens as positions of their own: the j-th of m tokens with one end lies j / m into the last character.

    Args:
        ends: ascending, in characters: ``(tokens,)``.
    """
    ends = np.asarray(ends, dtype=float)
    if len(ends) < 2 or (np.diff(ends) > 0).all():
        return ends
    _, first, inverse, counts = np.unique(ends, return_index=True, return_inverse=True, return_counts=True)
    return ends - 1 + (np.arange(len(ends)) - first[inverse] + 1) / counts[inverse]


# --- tokens ----------------------------------------------------------------------------------------------------------

_Pieces = list[tuple[str, bool]]
"""A text in pieces; of each, whether it is a control token's name and yet plain text."""
_OPEN, _CLOSE = "\ue000", "\ue001"
"""Characters of private use, which mark such a piece on its way through the chat template."""
_THINK = re.compile(r"\s*<think>")
_THINK_PREFILLED = re.compile(r"<think>(\s*)\Z")


def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """What steers the model: the special tokens, and the added ones that its chat template writes."""
    template = str(tokenizer.chat_template)
    added = tokenizer.added_tokens_decoder.values()
    return frozenset(
        token.content for token in added if token.content.strip() and (token.special or token.content in template)
    )


def _split(text: str, control: Collection[str]) -> _Pieces:
    """A text in pieces, cut around the control tokens that it spells out."""
    if not any(token in text for token in control):
        return [(text, False)]
    names = "|".join(map(re.escape, sorted(control, key=len, reverse=True)))
    parts = re.split(f"({names})", text)
    return [(part, at % 2 == 1) for at, part in enumerate(parts) if part]


def _prompt(tokenizer: PreTrainedTokenizerBase, problem: str, control: Collection[str]) -> _Pieces:
    """The rendered problem; the template may leave out or move parts of it, so what is plain text is marked in it."""
    pieces = _split(problem, control)
    if not any(plain for _, plain in pieces):
        return [(render_prompt(tokenizer, problem), False)]
    clean = [(part.replace(_OPEN, "").replace(_CLOSE, ""), plain) for part, plain in pieces]
    marked = "".join(f"{_OPEN}{part}{_CLOSE}" if plain else part for part, plain in clean)
    parts = re.split(f"{_OPEN}([^{_OPEN}{_CLOSE}]*){_CLOSE}", render_prompt(tokenizer, marked))
    # A template that cuts its messages may leave half a pair of marks.
    return [(re.sub(f"[{_OPEN}{_CLOSE}]", "", part), at % 2 == 1) for at, part in enumerate(parts) if part]


def _written_already(prompt: str, text: str) -> int:
    """Characters at the beginning of a text that its prompt ends with: ``<think>``, where a chat template writes it."""
    prefilled, begun = _THINK_PREFILLED.search(prompt), _THINK.match(text)
    if prefilled is None or begun is None:
        return 0
    cut = begun.end()
    for sign in prefilled[1]:
        cut += text[cut : cut + 1] == sign
    return cut if text[cut:].strip() else 0


def _tokenised(tokenizer: PreTrainedTokenizerBase, texts: Sequence[_Pieces]) -> list[tuple[list[int], np.ndarray]]:
    """Token ids of each text, and where in it each token ends; see :class:`Encoded`."""
    whole = [at for at, pieces in enumerate(texts) if not any(plain for _, plain in pieces)]
    found: list[tuple[list[int], np.ndarray]] = [([], np.empty(0))] * len(texts)
    joined = ["".join(part for part, _ in texts[at]) for at in whole]
    for at, row in zip(whole, _offsets(tokenizer, joined), strict=True):
        found[at] = row[0], _ends(row[1])
    for at in sorted(set(range(len(texts))) - set(whole)):
        found[at] = _piece_by_piece(tokenizer, texts[at])
    return found


def _offsets(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], **options: bool
) -> list[tuple[list[int], np.ndarray]]:
    """Token ids of each text, and the characters ``(tokens, 2)`` that each token is of."""
    if not texts:
        return []
    batch = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, **options)
    places = [np.array(row, dtype=int).reshape(-1, 2) for row in batch["offset_mapping"]]
    return list(zip(batch["input_ids"], places, strict=True))


def _piece_by_piece(tokenizer: PreTrainedTokenizerBase, pieces: _Pieces) -> tuple[list[int], np.ndarray]:
    """As :func:`_tokenised`, of a text with pieces that are plain text in spite of their names."""
    ids: list[int] = []
    places, start = [], 0

    def add(part: str, *, plain: bool = False) -> None:
        nonlocal start
        [(row, offsets)] = _offsets(tokenizer, [part], split_special_tokens=plain)
        if plain and len(part) > 1 and tokenizer.convert_tokens_to_ids(part) in row:
            add(part[:1])  # an added token that is no special one: cut in two it can't be found
            add(part[1:])
            return
        ids.extend(row)
        places.append(offsets + start)
        start += len(part)

    for plain, group in groupby(pieces, key=lambda piece: piece[1]):
        parts = [part for part, _ in group]
        for part in parts if plain else ["".join(parts)]:
            add(part, plain=plain)
    return ids, _ends(np.concatenate(places))


def _ends(places: np.ndarray) -> np.ndarray:
    """Where tokens end, ``(tokens,)``, of which the characters ``(tokens, 2)`` may overlap: each stands for some bytes.

    A character is at its end with the last token that holds some of it.
    """
    starts, ends = places[:, 0], places[:, 1]
    complete = np.minimum(ends, np.append(starts[1:], ends[-1:]))
    partial = complete < ends
    if not partial.any():
        return ends
    found, begun = complete.astype(float), complete[partial]
    _, first, inverse, counts = np.unique(begun, return_index=True, return_inverse=True, return_counts=True)
    found[partial] = begun + (np.arange(len(begun)) - first[inverse] + 1) / (counts[inverse] + 1)
    return found


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
