"""A user's own trace files as splits."""

from __future__ import annotations

from rairl.core.dataset_params import FileDataset
from rairl.core.errors import RairlError
from rairl.core.traces import Trace, read_traces, relabel
from rairl.datasets import Splits
from rairl.text.answers import answers_match, normalise_answer, options_of, read_answer
from rairl.text.segment import compose, guess, segment


def build(params: FileDataset) -> Splits:
    """The four files of ``params``; demonstrations in the canonical form.

    Raises:
        RairlError: naming file, line and field of a malformed row, and a demonstration without a solution.
    """
    traces = {name: read_traces(getattr(params, name)) for name in ("demos", "prompts", "dev", "test")}
    for name in ("demos", "dev"):
        traces[name] = [expert(trace, getattr(params, name)) for trace in traces[name]]
    return Splits(traces, {"files": {name: getattr(params, name) for name in traces}})


def expert(trace: Trace, where: str) -> Trace:
    """The trace in the canonical form, with the steps it came with or, when it came without, those its text shows.

    The answer is the trace's own, else the one marked in its text, else ``gold``; ``gold`` defaults to the answer, as
    demonstrations are taken to be right.

    Raises:
        RairlError: naming ``where`` and the trace, when it has no text, no step or no answer.
    """
    if not trace.text.strip():
        raise RairlError(f"{where}: trace {trace.id!r} has no text; a demonstration needs a worked solution")
    spans = trace.steps or segment(trace.text, guess(trace.text))
    steps = [trace.text[span.start : span.end] for span in spans]
    answer = trace.answer or read_answer(trace.text, trace.problem) or trace.gold
    if answer is None:
        raise RairlError(
            f"{where}: trace {trace.id!r} has no answer; add a field 'answer' or 'gold', or mark it in the text as "
            "<answer>42</answer>"
        )
    if not options_of(trace.problem):  # there it is a letter, and written as one
        answer = normalise_answer(answer)
    if not trace.steps:
        steps = [step for step in steps if not _only_answer(step)] or steps
    try:
        text, canonical = compose(steps, answer)
    except RairlError as error:
        raise RairlError(f"{where}: trace {trace.id!r}: {error}") from error
    gold = trace.gold or answer
    return relabel(
        trace,
        text=text,
        steps=canonical,
        answer=answer,
        gold=gold,
        correct=answers_match(answer, gold),
        source=trace.source or "expert",
    )


def _only_answer(step: str) -> bool:
    """Whether a step is nothing but the answer's line (``#### 42``, ``A: 42``), which belongs into the answer block."""
    return step.startswith(("####", "A:"))
