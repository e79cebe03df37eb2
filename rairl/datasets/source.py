"""Rows of a data set, from a JSON-lines file or from the hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from rairl.core.errors import RairlError
from rairl.core.jsonl import no_rows, parse_object, read_lines

Row = dict[str, Any]
T = TypeVar("T")

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def read(
    source: str,
    parse: Callable[[Row, int], T],
    *,
    revision: str | None,
    split: str,
    key: str,
    revision_key: str,
    config: str = "default",
) -> list[T]:
    """What ``parse`` makes of each row and its number (from 0), of a JSON-lines file or a hub data set.

    Args:
        source: path of the file, or hub id (tried when no such file exists).
        parse: raises RairlError for a row that it can't read; the message gets the row's place.
        revision: commit of the hub data set; needed for a hub id, so that the data cannot change underneath a result.
        split, config: of the hub data set.
        key, revision_key: names of the parameters under ``dataset`` that gave source and revision.

    Raises:
        RairlError: for a malformed row (file, line, field), a missing file, a hub id without revision, or a hub that
            cannot be reached.
    """
    rows: Iterable[tuple[int, str, Row]]
    if Path(source).exists() or not _HUB_ID.fullmatch(source) or Path(source).suffix in (".jsonl", ".json"):
        rows = ((line - 1, f"line {line}", row) for line, row in read_rows(source))
    else:
        found = _from_hub(source, revision, split, config, key, revision_key)
        rows = ((number, f"row {number}", row) for number, row in enumerate(found))
    parsed = []
    for number, where, row in rows:
        try:
            parsed.append(parse(row, number))
        except RairlError as error:
            raise RairlError(f"{source}, {where}: {error}") from error
    return parsed


def read_rows(path: str | Path) -> list[tuple[int, Row]]:
    """Line number (from 1) and object of every line of a JSON-lines file that is not blank.

    Raises:
        RairlError: naming the file, and the line that is not a JSON object; for a missing or empty file.
    """
    rows = []
    for number, line in read_lines(path):
        try:
            rows.append((number, parse_object(line)))
        except RairlError as error:
            raise RairlError(f"{path}, line {number}: {error}") from error
    if not rows:
        raise no_rows(path)
    return rows


def text_field(row: Row, name: str) -> str:
    """A field that must be a string with something in it."""
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise RairlError(f"field {name!r} must be a non-empty string")
    return value


def _from_hub(name: str, revision: str | None, split: str, config: str, key: str, revision_key: str) -> Iterable[Row]:
    if revision is None:
        raise RairlError(
            f"no file {name!r} here, so it is read as a hub id; set dataset.{revision_key} to the commit to use, so "
            "that the data cannot change underneath a result, or correct the path"
        )
    from datasets import load_dataset

    try:
        return load_dataset(name, config, revision=revision, split=split)
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise RairlError(
            f"could not load {name} at revision {revision} from the hub ({type(error).__name__}: {error}). Check the "
            f"id, the revision and the network, or download the file once and put its path into dataset.{key}"
        ) from error
