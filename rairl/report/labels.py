"""What tables, plots and the console call the things that metrics.json has short names for."""

POLICY_LABELS = {
    "base": "base",
    "sft": "SFT",
    "sft_last": "SFT, last epoch",
    "second_model": "second model (SFT from another seed)",
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
    "second_model_logprob": "second model's log-probability per token",
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
    "reward_drop": "reward, largest drop of the logit",
    "reward_fall": "reward, largest fall of the probability",
    "reward_argmin": "reward, lowest logit",
    "logprob_drop": "SFT log-probability drop, per token",
    "logprob_sum": "SFT log-probability, sum over the step",
    "logprob_change": "SFT log-probability, fall from step to step",
    "second_model_drop": "second model's log-probability drop, per token",
    "logratio_drop": "log-ratio SFT/base drop, per token",
    "base_logprob": "base model's log-probability drop, per token",
    "entropy": "SFT policy's highest entropy",
    "longest": "always the longest step",
    "first": "always the first step",
    "last": "always the last step",
}
KIND_LABELS = {
    "operator": "another operator",
    "operand": "another number on the left",
    "result": "another result",
    "answer": "another final answer, steps right",
    "dropped": "a step left out",
    "swapped": "two steps in the wrong order",
    "option": "another option as the answer, steps right",
    "negated": "a finding negated or reversed",
    "entity": "another option's words in a step",
    "contradiction": "another option's words in the last step",
    "misread": "a statement misread, and followed up",
    "foreign": "a step of another question",
    "reversed": "the operands of a difference or quotient swapped",
    "renamed": "another person",
    "unit": "another thing",
}
"""Kinds of corruption: those of :data:`rairl.evaluate.probes.SEEN`, then of ``UNSEEN``."""
VARIANT_LABELS = {
    "distracted": "an irrelevant sentence in the problem",
    "reworded": "the problem reworded",
    "restyled": "steps in another style",
    "numbered": "steps numbered",
    "untagged": "no tags, answer in a sentence",
    "boxed": "answer in a box",
    "asked": "another prompt",
}
HIDDEN_LABELS = {
    "answer": "the answer hidden",
    "result": "the answer and the last step's result hidden",
}
"""How much of the outcome a reward does not see: :data:`rairl.evaluate.trace_edits.HIDDEN`."""
CHECK_LABELS = {
    "shuffle.reward": "true order of steps over a shuffled one: reward",
    "shuffle.logprob": "true order of steps: SFT log-probability",
    "swap.steps": "right over wrong steps, same answer: reward",
    "swap.answer": "right over wrong answer, same steps: reward",
    "premise.reward": "every step right over one wrong, same right answer: reward",
    "premise.logprob": "every step right over one wrong: SFT log-probability",
    "lucky.reward": "the same on the policy's own right answers: reward",
    "ngrams.reward": "operands swapped, still right over now wrong: reward",
    "ngrams.logprob": "operands swapped: SFT log-probability",
    "style.reward": "right in another style over wrong in the expert's: reward",
}
"""Pairs of which one side should be preferred."""
SPLIT_LABELS = {
    "ood_longer": "longer chains",
    "ood_operators": "unseen operations",
    "ood_numbers": "larger numbers",
    "ood_wording": "unseen wording",
}


def split_label(split: str) -> str:
    """A split in words, where it is one of the built-in benchmark's."""
    return SPLIT_LABELS.get(split, split)
