"""Losses of the reward model: pure functions of logits.

Each objective gives one loss per read and class; :func:`balanced` is the one reduction. Divided by global counts, the
shares of several processes add up to the loss of the whole.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from rairl.core.traces import EXPERT, GENERATED

Losses = tuple[Tensor, Tensor]
"""Losses of the expert reads ``(E,)`` and of the generated reads ``(N,)``."""


def bce(expert: Tensor, generated: Tensor, smoothing: float = 0.0) -> Losses:
    """Binary cross-entropy with label smoothing (R-AIRL, arXiv 2510.01857; Goodfellow et al. 2014).

    With smoothing s the targets are 1 - s and s, which bounds the optimal logit to +-log((1 - s) / s).

    Args:
        expert: logits of expert reads, shape ``(E,)``.
        generated: logits of generated reads, shape ``(N,)``.
        smoothing: in [0, 0.5).

    Returns:
        Losses in nats, shapes ``(E,)`` and ``(N,)``.
    """
    return _cross_entropy(expert, abs(EXPERT - smoothing)), _cross_entropy(generated, abs(GENERATED - smoothing))


def wgan(expert: Tensor, generated: Tensor) -> Losses:
    """The critic's loss of the Wasserstein GAN (Arjovsky et al. 2017), to be used under a Lipschitz bound.

    Args:
        expert: values of expert reads, shape ``(E,)``.
        generated: values of generated reads, shape ``(N,)``.

    Returns:
        Minus and plus the values, shapes ``(E,)`` and ``(N,)``.
    """
    return -expert, generated


def relativistic(
    expert: Tensor, generated: Tensor, expert_prompt: Tensor, generated_prompt: Tensor, smoothing: float = 0.0
) -> Losses:
    """Each read against the mean read of the other class on the same prompt (Jolicoeur-Martineau 2018, relativistic
    average; with one read of each class it is Bradley and Terry 1952: softplus(-(expert - generated))).

    What a prompt adds to all of its logits cancels. A read whose prompt has no read of the other class says nothing and
    is left out.

    Args:
        expert: logits of expert reads, shape ``(E,)``.
        generated: logits of generated reads, shape ``(N,)``.
        expert_prompt: number of each expert read's prompt, shape ``(E,)``, int64.
        generated_prompt: the same of the generated reads, shape ``(N,)``.
        smoothing: in [0, 0.5); the target of "the expert's is better" is 1 - smoothing.

    Returns:
        Losses in nats of the reads that have a counterpart, shapes ``(<=E,)`` and ``(<=N,)``.
    """
    same = expert_prompt[:, None] == generated_prompt
    rivals, experts = same.sum(1), same.sum(0)
    paired, matched = rivals > 0, experts > 0
    weights = same.to(expert.dtype)
    ahead = expert[paired] - (weights @ generated)[paired] / rivals[paired]
    behind = (expert @ weights)[matched] / experts[matched] - generated[matched]
    target = abs(EXPERT - smoothing)
    return _cross_entropy(ahead, target), _cross_entropy(behind, target)


def balanced(expert: Tensor, generated: Tensor, totals: tuple[float, float] | None = None) -> Tensor:
    """Half the mean over expert reads plus half the mean over generated reads.

    So the balance of the two classes in a batch doesn't move the optimum.

    Args:
        expert: losses of expert reads, shape ``(E,)``.
        generated: losses of generated reads, shape ``(N,)``.
        totals: counts of both classes over all processes, when these are one process's share; else E and N.

    Returns:
        Scalar loss; a class without reads adds nothing.
    """
    experts, others = totals or (len(expert), len(generated))
    return 0.5 * (expert.sum() / max(experts, 1) + generated.sum() / max(others, 1))


def airl_logits(terms: Tensor, trace: Tensor, logprobs: Tensor, discount: float) -> Tensor:
    """Logit of AIRL's discriminator D = e^f / (e^f + pi) for each unit (Fu et al. 2018, equations 4 and 6).

    f_k = g_k + discount * h_k - h_{k-1} for the unit that ends at read k. The gauge, which the data can't fix: h is 0
    before the first read and at the last one, so over a whole trace (discount 1) f adds up to g.

    Args:
        terms: g and h at every read, shape ``(R, 2)``.
        trace: the trace each read belongs to, ascending, shape ``(R,)``.
        logprobs: log-probability of each unit under the current policy given what stands before it, in nats, shape
            ``(R,)``; no gradient flows into it.
        discount: gamma.

    Returns:
        f - log pi, shape ``(R,)``.
    """
    g, h = terms.unbind(-1)
    edge = torch.ones(1, dtype=torch.bool, device=trace.device)
    border = trace[1:] != trace[:-1]
    after = h.masked_fill(torch.cat([border, edge]), 0.0)
    before = after.roll(1).masked_fill(torch.cat([edge, border]), 0.0)
    return g + discount * after - before - logprobs.detach()


def gradient_penalty(head: nn.Module, real: Tensor, fake: Tensor, rng: torch.Generator) -> Tensor:
    """(|gradient| - 1)^2 at random points between real and fake inputs (Gulrajani et al. 2017, equation 3).

    Args:
        head: from inputs ``(B, F)`` to values ``(B, 1)``; of several values the sum's gradient is taken.
        real: inputs of expert reads, shape ``(E, F)``; each is joined with a random fake one.
        fake: inputs of generated reads, shape ``(N, F)``.
        rng: source of the pairs and of the points between them; on the CPU.

    Returns:
        One penalty per expert read, shape ``(E,)``, differentiable with respect to the head; empty when N is 0.
    """
    if not len(fake):
        return real.new_zeros(0)
    partner = torch.randint(len(fake), (len(real),), generator=rng).to(real.device)
    share = torch.rand(len(real), 1, generator=rng).to(real.device)
    points = torch.lerp(fake.detach()[partner], real.detach(), share).requires_grad_()
    (gradient,) = torch.autograd.grad(head(points).sum(), points, create_graph=True)
    # Not torch.norm: its gradient at 0 is no number, and a head of zeros starts there.
    return ((gradient.square().sum(-1) + 1e-12).sqrt() - 1).square()


def _cross_entropy(logits: Tensor, target: float) -> Tensor:
    return binary_cross_entropy_with_logits(logits, torch.full_like(logits, target), reduction="none")
