"""Commands on a user's own files: check, score, rerank, localise, view, serve, export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rairl.cli.app import PARAMS, app, say, write_rows, write_text

if TYPE_CHECKING:
    from rairl.core.stats import Estimate
    from rairl.core.traces import Trace
    from rairl.models.reward import RewardModel

FILE = Annotated[Path, typer.Argument(help="traces as JSON lines; see docs/own-candidates.md", metavar="FILE.jsonl")]
REWARD = Annotated[
    str, typer.Option("--reward", help="folder, models:/name@alias in the registry, or owner/name@commit on the hub")
]
OUTPUT = Annotated[Path | None, typer.Option("--output", "-o", help="write JSON lines here instead of to the screen")]
FORMAT = Annotated[
    str,
    typer.Option(
        "--format", help="auto (by the fields of the first row), rairl, processbench, mr_ben, bigbench_mistake"
    ),
]
SKIP_BAD = Annotated[bool, typer.Option("--skip-bad", help="report malformed lines and go on without them")]

PIECE = 256
"""Traces of a user's file that are held at a time, where they can be scored piece by piece."""


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="demonstrations as JSON lines", metavar="DEMOS.jsonl")],
    base: Annotated[Path | None, typer.Option(help="folder of the base model, to count in its tokens")] = None,
    split: Annotated[Path | None, typer.Option(help="divide the usable rows into demos, prompts, dev and test")] = None,
    params: PARAMS = Path("params.yaml"),
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="write them into a copy of --params, ready for a run")
    ] = None,
) -> None:
    """Explain what your demonstrations are like and what is wrong with them; print the parameters they need.

    Ends with 1 if a line would stop `prepare`. See docs/own-demonstrations.md.
    """
    from rairl.core.yaml_files import dump_yaml
    from rairl.preflight.check_data import check as look
    from rairl.preflight.check_data import complete, section
    from rairl.preflight.check_data import split as divide

    found = look(file, base)
    print(f"{file}: {found.facts[0]}", *(f"  {fact}" for fact in found.facts[1:]), sep="\n")
    for title, lines in {"look at": found.problems, "`prepare` would stop at": found.refused}.items():
        if lines:
            print(f"{title}:", *(f"  - {line}" for line in lines[:20]), sep="\n")
            if len(lines) > 20:
                print(f"  - and {len(lines) - 20} more")
    if found.traces:
        if split is not None:
            counts = divide(found, split)
            print(f"wrote {split}: {', '.join(f'{name} {count}' for name, count in counts.items())}")
        needed = section(found, file, split)
        missing = "" if split is not None else " (--split FOLDER makes the other three files of this one)"
        if output is None:
            print(f"put this into a copy of params.yaml{missing}:", dump_yaml(needed, sort_keys=False), sep="\n")
        else:
            write_text(output, complete(params, needed))
    if found.refused:
        raise typer.Exit(1)


@app.command()
def score(file: FILE, reward: REWARD, output: OUTPUT = None, form: FORMAT = "auto", skip_bad: SKIP_BAD = False) -> None:
    """Score your own traces: one row each with the trace's score and a score per step.

    Each line of FILE needs "id", "problem" and "text". "steps" (strings, or [start, end] character spans of the text)
    is optional: without it the steps are found by their tags, numbers, lines or sentences. Files of ProcessBench,
    MR-Ben and BIG-Bench-Mistake are read as they are.
    """
    from rairl.use.apply import score_pieces, score_rows
    from rairl.use.user_files import pieces, survey

    if not file.is_file():  # a pipe can be read only once
        write_rows(score_rows(*_own(file, reward, form, skip_bad)), output)
        return
    malformed = survey(file, form=form, skip_bad=skip_bad).left_out
    for message in malformed:
        say(f"left out: {message}")
    from rairl.use.load import load

    model = load(reward)
    found = survey(file, form=form, skip_bad=skip_bad, check=model.require_readable)
    for message in found.left_out:
        if message not in malformed:
            say(f"left out: {message}")
    _say_kept(file, found.form, len(found.lines), len(found.left_out))
    write_rows(score_pieces(pieces(found, PIECE), model, len(found.lines)), output)


@app.command()
def rerank(
    file: FILE, reward: REWARD, output: OUTPUT = None, form: FORMAT = "auto", skip_bad: SKIP_BAD = False
) -> None:
    """Rank your own candidates: one row per question, best candidate first.

    As for score; candidates of one question share "group" (or, without it, the problem's text). Where "correct" or
    "gold" is given, what the choice is worth is printed at the end, beside the choices that need no reward.
    """
    from rairl.report.labels import SELECTOR_LABELS
    from rairl.use.apply import choice_figures, rerank_rows

    traces, model = _own(file, reward, form, skip_bad)
    rows = list(rerank_rows(traces, model))
    write_rows(rows, output)
    figures = choice_figures(traces, rows, model.calibration)
    if figures:
        chosen = {"max": "the best score", "vote": "the weighted vote"}[model.calibration.selector]
        say(f"right answers over {figures['reward'].n} judged questions (chosen on dev: {chosen}):")
        for name, label in SELECTOR_LABELS.items():
            if name in figures:
                gain = figures.get(f"reward-{name}")
                say(f"  {label}: {figures[name]}" + ("" if gain is None else f", reward minus it {_signed(gain)}"))
        if "auroc" in figures:
            say(f"right above wrong candidates of a question (AUROC): {figures['auroc']}")


@app.command()
def localise(
    file: FILE,
    reward: REWARD,
    output: OUTPUT = None,
    html: Annotated[Path | None, typer.Option(help="write the traces as a page to look at, too")] = None,
    form: FORMAT = "auto",
    labels: Annotated[Path | None, typer.Option(help="true first errors, as `rairl view` lets a reviewer give")] = None,
    skip_bad: SKIP_BAD = False,
) -> None:
    """Point at the first wrong step of your own traces: one row each.

    As for score. "suspect" is the step that is wrong if one is; "first_error" is that step, or null where no step's
    score falls below the threshold that was chosen on held-out expert traces. Both count from 0. Where "first_error"
    (or "labelled" without one) is given, how often they are right is printed at the end.
    """
    from rairl.report.labels import LOCATOR_LABELS
    from rairl.use.apply import localise_rows, location_figures
    from rairl.use.review import traces_page, with_labels

    traces, model = _own(file, reward, form, skip_bad)
    if labels is not None:
        traces = with_labels(traces, labels)
    rows = list(localise_rows(traces, model))
    write_rows(rows, output)
    if html is not None:
        write_text(html, traces_page(traces, rows, model.calibration.locator, file.name))
    figures = location_figures(traces, rows, model.calibration.locator)
    if "reward.exact" in figures:
        say(f"first wrong step of {sum(trace.first_error is not None for trace in traces)} wrong traces, exact:")
        for name, label in LOCATOR_LABELS.items():
            if f"{name}.exact" in figures:
                gain = figures.get(f"reward-{name}.exact")
                told = "" if gain is None else f", reward minus it {_signed(gain)}"
                say(f"  {label}: {figures[f'{name}.exact']}{told}")
    for name in ("reward", "chance"):
        parts = {"f1": "F1", "acc_error": "erroneous", "acc_correct": "error-free"}
        found = [f"{words} {figures[f'{name}.{key}']}" for key, words in parts.items() if f"{name}.{key}" in figures]
        if found:
            say(f"with and without an error, {name}: {', '.join(found)}")


@app.command()
def view(
    file: FILE,
    reward: REWARD,
    output: Annotated[Path, typer.Option("--output", "-o", help="the page to write")] = Path("review.html"),
    form: FORMAT = "auto",
    skip_bad: SKIP_BAD = False,
) -> None:
    """Write a page on which an expert reviews your traces: one HTML file, which works without a network.

    Each step is coloured by its reward, the suspected one marked, other solutions of the problem beside it. The
    reviewer marks the true first wrong step, adds a comment, and downloads the labels for `rairl localise --labels`.
    """
    from rairl.use.apply import localise_rows
    from rairl.use.review import traces_page

    traces, model = _own(file, reward, form, skip_bad)
    rows = list(localise_rows(traces, model))
    write_text(output, traces_page(traces, rows, model.calibration.locator, file.name, review=True))


@app.command()
def serve(
    reward: Annotated[str, typer.Argument(help="folder, models:/name@alias, or owner/name@commit of the hub")],
    host: Annotated[str, typer.Option(help="address to listen at; 0.0.0.0 for all")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen at")] = 8080,
) -> None:
    """Serve a reward model over HTTP: POST /invocations, GET /health. It asks nobody who they are.

    A request is {"inputs": [{"problem": ..., "text": ...}, ...]}; see docs/own-candidates.md for fields and limits.
    """
    from rairl.use.load import load
    from rairl.use.server import serve as listen

    model = load(reward)
    say(f"serving {reward} at http://{host}:{port}  (Ctrl-C ends it)")
    listen(model, host, port)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="folder, models:/name@alias, or owner/name@commit of the hub")],
    folder: Annotated[Path, typer.Argument(help="the folder to make")],
) -> None:
    """Copy a reward model into a folder that needs nothing else: weights, tokenizer, parameters, calibration, card.

    It is loaded once before the folder gets its name. Share it as it is, or upload it to the hub.
    """
    from rairl.use.load import export as copy

    copy(model, folder)
    say(f"wrote {folder}")


def _own(file: Path, reward: str, form: str, skip_bad: bool) -> tuple[list[Trace], RewardModel]:
    """The file's traces and the model; the file is checked before the model is loaded, and its lengths after."""
    from rairl.use.user_files import read_own, require

    own = read_own(file, form=form, skip_bad=skip_bad)
    for message in own.left_out:
        say(f"left out: {message}")
    from rairl.use.load import load

    model = load(reward)
    kept = require(own, model.require_readable, skip_bad=skip_bad)
    for message in kept.left_out[len(own.left_out) :]:
        say(f"left out: {message}")
    _say_kept(file, kept.form, len(kept.traces), len(kept.left_out))
    return kept.traces, model


def _say_kept(file: Path, form: str, kept: int, left_out: int) -> None:
    if left_out:
        say(f"left out {left_out} of {left_out + kept} lines")
    say(f"{file}: {kept} traces in the format {form}")


def _signed(figure: Estimate) -> str:
    return f"{figure.value:+.3f} [{figure.low:+.3f}, {figure.high:+.3f}]"
