"""The application, and how every command speaks and writes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    help="Learn a process-level reward from expert reasoning traces; train, rerank and localise with it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

PARAMS = Annotated[Path, typer.Option("--params", help="parameter file")]


def write_rows(rows: Iterator[Mapping[str, Any]] | list[dict[str, Any]], output: Path | None) -> None:
    """Rows as JSON lines, each written when it is there; a file appears whole or not at all."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if output is None:
        sys.stdout.writelines(lines)
    else:
        write_text(output, lines)


def write_text(output: Path, parts: str | Iterator[str]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    draft = output.with_name(output.name + ".part")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.writelines([parts] if isinstance(parts, str) else parts)
        draft.replace(output)
    finally:
        draft.unlink(missing_ok=True)
    say(f"wrote {output}")


def say(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # of several processes the first one speaks
        print(line, file=sys.stderr, flush=True)
