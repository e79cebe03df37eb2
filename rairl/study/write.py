"""A study on paper: its tables as Markdown and JSON, its plot, its part of the results page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rairl.core.errors import RairlError
from rairl.core.stats import Estimate
from rairl.evaluate.questions import Table as Questions
from rairl.evaluate.questions import read_questions
from rairl.report import plots as draw
from rairl.study.tables import LOCATORS, SELECTORS, STAGES, Cell, Results, tables

if TYPE_CHECKING:
    from rairl.study.plan import Study
    from rairl.study.tables import Table


# --- output ----------------------------------------------------------------------------------------------------------


def write_results(study: Study, finished: Mapping[tuple[str, int], Path], folder: Path, docs: Path | None) -> Path:
    """Write ``study.json``, ``results.md`` and ``<study>.png`` into ``folder``, and the same text and plot to ``docs``.

    Args:
        study: what was run.
        finished: (variant, seed) to the folder of its run, for the runs that finished.
        folder: of the study.
        docs: a Markdown file whose part between ``<!-- study:NAME -->`` and ``<!-- end -->`` is replaced (added at its
            end where there is none), with the plot in ``plots/`` beside it; or None.
    """
    runs: dict[str, dict[int, Questions]] = {variant: {} for variant in study.file.variants}
    for (variant, seed), run in finished.items():
        tables_ = [read_questions(run / "plots" / stage) for stage in STAGES if _has_questions(run, stage)]
        runs[variant][seed] = {name: rows for table in tables_ for name, rows in table.items()}
    params = next(iter(study.runs.values())).params
    results = Results(runs, draws=params.report.bootstrap)
    found = tables(results, list(study.file.variants), study.file.baseline, params.rerank.n)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.json").write_text(json.dumps(_json(study, results, found), indent=1) + "\n", encoding="utf-8")
    picture = plot(results, study, folder / f"{study.name}.png")
    text = markdown(study, results, found)
    target = folder / "results.md"
    target.write_text(text + (f"\n![{study.file.title}]({picture.name})\n" if picture else ""), encoding="utf-8")
    if docs is not None:
        if picture:
            (docs.parent / "plots").mkdir(parents=True, exist_ok=True)
            (docs.parent / "plots" / picture.name).write_bytes(picture.read_bytes())
            text += f"\n![{study.file.title}](plots/{picture.name})\n"
        before = docs.read_text(encoding="utf-8") if docs.exists() else "# Results\n"
        docs.write_text(spliced(before, study.name, text), encoding="utf-8")
    return target


def _has_questions(run: Path, stage: str) -> bool:
    return (run / "plots" / stage / "questions.json").exists()  # no policy is trained on logged traces: no posttrain


def markdown(study: Study, results: Results, found: Sequence[Table]) -> str:
    """The study in words and tables."""
    lines = [f"## {study.file.title}", ""]
    for variant in study.file.variants:
        changes = ", ".join(f"`{key}: {json.dumps(value)}`" for key, value in study.file.variants[variant].items())
        seeds = results.runs[variant]
        missing = [seed for seed in study.file.seeds if seed not in seeds]
        note = f"; **not finished: seeds {', '.join(map(str, missing))}**" if missing else ""
        lines.append(f"- **{variant}**: {changes or 'the parameters as they are'}{note}")
    lines += ["", f"Made by `{study.command}`. {METHOD}"]
    for table in found:
        counts = {len(seeds) for seeds in results.runs.values() if seeds}
        number = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
        lines += [
            "",
            f"**{table.title}** ({number} seeds, {table.questions} questions in all). {table.note}".rstrip(),
            "",
        ]
        lines.append(f"| | {' | '.join(table.columns)} |")
        lines.append("|---" * (len(table.columns) + 1) + "|")
        for label, row in table.rows.items():
            lines.append(f"| {label} | {' | '.join('' if cell is None else str(cell) for cell in row)} |")
    return "\n".join(lines) + "\n"


METHOD = (
    "Values are means over seeds; a seed draws the data, trains every model and samples anew. In brackets the 95 % "
    "interval of a bootstrap over seeds, then over questions within a seed; so few seeds make it rough, and rather too "
    "narrow. Differences are paired, on the same questions of the same seeds; p flips the signs of the questions' "
    "differences, all seeds pooled, so it speaks of these training runs and not of the next ones."
)


def _json(study: Study, results: Results, found: Sequence[Table]) -> dict[str, Any]:
    return {
        "title": study.file.title,
        "command": study.command,
        "baseline": study.file.baseline,
        "variants": study.file.variants,
        "seeds": {variant: sorted(seeds) for variant, seeds in results.runs.items()},
        "tables": {
            table.title: {
                "questions": table.questions,
                "rows": {
                    label: dict(zip(table.columns, map(_plain, row), strict=True)) for label, row in table.rows.items()
                },
            }
            for table in found
        },
        "per_seed": {
            variant: {
                seed: {name: _ratio(rows) for name, rows in sorted(table.items())}
                for seed, table in sorted(seeds.items())
            }
            for variant, seeds in results.runs.items()
        },
    }


def _plain(cell: Cell | str | None) -> Any:
    if not isinstance(cell, Cell):
        return cell
    if not cell.figure.n:
        return None
    p = {"p": cell.p, "p_corrected": cell.corrected}
    return {**cell.figure._asdict(), **{name: value for name, value in p.items() if value is not None}}


def _ratio(rows: Mapping[str, Sequence[float]]) -> float | None:
    top, bottom = (sum(column) for column in zip(*rows.values(), strict=True)) if rows else (0, 0)
    return round(top / bottom, 6) if bottom else None


def plot(results: Results, study: Study, path: Path) -> Path | None:
    """The headline figures of every variant beside their rivals, with error bars; None when there are none."""
    first = study.file.baseline
    order = [first, *(name for name in study.file.variants if name != first)]
    n = next(iter(study.runs.values())).params.rerank.n
    panels: dict[str, tuple[dict[str, Estimate], float | None]] = {}
    policies = {"SFT": "sft", "SFT, last epoch": "sft_last", "second_model": "second_model", "GRPO": "grpo"}
    selectors = {label: f"rerank.{name}" for name, label in SELECTORS.items()}
    locators = {label: f"localise.{name}.exact" for name, label in LOCATORS.items()}
    for label, own, rivals, reference in (
        ("pass@1 on test", "posttrain.rairl.pass@1", {k: f"posttrain.{v}.pass@1" for k, v in policies.items()}, None),
        (f"accuracy, best of {n}", "rerank.reward", selectors, None),
        ("first wrong step found", "localise.reward.exact", locators, None),
        ("AUROC within question on test", "audit.test.auroc", {}, 0.5),
    ):
        rows = {name: results.value((first, key)).figure for name, key in rivals.items() if results.has((first, key))}
        rows |= {name: results.value((name, own)).figure for name in order if results.has((name, own))}
        if rows:
            panels[label] = rows, reference
    return draw.forests(panels, path, strong=order) if panels else None


def spliced(document: str, name: str, text: str) -> str:
    """``document`` with the part of one study replaced, or added at the end; everything around it stays."""
    start, end = f"<!-- study:{name} -->", "<!-- end -->"
    part = f"{start}\n{text.strip()}\n{end}"
    before, found, after = document.partition(start)
    if not found:
        return f"{document.rstrip()}\n\n{part}\n"
    _, closed_, rest = after.partition(end)
    if not closed_:
        raise RairlError(f"the part {start} has no {end}; the text after it can't be told from the study's own")
    return f"{before}{part}{rest}"
