"""Between the policy's tokens and the units that the reward reads: by character positions in the text.

So the reward's tokenizer may differ from the policy's. A token that straddles two units belongs to the later one; what
follows the last unit (the end token) belongs to the last.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rairl.core.traces import Trace
from rairl.models.reading import encode, told_apart
from rairl.models.reads import read_tokens
from rairl.models.reward import RewardModel


def reads_of(model: RewardModel, traces: Sequence[Trace]) -> list[list[float]]:
    """Per trace the character ends, in its text, of the units that the reward reads."""
    ends = []
    for item, trace in zip(encode(model.tokenizer, traces), traces, strict=True):
        tokens = read_tokens(item, trace, model.params.granularity)
        ends.append([float(item.ends[token - item.prompt_tokens]) for token in tokens])
    return ends


def units_of(unit_ends: Sequence[float] | np.ndarray, token_ends: Sequence[float] | np.ndarray) -> np.ndarray:
    """Index of the unit each token lies in, shape ``(tokens,)``.

    Args:
        unit_ends: ascending character ends of the units.
        token_ends: character end of each token; several tokens of one character lie at fractions of it.
    """
    return np.minimum(np.searchsorted(unit_ends, told_apart(token_ends), side="left"), len(unit_ends) - 1)


def spread_reads(
    values: np.ndarray, unit_ends: Sequence[float] | np.ndarray, token_ends: Sequence[float]
) -> np.ndarray:
    """One value per unit ``(K,)``, given to the tokens that lie in it; see :func:`units_of`."""
    return values[units_of(unit_ends, token_ends)]
