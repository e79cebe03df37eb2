"""Trace and Step: the one data type that every stage reads and writes.

A trace is a problem with (possibly) a worked solution. Steps are character spans into the solution's text, never token
positions, so a reward model whose tokenizer differs from the policy's still reads the right places. A trace with an
empty text is a *prompt*: a problem that nobody has solved yet.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rairl.core.blanks import says_nothing
from rairl.core.errors import RairlError
from rairl.core.jsonl import no_rows, parse_object, read_lines

if TYPE_CHECKING:
    import datasets

EXPERT = 1.0
"""Label of an expert trace everywhere: reward rises with expert-likeness."""
GENERATED = 0.0
"""Label of a policy sample or a corruption."""


@dataclass(frozen=True, slots=True)
class Step:
    """Half-open character span ``[start, end)`` into ``Trace.text``."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Trace:
    """A problem, its worked solution split into steps, and what is known about it.

    Attributes:
        id: unique within a file.
        problem: the question as the policy sees it, before any chat template.
        text: the completion, exactly as written (no end-of-sequence token); empty for a prompt.
        steps: ascending, non-overlapping spans of ``text``; between steps there is only white space or markup.
        answer: final answer extracted from ``text``, or None when none could be read.
        gold: reference answer, or None when unknown.
        correct: whether ``answer`` matches ``gold``; None when not judged.
        first_error: 0-based index of the first wrong step; None when there is none or it is not known.
        labelled: whether ``first_error`` is known (then None means *no wrong step*).
        source: who wrote it, e.g. ``expert``, ``policy:sft``, ``perturbed:operator``, ``6b_finetuning``.
        group: key of the question for splitting and resampling; defaults to ``problem``.
        meta: free JSON values (log-probabilities, seeds, generator step, ...).
    """

    id: str
    problem: str
    text: str = ""
    steps: tuple[Step, ...] = ()
    answer: str | None = None
    gold: str | None = None
    correct: bool | None = None
    first_error: int | None = None
    labelled: bool = False
    source: str = ""
    group: str = ""
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        end = 0
        for index, step in enumerate(self.steps):
            if not end <= step.start < step.end <= len(self.text):
                raise RairlError(
                    f"trace {self.id!r}: steps[{index}] spans [{step.start}, {step.end}) but must lie after the step "
                    f"before it and inside the text of {len(self.text)} characters, and must not be empty"
                )
            end = step.end
        if self.first_error is not None and not 0 <= self.first_error < len(self.steps):
            raise RairlError(
                f"trace {self.id!r}: first_error is {self.first_error} but the trace has {len(self.steps)} steps; "
                "it is 0-based"
            )
        if self.first_error is not None and not self.labelled:
            raise RairlError(f"trace {self.id!r}: first_error is set but labelled is false")

    def step_texts(self) -> list[str]:
        """The text of each step, in order."""
        return [self.text[step.start : step.end] for step in self.steps]

    @property
    def question(self) -> str:
        """Key of the question: candidates, seeds and repeats of one question share it."""
        return self.group or self.problem

    @property
    def by_policy(self) -> bool:
        """Whether a policy of this project wrote the text: control tokens in it are the policy's own."""
        return self.source.split(":")[0] == "policy"

    def to_json(self) -> dict[str, Any]:
        """A JSON object with only the fields that are set; spans as ``[start, end]`` pairs."""
        # False by identity: a first_error of 0 equals it
        row = {
            key: value
            for key, value in asdict(self).items()
            if value is not None and value is not False and value not in ("", (), {})
        }
        row["id"], row["problem"] = self.id, self.problem
        if self.steps:
            row["steps"] = [[step.start, step.end] for step in self.steps]
        if self.correct is not None:
            row["correct"] = self.correct
        return row

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Trace:
        """Inverse of :meth:`to_json`. ``steps`` may also be a list of strings, which are located in ``text``.

        Raises:
            RairlError: naming the field that is missing, of the wrong type, or inconsistent.
        """
        unknown = set(row) - set(cls.__slots__)
        if unknown:
            raise RairlError(f"field {sorted(unknown)[0]!r} is unknown; put extra values under 'meta'")
        for name in ("id", "problem"):
            if not isinstance(row.get(name), str) or not row[name]:
                raise RairlError(f"field {name!r} must be a non-empty string")
        for name, kind in _OPTIONAL_FIELDS.items():
            if row.get(name) is not None and (
                not isinstance(row[name], kind) or isinstance(row[name], bool) != (kind is bool)
            ):
                raise RairlError(f"field {name!r} must be of type {kind.__name__}, not {type(row[name]).__name__}")
        steps = row.get("steps") or []
        text = row.get("text")
        if not isinstance(steps, list):
            raise RairlError("field 'steps' must be a list of strings or of [start, end] pairs")
        if steps and all(isinstance(step, str) for step in steps):
            if text is None:
                text = "\n".join(steps)
            spans = locate_steps(text, steps)
        else:
            spans = tuple(_span(step, index) for index, step in enumerate(steps))
        values = {key: value for key, value in row.items() if key not in ("steps", "text") and value is not None}
        if "first_error" in values:
            values.setdefault("labelled", True)
        return cls(text=text or "", steps=spans, **values)


_OPTIONAL_FIELDS: dict[str, type] = {
    "text": str, "answer": str, "gold": str, "source": str, "group": str,
    "correct": bool, "labelled": bool, "first_error": int, "meta": dict,
}  # fmt: skip


def _span(step: Any, index: int) -> Step:
    if not (isinstance(step, list) and len(step) == 2 and all(isinstance(at, int) for at in step)):
        raise RairlError(f"field 'steps': item {index} must be a string or a [start, end] pair of integers")
    return Step(*step)


def locate_steps(text: str, steps: Sequence[str]) -> tuple[Step, ...]:
    """Find each step's text in ``text``, in order.

    Raises:
        RairlError: when the steps do not rebuild the text, that is when a step does not occur after the one before it,
            or when something other than white space, tags or markup lies between two steps.
    """
    spans: list[Step] = []
    at = 0
    for index, step in enumerate(steps):
        body = step.strip()
        start = text.find(body, at) if body else -1
        if start < 0:
            raise RairlError(
                f"field 'steps': item {index} ({body[:40]!r}) does not occur in the text after the step before it"
            )
        if spans and not says_nothing(_without_tags(text[at:start])):
            raise RairlError(
                f"field 'steps': the steps do not rebuild the text; {text[at:start].strip()[:40]!r} lies between "
                f"items {index - 1} and {index}"
            )
        at = start + len(body)
        spans.append(Step(start, at))
    return tuple(spans)


def _without_tags(text: str) -> str:
    for tag in ("<think>", "</think>", "<answer>"):
        text = text.replace(tag, "")
    return text


def relabel(trace: Trace, **changes: Any) -> Trace:
    """A copy of ``trace`` with some fields replaced."""
    return replace(trace, **changes)


def read_traces(
    path: str | Path,
    *,
    allow_empty: bool = False,
    skip_bad: list[str] | None = None,
    check: Callable[[Trace], None] = lambda trace: None,
) -> list[Trace]:
    """Read a JSON-lines file of traces.

    Args:
        path: the file.
        allow_empty: accept a file without rows.
        skip_bad: when given, malformed lines are left out and their messages appended here instead of raised.
        check: raises RairlError for a trace that the reader can't use; its message gets file and line.

    Raises:
        RairlError: naming file, line and field of the first malformed line; for a missing or empty file; for ids that
            occur twice.
    """
    path = Path(path)
    traces: list[Trace] = []
    seen: dict[str, int] = {}
    for number, line in read_lines(path):
        try:
            trace = Trace.from_json(parse_object(line))
            check(trace)
            if trace.id in seen:
                raise RairlError(
                    f"field 'id': {trace.id!r} already occurs on line {seen[trace.id]}; ids must be unique"
                )
        except RairlError as error:
            message = f"{path}, line {number}: {error}"
            if skip_bad is None:
                raise RairlError(message) from error
            skip_bad.append(message)
            continue
        seen[trace.id] = number
        traces.append(trace)
    if not traces and not allow_empty:
        raise no_rows(path)
    return traces


def write_traces(path: str | Path, traces: Iterable[Trace]) -> None:
    """Write traces as JSON lines, atomically: the file appears whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    with draft.open("w", encoding="utf-8") as file:
        for trace in traces:
            file.write(json.dumps(trace.to_json(), ensure_ascii=False) + "\n")
    draft.replace(path)


def to_dataset(traces: Sequence[Trace]) -> datasets.Dataset:
    """Traces as a Hugging Face dataset; ``meta`` becomes a JSON string, since its keys differ from row to row."""
    from datasets import Dataset

    rows = [{**trace.to_json(), "meta": json.dumps(trace.meta)} for trace in traces]
    columns = sorted({key for row in rows for key in row})
    return Dataset.from_dict({name: [row.get(name) for row in rows] for name in columns})


def from_dataset(dataset: datasets.Dataset) -> list[Trace]:
    """Inverse of :func:`to_dataset`; any dataset with the fields of :class:`Trace` will do."""
    traces = []
    for row in dataset:
        values = {key: value for key, value in row.items() if value is not None}
        if isinstance(values.get("meta"), str):
            values["meta"] = json.loads(values["meta"])
        traces.append(Trace.from_json(values))
    return traces


def require_unique_ids(traces: Sequence[Trace], what: str) -> None:
    """Raise RairlError naming the first id that occurs twice in ``traces``."""
    doubles = [key for key, count in Counter(trace.id for trace in traces).items() if count > 1]
    if doubles:
        raise RairlError(f"{what}: id {doubles[0]!r} occurs more than once; ids must be unique")
