"""What the figures of a run claim, with a verdict for each claim."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rairl.core.stats import NOTHING, Estimate, exact, holm
from rairl.evaluate.shortcuts import FALSIFIED, NOT_SUPPORTED, NOT_TESTED, SUPPORTED, falsification_verdict
from rairl.report.labels import LOCATOR_LABELS, SELECTOR_LABELS, split_label

Figures = Mapping[str, Estimate]

# --- claims ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """One thing the reader wants to know.

    Attributes:
        use: what of the reward it is about; claims of one use stand together.
        text: the claim, as a sentence.
        verdict: ``supported``, ``not supported``, ``falsified`` or ``not tested``.
        figure: the number that decides it.
        meaning: what the number is.
        signed: whether it is a difference, shown with its sign.
        detail: the numbers compared, or why there is none.
    """

    use: str
    text: str
    verdict: str
    figure: Estimate
    meaning: str
    detail: str
    signed: bool = True

    @property
    def number(self) -> str:
        """The figure with its interval."""
        value, low, high = (format(bound, "+.3f" if self.signed else ".3f") for bound in self.figure[:3])
        return f"{value} [{low}, {high}]"


USES = TRAINING, RERANKING, LOCALISING, AUDITING = (
    "As a training signal",
    "For picking answers",
    "For finding the first wrong step",
    "Under audit",
)
VERDICTS = (SUPPORTED, NOT_SUPPORTED, FALSIFIED, NOT_TESTED)


ALPHA = 0.05
"""Level of the corrected tests, and of the intervals."""


def difference_verdict(difference: Estimate, p: Estimate | None = None) -> str:
    """Supported when the whole 95 % interval of the paired difference lies above 0, and the p-value (corrected for the
    number of comparisons, where there is one) does not exceed .05."""
    if difference.n == 0:
        return NOT_TESTED
    sure = p is None or p.value <= ALPHA
    return SUPPORTED if difference.low > 0 and sure else NOT_SUPPORTED


def adjusted(figures: Figures, names: Sequence[str]) -> Figures:
    """The figures with the p-values among ``names`` corrected for their number, see :func:`rairl.core.stats.holm`."""
    family = {name: figures[name].value for name in names if name.endswith(".p") and name in figures}
    return {**figures, **{name: exact(value) for name, value in holm(family).items()}}


def half_verdict(share: Estimate) -> str:
    """Supported when the whole 95 % interval lies above one half."""
    if share.n == 0:
        return NOT_TESTED
    return SUPPORTED if share.low > 0.5 else NOT_SUPPORTED


def claims(figures: Figures) -> list[Claim]:
    """Every claim with its verdict, by rules that do not depend on the outcome."""
    return [*_policy_claims(figures), *_rerank_claims(figures), *_localise_claims(figures), *_audit_claims(figures)]


def splits(figures: Figures, stage: str) -> list[str]:
    """Out-of-distribution splits that have figures of ``stage``."""
    return sorted(
        {part for name in figures if name.startswith(f"{stage}.") for part in name.split(".") if _is_ood(part)}
    )


def temperatures(figures: Figures) -> list[str]:
    """Temperatures, beside the headline's, that the policies were sampled at."""
    matches = (re.fullmatch(r"posttrain\.sft\.t([\d.e-]+)\.pass@1", name) for name in figures)
    return sorted(match[1] for match in matches if match)


def _is_ood(part: str) -> bool:
    return part.startswith("ood")


def _versus(figures: Figures, first: tuple[str, str], second: tuple[str, str], p: str) -> str:
    """``(label, figure name)`` of the two sides, side by side, with the corrected p-value."""
    sides = [f"{label} {figures[name]}" for label, name in (first, second) if name in figures]
    return ", ".join([*sides, f"corrected p\N{NO-BREAK SPACE}{p_value(figures[p])}"] if p in figures else sides)


def p_value(figure: Estimate) -> str:
    """A p-value as text: three decimals, or that it is smaller than they can say."""
    return "<\N{NO-BREAK SPACE}0.001" if figure.value < 0.001 else f"=\N{NO-BREAK SPACE}{figure.value:.3f}"


def _policy_claims(figures: Figures) -> list[Claim]:
    made = []
    colder = {f"t{value}.": f"test problems at temperature {value}" for value in temperatures(figures)}
    novel = {f"{split}.": split_label(split) for split in splits(figures, "posttrain")}
    places = {"": "test problems"} | colder | novel
    figures = adjusted(figures, [f"posttrain.rairl-sft.{split}pass@1.p" for split in places])
    for split, where in places.items():
        name = f"posttrain.rairl-sft.{split}pass@1"
        difference = figures.get(name, NOTHING)
        sides = ("R-AIRL", f"posttrain.rairl.{split}pass@1"), ("SFT", f"posttrain.sft.{split}pass@1")
        made.append(
            Claim(
                TRAINING,
                f"Training on the learned reward beats supervised fine-tuning on {where}.",
                difference_verdict(difference, figures.get(f"{name}.p")),
                difference,
                "pass@1, R-AIRL minus SFT",
                _versus(figures, *sides, f"{name}.p") if difference.n else "no policy was trained",
            )
        )
    return made


def _rerank_claims(figures: Figures) -> list[Claim]:
    n = f"{figures['rerank.n'].value:.0f}" if "rerank.n" in figures else "N"
    rivals = {
        "random": "chance",
        "majority": "a majority vote",
        "logprob": "the policy's own log-probability",
        "second_model_logprob": "the second model's plain log-probability",
        "logratio": "the log-ratio of SFT to base",
        "entropy": "the SFT policy's entropy",
        "shortest": "taking the shortest",
        "longest": "taking the longest",
        "model_name": "knowing which model wrote it",
    }
    made = []
    figures = adjusted(figures, [f"rerank.reward-{rival}.p" for rival in rivals])
    for rival, words in rivals.items():
        name = f"rerank.reward-{rival}"
        if name not in figures and rival in ("model_name", "second_model_logprob"):
            continue  # a pool of one policy's samples has no such baseline, a run without a second model not the other
        difference = figures.get(name, NOTHING)
        sides = ("reward", "rerank.reward"), (SELECTOR_LABELS[rival], f"rerank.{rival}")
        made.append(
            Claim(
                RERANKING,
                f"The reward picks better answers than {words}.",
                difference_verdict(difference, figures.get(f"{name}.p")),
                difference,
                f"accuracy, best of {n}",
                _versus(figures, *sides, f"{name}.p") if difference.n else "no candidates were ranked",
            )
        )
    return made


def _localise_claims(figures: Figures) -> list[Claim]:
    rivals = {
        "chance": "chance",
        "logprob_drop": "the SFT policy's log-probability drop",
        "second_model_drop": "the second model's plain log-probability drop",
        "logratio_drop": "the drop of the log-ratio of SFT to base",
        "longest": "naming the longest step",
        "first": "naming the first step",
    }
    made = []
    figures = adjusted(figures, [f"localise.reward-{rival}.exact.p" for rival in rivals])
    for rival, words in rivals.items():
        name = f"localise.reward-{rival}.exact"
        if name not in figures and rival == "second_model_drop":
            continue  # a run without a second model
        difference = figures.get(name, NOTHING)
        sides = ("reward", "localise.reward.exact"), (LOCATOR_LABELS[rival], f"localise.{rival}.exact")
        made.append(
            Claim(
                LOCALISING,
                f"The reward finds the first wrong step better than {words}.",
                difference_verdict(difference, figures.get(f"{name}.p")),
                difference,
                "exact first wrong step, given there is one",
                _versus(figures, *sides, f"{name}.p") if difference.n else "no trace has a known first wrong step",
            )
        )
    return made


def _audit_claims(figures: Figures) -> list[Claim]:
    novel = splits(figures, "audit") or ["novel problems"]
    made = []
    for split in novel:
        auroc = figures.get(f"audit.{split}.auroc", NOTHING)
        made.append(
            Claim(
                AUDITING,
                f"Falsification test: the reward ranks right chains above wrong ones on {split_label(split)}.",
                falsification_verdict(auroc),
                auroc,
                "AUROC within question; .5 is chance",
                f"{auroc.n} questions with right and wrong chains" if auroc.n else "no question has both kinds",
                signed=False,
            )
        )
    for name, text, meaning in (
        (
            "test.auroc_without_length",
            "The reward is more than a measure of length.",
            "AUROC within question, length removed",
        ),
        ("shuffle.reward", "The reward sees the order of the steps.", "share preferring the true order"),
        (
            "outcome.result.auroc",
            "The reward ranks right chains above wrong ones without seeing their outcome.",
            "AUROC within question, answer and last result hidden",
        ),
        ("swap.steps", "The reward sees the steps, not only the answer.", "share preferring right steps, same answer"),
        ("premise.reward", "The reward sees a wrong step behind a right answer.", "share preferring all steps right"),
        (
            "ngrams.reward",
            "The reward follows what a step says, not its n-grams.",
            "share preferring the harmless swap",
        ),
        (
            "style.reward",
            "The reward prefers what is right in another style to what is wrong in the expert's.",
            "share preferring the right one",
        ),
    ):
        share = figures.get(f"audit.{name}", NOTHING)
        made.append(
            Claim(
                AUDITING,
                text,
                half_verdict(share),
                share,
                meaning,
                f"over {share.n} questions" if share.n else "no usable traces",
                signed=False,
            )
        )
    return made
