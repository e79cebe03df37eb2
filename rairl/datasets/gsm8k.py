"""GSM8K from a local file or from the hub: people's solutions, or those of a stronger model, as expert traces.

Source: Cobbe et al. 2021, "Training Verifiers to Solve Math Word Problems" (MIT licence); each row holds a ``question``
and an ``answer`` with one step a line, calculator marks ``<<48/2=24>>`` and a last line ``#### 72``. In a set of
distilled solutions the ``answer`` is a ``<think>`` block and a ``\\boxed{72}``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

from rairl.answers import NUMBER, format_number, normalise_answer
from rairl.datasets import Splits, files, selection
from rairl.errors import RairlError
from rairl.params import Gsm8kDataset
from rairl.segment import compose
from rairl.traces import Trace

_MARK = re.compile(r"<<.*?(?:>>|$)")
_UNICODE = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "−": "-", "×": "x", "÷": "/", "\xa0": " "})
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def build(params: Gsm8kDataset) -> Splits:
    """Splits ``demos``, ``prompts`` (their questions), ``dev`` and ``test``, GSM8K's own.

    Raises:
        RairlError: for a missing or malformed file (file, line, field), an unreachable hub, or too few traces.
    """
    experts = load(params.demos, revision=params.demos_revision, revision_key="demos_revision")
    test = load(params.test, revision=params.test_revision, split="test", key="test", revision_key="test_revision")
    return selection.assemble(experts, [selection.prompt(trace) for trace in test], params)


def plain_step(line: str) -> str:
    """A solution line in the one written form that people's and models' lines share.

    Meant to leave nothing but the reasoning for a reward to go by, without altering what is said:

    - calculator marks ``<<...>>`` go, also one that was cut off;
    - curly quotes, long dashes, ``×``, ``÷`` and hard spaces become their plain counterparts;
    - numbers take one form: no thousands commas, no zeros at the end of decimals, a digit before the point. Models that
      wrote with a calculator have ``5.0`` in up to 14 % of their lines, people in 0.01 %;
    - ``$ 5`` becomes ``$5``, runs of white space one space, and a full stop at the end of the line goes.

    Not touched, since it is part of what the author did: the choice of words, rounding, long decimals, spaces around
    operators, ``x`` or ``*`` for times.
    """
    line = _MARK.sub("", line).translate(_UNICODE)
    line = re.sub(rf"(?<![\d.,]){NUMBER}(?![.,]?\d)", lambda match: _plain_number(match[0]), line)
    line = " ".join(re.sub(r"\$ (?=\d)", "$", line).split())
    return re.sub(r"(?<![.\s])\.$", "", line)


def _plain_number(text: str) -> str:
    return format_number(Fraction(text.replace(",", ""))) if len(text) <= 30 and re.search(r"[.,]", text) else text


def split_solution(text: str, mark: str) -> tuple[list[str], str | None]:
    """Steps and answer of a solution whose last line is ``<mark> <answer>`` (``####`` or ``A:``).

    The steps are in their plain form, blank ones left out; the answer is None when there is no such line.
    """
    lines = text.split("\n")
    marked = [line for line in lines if line.startswith(mark)]
    answer = normalise_answer(marked[-1].removeprefix(mark)) if marked else None
    steps = [plain_step(line) for line in lines if not line.startswith(mark)]
    return [step for step in steps if step], answer or None


def expert(row: dict[str, Any], key: str) -> Trace:
    """An expert trace from a row with ``question`` and ``answer``.

    People's lines are brought to their plain form; a distilled solution keeps the words of its think block.

    Raises:
        RairlError: naming the field that is missing, of the wrong type, or without a step or an answer.
    """
    question, solution = (text_field(row, name) for name in ("question", "answer"))
    steps, answer = split_solution(solution, "####")
    if answer is None and "<think>" in solution:
        return files.expert(Trace(key, question.strip(), solution), "field 'answer'")
    if answer is None:
        raise RairlError("field 'answer' has no last line '#### <answer>'")
    if not steps:
        raise RairlError("field 'answer' has no step before its '####' line")
    text, spans = compose(steps, answer)
    return Trace(key, question.strip(), text, spans, answer, answer, True, source="expert")


def text_field(row: dict[str, Any], name: str) -> str:
    """A field that must be a string with something in it."""
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise RairlError(f"field {name!r} must be a non-empty string")
    return value


def load(
    source: str,
    *,
    revision: str | None = None,
    split: str = "train",
    key: str = "demos",
    revision_key: str = "revision",
) -> list[Trace]:
    """Expert traces from a JSON-lines file or from a hub data set such as ``openai/gsm8k``; see :func:`rows`."""
    found = rows(source, revision=revision, split=split, config="main", key=key, revision_key=revision_key)
    return [located(row, where, f"gsm8k-{split}-{number}") for where, number, row in found]


def rows(
    source: str, *, revision: str | None, split: str, config: str, key: str, revision_key: str
) -> list[tuple[str, int, dict[str, Any]]]:
    """Where each row stands (for messages), its number from 0, and the row, of a JSON-lines file or a hub data set.

    Args:
        source: path of the file, or hub id (tried when no such file exists).
        revision: commit of the hub data set; needed for a hub id, so that the data cannot change underneath a result.
        split, config: of the hub data set.
        key, revision_key: names of the parameters under ``dataset`` that gave source and revision.

    Raises:
        RairlError: for a malformed row (file, line, field), a missing file, a hub id without revision, or a hub that
            cannot be reached.
    """
    if Path(source).exists() or not _HUB_ID.fullmatch(source) or Path(source).suffix in (".jsonl", ".json"):
        return [(f"{source}, line {number}", number - 1, row) for number, row in read_rows(source)]
    found = _from_hub(source, revision, split, config, key, revision_key)
    return [(f"{source}, row {number}", number, row) for number, row in enumerate(found)]


def located(row: dict[str, Any], where: str, key: str) -> Trace:
    """:func:`expert`, with ``where`` in front of its complaints."""
    try:
        return expert(row, key)
    except RairlError as error:
        raise RairlError(f"{where}: {error}") from error


def read_rows(path: str | Path) -> list[tuple[int, dict[str, Any]]]:
    """Line number (from 1) and object of every line of a JSON-lines file that is not blank.

    Raises:
        RairlError: naming the file, and the line that is not a JSON object; for a missing or empty file.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError as error:
        raise RairlError(
            f"{path} does not exist; put the file there, or name another one under dataset in the parameters"
        ) from error
    except (IsADirectoryError, UnicodeDecodeError) as error:
        raise RairlError(f"{path} is not a UTF-8 text file: {error}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise RairlError(f"{path}, line {number}: not valid JSON: {error}") from error
        if not isinstance(row, dict):
            raise RairlError(f"{path}, line {number}: a JSON object is needed, not {type(row).__name__}")
        rows.append((number, row))
    if not rows:
        raise RairlError(f"{path} has no rows; at least one JSON object per line is needed")
    return rows


def _from_hub(
    name: str, revision: str | None, split: str, config: str, key: str, revision_key: str
) -> Iterable[dict[str, Any]]:
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
