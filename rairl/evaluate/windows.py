"""Pointing at a token: the window rules of arXiv 2510.01857, each beside the chance of that very rule.

A prediction is one token of the completion, the truth a set of tokens (those that a corruption changed, or those of the
first wrong step). The rule's window decides how near is near enough, and a wide one hits by chance: so every hit rate
stands beside the share of positions that would have hit, trace by trace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rairl.core.stats import Estimate, bootstrap_mean, paired_difference
from rairl.core.traces import Trace

if TYPE_CHECKING:
    from rairl.models.reading import Encoded
    from rairl.models.reads import TokenReads

BUCKET = 15
"""Tokens in a bucket."""
RULES = ("within_1", "within_7", "bucket", "bucket_1")
"""Within 1 or 7 tokens of the truth; in the same bucket of 15 tokens as a true token; there or in the next one."""


def hits(truth: Sequence[int], tokens: int, rule: str) -> np.ndarray:
    """Which positions hit: ``(tokens,)`` booleans.

    Args:
        truth: true positions, 0-based within the completion; at least one.
        tokens: of the completion.
        rule: one of :data:`RULES`.
    """
    positions, true = np.arange(tokens)[:, None], np.asarray(truth)[None, :]
    if rule.startswith("within_"):
        return (np.abs(positions - true) <= int(rule.removeprefix("within_"))).any(axis=1)
    reach = 1 if rule == "bucket_1" else 0
    return (np.abs(positions // BUCKET - true // BUCKET) <= reach).any(axis=1)


def changed_tokens(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Positions in ``after`` that differ from ``before``; where tokens only went, the one that follows."""
    found: set[int] = set()
    for kind, _, _, start, end in SequenceMatcher(None, list(before), list(after), autojunk=False).get_opcodes():
        if kind != "equal":
            found.update(range(start, end) if end > start else [min(start, len(after) - 1)])
    return sorted(found)


class Pointed(NamedTuple):
    """What is pointed at in a trace's completion, in tokens of the reward.

    Attributes:
        ids: the completion's tokens.
        step: positions of the tokens of its first wrong step; none when that is not known.
        at: per method the position it names.
    """

    ids: list[int]
    step: list[int]
    at: dict[str, int]


def point(trace: Trace, item: Encoded, read: TokenReads, policy: Encoded, surprise: np.ndarray) -> Pointed:
    """Where the reward, the policy's log-probability and its entropy point.

    The reward: where the largest single drop between two of its reads is complete (:func:`largest_drop`). The policy:
    its least likely token, and the token it was least sure about.

    Args:
        trace: with its text.
        item: the trace in the reward's tokens.
        read: where the reward reads it, and the logits.
        policy: the trace in the policy's tokens; its positions are brought over by their characters.
        surprise: ``(T, 2)``, log-probability and entropy of the policy's tokens; those of the prompt are not read.
    """
    from rairl.models.reading import first_token_of, token_at

    completion = surprise[policy.prompt_tokens :]
    first = item.prompt_tokens
    step: list[int] = []
    if trace.first_error is not None:
        span = trace.steps[trace.first_error]
        step = list(range(first_token_of(item, span.start) - first, token_at(item, span.end) + 1 - first))
    at = {
        "reward": largest_drop(read.tokens, read.logits),
        "logprob": token_at(item, float(policy.ends[completion[:, 0].argmin()])) - first,
        "entropy": token_at(item, float(policy.ends[completion[:, 1].argmax()])) - first,
    }
    return Pointed(list(item.ids[first:]), step, at)


def largest_drop(tokens: np.ndarray, reads: np.ndarray) -> int:
    """The token of the read that lies farthest below the read before it (below 0 for the first).

    Args:
        tokens: ``(reads,)``, where the reward was read.
        reads: ``(reads,)`` logits.
    """
    return int(tokens[int(np.diff(reads, prepend=0.0).argmin())])


def window_figures(
    predictions: Mapping[str, Sequence[int]],
    truth: Sequence[Sequence[int]],
    sizes: Sequence[int],
    groups: Sequence[str],
    prefix: str,
    *,
    draws: int,
    seed: int,
) -> dict[str, Estimate]:
    """``<prefix>.<rule>.<method>`` and ``<prefix>.<rule>.<method>-chance``, with the rule's own ``chance``.

    Args:
        predictions: per method one position per trace.
        truth: per trace its true positions.
        sizes: tokens of each completion.
        groups: the question of each trace.
        prefix: of the names.
        draws, seed: of the bootstrap over questions.
    """
    figures = {}
    for rule in RULES:
        windows = [hits(true, size, rule) for true, size in zip(truth, sizes, strict=True)]
        chance = [float(window.mean()) for window in windows]
        figures[f"{prefix}.{rule}.chance"] = bootstrap_mean(chance, groups, draws=draws, seed=seed)
        for method, places in predictions.items():
            hit = [float(window[at]) for window, at in zip(windows, places, strict=True)]
            figures[f"{prefix}.{rule}.{method}"] = bootstrap_mean(hit, groups, draws=draws, seed=seed)
            figures[f"{prefix}.{rule}.{method}-chance"] = paired_difference(hit, chance, groups, draws=draws, seed=seed)
    return figures
