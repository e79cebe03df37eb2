"""The reward model as a discriminator: its decisions on traces, and its loss on the batch of one update.

Several processes hold the same traces and weights; each reads its share of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from rairl.core.errors import RairlError
from rairl.core.traces import Trace
from rairl.core.training_params import RewardParams
from rairl.learn import distributed, objectives
from rairl.learn.discriminator_batch import DiscriminatorBatch
from rairl.learn.token_alignment import reads_of
from rairl.models.reads import Memo, Reads, TokenReads, split_reads
from rairl.models.reward import RewardModel

T = TypeVar("T")


@dataclass
class Discriminator:
    """The discriminator.

    Attributes:
        model: the reward model.
        memo: where reads of a frozen backbone are looked up.
        batch_tokens: padded size of a batch of completions that the loss is taken on.
    """

    model: RewardModel
    params: RewardParams
    memo: Memo | None
    batch_tokens: int = 4096

    def loss(self, batch: DiscriminatorBatch) -> tuple[Tensor, np.ndarray]:
        """This process's share of the loss (scalar), and the evidence on every trace (:meth:`evidence`)."""
        own = _own_share(batch.traces)
        traces = [batch.traces[index] for index in own]
        reads = self.model.read(traces, memo=self.memo, batch_tokens=self.batch_tokens)
        logits = self.model.logits(reads)
        positive = torch.from_numpy(batch.positive[own])[reads.trace].to(logits.device)
        counted = self._counted([batch.since(index) for index in own], reads, traces).to(logits.device)
        expert, generated = self._losses(logits, positive & counted, ~positive & counted, reads, traces)
        loss = objectives.balanced(
            expert, generated, (distributed.total(len(expert)), distributed.total(len(generated)))
        )
        return loss, _in_order(own, _last(logits, reads, len(traces)))

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
        expert, generated, smoothing = logits[positive], logits[negative], self.params.label_smoothing
        if self.params.objective == "bce":
            return objectives.bce(expert, generated, smoothing)
        number = {problem: index for index, problem in enumerate(dict.fromkeys(trace.problem for trace in traces))}
        prompt = torch.tensor([number[trace.problem] for trace in traces])[reads.trace].to(logits.device)
        return objectives.relativistic(expert, generated, prompt[positive], prompt[negative], smoothing)

    @torch.no_grad()
    def evidence(self, traces: Sequence[Trace]) -> np.ndarray:
        """The logit of each whole trace, ``(N,)``: its last one."""

        def judge(own: list[Trace]) -> list[float]:
            reads = self.model.read(own, memo=self.memo)
            return _last(self.model.logits(reads), reads, len(own)).tolist()

        self.model.eval()
        return np.array(_in_shares(traces, judge))

    def reads(self, traces: Sequence[Trace]) -> list[TokenReads]:
        """Where the reward model reads each trace, and its logits there."""
        return _in_shares(traces, self.model.token_reads)


def _last(logits: Tensor, reads: Reads, count: int) -> np.ndarray:
    """The last logit of each of ``count`` traces."""
    values = logits.detach().double().cpu().numpy()
    return np.array([values[-1] for values in split_reads(values, reads, count)])


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
