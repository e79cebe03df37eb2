"""How much memory, arithmetic and time a run takes, before it is started: ``python -m rairl.preflight.sizing``.

Sizes are counted from the architecture and hold for what rairl does: bfloat16 weights, adapters (LoRA) in float32 on
policy and reward, the KL reference on the policy's own frozen weights, all weights on every GPU, nothing recomputed in
the backward pass. The tests hold each count against small models that really run. Times follow from counts by the
rates in :class:`Gpu`, which are assumptions: see docs/scaling.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

GB = 1e9


@dataclass(frozen=True)
class Architecture:
    """A decoder of the Llama family."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool = False
    head: int | None = None
    """Width of an attention head; None where the heads together are as wide as the model (in Qwen3 they are wider)."""
    biases: bool = False
    """Queries, keys and values have biases (Qwen2)."""
    head_norms: bool = False
    """Queries and keys are normalised per head (Qwen3)."""

    @property
    def head_width(self) -> int:
        """Width of an attention head."""
        return self.head or self.hidden // self.heads

    @property
    def query_width(self) -> int:
        """Width of the queries of all heads."""
        return self.head_width * self.heads

    @property
    def kv_width(self) -> int:
        """Width of the keys, and of the values."""
        return self.head_width * self.kv_heads

    @property
    def layer_matrices(self) -> int:
        """Weights of a layer's seven projections."""
        return 2 * self.hidden * (self.query_width + self.kv_width) + 3 * self.hidden * self.intermediate

    @property
    def parameters(self) -> int:
        """All weights."""
        embeddings = (1 if self.tied else 2) * self.vocabulary * self.hidden
        small = 2 * self.hidden + self.biases * (self.query_width + 2 * self.kv_width)
        small += self.head_norms * 2 * self.head_width
        return embeddings + self.layers * (self.layer_matrices + small) + self.hidden

    def adapters(self, rank: int) -> int:
        """Weights of adapters on the seven projections: ``rank * (inputs + outputs)`` of each."""
        wide = 2 * (self.hidden + self.query_width) + 2 * (self.hidden + self.kv_width)
        return self.layers * rank * (wide + 3 * (self.hidden + self.intermediate))

    def cache(self) -> int:
        """Bytes of keys and values per token, in bfloat16."""
        return self.layers * 2 * self.kv_width * 2

    def activations(self, rank: int) -> int:
        """Bytes kept per token for the backward pass through frozen bfloat16 weights with float32 adapters.

        Per layer: the norms and the adapters read copies in float32, the projections and the gate in bfloat16.
        """
        per_layer = 36 * self.hidden + 4 * self.kv_width + 10 * self.intermediate + 28 * rank
        return self.layers * per_layer

    def forward(self, length: int) -> int:
        """Floating-point operations per token of a forward pass over sequences of ``length`` tokens, with logits."""
        return 2 * (self.layers * self.layer_matrices + self.vocabulary * self.hidden) + (
            4 * self.layers * self.hidden * length
        )


@dataclass(frozen=True)
class Plan:
    """A run: what params.yaml says, with lengths in tokens at their longest."""

    policy: Architecture
    reward: Architecture
    rank: int = 256
    prompts: int = 16
    group: int = 8
    prompt: int = 300
    completion: int = 824
    iterations: int = 400
    warmup_updates: int = 250
    updates: int = 3
    traces_per_update: int = 16
    micro_batch: int = 16384

    @property
    def length(self) -> int:
        """Tokens of a whole sequence."""
        return self.prompt + self.completion

    @property
    def rows(self) -> int:
        """Completions per iteration."""
        return self.prompts * self.group

    @property
    def tokens(self) -> int:
        """Tokens that an iteration trains on, prompts included."""
        return self.rows * self.length


@dataclass(frozen=True)
class Gpu:
    """One accelerator: the maker's figures for an H100 SXM, and the share of them that is assumed to be reached."""

    memory: float = 80 * GB
    operations: float = 989e12
    bandwidth: float = 3.35e12
    link: float = 50e9
    reached: float = 0.4
    reached_bandwidth: float = 0.6
    per_token: float = 0.03
    """Seconds of launching kernels per decoded token: generation is a loop in Python, whatever the GPU."""


def per_gpu(whole: int, gpus: int) -> int:
    """The largest share of ``whole`` things among ``gpus`` processes."""
    return -(-whole // gpus)


def memory(plan: Plan, gpus: int) -> dict[str, float]:
    """Bytes on each GPU, by what they are for; generating and the two updates are not at once."""
    share = per_gpu(plan.rows, gpus) * plan.length
    batch = min(plan.micro_batch, share)
    trained = plan.policy.adapters(plan.rank) + plan.reward.adapters(plan.rank)
    drawn = per_gpu(plan.rows, gpus) * plan.completion + per_gpu(plan.prompts, gpus) * plan.prompt
    parts = {
        "policy": 2.0 * plan.policy.parameters,
        "reward": 2.0 * plan.reward.parameters,
        "adapters, gradients, Adam": 16.0 * trained,
        "generate": float(drawn * plan.policy.cache()),
        # logits in bfloat16 and in float32, their log-softmax and its gradient are there together
        "update policy": float(batch * (plan.policy.activations(plan.rank) + 14 * plan.policy.vocabulary)),
        # the reward reads all of its share before it goes back
        "update reward": float(
            per_gpu(plan.traces_per_update, gpus) * plan.length * plan.reward.activations(plan.rank)
        ),
    }
    held, *passing = sum(list(parts.values())[:3]), *list(parts.values())[3:]
    return {**parts, "peak": held + max(passing)}


def seconds(plan: Plan, gpus: int, gpu: Gpu) -> dict[str, float]:
    """Seconds of one iteration, by what is done."""
    rows = per_gpu(plan.rows, gpus)
    tokens, rate = rows * plan.length, gpu.operations * gpu.reached
    policy, reward = plan.policy.forward(plan.length), plan.reward.forward(plan.length)
    keys = rows * plan.completion / 2 + per_gpu(plan.prompts, gpus) * plan.prompt  # a prompt's serve all its samples
    streamed = 2 * plan.policy.parameters + keys * plan.policy.cache()
    decode = max(streamed / (gpu.bandwidth * gpu.reached_bandwidth), rows * policy / rate, gpu.per_token)
    traces = per_gpu(plan.traces_per_update, gpus)
    sent = 4 * (plan.policy.adapters(plan.rank) + plan.updates * plan.reward.adapters(plan.rank))
    return {
        "generate": plan.completion * decode,
        "score": tokens * reward / rate,
        "update policy": tokens * 3 * policy / rate,  # reference 1, policy forward 1 and back 1: its weights are frozen
        "update reward": plan.updates * traces * plan.length * 2 * reward / rate,
        "sum gradients": 2 * sent * (gpus - 1) / gpus / gpu.link,
    }


def hours(plan: Plan, gpus: int, gpu: Gpu) -> float:
    """Hours of the whole rairl stage: warm-up and all iterations."""
    step = seconds(plan, gpus, gpu)
    warmup = plan.warmup_updates * step["update reward"] / plan.updates
    return (warmup + plan.iterations * sum(step.values())) / 3600


LLAMA_8B = Architecture(hidden=4096, intermediate=14336, layers=32, heads=32, kv_heads=8, vocabulary=128256)
"""Llama 3.1 8B, the largest policy of the published runs."""

PUBLISHED = Plan(policy=LLAMA_8B, reward=LLAMA_8B)
"""The published settings: a policy of 7 to 8 B, a reward of the same size, rank 256, 16 prompts of 8 samples."""


def table(plan: Plan, gpu: Gpu, sizes: tuple[int, ...] = (1, 8, 64)) -> str:
    """Markdown: a row per quantity, a column per number of GPUs."""
    rows: dict[str, list[str]] = {}
    for count in sizes:
        for name, value in memory(plan, count).items():
            rows.setdefault(f"GB per GPU: {name}", []).append(f"{value / GB:.1f}")
        for name, value in seconds(plan, count, gpu).items():
            rows.setdefault(f"seconds per iteration: {name}", []).append(f"{value:.1f}")
        rows.setdefault("**hours of the stage**", []).append(f"**{hours(plan, count, gpu):.1f}**")
    names = " | ".join(f"{count} GPU{'s' * (count > 1)}" for count in sizes)
    head = [f"| | {names} |", "|---" + "|---:" * len(sizes) + "|"]
    return "\n".join([*head, *(f"| {name} | {' | '.join(values)} |" for name, values in rows.items())])


FITTING = replace(PUBLISHED, micro_batch=2048)
"""The same with a micro-batch that fits."""

if __name__ == "__main__":
    print(table(PUBLISHED, Gpu()), table(FITTING, Gpu()), sep="\n\n")
