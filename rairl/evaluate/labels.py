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
    "majority": "majority vote",
    "logprob": "log-probability per token",
    "logprob_sum": "log-probability, sum",
    "peer_logprob": "peer's log-probability per token",
    "logratio": "log-ratio SFT/base per token",
    "logratio_sum": "log-ratio SFT/base, sum",
    "shortest": "shortest",
    "longest": "longest",
    "model_name": "which model wrote it",
    "oracle": "oracle (upper bound)",
}
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
}


def split_label(split: str) -> str:
    """A split in words, where it is one of the built-in benchmark's."""
    return SPLIT_LABELS.get(split, split)
