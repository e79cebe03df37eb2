"""What the machine can do at best, and what it means for a job: operations over its rate, bytes over its bandwidth."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Machine:
    """Measured: multiply-adds count as two operations.

    Attributes:
        flops: per second of a float32 product of 1024 x 1024 matrices.
        bandwidth: bytes read and written per second by a copy of 256 MiB.
    """

    flops: float
    bandwidth: float

    def floor(self, flops: float, moved: float = 0.0) -> float:
        """Seconds below which a job of so many operations and bytes can't go."""
        return max(flops / self.flops, moved / self.bandwidth)


def measure(size: int = 1024, floats: int = 2**26) -> Machine:
    """The best of five, in processor time: what the machine does when nothing else is in the way."""
    left, right = torch.rand(size, size), torch.rand(size, size)
    source, target = torch.rand(floats), torch.empty(floats)
    product = _best(lambda: torch.mm(left, right))
    copied = _best(lambda: target.copy_(source))
    return Machine(2 * size**3 / product, 8 * floats / copied)


def _best(job: Callable[[], object]) -> float:
    seconds = []
    for _ in range(6):
        start = time.process_time()
        job()
        seconds.append(time.process_time() - start)
    return min(seconds[1:]) / torch.get_num_threads()


def matmul_flops(config: PreTrainedConfig, logits: bool = True) -> float:
    """Operations of a Llama's matrix products for one token, attention apart."""
    width, inner = config.hidden_size, config.intermediate_size
    layers = config.num_hidden_layers * (4 * width * width + 3 * width * inner)
    return 2.0 * (layers + (width * config.vocab_size if logits else 0))


def attention_flops(config: PreTrainedConfig, contexts: float) -> float:
    """Operations of attention, where ``contexts`` is the number of tokens seen, summed over the tokens that look."""
    return 4.0 * config.num_hidden_layers * config.hidden_size * contexts


def rollout_work(config: PreTrainedConfig, prompts: Sequence[int], completions: Sequence[int]) -> tuple[float, float]:
    """Operations and bytes of sampling: each prompt read once, and the keys and values read for each token drawn.

    Args:
        prompts: tokens of each prompt.
        completions: tokens of each completion; as many per prompt, in their order.
    """
    group = len(completions) // len(prompts)
    seen = sum(length * prompts[index // group] + length * (length + 1) / 2 for index, length in enumerate(completions))
    read = sum(length * (length + 1) / 2 for length in prompts)
    flops = matmul_flops(config) * (sum(prompts) + sum(completions)) + attention_flops(config, seen + read)
    return flops, 2 * 4.0 * config.num_hidden_layers * config.hidden_size * seen
