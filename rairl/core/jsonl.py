"""JSON-lines files, read line by line, with complaints that say where and what."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rairl.core.errors import RairlError

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_SURROGATE_HALF = re.compile("[\ud800-\udfff]")


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of every line that is not blank, one at a time; a byte order mark is passed over.

    Raises:
        RairlError: for a missing file, a folder, and bytes that are not UTF-8.
    """
    at = 0
    try:
        with Path(path).open("rb") as file:
            for number, raw in enumerate(file, start=1):
                line = raw.decode("utf-8").rstrip("\r\n")
                if number == 1:
                    line = line.removeprefix("\ufeff")
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
    except json.JSONDecodeError as error:
        raise RairlError(f"not valid JSON: {error}") from error
    except RecursionError as error:
        raise RairlError("not usable JSON: it is nested too deeply") from error
    except ValueError as error:  # Python reads no integer of more than some thousand digits
        raise RairlError(f"not usable JSON: a number has too many digits ({error})") from error
    if not isinstance(row, dict):
        raise RairlError(f"a JSON object is needed, not {type(row).__name__}")
    # The line itself is UTF-8; only an escape can bring half a pair, which no file can be written with again.
    if _SURROGATE.search(line) and _SURROGATE_HALF.search(json.dumps(row, ensure_ascii=False)):
        raise RairlError("half of a surrogate pair (\\ud800 to \\udfff) is no character; write the text again as UTF-8")
    return row


def no_rows(path: str | Path) -> RairlError:
    """The complaint about a file in which nothing can be used."""
    return RairlError(f"{path} has no usable rows; at least one JSON object per line is needed")
