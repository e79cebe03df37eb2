"""The reward token by token, as trainers of other libraries take it, and as TRL's GRPO trainer can be made to take it.

:func:`reward_function` gives one number per completion, which is all that ``reward_funcs`` of TRL takes.
Here the evidence of each unit that the reward reads stands at the token that ends it: ``(batch, length)`` beside the
ids, the form of ``token_level_scores`` elsewhere. TRL's loss takes advantages of that shape from a subclass;
:func:`token_level` makes one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from rairl.core.errors import RairlError
from rairl.evaluate.candidates import by_question
from rairl.learn.credit import Rule, below_all, increments, step_advantages
from rairl.learn.rollouts import character_ends
from rairl.learn.token_alignment import spread_reads
from rairl.models.reading import told_apart
from rairl.text.segment import solved

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rairl.core.traces import Trace
    from rairl.models.reward import RewardModel

Trainer = TypeVar("Trainer", bound=type)


def reward_function(model: RewardModel) -> Callable[..., list[float]]:
    """The reward as ``GRPOTrainer(reward_funcs=...)`` of TRL takes it: one score per completion.

    The score is the one that was chosen on dev. It compares completions of one prompt, as GRPO does; its height means
    nothing across prompts. A completion without any step scores below all others of its prompt. Prompts and completions
    may be texts or conversations; of a prompt the last message is the problem, as it stands, without a system message.

    Args:
        model: in evaluation mode; it learns nothing here.
    """

    def rairl_reward(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
        pairs = zip(prompts, completions, strict=True)
        traces = [completion(str(at), content(prompt), content(text)) for at, (prompt, text) in enumerate(pairs)]
        scores = np.array([result.score for result in model.score_traces(traces)])
        silent = np.array([not trace.steps for trace in traces], dtype=bool)
        for members in by_question(traces).values():
            scores[members] = below_all(scores[members], silent[members], 1.0)
        return scores.tolist()

    return rairl_reward


def completion(key: str, problem: str, text: str) -> Trace:
    """A completion as a policy wrote it, with the steps that it shows; an empty one is a blank line."""
    return solved(key, problem, text or "\n", source="policy")


def content(message: Any) -> str:
    """The text of a prompt or completion, which may be a conversation: then that of its last message.

    Raises:
        RairlError: when there is no message, or the last one holds something other than text (a call of a tool, say).
    """
    if isinstance(message, str):
        return message
    if not isinstance(message, Sequence) or not message:
        raise RairlError(f"a reward reads a text or a list of messages, not {repr(message)[:80]}")
    last = message[-1]
    found = last.get("content") if isinstance(last, Mapping) else last
    if isinstance(found, list) and found and all(isinstance(part, Mapping) and "text" in part for part in found):
        found = "".join(str(part["text"]) for part in found)  # a text in parts
    if not isinstance(last, Mapping) or not isinstance(found, str):
        what = "without 'content'" if found is None else f"of {type(found).__name__}"
        raise RairlError(
            f"a reward reads text, not a message {what}: {repr(last)[:80]}; the last one must be an answer"
        )
    return found


def token_rewards(
    model: RewardModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[str],
    completion_ids: Sequence[Sequence[int]],
    *,
    ends: Collection[int] = (),
) -> Tensor:
    """The reward of every sampled token: the rise of the logit over a unit at the token that ends it, else 0.

    A row sums up to the logit at the end of its text. A unit is what ``reward.granularity`` of the model reads: a step,
    or with ``dense`` every token.

    Args:
        model: the reward; its tokenizer may be another one.
        tokenizer: the policy's.
        problems: one per completion, without a chat template.
        completion_ids: what was sampled, end token included, without padding.
        ends: tokens that end a completion, beside the tokenizer's: those of the policy's generation configuration.

    Returns:
        ``(batch, longest)``, float32, on the CPU; 0 on padding.
    """
    rows = []
    for _, logits, reads, tokens in _read(model, tokenizer, problems, completion_ids, ends):
        row = np.zeros(len(tokens))
        # The first token that reaches the unit's end: only then has the policy written all that the reward judges.
        places = np.minimum(np.searchsorted(told_apart(tokens), reads), len(tokens) - 1)
        np.add.at(row, places, increments(logits))
        rows.append(row)
    return _padded(rows)


def token_advantages(
    model: RewardModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[str],
    completion_ids: Sequence[Sequence[int]],
    *,
    group: int,
    rule: Rule = "difference",
    discount: float = 1.0,
    floor: float = 0.5,
    ends: Collection[int] = (),
) -> Tensor:
    """Advantages of every sampled token by a rule of ``reward.credit``, as the stage ``rairl`` gives them.

    Args:
        model, tokenizer, problems, completion_ids, ends: as of :func:`token_rewards`; a problem's samples are adjacent.
        group: samples per problem.
        rule: ``difference``, ``return`` or ``min``, see :func:`rairl.learn.credit.step_advantages`.
        discount: of rule ``return``.
        floor: smallest divisor, as ``policy.advantage_floor``.

    Returns:
        ``(batch, longest)``, float32, on the CPU; 0 on padding.

    Raises:
        RairlError: when the batch is not made of whole groups.
    """
    if not problems or len(problems) % group:
        raise RairlError(
            f"{len(problems)} completions are no whole groups of {group}; let the batch of a process be a multiple of "
            "the number of generations"
        )
    read = _read(model, tokenizer, problems, completion_ids, ends)
    parts = [read[at : at + group] for at in range(0, len(read), group)]
    groups = [[logits for _, logits, _, _ in part] for part in parts]
    silent = [[not trace.steps for trace, _, _, _ in part] for part in parts]
    values = [one for part in step_advantages(groups, rule, discount, floor, silent=silent) for one in part]
    rows = zip(values, read, strict=True)
    return _padded([spread_reads(value, reads, tokens) for value, (_, _, reads, tokens) in rows])


def token_level(
    trainer: Trainer, reward: RewardModel, *, rule: Rule = "difference", discount: float = 1.0, floor: float = 0.5
) -> Trainer:
    """A subclass of TRL's ``GRPOTrainer`` whose advantages are :func:`token_advantages`.

    ``reward_funcs`` is then only logged; give it :func:`reward_function`. The batch of a process must hold
    whole groups.

    Args:
        trainer: ``trl.GRPOTrainer`` or a subclass of it.
        reward: in evaluation mode; it learns nothing here.
        rule, discount, floor: as of :func:`token_advantages`.
    """

    class TokenLevel(trainer):  # type: ignore[misc,valid-type]
        def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
            batch = super()._generate_and_score_completions(inputs)
            masks = batch["completion_mask"].bool()
            ids = [row[mask].tolist() for row, mask in zip(batch["completion_ids"], masks, strict=True)]
            values = token_advantages(
                reward,
                self.processing_class,
                [content(item["prompt"]) for item in inputs],
                ids,
                group=self.num_generations if self.model.training else self.num_generations_eval,
                rule=rule,
                discount=discount,
                floor=floor,
                ends=getattr(self, "eos_token_ids", ()),
            )
            advantages = torch.zeros(masks.shape)
            advantages[:, : values.shape[1]] = values
            batch["advantages"] = advantages.to(masks.device)
            return batch

    return TokenLevel  # type: ignore[return-value]


def _read(
    model: RewardModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[str],
    completion_ids: Sequence[Sequence[int]],
    ends: Collection[int],
) -> list[tuple[Trace, np.ndarray, np.ndarray, list[int]]]:
    """Each completion, its logits ``(K,)``, where the units end, and where the sampled tokens end, in characters."""
    stops = {tokenizer.eos_token_id, tokenizer.pad_token_id, *ends}
    traces = []
    for number, (problem, ids) in enumerate(zip(problems, completion_ids, strict=True)):
        text = list(ids[:-1]) if ids and ids[-1] in stops else list(ids)
        traces.append(completion(str(number), problem, tokenizer.decode(text, skip_special_tokens=False)))
    tokens = character_ends(tokenizer, completion_ids)
    rows = zip(traces, model.token_reads(traces), tokens, strict=True)
    return [(trace, read.logits, read.ends, places) for trace, read, places in rows]


def _padded(rows: Sequence[np.ndarray]) -> Tensor:
    made = torch.zeros(len(rows), max(map(len, rows)))
    for number, row in enumerate(rows):
        made[number, : len(row)] = torch.from_numpy(np.asarray(row)).float()
    return made
