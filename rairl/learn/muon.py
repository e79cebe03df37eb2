"""Muon, the optimiser of the matrices that a model is pre-trained with, all matrices of a shape at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic that takes a singular value between 0 and 1 near to 1 in five steps (Jordan et al. 2024)."""
STEPS = 5


class Muon(torch.optim.Optimizer):
    """Steps along the momentum with all its singular values near 1 (Jordan et al. 2024).

    Steps have the size of Adam's (Liu et al. 2025, equation 4), so that one learning rate serves both, and decay is
    decoupled. ``torch.optim.Muon`` takes the same steps in bfloat16 and matrix by matrix, which on a processor without
    bfloat16 units takes longer than the model's own forward and backward pass (docs/performance.md).

    Args:
        params: matrices, of one precision and on one device.
        lr: learning rate.
        momentum: of the gradients' running mean, with a look ahead (Nesterov).
        weight_decay: per step, times the learning rate.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step by the gradients that are there."""
        for group in self.param_groups:
            updates = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    wide = weight.shape[0] <= weight.shape[1]
                    update = self._ahead(weight, group["momentum"])
                    updates[tuple(sorted(weight.shape))].append((weight, update if wide else update.T, wide))
            for (_, longest), rows in updates.items():
                steps = orthogonalised(torch.stack([update for _, update, _ in rows]))
                for (weight, _, wide), step in zip(rows, steps, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.add_(step if wide else step.T, alpha=-0.2 * longest**0.5 * group["lr"])

    def _ahead(self, weight: Tensor, momentum: float) -> Tensor:
        """The gradient, moved towards its running mean after that has been moved towards the gradient."""
        state = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        mean = state["momentum_buffer"]
        mean.lerp_(weight.grad, 1 - momentum)
        return weight.grad.lerp(mean, momentum)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Matrices ``(N, R, C)``, R at most C, with every singular value that is not tiny brought to between .7 and 1.2.

    It is done in bfloat16 on a GPU, which is fast at it, and in the matrices' own precision on a processor.
    """
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
