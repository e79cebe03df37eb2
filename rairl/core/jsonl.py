"""JSON-lines files, read line by line, with complaints that say where and what."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rairl.core.errors import RairlError


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of every line that is not blank, one at a time.

    Raises:
        RairlError: for a missing file, a folder, and bytes that are not UTF-8.
    """
    at = 0
    try:
        with Path(path).open("rb") as file:
            for number, raw in enumerate(file, start=1):
                line = raw.decode("utf-8").rstrip("\r\n")
                at += len(raw)
                if line.strip():
                    yield number, line
    except FileNotFoundError as error:
        raise RairlError(f"{path} does not exist; check the path, or make the file first") from error
    except IsADirectoryError as error:
        raise RairlError(f"{path} is a folder; a JSON-lines file is needed") from error
    except UnicodeDecodeError as error:
        raise RairlError(f"{path} is not UTF-8 text (byte {at + error.start}); convert it first") from error


def parse_object(line: str) -> dict[str, Any]:
    """The JSON object on a line.

    Raises:
        RairlError: saying why it is none.
    """
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise RairlError(f"not valid JSON: {error}") from error
    if not isinstance(row, dict):
        raise RairlError(f"a JSON object is needed, not {type(row).__name__}")
    return row


def no_rows(path: str | Path) -> RairlError:
    """The complaint about a file in which nothing can be used."""
    return RairlError(f"{path} has no usable rows; at least one JSON object per line is needed")
