"""The shortcut checks of one reward, split by split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rairl.core.params import Params
from rairl.core.stats import Estimate, bootstrap_mean, members_of, within_auroc
from rairl.evaluate.candidates import questions
from rairl.evaluate.pass_at_k import powers_of_two
from rairl.evaluate.probability import probabilities
from rairl.evaluate.probes import SEEN, corrupted, originals
from rairl.evaluate.scores import Saved
from rairl.evaluate.shortcuts import (
    lucky,
    outcome_figures,
    over_optimisation,
    preference,
    step_correlation,
    variant_figures,
)
from rairl.evaluate.trace_edits import (
    HIDDEN,
    answer_block,
    mixed_sample,
    shuffled_pairs,
    swapped_pairs,
    turned_pairs,
    with_answer_of,
)
from rairl.evaluate.variants import VARIANTS, overlap
from rairl.models.calibration import first_error, suspicion

if TYPE_CHECKING:
    from rairl.core.traces import Trace
    from rairl.models.likelihood import LogProbs
    from rairl.models.reads import Scores
    from rairl.models.reward import RewardModel


MASKED = 2
"""Right and wrong candidates per question that are scored again in another form."""
SAMPLED = 60
"""Questions whose candidates are scored again in other forms and wordings."""


@dataclass
class ShortcutChecks:
    """The checks on the test candidates: what they have in common is the material and what it was scored."""

    params: Params
    model: RewardModel
    sft: Path
    traces: list[Trace]
    saved: Saved

    def __post_init__(self) -> None:
        self.sampling = {"draws": self.params.report.bootstrap, "seed": self.params.seed}
        self.scores = self.saved.scores(self.traces)
        self.score_of = dict(zip((trace.id for trace in self.traces), self.scores, strict=True))

    def figures(self) -> dict[str, Estimate]:
        """All of them."""
        return {
            **self._outcome(),
            **self._swapped(),
            **self._pairs(),
            **self._variants(),
            **self._choice(),
            **self._steps(),
        }

    def _score(self, traces: Sequence[Trace]) -> list[float]:
        return self._aggregated(self.model.step_logits(traces, progress=True))

    def _aggregated(self, reads: Sequence[Scores]) -> list[float]:
        return [self.model.calibration.trace_score(read) for read in reads]

    def _likelihoods(self, traces: Sequence[Trace]) -> list[float]:
        from rairl.models.likelihood import step_logprobs
        from rairl.models.policy import load_policy

        logprobs: list[LogProbs] = step_logprobs(*load_policy(self.sft), traces)
        return [logprob.per_token for logprob in logprobs]

    def _sample(self) -> list[Trace]:
        return [self.traces[row] for row in mixed_sample(self.traces, MASKED)]

    def _outcome(self) -> dict[str, Estimate]:
        figures: dict[str, Estimate] = {}
        for name, hide in HIDDEN.items():
            able = [trace for trace in self.traces if hide(trace) is not None]
            some = [able[row] for row in mixed_sample(able, MASKED)]
            cut = [shorter for trace in some if (shorter := hide(trace)) is not None]
            reads = self.model.step_logits(cut, progress=True)
            scores = [self.score_of[trace.id] for trace in some], self._aggregated(reads)
            steps = self.saved.steps(some), [read.steps for read in reads]
            guesses = [[first_error(row, self.saved.locator) for row in rows] for rows in steps]
            figures |= outcome_figures(name, some, scores, guesses, **self.sampling)
        return figures

    def _swapped(self) -> dict[str, Estimate]:
        swaps = swapped_pairs(self.traces)
        right = [self.scores[row] for row, _, _, _ in swaps]
        keys = [self.traces[row].question for row, _, _, _ in swaps]
        rivals = {"answer": [rival for *_, rival, _ in swaps], "steps": [rival for *_, rival in swaps]}
        return {
            f"audit.swap.{name}": preference(right, self._score(found), keys, **self.sampling)
            for name, found in rivals.items()
            if found
        }

    def _pairs(self) -> dict[str, Estimate]:
        """Pairs that differ in one respect, the better one first; scored by the reward and by the SFT policy."""
        good = originals(self.traces, len(self.traces))
        turned = turned_pairs(good, self.params.seed)
        premise = [
            (good[row], with_answer_of(bad, good[row]))
            for kind in SEEN
            for row, bad in corrupted(good[:SAMPLED], kind, self.params.seed)
            if bad.first_error is not None and answer_block(good[row]).strip()
        ]
        pairs = {
            "shuffle": [(self.traces[row], copy) for row, copy in shuffled_pairs(self.traces, self.params.seed)],
            "premise": premise,
            "ngrams": [(harmless, harmful) for _, harmless, harmful in turned],
            "style": self._styles(),
        }
        every = {(trace.problem, trace.text): trace for found in pairs.values() for pair in found for trace in pair}
        if not every:
            return {}
        figures = {}
        for method, values in (("reward", self._score), ("logprob", self._likelihoods)):
            known = dict(zip(every, values(list(every.values())), strict=True))
            for name, found in pairs.items():
                if not found or (name == "style" and method == "logprob"):
                    continue
                better, worse = ([known[pair[side].problem, pair[side].text] for pair in found] for side in (0, 1))
                keys = [pair[0].question for pair in found]
                figures[f"audit.{name}.{method}"] = preference(better, worse, keys, **self.sampling)
        for at, name in ((1, "right"), (2, "wrong")):
            shares = [overlap(found[0].text, found[at].text) for found in turned]
            figures[f"audit.ngrams.overlap_{name}"] = bootstrap_mean(
                shares, [found[0].question for found in turned], **self.sampling
            )
        rows = lucky(self.traces)
        figures["audit.lucky.reward"] = within_auroc(
            [self.traces[row].first_error is None for row in rows],
            [self.scores[row] for row in rows],
            [self.traces[row].question for row in rows],
            **self.sampling,
        )
        return figures

    def _styles(self) -> list[tuple[Trace, Trace]]:
        """Per question the first right candidate in another style, and the first wrong one as it is."""
        styled = []
        for rows in members_of(questions(self.traces)).values():
            right = next((self.traces[row] for row in rows if self.traces[row].correct), None)
            wrong = next((self.traces[row] for row in rows if not self.traces[row].correct), None)
            restyled = None if right is None else VARIANTS["restyled"](right)
            if restyled is not None and wrong is not None:
                styled.append((restyled, wrong))
        return styled

    def _variants(self) -> dict[str, Estimate]:
        some = self._sample()
        chosen = set(list(members_of(questions(some)))[:SAMPLED])
        some = [trace for trace in some if trace.question in chosen]
        changed = {name: [(trace, change(trace)) for trace in some] for name, change in VARIANTS.items()}
        kept = {
            name: [(trace, one) for trace, one in found if one is not None]
            for name, found in changed.items()
            if any(one is not None for _, one in found)
        }
        after = self._score([one for found in kept.values() for _, one in found])
        at = 0
        scored: dict[str, list[float]] = {}
        for name, found in kept.items():
            scored[name] = after[at : at + len(found)]
            at += len(found)
        return variant_figures(
            {name: [bool(trace.correct) for trace, _ in found] for name, found in kept.items()},
            {name: [self.score_of[trace.id] for trace, _ in found] for name, found in kept.items()},
            scored,
            {name: [trace.question for trace, _ in found] for name, found in kept.items()},
            **self.sampling,
        )

    def _choice(self) -> dict[str, Estimate]:
        calibration = self.model.calibration
        predicted = None
        if calibration.slope is not None and calibration.intercept is not None:
            predicted = probabilities(self.scores, calibration.slope, calibration.intercept)
        size = min(map(len, members_of(questions(self.traces)).values()))
        right = [bool(trace.correct) for trace in self.traces]
        ns = powers_of_two(size)
        return over_optimisation(right, self.scores, predicted, questions(self.traces), ns, **self.sampling)

    def _steps(self) -> dict[str, Estimate]:
        wrong = [trace for trace in self.traces if trace.first_error is not None]
        if not wrong:
            return {}
        trusts = [suspicion(row, self.saved.locator) for row in self.saved.steps(wrong)]
        return {"audit.steps.correlation": step_correlation(wrong, trusts, **self.sampling)}
