"""What tables, plots and the console call the things that metrics.json has short names for."""

POLICY_LABELS = {
    "base": "base",
    "sft": "SFT",
    "sft_last": "SFT, last epoch",
    "peer": "peer (SFT from another seed)",
    "grpo": "GRPO (sees the answers)",
    "rairl": "R-AIRL",
}
SELECTOR_LABELS = {
    "random": "random (chance)",
    "reward": "reward",
    "reward_vote": "vote weighted by the reward",
    "majority": "majority vote",
    "logprob": "log-probability per token",
    "logprob_sum": "log-probability, sum",
    "peer_logprob": "peer's log-probability per token",
    "logratio": "log-ratio SFT/base per token",
    "logratio_sum": "log-ratio SFT/base, sum",
    "entropy": "lowest entropy of the SFT policy",
    "shortest": "shortest",
    "longest": "longest",
    "model_name": "which model wrote it",
    "oracle": "oracle (upper bound)",
}
AGGREGATOR_LABELS = {
    "last": "last step",
    "mean": "mean over steps",
    "min": "lowest step",
    "product": "product of the steps' probabilities",
    "discounted": "mean, later steps count more",
}
POOL_LABELS = {
    "rerank": "SFT",
    "rerank.on_rairl": "R-AIRL (the policy it was trained against)",
    "rerank.on_grpo": "GRPO",
}
"""Whose candidates are ranked: prefix of the figures to the policy's name."""
LOCATOR_LABELS = {
    "chance": "chance (uniform over steps)",
    "reward": "reward",
    "logprob_drop": "SFT log-probability drop, per token",
    "logprob_sum": "SFT log-probability, sum over the step",
    "logprob_change": "SFT log-probability, fall from step to step",
    "peer_drop": "peer's log-probability drop, per token",
    "logratio_drop": "log-ratio SFT/base drop, per token",
    "longest": "always the longest step",
    "first": "always the first step",
    "last": "always the last step",
}
SPLIT_LABELS = {
    "ood_longer": "longer chains",
    "ood_operators": "unseen operations",
    "ood_numbers": "larger numbers",
    "ood_wording": "unseen wording",
}


def split_label(split: str) -> str:
    """A split in words, where it is one of the built-in benchmark's."""
    return SPLIT_LABELS.get(split, split)
