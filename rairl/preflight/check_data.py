"""What a file of demonstrations is like, in words, before anything is trained on it: ``rairl check``."""

from __future__ import annotations

import random
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rairl.core.errors import RairlError
from rairl.core.jsonl import parse_object, read_lines
from rairl.core.params import load_params, parse_params
from rairl.core.traces import Trace, read_traces, write_traces
from rairl.core.yaml_files import dump_yaml, read_yaml
from rairl.datasets import question_key
from rairl.datasets.files import expert
from rairl.text.answers import extract_answer
from rairl.text.segment import guess

_ALIASES = {
    "problem": ("question", "prompt", "input", "instruction", "query"),
    "text": ("solution", "response", "completion", "output", "rationale", "reasoning", "cot", "answer"),
    "id": ("uid", "uuid", "key", "index", "idx", "question_id"),
}
"""Names that other files give to our fields."""
_MARKS = {
    "calculator annotations such as <<2*3=6>>; remove them, or the model learns to write them": r"<<[^<>\n]*>>",
    "chat markers such as <|im_start|>; remove them, the model's own chat template is put around the problem": (
        r"<\|[\w ]+\|>|\[/?INST\]"
    ),
    "HTML tags or entities such as <br> or &amp;; turn them into plain text": r"</?(?:br|p|div|span|b|i|sup|sub)\s*/?>|"
    r"&(?:amp|lt|gt|quot|nbsp|#\d+);",
    "text decoded with the wrong encoding (Ã©, â€™, �); read the source as UTF-8 again": r"Ã[\x80-\xbf]|â€|\ufffd",
    "control characters; remove them": r"[\x00-\x08\x0b\x0c\x0e-\x1f]",
}
"""What should not be in a text, in words, and how it is found."""
FEW = 100
"""Below this many demonstrations a reward is a guess."""
CHARACTERS_PER_TOKEN = 3
"""Of English prose and sums together; a low guess, so that lengths are rather over- than underestimated."""


@dataclass
class Findings:
    """What was found in a file.

    Attributes:
        traces: the rows that ``prepare`` takes, as they are in the file.
        solved: the same in the canonical form, with steps and answer.
        facts: what the file is like, one line each.
        problems: what is or may be wrong, one line each.
        refused: one message per row that ``prepare`` would stop at.
        new_tokens: tokens that the longest solution needs, with a quarter to spare.
    """

    traces: list[Trace] = field(default_factory=list)
    solved: list[Trace] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    new_tokens: int = 0


def check(path: Path, base: Path | None = None) -> Findings:
    """Look at a file of demonstrations.

    Args:
        path: the file.
        base: folder of the base model; lengths are then counted in its tokens and held against what it can read.

    Raises:
        RairlError: when the file is no text, or not even one JSON object a line.
    """
    found = Findings()
    rows = _rows(path)
    traces = read_traces(path, allow_empty=True, skip_bad=found.refused)
    for trace in traces:
        try:
            found.solved.append(expert(trace, str(path)))
            found.traces.append(trace)
        except RairlError as error:
            found.refused.append(str(error))
    found.problems += _renames(rows)
    found.facts.append(
        f"{len(rows)} rows, {len(found.traces)} usable, about {len({question_key(t.problem) for t in traces})} problems"
    )
    if found.traces:
        _steps(found)
        _answers(found)
        _doubles(found)
        _lengths(found, base)
        _format(found)
        if len(found.traces) < FEW:
            found.problems.append(
                f"{len(found.traces)} demonstrations are few: enough to try everything out, but a reward wants some "
                "hundreds"
            )
    return found


def _rows(path: Path) -> list[dict[str, object]]:
    """The objects of the file, malformed lines left out (``read_traces`` names those)."""
    lines = [line for _, line in read_lines(path)]
    if lines and lines[0].lstrip().startswith("["):
        raise RairlError(
            f"{path} is one JSON array; one object per line is needed: jq -c '.[]' {path} > {path.stem}-lines.jsonl"
        )
    rows = []
    for line in lines:
        with suppress(RairlError):
            rows.append(parse_object(line))
    if not rows:
        raise RairlError(
            f"{path} holds no JSON object ({len(lines)} lines); one per line is needed, see docs/own-demonstrations.md"
        )
    return rows


def _renames(rows: Sequence[dict[str, object]]) -> list[str]:
    """Fields that seem to be ours under other names."""
    names = Counter(name for row in rows for name in row)
    hints = []
    for ours, others in _ALIASES.items():
        theirs = next((name for name in others if names[name] > len(rows) / 2), None)
        if names[ours] == 0 and theirs is not None:
            hints.append(f"no row has the field {ours!r}; {theirs!r} is probably meant: rename it")
        elif names[ours] == 0:
            hints.append(f"no row has the field {ours!r}" + ("; number the rows" if ours == "id" else ""))
    if names["messages"] or names["conversations"]:
        hints.append("the rows are conversations: the user's message belongs into 'problem', the reply into 'text'")
    return hints


def _steps(found: Findings) -> None:
    counts = [len(trace.steps) for trace in found.solved]
    given = sum(bool(trace.steps) for trace in found.traces)
    ways = Counter(guess(trace.text) for trace in found.traces if not trace.steps)
    how = ", ".join([*([f"given in {given}"] if given else []), *(f"by {way} in {n}" for way, n in ways.most_common())])
    found.facts.append(f"steps: {_spread(counts)} a solution ({how})")
    single = [trace.id for trace in found.solved if len(trace.steps) == 1]
    if single:
        found.problems.append(
            f"{_some(single)} of a single step: nothing to locate in; give 'steps', or write one step a line"
        )


def _answers(found: Findings) -> None:
    ways = Counter(
        "a field 'answer'" if trace.answer else "the text" if extract_answer(trace.text) else "the field 'gold'"
        for trace in found.traces
    )
    found.facts.append("answers: " + ", ".join(f"{count} from {way}" for way, count in ways.most_common()))
    wrong = [trace.id for trace in found.solved if trace.correct is False]
    if wrong:
        found.problems.append(f"{_some(wrong)} whose answer is not its own 'gold': a demonstration should be right")
    long = [trace.id for trace in found.solved if len(trace.answer or "") > 60]
    if long:
        found.problems.append(f"{_some(long)} with an answer of more than 60 characters; is it the answer alone?")


def _doubles(found: Findings) -> None:
    problems = Counter(question_key(trace.problem) for trace in found.traces)
    texts = Counter((question_key(trace.problem), trace.text.strip()) for trace in found.traces)
    again = sum(count - 1 for count in texts.values())
    if again:
        found.problems.append(f"{again} rows repeat another row's problem and solution; they count more than the rest")
    several = sum(count > 1 for count in problems.values())
    if several:
        found.facts.append(f"{several} problems have more than one solution")


def _lengths(found: Findings, base: Path | None) -> None:
    texts = [trace.text for trace in found.solved]
    found.facts.append(f"characters: {_spread([len(text) for text in texts])} a solution")
    if base is None:
        longest = max(len(text) for text in texts) // CHARACTERS_PER_TOKEN
        found.facts.append(f"tokens: about {longest} at most; --base counts them with your model's tokenizer")
    else:
        own, whole, limit = _tokens(found.solved, base)
        longest = max(own)
        found.facts.append(f"tokens: {_spread(own)} a solution; {base} reads {limit or 'any number'} with the problem")
        over = [trace.id for trace, count in zip(found.solved, whole, strict=True) if limit and count > limit]
        if over:
            found.problems.append(f"{_some(over)} longer than the {limit} tokens that {base} reads; shorten or drop")
    found.new_tokens = -(-longest * 5 // 4)


def _tokens(traces: Sequence[Trace], base: Path) -> tuple[list[int], list[int], int | None]:
    """Tokens of each solution, of problem and solution together, and how many the model reads."""
    from transformers import AutoConfig, AutoTokenizer

    from rairl.models.reading import encode

    if not (base / "config.json").is_file():
        raise RairlError(f"{base} holds no model (config.json is missing); name the folder of a base model")
    tokenizer = AutoTokenizer.from_pretrained(base)
    limit = getattr(AutoConfig.from_pretrained(base), "max_position_embeddings", None)
    encoded = encode(tokenizer, traces)
    return [len(item.ids) - item.prompt_tokens for item in encoded], [len(item.ids) for item in encoded], limit


def _format(found: Findings) -> None:
    for words, pattern in _MARKS.items():
        hit = [
            trace.id for trace in found.traces if re.search(pattern, trace.problem) or re.search(pattern, trace.text)
        ]
        if hit:
            found.problems.append(f"{_some(hit)} with {words}")
    scripts = Counter(_script(trace.problem + trace.text) for trace in found.traces)
    if len(scripts) > 1:
        shares = ", ".join(f"{name} {count}" for name, count in scripts.most_common())
        found.problems.append(f"more than one writing system ({shares}); a reward takes a rare one for a mistake")


def _script(text: str) -> str:
    """The writing system of most letters, by the first word of their Unicode names."""
    letters = Counter(unicodedata.name(sign, "OTHER").split()[0] for sign in text[:2000] if sign.isalpha())
    return letters.most_common(1)[0][0].title() if letters else "None"


def _spread(values: Sequence[int]) -> str:
    return f"{sum(values) / len(values):.1f} on average ({min(values)} to {max(values)})"


def _some(ids: Sequence[str]) -> str:
    """``3 solutions (a, b, c)``, at most three by name."""
    names = ", ".join(ids[:3]) + (", …" if len(ids) > 3 else "")
    return f"{len(ids)} solution{'s' if len(ids) > 1 else ''} ({names})"


def split(found: Findings, folder: Path, *, seed: int = 0) -> dict[str, int]:
    """Make the four files that training wants of one: by problem, 80 % demos, 10 % dev, 10 % test.

    ``prompts`` are the demonstrations' problems without their solutions, ``test`` problems with their answers.

    Returns:
        Rows of each file.

    Raises:
        RairlError: with fewer than ten problems.
    """
    keys = sorted({question_key(trace.problem) for trace in found.traces})
    if len(keys) < 10:
        raise RairlError(f"{len(keys)} usable problems can't be split into demos, dev and test; ten are the least")
    random.Random(seed).shuffle(keys)
    tenth = len(keys) // 10
    place = {key: "test" if at < tenth else "dev" if at < 2 * tenth else "demos" for at, key in enumerate(keys)}
    files: dict[str, list[Trace]] = {"demos": [], "dev": [], "prompts": [], "test": []}
    asked = set()
    for trace, solved in zip(found.traces, found.solved, strict=True):
        key = question_key(trace.problem)
        if place[key] != "test":
            files[place[key]].append(trace)
        if place[key] != "dev" and key not in asked:
            asked.add(key)
            name = "test" if place[key] == "test" else "prompts"
            files[name].append(Trace(id=trace.id, problem=trace.problem, gold=solved.gold))
    for name, traces in files.items():
        write_traces(folder / f"{name}.jsonl", traces)
    return {name: len(traces) for name, traces in files.items()}


def section(found: Findings, demos: Path, folder: Path | None) -> dict[str, dict[str, Any]]:
    """The sections of a parameter file that this data needs, as far as it needs them.

    Args:
        folder: of the other three files; by default that of ``demos``.
    """
    names = {"demos": demos if folder is None else folder / "demos.jsonl"}
    names |= {name: (folder or demos.parent) / f"{name}.jsonl" for name in ("prompts", "dev", "test")}
    files = {name: str(path) for name, path in names.items()}
    return {"dataset": {"name": "file", **files}, "policy": {"max_new_tokens": found.new_tokens}}


def complete(below: Path, needed: dict[str, dict[str, Any]]) -> str:
    """A parameter file for this data: that of ``below`` with another dataset and the room its solutions need.

    Args:
        needed: as :func:`section` gives it.

    Raises:
        RairlError: for a file ``below`` that is no parameter file, or goes with no data of your own.
    """
    load_params(below)
    values = read_yaml(below)
    values |= {"dataset": needed["dataset"], "policy": values.get("policy", {}) | needed["policy"]}
    parse_params(values, source=f"{below} with your data")
    return dump_yaml(values, sort_keys=False)
