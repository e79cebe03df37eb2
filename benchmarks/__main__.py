"""`make bench`: measure, print the table, write it as JSON and, when asked, into the documentation.

python -m benchmarks [ROW ...] [--runs 5] [--root .] [--json runs/bench/bench.json] [--docs docs/performance.md]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks import floors, growth
from benchmarks.material import Material
from benchmarks.paired import Row
from benchmarks.rows import ROWS
from rairl.core.errors import RairlError

NAMES = (*ROWS, "growth")
MARKS = "<!-- bench -->", "<!-- end bench -->"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the rows that are named, or all of them and the growth."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"{', '.join(NAMES)}; all when none is named")
    parser.add_argument("--runs", type=int, default=5, help="pairs behind each median")
    parser.add_argument("--root", type=Path, default=Path("."), help="project in which `make repro` has run")
    parser.add_argument("--json", type=Path, default=Path("runs/bench/bench.json"))
    parser.add_argument("--docs", type=Path, help="Markdown file whose part between the marks is replaced")
    given = parser.parse_args(arguments)
    wanted = given.rows or NAMES
    if set(wanted) - set(NAMES):
        raise RairlError(f"{', '.join(sorted(set(wanted) - set(NAMES)))}: no such row; there are {', '.join(NAMES)}")
    _quiet()
    material = Material.of(given.root)
    machine = floors.measure()
    lines: list[Row] = []
    failed: list[str] = []
    for name in [name for name in ROWS if name in wanted]:
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            lines += ROWS[name](material, given.runs, machine)
        except Exception:  # a rival that fails takes only its own rows with it
            traceback.print_exc()
            failed.append(name)
        _write(given.json, machine, lines, [])  # a long run that is cut off leaves what it has
    points = growth.growth(material, growth.FACTORS) if "growth" in wanted else []
    _write(given.json, machine, lines, points)
    text = report(machine, lines, points)
    print(text)
    if points:
        growth.plot(points, (given.docs or given.json).parent / "plots" / "growth.png")
    if given.docs is not None:
        _into(given.docs, text)
    if failed:
        raise RairlError(f"{', '.join(failed)} failed, see above (TRL: pip install 'rairl[trl]'); the rest is measured")


def report(machine: floors.Machine, lines: Sequence[Row], points: Sequence[growth.Point]) -> str:
    """The tables, as Markdown."""
    when = datetime.now(UTC).strftime("%Y-%m-%d")
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    text = [
        f"`make bench`, {when}: {torch.get_num_threads()} thread(s) of {os.cpu_count()} cores{load}. Measured floor of "
        f"the machine: {machine.flops / 1e9:.0f} GFLOP/s in float32 products, {machine.bandwidth / 1e9:.1f} GB/s.",
        "",
        "| what | against | ours, ms | ratio (clock) | ratio (processor) | target | met | ours / floor |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in lines:
        cells = [
            one.what,
            one.peer,
            f"{one.ours * 1e3:.4g} per {one.unit}",
            f"**{one.ratio:.2f}**",
            f"{one.processor:.2f}",
            f"{one.target:g}",
            "yes" if one.met else "**no**",
            "-" if one.floor is None else f"{one.ours / one.floor:.1f}",
        ]
        text.append(f"| {' | '.join(cells)} |")
    if points:
        text += ["", "| growth of | sizes | processor seconds | memory, MiB | power of time | power of memory |"]
        text.append("|---|---|---|---|---|---|")
        powers = growth.exponents(points)
        for job, (seconds, memory) in powers.items():
            own = [point for point in points if point.job == job]
            cells = [
                job,
                ", ".join(f"{point.size:,}" for point in own),
                ", ".join(f"{point.seconds:.2f}" for point in own),
                ", ".join("-" if point.memory is None else f"{point.memory / 2**20:.0f}" for point in own),
                f"{seconds:.2f}",
                "-" if memory is None else f"{memory:.2f}",
            ]
            text.append(f"| {' | '.join(cells)} |")
    return "\n".join(text)


def _write(path: Path, machine: floors.Machine, lines: Sequence[Row], points: Sequence[growth.Point]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    card = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "threads": torch.get_num_threads(),
        "machine": asdict(machine),
        "rows": [{**asdict(one), "met": one.met} for one in lines],
        "growth": growth.as_rows(points),
    }
    path.write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")


def _into(path: Path, text: str) -> None:
    start, end = map(re.escape, MARKS)
    before = path.read_text(encoding="utf-8")
    after, count = re.subn(f"{start}.*{end}", lambda _: "\n".join([MARKS[0], text, MARKS[1]]), before, flags=re.DOTALL)
    if not count:
        raise RairlError(f"{path} has no part between {MARKS[0]} and {MARKS[1]}; add the two lines where it belongs")
    path.write_text(after, encoding="utf-8")


def _quiet() -> None:
    """Libraries' warnings would tear the table apart."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


if __name__ == "__main__":
    try:
        main()
    except RairlError as error:
        sys.exit(f"error: {error}")
