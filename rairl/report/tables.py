"""The tables of the report, as data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table as RichTable

from rairl.core.stats import NOTHING, Estimate, from_json
from rairl.evaluate.shortcuts import audited, falsification_verdict
from rairl.report.claims import adjusted, p_value, splits, temperatures
from rairl.report.labels import (
    AGGREGATOR_LABELS,
    CHECK_LABELS,
    HIDDEN_LABELS,
    KIND_LABELS,
    LOCATOR_LABELS,
    POLICY_LABELS,
    POOL_LABELS,
    SELECTOR_LABELS,
    VARIANT_LABELS,
    split_label,
)

if TYPE_CHECKING:
    from rairl.report.claims import Figures

Cell = Estimate | str | None


# --- tables ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """A table of figures: ``rows`` maps a label to one figure (or text, or None) per column."""

    title: str
    note: str
    columns: list[str]
    rows: dict[str, list[Cell]]


def tables(figures: Figures) -> dict[str, list[Table]]:
    """Section of the report to its tables; tables without any figure are left out."""
    sections = {
        "training": [_policies(figures), _samples(figures), _policy_splits(figures), _contrasts(figures)],
        "rerank": [
            _selectors(figures),
            _selector_gains(figures),
            _every_n(figures),
            _matrix(figures),
            _transfer(figures),
            _selector_aurocs(figures),
            _calibration(figures),
        ],
        "localise": [
            *(_locators(figures, name) for name in ["", *_labelled(figures)]),
            _locator_gains(figures),
            _kinds(figures),
        ],
        "audit": [
            _audit_splits(figures),
            _audit_length(figures),
            _audit_checks(figures),
            _audit_outcome(figures),
            _audit_variants(figures),
            _audit_choice(figures),
        ],
        "time": [_times(figures)],
    }
    return {section: [table for table in list_ if table.rows] for section, list_ in sections.items()}


def _table(
    figures: Figures, title: str, note: str, columns: Mapping[str, str], rows: Mapping[str, str], pattern: str
) -> Table:
    """Rows and columns map a key to its label; ``pattern`` has ``{row}`` and ``{column}``. Empty ones are dropped."""
    cells = {
        (row, column): _cell(figures, pattern.format(row=row, column=column)) for row in rows for column in columns
    }
    kept_rows = [row for row in rows if any(cells[row, column] for column in columns)]
    kept = [column for column in columns if any(cells[row, column] for row in kept_rows)]
    return Table(
        title,
        note,
        [columns[column] for column in kept],
        {rows[row]: [cells[row, column] for column in kept] for row in kept_rows},
    )


def _cell(figures: Figures, name: str) -> Cell:
    figure = figures.get(name)
    return figure if figure is None or not name.endswith(".p") else p_value(figure).removeprefix("=\N{NO-BREAK SPACE}")


def _policies(figures: Figures) -> Table:
    ks = sorted({int(name.rsplit("@", 1)[1]) for name in figures if name.startswith("posttrain.sft.pass@")})
    columns = {"pass@1": "pass@1"}
    columns |= {f"t{value}.pass@1": f"pass@1, temperature {value}" for value in temperatures(figures)}
    columns |= {"process@1": "steps right too", "greedy": "greedy", "exact": "exact form too"}
    columns |= {f"pass@{k}": f"pass@{k}" for k in ks[1:]}
    columns |= {"length": "tokens"}
    note = (
        "Share of right answers. pass@k: at least one of k samples is right (unbiased). “Exact form too” also wants "
        "the prescribed tags; “steps right too” also wants every step right. Updates are optimiser steps: all that "
        "fine-tuning took, whichever epoch won, and at most this many of a policy loop."
    )
    table = _table(figures, "Policies on test", note, columns, POLICY_LABELS, "posttrain.{row}.{column}")
    steps = dict.fromkeys(("sft", "sft_last"), "sft.updates") | dict.fromkeys(("grpo", "rairl"), "posttrain.updates")
    for policy, label in POLICY_LABELS.items():
        if label in table.rows:
            updates = figures.get(steps.get(policy, ""))
            table.rows[label].append(None if updates is None else f"{updates.value:.0f}")
    table.columns.append("updates")
    return table


def _samples(figures: Figures) -> Table:
    columns = {
        "exact": "right, prescribed form", "loose_form": "right, another form", "wrong_answer": "wrong answer",
        "no_answer": "no readable answer", "distinct": "distinct traces", "answer_entropy": "entropy of the answers",
        "entropy": "entropy per token", "length": "tokens",
    }  # fmt: skip
    note = (
        "What becomes of a sample (the first four add up to 1): format errors apart from wrong answers. Distinct: "
        "share of different texts among a question's samples. Entropies in nats; the answers' is within a question."
    )
    return _table(
        figures, "Form and diversity of the samples", note, columns, POLICY_LABELS, "posttrain.{row}.{column}"
    )


def _policy_splits(figures: Figures) -> Table:
    columns = {split: split_label(split) for split in splits(figures, "posttrain")}
    note = "pass@1 on problems unlike any demonstration."
    return _table(
        figures, "Policies out of distribution", note, columns, POLICY_LABELS, "posttrain.{row}.{column}.pass@1"
    )


def _contrasts(figures: Figures) -> Table:
    names = {
        "rairl-sft": "R-AIRL − SFT",
        "rairl-sft_last": "R-AIRL − SFT, last epoch",
        "grpo-sft": "GRPO − SFT",
        "rairl-grpo": "R-AIRL − GRPO",
        "sft-base": "SFT − base",
    }
    columns = {"pass@1": "test", "pass@1.p": "p"}
    for value in temperatures(figures):
        columns |= {f"t{value}.pass@1": f"test, temperature {value}", f"t{value}.pass@1.p": "p"}
    columns |= {"process@1": "steps right too", "process@1.p": "p", "equal_length": "at equal length",
                "equal_length.p": "p"}  # fmt: skip
    for split in splits(figures, "posttrain"):
        columns |= {f"{split}.pass@1": split_label(split), f"{split}.pass@1.p": "p"}
    note = (
        "Paired differences of pass@1 on the same questions; p by a two-sided permutation test, corrected by Holm for "
        "all of this table. At equal length: over pairs of samples whose lengths differ by at most 5 %."
    )
    family = [f"posttrain.{row}.{column}" for row in names for column in columns]
    corrected = adjusted(figures, family)
    return _table(corrected, "Differences between policies", note, columns, names, "posttrain.{row}.{column}")


def _pools(figures: Figures) -> dict[str, str]:
    """Prefixes of the candidate sets that were ranked."""
    known = {"rerank": "test", "rerank.on_rairl": "test, R-AIRL's samples", "rerank.on_grpo": "test, GRPO's samples"}
    known |= {f"rerank.{split}": split_label(split) for split in splits(figures, "rerank")}
    return {prefix: label for prefix, label in known.items() if f"{prefix}.reward" in figures}


def _selectors(figures: Figures) -> Table:
    n = f"{figures['rerank.n'].value:.0f}" if "rerank.n" in figures else "N"
    note = (
        "Expected accuracy over all subsets of that size, ties shared. The reward never saw these candidates; its "
        "aggregator was chosen on dev."
    )
    return _table(figures, f"Best of {n}", note, _pools(figures), SELECTOR_LABELS, "{column}.{row}")


def _selector_gains(figures: Figures) -> Table:
    sets = {f"{prefix}.reward-{{}}": label for prefix, label in _pools(figures).items()}
    rivals = {name: label for name, label in SELECTOR_LABELS.items() if name not in ("reward", "oracle")}
    title = "What the reward adds to each baseline"
    return _gains(figures, title, "Paired differences on the same questions", sets, rivals)


def _gains(figures: Figures, title: str, what: str, sets: Mapping[str, str], rivals: Mapping[str, str]) -> Table:
    """The reward minus each rival, its p-value beside it.

    ``sets`` maps the name of a difference, ``{}`` in the rival's place, to the label of its column.
    """
    columns = {f"{name}{part}": words for name, label in sets.items() for part, words in (("", label), (".p", "p"))}
    figures = adjusted(figures, [column.format(rival) for column in columns for rival in rivals])
    rows = {
        f"reward − {label}": [_cell(figures, column.format(rival)) for column in columns]
        for rival, label in rivals.items()
    }
    note = f"{what}; p by a two-sided permutation test, corrected by Holm for all of this table."
    return Table(title, note, list(columns.values()), {label: row for label, row in rows.items() if any(row)})


def _ns(figures: Figures) -> list[int]:
    """The sizes N that the headline candidates were reranked at."""
    matches = (re.fullmatch(r"rerank\.n(\d+)\.reward", name) for name in figures)
    return sorted(int(match[1]) for match in matches if match)


def _every_n(figures: Figures) -> Table:
    columns = {f"n{n}": f"N = {n}" for n in _ns(figures) if n > 1}
    return _table(
        figures, "Every N", "Test, the SFT policy's samples.", columns, SELECTOR_LABELS, "rerank.{column}.{row}"
    )


def _matrix(figures: Figures) -> Table:
    ns = [n for n in _ns(figures) if n > 1]
    columns = {f"max.n{n}": f"best score, N = {n}" for n in ns} | {f"vote.n{n}": f"weighted vote, N = {n}" for n in ns}
    note = (
        "How a trace's steps become its score, crossed with how an answer is chosen. The choice among them was made on "
        "dev; this table only shows what it was worth."
    )
    return _table(
        figures, "Aggregators and selectors", note, columns, AGGREGATOR_LABELS, "rerank.matrix.{row}.{column}"
    )


def _transfer(figures: Figures) -> Table:
    columns = {
        "random": "random", "majority": "majority vote", "logprob": "log-probability",
        "second_model_logprob": "second model's log-probability", "reward": "reward",
        "reward_vote": "reward, weighted vote", "oracle": "oracle", "reward-random": "reward − random",
        "reward-majority": "reward − majority", "auroc.reward": "AUROC within question",
    }  # fmt: skip
    note = (
        "The same reward on the candidates of different policies; log-probability is each policy's own. GRPO's are "
        "ranked on the first 100 questions only."
    )
    return _table(figures, "Whose candidates", note, columns, POOL_LABELS, "{row}.{column}")


def _calibration(figures: Figures) -> Table:
    columns = {"ece": "ECE", "brier": "Brier score", "brier_base": "Brier score of dev's share of right ones"}
    note = (
        "Scores as probabilities of a right answer, by a logistic map fitted on dev; lower is better. ECE: 10 bins of "
        "equal mass; it is above 0 even for true probabilities."
    )
    return _table(figures, "Calibration", note, columns, _pools(figures), "{row}.calibration.{column}")


def _selector_aurocs(figures: Figures) -> Table:
    rows = {
        "reward": "reward",
        "logprob": "log-probability per token",
        "logratio": "log-ratio SFT/base per token",
        "entropy": "lower entropy of the SFT policy",
        "length": "length (longer)",
        "model_name": "which model wrote it",
    }
    note = "Share of right/wrong pairs of the same question that are ordered right; .5 is chance."
    return _table(figures, "Within-question AUROC", note, _pools(figures), rows, "{column}.auroc.{row}")


def _locator_gains(figures: Figures) -> Table:
    places = {"": "natural errors"} | {f"{name}.": name for name in _labelled(figures)}
    sets = {f"localise.{prefix}reward-{{}}.exact": label for prefix, label in places.items()}
    rivals = {name: label for name, label in LOCATOR_LABELS.items() if not name.startswith("reward")}
    title = "What the reward adds to each locator"
    return _gains(figures, title, "Exact first wrong step, paired on the same traces", sets, rivals)


def _labelled(figures: Figures) -> list[str]:
    names = {name.split(".")[1] for name in figures if name.startswith("localise.") and name.count(".") == 3}
    return sorted(name for name in names if f"localise.{name}.reward.exact" in figures)


def _locators(figures: Figures, name: str) -> Table:
    columns = {
        "exact": "exact", "within1": "within one step", "distance": "steps off", "f1": "F1",
        "acc_error": "accuracy, erroneous", "acc_correct": "accuracy, error-free", "step_auc": "step AUC within trace",
        "step_auc_pooled": "step AUC, pooled",
    }  # fmt: skip
    note = (
        "“Exact” and “within one step” are given that there is an error. F1 (harmonic mean of the next two) also asks "
        "whether there is one; its threshold was chosen on dev. Step AUC: the first wrong step against earlier ones. "
        "The reward's locator was chosen on dev, too; the rows below it show what the others would have given."
    )
    prefix = f"localise.{name}." if name else "localise."
    title = f"Human-labelled set: {name}" if name else "First wrong step"
    return _table(figures, title, note, columns, LOCATOR_LABELS, prefix + "{row}.{column}")


def _kinds(figures: Figures) -> Table:
    rows = {f"kind.{kind}": label for kind, label in KIND_LABELS.items()}
    rows |= {"family.seen": "kinds that training uses, together", "family.unseen": "kinds never used in training"}
    columns = {
        "reward.exact": "reward", "logprob.exact": "SFT log-probability",
        "second_model.exact": "second model's log-probability",
        "entropy.exact": "SFT entropy", "chance.exact": "chance", "reward.prefers": "reward prefers the original",
        "logprob.prefers": "SFT log-probability prefers it", "second_model.prefers": "second model's prefers it",
    }  # fmt: skip
    note = (
        "Right candidates with one error added: is the step found, and does the original score higher? The kinds from "
        "“a statement misread” on are made by other means than any training negative."
    )
    return _table(figures, "Errors put in, by kind", note, columns, rows, "localise.{row}.{column}")


def _audit_splits(figures: Figures) -> Table:
    columns = {
        "auroc": "reward", "auroc_logprob": "log-probability", "auroc_pooled": "reward, pooled",
        "reward_right": "mean reward, right", "reward_wrong": "mean reward, wrong",
        "reward_gap": "reward gap, right − wrong",
    }  # fmt: skip
    rows = {name: split_label(name) for name in audited(figures)}
    note = "AUROC of right against wrong chains, within question unless pooled; the reward gap is within question too."
    table = _table(figures, "Right against wrong chains", note, columns, rows, "audit.{row}.{column}")
    for name, label in rows.items():
        table.rows[label].insert(1, falsification_verdict(figures.get(f"audit.{name}.auroc", NOTHING)))
    table.columns.insert(1, "verdict")
    return table


def _audit_length(figures: Figures) -> Table:
    columns = {
        "auroc": "reward", "auroc_length": "length alone", "auroc_without_length": "reward, length removed",
        "auroc_matched_length": "reward, equal length", "partial_correlation": "partial correlation",
        "surface_r2": "R² of surface features", "auroc_without_surface": "reward, surface removed",
    }  # fmt: skip
    rows = {name: split_label(name) for name in audited(figures)}
    note = (
        "AUROC within question, unless said otherwise. Equal length: pairs within 5 %. Partial correlation of reward "
        "and correctness, question and length taken out. Surface: characters, steps, digits, tags, distinct words, "
        "longest step."
    )
    table = _table(figures, "Length and surface", note, columns, rows, "audit.{row}.{column}")
    for name, label in rows.items():
        table.rows[label].append(falsification_verdict(figures.get(f"audit.{name}.auroc_without_length", NOTHING)))
    table.columns.append("verdict, length removed")
    return table


def _audit_checks(figures: Figures) -> Table:
    note = "Share of pairs in which the side that should win does; .5 means that the reward is blind to the difference."
    if "audit.ngrams.overlap_right" in figures:
        overlaps = [figures[f"audit.ngrams.overlap_{side}"].value for side in ("right", "wrong")]
        note += (
            " “Turned round”: 12 + 5 to 5 + 12 against 12 − 5 to 5 − 12, which share {:.2f} and {:.2f} of their word "
        )
        note = note.format(*overlaps) + "pairs with the original."
    return _table(figures, "What moves the reward", note, {"": "share"}, CHECK_LABELS, "audit.{row}{column}")


def _audit_outcome(figures: Figures) -> Table:
    columns = {
        f"{key}{part}": words.format(measure)
        for key, measure in {"auroc": "AUROC", "exact": "first wrong step"}.items()
        for part, words in {"_before": "{}, shown", "": "{}, hidden", "_change": "change", "_change.p": "p"}.items()
    }
    note = (
        "The same candidates scored again, cut off after their last step, or inside it before its result. Wrong ones "
        "count where the wrong step can still be seen. A reward that reads the outcome instead of the reasoning falls "
        "to .5, and no longer finds the step. Changes are paired; p corrected by Holm for all of this table."
    )
    figures = adjusted(figures, [f"audit.outcome.{row}.{column}" for row in HIDDEN_LABELS for column in columns])
    return _table(figures, "The outcome hidden", note, columns, HIDDEN_LABELS, "audit.outcome.{row}.{column}")


def _audit_variants(figures: Figures) -> Table:
    columns = {"auroc_before": "AUROC as written", "auroc": "AUROC, changed", "agreement": "order kept"}
    note = (
        "Candidates of the same question, all changed in the same way, with their content left alone. Order kept: "
        "share of pairs that stay in order; .5 is chance."
    )
    return _table(figures, "Form and wording", note, columns, VARIANT_LABELS, "audit.variant.{row}.{column}")


def _audit_choice(figures: Figures) -> Table:
    matches = (re.fullmatch(r"audit\.choice\.n(\d+)\.score", name) for name in figures)
    rows = {f"n{n}": f"N = {n}" for n in sorted(int(match[1]) for match in matches if match)}
    columns = {"score": "score of the pick", "predicted": "predicted accuracy", "accuracy": "accuracy", "gap": "gap"}
    note = "The candidate with the best score among N. A gap that grows with N is over-optimisation."
    return _table(figures, "Over-optimisation by choice", note, columns, rows, "audit.choice.{row}.{column}")


def _times(figures: Figures) -> Table:
    times = {name.removeprefix("time."): figure.value for name, figure in figures.items() if name.startswith("time.")}
    rows: dict[str, list[Cell]] = {
        stage: [f"{seconds:.1f} s"] for stage, seconds in sorted(times.items(), key=lambda item: -item[1])
    }
    return Table("Time per stage", f"Together {sum(times.values()):.0f} s.", ["time"], rows)


def cell(value: Cell) -> tuple[str, str]:
    """A table cell: the value and its interval, as text; no interval for what is text already."""
    if value is None:
        return "–", ""
    if isinstance(value, str):
        return value, ""
    digits = 3 if abs(value.value) < 10 else 1
    return f"{value.value:.{digits}f}", f"[{value.low:.{digits}f}, {value.high:.{digits}f}]"


def summary_table(metrics: Mapping[str, Mapping[str, float]]) -> RichTable:
    """The headline figures of ``metrics.json`` for the console, each with its interval and its baselines."""
    from rich.table import Table as RichTable

    figures = from_json(metrics)
    table = RichTable(title="rairl: headline figures", title_justify="left")
    table.add_column("what")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    table.add_column("n", justify="right")
    n = f"{figures['rerank.n'].value:.0f}" if "rerank.n" in figures else "N"
    sections = {
        "pass@1 on test": {f"posttrain.{policy}.pass@1": label for policy, label in POLICY_LABELS.items()}
        | {"posttrain.rairl-sft.pass@1": "R-AIRL − SFT"},
        f"reranking, best of {n}": {f"rerank.{name}": label for name, label in SELECTOR_LABELS.items()}
        | {"rerank.reward-majority": "reward − majority vote"},
        "first wrong step, exact": {f"localise.{name}.exact": label for name, label in LOCATOR_LABELS.items()}
        | {"localise.reward-chance.exact": "reward − chance"},
        "AUROC within question (.5 is chance)": {f"audit.{name}.auroc": name for name in audited(figures)},
    }
    for section, rows in sections.items():
        present = {name: label for name, label in rows.items() if name in figures}
        if present:
            table.add_row(f"[bold]{section}[/bold]", "", "", "")
            for name, label in present.items():
                figure = figures[name]
                style = "bold cyan" if label in ("R-AIRL", "reward") else None
                interval = f"[{figure.low:.3f}, {figure.high:.3f}]"
                table.add_row(f"  {label}", f"{figure.value:.3f}", interval, str(figure.n), style=style)
            table.add_section()
    return table
