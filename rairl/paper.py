"""The table of published cells in docs/results.md: filling in a row from the figures of a finished run."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rairl.core.errors import RairlError
from rairl.core.params import Params

POLICIES = ("grpo", "sft", "rairl")


def row_of(cell: str, table: str) -> str:
    """The line of a cell in the page.

    Raises:
        RairlError: when the page has no such cell.
    """
    found = [line for line in table.split("\n") if line.startswith(f"| {cell} |")]
    if not found:
        raise RairlError(f"{cell} is no cell of the published table; they are DATASET/MODEL/sparse, interval or dense")
    return found[0]


def own_figures(figures: Mapping[str, Mapping[str, Any]], params: Params) -> str:
    """pass@1 of GRPO, SFT and R-AIRL at temperature 0.5, in per cent with the 95 % interval.

    Raises:
        RairlError: when the run measured no candidates at that temperature.
    """
    if params.sample.temperatures[0] != 0.5:
        raise RairlError("the published table is at temperature 0.5: put it first in sample.temperatures")
    parts = []
    for policy in POLICIES:
        figure = figures.get(f"posttrain.{policy}.pass@1")
        if figure is None:
            raise RairlError(f"metrics.json has no posttrain.{policy}.pass@1; has the run finished?")
        value, low, high = (100 * figure[key] for key in ("value", "low", "high"))
        parts.append(f"{value:.1f} [{low:.1f}, {high:.1f}]")
    return " / ".join(parts)


def fill(page: str, cell: str, figures: Mapping[str, Mapping[str, Any]], params: Params, commit: str) -> str:
    """The page with the cell's row filled in; a run of another seed of the cell replaces what stood there."""
    row = row_of(cell, page)
    published = row.split("|")[1:5]
    filled = "|".join(
        ["", *published, f" {own_figures(figures, params)} ", f" 1 (seed {params.seed}) ", f" {commit} ", ""]
    )
    return page.replace(row, filled)


def present_commit(folder: Path) -> str:
    """Short hash of the code's commit, marked when files have changed since."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=folder, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"
