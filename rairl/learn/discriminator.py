"""The reward model as a discriminator: its decisions on traces, and its loss on the batch of one update.

Several processes hold the same traces and weights; each reads its share of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from rairl.core.errors import RairlError
from rairl.core.traces import Trace
from rairl.core.training_params import RewardParams
from rairl.learn import distributed, objectives
from rairl.learn.discriminator_batch import DiscriminatorBatch
from rairl.learn.token_alignment import reads_of, unit_logprobs
from rairl.models.reads import Memo, Reads, TokenReads, running_sum, split_reads
from rairl.models.reward import RewardModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

T = TypeVar("T")
Policy = tuple["PreTrainedModel", "PreTrainedTokenizerBase"]


@dataclass
class Discriminator:
    """The discriminator.

    Attributes:
        model: the reward model.
        policy: the policy as it moves, and its tokenizer; form ``airl`` asks them for log pi.
        temperature: the one the policy samples at.
        memo: where reads of a frozen backbone are looked up.
        batch_tokens: padded size of a batch of completions that the loss is taken on.
    """

    model: RewardModel
    params: RewardParams
    policy: Policy | None
    temperature: float
    memo: Memo | None
    batch_tokens: int = 4096

    def loss(self, batch: DiscriminatorBatch, seed: int) -> tuple[Tensor, np.ndarray]:
        """This process's share of the loss (scalar), and the evidence on every trace (:meth:`evidence`).

        Args:
            seed: of the points at which the gradient penalty is taken.
        """
        own = _own_share(batch.traces)
        traces = [batch.traces[index] for index in own]
        reads = self.model.read(traces, memo=self.memo, batch_tokens=self.batch_tokens)
        logits = self._logits(reads, traces)
        positive = torch.from_numpy(batch.positive[own])[reads.trace].to(logits.device)
        counted = self._counted([batch.since(index) for index in own], reads, traces).to(logits.device)
        real, fake = positive & counted, ~positive & counted
        expert, generated = self._losses(logits, real, fake, reads, traces)
        loss = objectives.balanced(
            expert, generated, (distributed.total(len(expert)), distributed.total(len(generated)))
        )
        if self.params.gradient_penalty:
            rng = torch.Generator().manual_seed(seed)
            penalty = objectives.gradient_penalty(self.model.head, reads.features[real], reads.features[fake], rng)
            loss = loss + self.params.gradient_penalty * penalty.sum() / max(1, distributed.total(len(penalty)))
        return loss, _in_order(own, self._last(logits, reads, len(traces)))

    def _counted(self, since: Sequence[int], reads: Reads, traces: Sequence[Trace]) -> Tensor:
        """Whether each read counts, ``(R,)``, bool: it ends behind where its trace's class begins to be known."""
        counted = torch.ones(len(reads.trace), dtype=torch.bool)
        late = [at for at, start in enumerate(since) if start]
        for at, ends in zip(late, reads_of(self.model, [traces[at] for at in late]) if late else (), strict=True):
            counted[reads.trace == at] = torch.tensor([end > since[at] for end in ends])
        return counted

    def _losses(
        self, logits: Tensor, positive: Tensor, negative: Tensor, reads: Reads, traces: Sequence[Trace]
    ) -> objectives.Losses:
        expert, generated = logits[positive], logits[negative]
        if self.params.objective == "wgan":
            return objectives.wgan(expert, generated)
        smoothing = self.params.label_smoothing
        if self.params.objective == "bce":
            return objectives.bce(expert, generated, smoothing)
        number = {problem: index for index, problem in enumerate(dict.fromkeys(trace.problem for trace in traces))}
        prompt = torch.tensor([number[trace.problem] for trace in traces])[reads.trace].to(logits.device)
        return objectives.relativistic(expert, generated, prompt[positive], prompt[negative], smoothing)

    @torch.no_grad()
    def evidence(self, traces: Sequence[Trace]) -> np.ndarray:
        """The logit of each whole trace, ``(N,)``: its last one; in form ``airl`` the sum over its units."""

        def judge(own: list[Trace]) -> list[float]:
            reads = self.model.read(own, memo=self.memo)
            return self._last(self._logits(reads, own), reads, len(own)).tolist()

        self.model.eval()
        return np.array(_in_shares(traces, judge))

    def reads(self, traces: Sequence[Trace]) -> list[TokenReads]:
        """Where the reward model reads each trace, and its logits there."""
        return _in_shares(traces, self.model.token_reads)

    def _logits(self, reads: Reads, traces: Sequence[Trace]) -> Tensor:
        """The logit whose sign is the decision on each read: shape ``(R,)``."""
        if self.params.form == "logit":
            return self.model.logits(reads)
        if self.policy is None:
            raise ValueError("reward.form 'airl' needs the policy: its discriminator is sigmoid(f - log pi)")
        ends = reads_of(self.model, traces)
        logprobs = unit_logprobs(*self.policy, traces, ends, temperature=self.temperature)
        terms = self.model.terms(reads)
        return objectives.airl_logits(
            terms, reads.trace.to(terms.device), logprobs.to(terms.device), self.params.discount
        )

    def _last(self, logits: Tensor, reads: Reads, count: int) -> np.ndarray:
        logits = logits.detach()
        values = logits if self.params.form == "logit" else running_sum(logits, reads.trace)
        return np.array([values[-1] for values in split_reads(values.double().cpu().numpy(), reads, count)])


def _in_shares(traces: Sequence[Trace], compute: Callable[[list[Trace]], list[T]]) -> list[T]:
    """``compute(traces)``, one value per trace, each process computing its share."""
    own = distributed.mine(traces)
    return distributed.gather(compute(own) if own else [])


def _own_share(traces: Sequence[Trace]) -> list[int]:
    """Indices of the traces on this process's share of the prompts; all of them in a single process.

    Raises:
        RairlError: with fewer prompts than processes.
    """
    problems = list(dict.fromkeys(trace.problem for trace in traces))
    processes = distributed.world()[1]
    if len(problems) < processes:
        raise RairlError(f"{processes} processes share {len(problems)} prompts: raise reward.demos_per_update")
    own = set(distributed.mine(problems))
    return [index for index, trace in enumerate(traces) if trace.problem in own]


def _in_order(own: Sequence[int], values: np.ndarray) -> np.ndarray:
    """The values of all processes' shares, each with its index, as one array."""
    rows = distributed.gather(list(zip(own, values.tolist(), strict=True)))
    return np.array([value for _, value in sorted(rows)])
