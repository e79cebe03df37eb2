"""How likely three models find a trace (SFT, base and second model), and the reward in that which needs no adversary.

``log pi_SFT - log pi_base`` is what supervised fine-tuning alone says in favour of a trace, a step or a token: the
reward whose optimum under a KL penalty towards the base is the SFT policy (Rafailov et al. 2023, arXiv 2305.18290,
equation 5; read as a process reward by Yuan et al. 2024, arXiv 2412.01981). A second model that learned from the same
demonstrations knows more: the policy is sure of its own mistakes, the second model is not. Whatever the learned
reward adds, it has to add to these.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rairl.core.errors import RairlError
from rairl.core.traces import Trace

if TYPE_CHECKING:
    from rairl.models.likelihood import LogProbs


class Likelihood(NamedTuple):
    """What the SFT and the base model, and the second model where there is one, say of one trace, in nats."""

    sft: LogProbs
    base: LogProbs
    second_model: LogProbs | None = None

    @property
    def ratio(self) -> LogProbs:
        """log pi_SFT - log pi_base: of each step (sum and mean per token) and of the whole trace; SFT's entropies."""
        sft, base = self.sft, self.base
        steps, means = sft.steps - base.steps, sft.mean_steps - base.mean_steps
        return sft._replace(steps=steps, mean_steps=means, total=sft.total - base.total)


def likelihoods(
    traces: Sequence[Trace], *, sft: Path, base: Path, second_model: Path | None = None
) -> list[Likelihood]:
    """Likelihood of each trace under the models in these folders; the second model's is empty where there is none."""
    from rairl.models.likelihood import step_logprobs
    from rairl.models.policy import load_policy

    folders = [sft, base, *([second_model] if second_model is not None and any(second_model.iterdir()) else [])]
    columns = [step_logprobs(*load_policy(folder), traces, progress=True) for folder in folders]
    return [Likelihood(*pair) for pair in zip(*columns, strict=True)]


def write_likelihoods(
    folder: Path, policy: str, split: str, traces: Sequence[Trace], pairs: Sequence[Likelihood]
) -> None:
    """Write ``<policy>.<split>.likelihood.json`` beside the candidates: ``{id: {<sft|base|second_model>: [steps,
    means per token, total, tokens, entropies of the steps, entropy]}}``."""
    rows = {
        trace.id: {name: _plain(logprobs) for name, logprobs in pair._asdict().items() if logprobs is not None}
        for trace, pair in zip(traces, pairs, strict=True)
    }
    likelihood_path(folder, policy, split).write_text(json.dumps(rows, allow_nan=False) + "\n", encoding="utf-8")


def read_likelihoods(folder: Path, policy: str, split: str, traces: Sequence[Trace]) -> list[Likelihood]:
    """What :func:`write_likelihoods` wrote of ``traces``.

    Raises:
        RairlError: when the file is missing or lacks a trace.
    """
    path = likelihood_path(folder, policy, split)
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [Likelihood(**{name: _arrays(row) for name, row in rows[trace.id].items()}) for trace in traces]
    except FileNotFoundError as error:
        raise RairlError(f"{path} does not exist; run the sample stage first") from error
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise RairlError(f"{path} lacks the likelihood of a trace ({error}); run the sample stage again") from error


def likelihood_path(folder: Path, policy: str, split: str) -> Path:
    """File of the likelihoods of a policy's candidates on a split."""
    return folder / f"{policy}.{split}.likelihood.json"


def _plain(found: LogProbs) -> list[object]:
    steps, means, entropies = (part.round(4).tolist() for part in (found.steps, found.mean_steps, found.entropies))
    return [steps, means, round(found.total, 4), found.tokens, entropies, round(found.entropy, 4)]


def _arrays(row: Sequence[object]) -> LogProbs:
    from rairl.models.likelihood import LogProbs

    steps, means, total, tokens, entropies, entropy = row
    arrays = [np.array(part, dtype=float) for part in (steps, means, entropies)]
    return LogProbs(arrays[0], arrays[1], float(total), int(tokens), arrays[2], float(entropy))  # type: ignore[arg-type, call-overload]
