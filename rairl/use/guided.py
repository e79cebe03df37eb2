"""Decoding that the reward guides step by step."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

from rairl.core.traces import Trace
from rairl.text.answers import read_answer
from rairl.use.scoring import judge, written

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rairl.models.reward import RewardModel


def guided_decode(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    reward: RewardModel,
    problem: str,
    *,
    k: int,
    max_steps: int,
    max_step_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
) -> Trace:
    """Solve a problem step by step: sample ``k`` continuations up to the next line break, keep the best by reward.

    It samples as many tokens as best-of-k does, but chooses at every step instead of once among whole solutions.

    Args:
        policy: any causal model of transformers.
        tokenizer: the policy's; the reward reads text and has its own.
        reward: scores the solution so far, by the aggregator that was chosen on dev.
        max_steps: lines at most.
        max_step_tokens: tokens of a line at most; a longer one goes on in the next round.
        seed: equal arguments give equal solutions.

    Returns:
        The solution, with ``meta``: ``tokens`` sampled in all, and whether it is ``finished``.
    """
    import torch

    from rairl.models.reading import encode_prompts, end_tokens

    [prompt] = encode_prompts(tokenizer, [problem])
    ends = end_tokens(policy, tokenizer)
    chosen: list[int] = []
    sampled, finished = 0, False
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for _ in range(max_steps):
            ids = torch.tensor([prompt + chosen], device=policy.device)
            rows = policy.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                temperature=temperature,
                top_k=0,
                top_p=1.0,
                num_return_sequences=k,
                max_new_tokens=max_step_tokens,
                stop_strings=["\n"],
                tokenizer=tokenizer,
                eos_token_id=ends,
                pad_token_id=tokenizer.pad_token_id,
            )[:, ids.shape[1] :].tolist()
            steps = [_until_end(row, tokenizer, ends) for row in rows]
            sampled += sum(len(step) + ended for step, ended in steps)
            texts = [tokenizer.decode(chosen + step, skip_special_tokens=False) for step, _ in steps]
            ranks = [verdict.rank for verdict in judge(reward, [written(problem, text, "0") for text in texts])]
            # A blank line says nothing: without this, one of them after the other would be the safest to go on with.
            said = [ended or bool(tokenizer.decode(step).strip()) for step, ended in steps]
            step, finished = steps[max(range(k), key=lambda at: (said[at], -ranks[at]))]
            chosen = chosen + step
            if finished:
                break
    trace = written(problem, tokenizer.decode(chosen, skip_special_tokens=False), "0")
    return replace(trace, answer=read_answer(trace.text, trace.problem), meta={"tokens": sampled, "finished": finished})


def _until_end(
    row: list[int], tokenizer: PreTrainedTokenizerBase, ends: Collection[int] | None = None
) -> tuple[list[int], bool]:
    """A generated row without its end token and padding (the same token in many models), and whether it has ended.

    Args:
        ends: the tokens that end a row; by default the tokenizer's.
    """
    ends = ends or {tokenizer.eos_token_id}
    stops = {*ends, tokenizer.pad_token_id}
    end = next((at for at, token in enumerate(row) if token in stops), len(row))
    line = "\n" in tokenizer.decode(row[:end], skip_special_tokens=False)
    return row[:end], end < len(row) and row[end] in ends and not line
