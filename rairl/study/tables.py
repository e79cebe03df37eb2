"""The tables of a study: means over seeds with both sources of chance in the interval, and paired differences.

Everything is computed from what lies behind the figures question by question (:mod:`rairl.evaluate.questions`), so that
a difference between two rows is a difference on the same questions of the same seeds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from rairl.core.stats import Estimate, hierarchical_bootstrap, holm, paired_permutation_p
from rairl.evaluate.questions import Table as Questions
from rairl.evaluate.shortcuts import falsification_verdict
from rairl.report.labels import LOCATOR_LABELS, SELECTOR_LABELS, split_label

STAGES = ("posttrain", "rerank", "localise", "audit")
"""The stages that say what lies behind their figures."""
SELECTORS = {
    name: SELECTOR_LABELS[name]
    for name in ("random", "majority", "logprob", "second_model_logprob", "logratio", "shortest", "oracle")
}
LOCATORS = {
    name: LOCATOR_LABELS[name] for name in ("chance", "logprob_drop", "second_model_drop", "logratio_drop", "last")
}
"""What the reward is held against, with its label; the oracle is a bound and no rival."""
Key = tuple[str, str]
"""A variant and a figure's name."""


class Cell(NamedTuple):
    """A number of a table; a difference is shown with its sign and its p-value.

    Attributes:
        figure: the number with its interval.
        p: of the comparison by itself.
        signed: whether the sign is shown.
        corrected: the p-value for all comparisons of the table, shown instead, see :func:`corrected`.
    """

    figure: Estimate
    p: float | None = None
    signed: bool = False
    corrected: float | None = None

    def __str__(self) -> str:
        if not self.figure.n:
            return "–"
        value, low, high = (format(bound, "+.3f" if self.signed else ".3f") for bound in self.figure[:3])
        text = f"{value} [{low}, {high}]"
        p = self.p if self.corrected is None else self.corrected
        return text if p is None else f"{text}, p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}"


@dataclass(frozen=True)
class Table:
    """A table of a study: ``rows`` maps a label to one cell (or text, or None) per column."""

    title: str
    columns: list[str]
    rows: dict[str, list[Cell | str | None]]
    questions: int
    note: str = ""


class Results:
    """What the finished runs of a study found.

    Args:
        runs: variant to seed to what lies behind its figures.
        draws: resamples behind an interval.
    """

    def __init__(self, runs: Mapping[str, Mapping[int, Questions]], *, draws: int) -> None:
        self.runs, self.draws = runs, draws

    def has(self, *keys: Key) -> bool:
        """Whether a figure is known for every key, on at least one seed they have in common."""
        return bool(self._seeds(keys))

    def value(self, *keys: Key, statistic: Callable[[np.ndarray], np.ndarray] = lambda means: means[..., 0]) -> Cell:
        """A statistic of figures' means over seeds (by default the first mean itself), with its interval."""
        arrays = [self._columns(seed, keys)[1] for seed in self._seeds(keys)]
        return Cell(hierarchical_bootstrap(arrays, statistic, draws=self.draws))

    def difference(self, first: Key, second: Key) -> Cell:
        """First minus second on the same questions of the same seeds.

        The p-value flips the sign of each question's difference, questions of all seeds pooled. It is left out where
        the two have different denominators, since their questions can't be exchanged then.
        """
        figure = self.value(first, second, statistic=lambda means: means[..., 0] - means[..., 1]).figure
        groups: list[str] = []
        parts = []
        for seed in self._seeds((first, second)):
            questions, columns = self._columns(seed, (first, second))
            groups += [f"{seed}/{question}" for question in questions]
            parts.append(columns)
        values = np.concatenate(parts)
        paired = np.allclose(values[:, 0, 1], values[:, 1, 1])
        p = paired_permutation_p(values[:, 0, 0], values[:, 1, 0], groups).value if paired else None
        return Cell(figure, p, signed=True)

    def _seeds(self, keys: Sequence[Key]) -> list[int]:
        first, *others = [
            {seed for seed, table in self.runs.get(variant, {}).items() if table.get(name)} for variant, name in keys
        ]
        return sorted(first.intersection(*others))

    def _columns(self, seed: int, keys: Sequence[Key]) -> tuple[list[str], np.ndarray]:
        """Questions of any of the figures, and ``(questions, figures, 2)`` sums; zeros where a figure lacks one."""
        tables = [self.runs[variant][seed][name] for variant, name in keys]
        questions = sorted(set().union(*tables))
        return questions, np.array([[table.get(question, [0, 0]) for table in tables] for question in questions])


def tables(results: Results, variants: Sequence[str], baseline: str, n: int) -> list[Table]:
    """All tables of a study that have any figure.

    Args:
        results: of the finished runs.
        variants: in the order of the study file.
        baseline: the variant whose shared policies and baselines are shown, and that the others are compared with.
        n: the N of best-of-N.
    """
    order = [baseline, *(name for name in variants if name != baseline)]
    found = [
        _training(results, order),
        _rivals(results, order, f"Reranking, best of {n}", "expected accuracy", "rerank.{}", SELECTORS),
        _rivals(results, order, "First wrong step, given there is one", "found exactly", "localise.{}.exact", LOCATORS),
        _falsification(results, order),
        _against(results, order, n),
    ]
    return [corrected(table) for table in found if table.rows]


def corrected(table: Table) -> Table:
    """The table with its p-values corrected for their number (:func:`~rairl.core.stats.holm`), with a note of it."""
    compared = [
        (label, at, cell)
        for label, row in table.rows.items()
        for at, cell in enumerate(row)
        if isinstance(cell, Cell) and cell.p is not None
    ]
    if len(compared) < 2:
        return table
    values = holm({str(number): cell.p for number, (_, _, cell) in enumerate(compared) if cell.p is not None})
    rows = {label: list(row) for label, row in table.rows.items()}
    for (label, at, cell), p in zip(compared, values.values(), strict=True):
        rows[label][at] = cell._replace(corrected=p)
    note = f"{table.note} p is corrected by Holm for the {len(compared)} comparisons of this table.".strip()
    return replace(table, rows=rows, note=note)


def temperatures(results: Results, variant: str) -> list[str]:
    """Labels of the temperatures, beside the headline's, that the policies were sampled at (``t0.5``)."""
    names = {name for table in results.runs.get(variant, {}).values() for name in table}
    found = (re.fullmatch(r"posttrain\.rairl\.(t[\d.e-]+)\.pass@1", name) for name in names)
    return sorted(match[1] for match in found if match)


def closed(means: np.ndarray) -> np.ndarray:
    """Share of the way from the second figure to the third that the first has come: ``(..., 3)`` to ``(...)``."""
    return (means[..., 0] - means[..., 1]) / (means[..., 2] - means[..., 1])


def _training(results: Results, order: Sequence[str]) -> Table:
    places = {"": ""} | {f"{label}.": f", temperature {label[1:]}" for label in temperatures(results, order[0])}
    rows: dict[str, list[Cell | str | None]] = {}
    known = [("SFT", "sft"), ("SFT, last epoch", "sft_last"), ("second_model", "second_model"), ("GRPO", "grpo")]
    shown = [(label, order[0], policy) for label, policy in known]
    for label, variant, policy in [*shown, *((_named("R-AIRL", name, order), name, "rairl") for name in order)]:
        if not results.has((variant, f"posttrain.{policy}.pass@1")):
            continue
        row: list[Cell | str | None] = []
        for place in places:
            row.append(results.value((variant, f"posttrain.{policy}.{place}pass@1")))
        process = (variant, f"posttrain.{policy}.process@1")
        row.append(results.value(process) if results.has(process) else None)
        for rival in ("sft", "sft_last"):
            for place in places:
                pair = [(variant, f"posttrain.{name}.{place}pass@1") for name in (policy, rival)]
                row.append(results.difference(*pair) if policy in ("grpo", "rairl") else None)
        gap = [(variant, f"posttrain.{name}.pass@1") for name in (policy, "sft", "grpo")]
        row.append(results.value(*gap, statistic=closed) if policy == "rairl" else None)
        rows[label] = row
    columns = [
        *(f"pass@1{words}" for words in places.values()),
        "right answer, right steps",
        *(f"minus {rival}{words}" for rival in ("SFT", "SFT, last epoch") for words in places.values()),
        "share of the gap SFT → GRPO closed",
    ]
    note = "GRPO is trained on the answers; the share closed says nothing where GRPO itself gains nothing over SFT."
    return Table("Training signal", columns, rows, _questions(rows), note)


def _rivals(
    results: Results, order: Sequence[str], title: str, measure: str, pattern: str, labels: Mapping[str, str]
) -> Table:
    """The reward of every variant against what needs none; ``pattern`` has a place for a method's name."""
    first, own = order[0], pattern.format("reward")
    known = {name: pattern.format(name) for name in labels if results.has((first, pattern.format(name)))}
    rivals = [name for name in known if name != "oracle"]
    rows: dict[str, list[Cell | str | None]] = {}
    for name, figure in known.items():
        rows[labels[name]] = [results.value((first, figure)), *(None for _ in rivals)]
    for variant in order:
        if results.has((variant, own)):
            differences = [results.difference((variant, own), (variant, known[name])) for name in rivals]
            rows[_named("reward", variant, order)] = [results.value((variant, own)), *differences]
    return Table(title, [measure, *(f"minus {labels[name]}" for name in rivals)], rows, _questions(rows))


def _falsification(results: Results, order: Sequence[str]) -> Table:
    rows: dict[str, list[Cell | str | None]] = {}
    for variant in order:
        names = {name for table in results.runs.get(variant, {}).values() for name in table}
        splits = {name.split(".")[1] for name in names if re.fullmatch(r"audit\.[^.]+\.auroc", name)}
        for split in sorted(splits, key=lambda name: (name != "test", name)):
            if not results.has((variant, f"audit.{split}.auroc")):
                continue
            auroc = results.value((variant, f"audit.{split}.auroc"))
            others = [(variant, f"audit.{split}.{name}") for name in ("reward_right", "reward_wrong", "reward_gap")]
            means = [results.value(key) if results.has(key) else None for key in others]
            if means[2] is not None:
                means[2] = means[2]._replace(signed=True)
            rows[_named(split_label(split), variant, order)] = [auroc, falsification_verdict(auroc.figure), *means]
    columns = ["AUROC within question", "verdict", "mean reward, right", "mean reward, wrong", "gap within question"]
    note = "The rule, fixed in advance: interval below .5 falsified, touching .5 not supported, above .5 supported."
    return Table("Falsification: are right chains ranked above wrong ones?", columns, rows, _questions(rows), note)


def _against(results: Results, order: Sequence[str], n: int) -> Table:
    figures = {"pass@1": "posttrain.rairl.pass@1"}
    for label in temperatures(results, order[0]):
        figures[f"pass@1, temperature {label[1:]}"] = f"posttrain.rairl.{label}.pass@1"
    figures |= {
        f"best of {n}": "rerank.reward",
        "first wrong step": "localise.reward.exact",
        "AUROC on test": "audit.test.auroc",
    }
    figures = {label: name for label, name in figures.items() if results.has((order[0], name))}
    rows: dict[str, list[Cell | str | None]] = {}
    for variant in order[1:]:
        pairs = [((variant, name), (order[0], name)) for name in figures.values()]
        cells = [results.difference(*pair) if results.has(*pair) else None for pair in pairs]
        if any(cells):
            rows[variant] = list(cells)
    return Table(f"Each variant minus {order[0]}", list(figures), rows, _questions(rows))


def _named(what: str, variant: str, order: Sequence[str]) -> str:
    return what if len(order) == 1 else f"{what} ({variant})"


def _questions(rows: Mapping[str, Sequence[Cell | str | None]]) -> int:
    cells = [cell for row in rows.values() for cell in row if isinstance(cell, Cell)]
    return max((cell.figure.n for cell in cells), default=0)
