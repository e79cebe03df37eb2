"""The command line: the stages, whole runs, and the reward on a user's own traces.

Only the standard library, typer and the parameter schema are imported at the top, so that ``--help`` answers at once.
"""

from __future__ import annotations

import errno
import inspect
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.cli import app as pipeline_app
from rairl.errors import RairlError
from rairl.params import load_params, parse_params
from rairl.processes import end_quickly
from rairl.stages import ABOUT, INPUTS, OUTPUTS, STAGES, run_all, run_stage

if TYPE_CHECKING:
    from rairl.models.reward import RewardModel
    from rairl.stats import Estimate
    from rairl.traces import Trace

app = typer.Typer(
    help="Learn a process-level reward from expert reasoning traces; train, rerank and localise with it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
stage_app = typer.Typer(no_args_is_help=True, help="Run one stage; its inputs and outputs have default places.")
app.add_typer(stage_app, name="stage")
app.add_typer(pipeline_app, name="pipeline")
registry_app = typer.Typer(no_args_is_help=True, help="The registered reward models: look at them, compare, promote.")
app.add_typer(registry_app, name="registry")

PARAMS = Annotated[Path, typer.Option("--params", help="parameter file")]
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

STORE = Annotated[Path, typer.Option("--dir", help="folder of a run, if MLFLOW_TRACKING_URI names no server")]
NAME = Annotated[str, typer.Option("--name", help="tracking.registered_model of the parameters")]

PIECE = 256
"""Traces of a user's file that are held at a time, where they can be scored piece by piece."""

PRESETS = Path(__file__).parents[1] / "presets"


def _stage_command(name: str) -> Callable[..., None]:
    """A command with one option per path of the stage."""

    def command(params: Path, root: Path, **paths: Path | None) -> None:
        figures = run_stage(
            name, load_params(params), root=root, **{arg: path for arg, path in paths.items() if path is not None}
        )
        _say(f"{name}: finished in {figures[f'time.{name}'].value:.1f} s")

    options: dict[str, tuple[Any, Any]] = {
        "params": (Path, typer.Option(Path("params.yaml"), help="parameter file")),
        "root": (Path, typer.Option(Path("."), help="folder of the default paths")),
    }
    for kind, layout in (("input", INPUTS), ("output", OUTPUTS)):
        for arg, default in layout[name].items():
            flag = "--" + arg.replace("_", "-")
            options[arg] = (
                Path | None,
                typer.Option(None, flag, help=f"{kind}; default {default}", show_default=False),
            )
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(arg, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=option)
            for arg, (kind, option) in options.items()
        ]
    )
    command.__annotations__ = {arg: kind for arg, (kind, _) in options.items()}
    command.__doc__ = ABOUT[name]
    return command


for _name in STAGES:
    stage_app.command(_name)(_stage_command(_name))


@app.command()
def run(
    params: PARAMS = Path("params.yaml"),
    folder: Annotated[Path, typer.Option("--dir", help="folder of all outputs")] = Path("."),
    fresh: Annotated[bool, typer.Option("--fresh", help="run every stage again")] = False,
) -> None:
    """Run all stages in order without DVC; the same command again resumes an interrupted run."""
    from rairl.preflight import extras

    loaded = load_params(params)
    for found in extras(loaded):
        if not found.good:
            raise RairlError(f"{found.text}, which these parameters need: {found.remedy}")
    run_all(loaded, root=folder, fresh=fresh, announce=_say)
    _say(f"report: {folder / 'report' / 'report.html'}")


@app.command()
def study(
    files: Annotated[list[Path], typer.Argument(help="study files; see studies/", metavar="STUDY.yaml...")],
    params: PARAMS = Path("params.yaml"),
    folder: Annotated[Path, typer.Option("--dir", help="folder of all runs")] = Path("runs/studies"),
    jobs: Annotated[int | None, typer.Option(min=1, help="processes at once; by default one per core")] = None,
    docs: Annotated[Path | None, typer.Option(help="write the tables into this Markdown file, too")] = None,
) -> None:
    """Run studies: seeds and variants of the parameters, tables over all; the same command resumes and repeats nothing.

    Runs share every stage that their parameters don't tell apart, within a study and between the studies of a folder.
    """
    from rairl.processes import cores
    from rairl.study import load_studies, run_studies

    for written in run_studies(load_studies(files, params), folder, jobs=jobs or cores(), docs=docs):
        _say(f"wrote {written}")


@app.command()
def params(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="dataset=, model=, method= (reward=), and any KEY=VALUE", metavar="KEY=VALUE...", show_default=False
        ),
    ] = None,
    preset: Annotated[str | None, typer.Option(help="print this preset")] = None,
    check: Annotated[Path | None, typer.Option(help="check this parameter file")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="where composed parameters go")] = Path("params.yaml"),
    pin: Annotated[
        bool, typer.Option("--pin", help="fill in the hub's present commit where a revision is missing")
    ] = False,
) -> None:
    """Write parameters composed from presets, print one, or check a file; without anything, list the presets.

    rairl params dataset=gsm8k model=qwen3-4b method=interval policy.kl=0.05 writes params.yaml from
    presets/{dataset,model,method}/ and the changes given. A later word wins.
    """
    if words:
        import yaml

        from rairl import presets

        values = presets.compose(words)
        parse_params(values, source=" ".join(words))  # a mistake is told before the hub is asked
        values = presets.pin(values) if pin else values
        digest = parse_params(values).digest()
        _write_text(output, yaml.safe_dump(values, sort_keys=False))
        _say(f"{output} is valid (digest {digest})")
        return
    names = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if check is not None:
        digest = load_params(check).digest()
        _say(f"{check} is valid (digest {digest})")
    elif preset is None:
        from rairl.presets import AXES, OPTIONAL
        from rairl.presets import names as choices

        _say("whole files, printed by `rairl params --preset NAME`:")
        print("\n".join(names))
        _say("parts that compose, as in `rairl params dataset=gsm8k model=qwen3-4b method=interval`:")
        for axis in sorted(AXES):
            _say(f"{axis}: {', '.join(choices(axis))}{' (may be left out)' * (axis in OPTIONAL)}")
    elif preset not in names:
        from rairl.presets import unknown

        raise unknown(f"preset {preset!r}", preset, names)
    else:
        print((PRESETS / f"{preset}.yaml").read_text(encoding="utf-8"), end="")


@app.command()
def paper(
    cell: Annotated[str, typer.Argument(help="of the published table, gsm8k/qwen3-4b/interval say", metavar="CELL")],
    folder: Annotated[Path, typer.Option("--dir", help="folder of the finished run, with its params.yaml")] = Path("."),
    page: Annotated[Path, typer.Option(help="the page with the table")] = Path("docs/results.md"),
) -> None:
    """Fill in a row of the published table from a finished run; `make paper` runs the cell first."""
    from rairl.paper import fill, present_commit

    figures = folder / "metrics.json"
    if not figures.is_file():
        raise RairlError(f"{figures} does not exist; run the cell first, with `make paper CELL={cell}`")
    params = load_params(folder / "params.yaml")
    read = json.loads(figures.read_text(encoding="utf-8"))
    text = fill(page.read_text(encoding="utf-8"), cell, read, params, present_commit(Path(__file__).parent))
    _write_text(page, text)


@app.command()
def plan(
    params: PARAMS = Path("params.yaml"),
    gpu: Annotated[
        str | None, typer.Option(help="h100, h200, a100, l40s or 'rtx 4090'; else the one found here")
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="how many of them")] = 1,
) -> None:
    """Say what a run needs before it is paid for: parameters, memory per GPU, tokens, hours; fail if it can't fit."""
    from rairl.preflight import find_gpu, needs

    found, name = find_gpu(gpu)
    lines, problem = needs(load_params(params), found, gpus)
    print("\n".join([f"on {gpus} x {name}, {found.memory / 1e9:.0f} GB each", *lines]))
    if problem is not None:
        raise RairlError(problem)


@app.command()
def doctor(
    params: PARAMS = Path("params.yaml"),
    folder: Annotated[Path, typer.Option("--dir", help="folder of all outputs")] = Path("."),
) -> None:
    """Check GPU, CUDA, disk, versions, hub access and the MLflow server for a run; say what to do about each."""
    from rairl.preflight import doctor as findings

    bad = 0
    for finding in findings(load_params(params), folder):
        bad += not finding.good
        print(f"{'ok  ' if finding.good else 'MEND'} {finding.text}" + ("" if finding.good else f": {finding.remedy}"))
    if bad:
        raise RairlError(f"{bad} of these need mending")


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
    import yaml

    from rairl.check import check as look
    from rairl.check import complete, section
    from rairl.check import split as divide

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
            print(f"put this into a copy of params.yaml{missing}:", yaml.safe_dump(needed, sort_keys=False), sep="\n")
        else:
            _write_text(output, complete(params, needed))
    if found.refused:
        raise typer.Exit(1)


@app.command()
def score(file: FILE, reward: REWARD, output: OUTPUT = None, form: FORMAT = "auto", skip_bad: SKIP_BAD = False) -> None:
    """Score your own traces: one row each with the trace's score and a score per step.

    Each line of FILE needs "id", "problem" and "text". "steps" (strings, or [start, end] character spans of the text)
    is optional: without it the steps are found by their tags, numbers, lines or sentences. Files of ProcessBench,
    MR-Ben and BIG-Bench-Mistake are read as they are.
    """
    from rairl.evaluate.apply import score_pieces, score_rows
    from rairl.evaluate.own import pieces, survey

    if not file.is_file():  # a pipe can be read only once
        _write(score_rows(*_own(file, reward, form, skip_bad)), output)
        return
    malformed = survey(file, form=form, skip_bad=skip_bad).left_out
    for message in malformed:
        _say(f"left out: {message}")
    from rairl.use.load import load_reward

    model = load_reward(reward)
    found = survey(file, form=form, skip_bad=skip_bad, check=model.require_readable)
    for message in found.left_out:
        if message not in malformed:
            _say(f"left out: {message}")
    _say_kept(file, found.form, len(found.lines), len(found.left_out))
    _write(score_pieces(pieces(found, PIECE), model, len(found.lines)), output)


@app.command()
def rerank(
    file: FILE, reward: REWARD, output: OUTPUT = None, form: FORMAT = "auto", skip_bad: SKIP_BAD = False
) -> None:
    """Rank your own candidates: one row per question, best candidate first.

    As for score; candidates of one question share "group" (or, without it, the problem's text). Where "correct" or
    "gold" is given, what the choice is worth is printed at the end, beside the choices that need no reward.
    """
    from rairl.evaluate.apply import choice_figures, rerank_rows
    from rairl.evaluate.labels import SELECTOR_LABELS

    traces, model = _own(file, reward, form, skip_bad)
    rows = list(rerank_rows(traces, model))
    _write(rows, output)
    figures = choice_figures(traces, rows, model.calibration)
    if figures:
        chosen = {"max": "the best score", "vote": "the weighted vote"}[model.calibration.selector]
        _say(f"right answers over {figures['reward'].n} judged questions (chosen on dev: {chosen}):")
        for name, label in SELECTOR_LABELS.items():
            if name in figures:
                gain = figures.get(f"reward-{name}")
                _say(f"  {label}: {figures[name]}" + ("" if gain is None else f", reward minus it {_signed(gain)}"))
        if "auroc" in figures:
            _say(f"right above wrong candidates of a question (AUROC): {figures['auroc']}")


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
    from rairl.evaluate.apply import localise_rows, location_figures, traces_page, with_labels
    from rairl.evaluate.labels import LOCATOR_LABELS

    traces, model = _own(file, reward, form, skip_bad)
    if labels is not None:
        traces = with_labels(traces, labels)
    rows = list(localise_rows(traces, model))
    _write(rows, output)
    if html is not None:
        _write_text(html, traces_page(traces, rows, model.calibration.locator, file.name))
    figures = location_figures(traces, rows, model.calibration.locator)
    if "reward.exact" in figures:
        _say(f"first wrong step of {sum(trace.first_error is not None for trace in traces)} wrong traces, exact:")
        for name, label in LOCATOR_LABELS.items():
            if f"{name}.exact" in figures:
                gain = figures.get(f"reward-{name}.exact")
                told = "" if gain is None else f", reward minus it {_signed(gain)}"
                _say(f"  {label}: {figures[f'{name}.exact']}{told}")
    for name in ("reward", "chance"):
        parts = {"f1": "F1", "acc_error": "erroneous", "acc_correct": "error-free"}
        found = [f"{words} {figures[f'{name}.{key}']}" for key, words in parts.items() if f"{name}.{key}" in figures]
        if found:
            _say(f"with and without an error, {name}: {', '.join(found)}")


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
    from rairl.evaluate.apply import localise_rows, traces_page

    traces, model = _own(file, reward, form, skip_bad)
    rows = list(localise_rows(traces, model))
    _write_text(output, traces_page(traces, rows, model.calibration.locator, file.name, review=True))


@app.command()
def serve(
    reward: Annotated[str, typer.Argument(help="folder, models:/name@alias, or owner/name@commit of the hub")],
    host: Annotated[str, typer.Option(help="address to listen at; 0.0.0.0 for all")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen at")] = 8080,
) -> None:
    """Serve a reward model over HTTP: POST /invocations, GET /health. It asks nobody who they are.

    A request is {"inputs": [{"problem": ..., "text": ...}, ...]}; see docs/own-candidates.md for fields and limits.
    """
    from rairl.server import serve as listen
    from rairl.use.load import load_reward

    model = load_reward(reward)
    _say(f"serving {reward} at http://{host}:{port}  (Ctrl-C ends it)")
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
    _say(f"wrote {folder}")


@app.command()
def summary(folder: Annotated[Path, typer.Option("--dir", help="folder of a finished run")] = Path(".")) -> None:
    """Print the headline figures of a finished run and where the report lies."""
    from rich.console import Console

    from rairl.evaluate.report import summary_table

    path = folder / "metrics.json"
    if not path.exists():
        raise RairlError(f"{path} does not exist; run `make repro`, or `rairl run --dir {folder}`, first")
    Console().print(summary_table(json.loads(path.read_text(encoding="utf-8"))))
    here = "make ui" if folder == Path(".") else f"rairl ui --dir {folder}"
    print(f"report: {folder / 'report' / 'report.html'}\nMLflow: {here}")


@app.command()
def promote(
    params: PARAMS = Path("params.yaml"),
    folder: Annotated[Path, typer.Option("--dir", help="folder of the finished run")] = Path("."),
) -> None:
    """Make the run's best registered reward champion if it beats the present one on dev; the rairl stage does, too."""
    from rairl.evaluate.calibrate import CRITERION
    from rairl.tracking import data_tag
    from rairl.tracking import promote as decide

    card = folder / "data" / "card.json"
    if not card.is_file():
        raise RairlError(f"{card} does not exist; name the folder of a finished run with --dir")
    print(decide([load_params(params)], data=data_tag(card), criterion=CRITERION, root=folder).text)


@registry_app.command("list")
def registry_list(name: NAME = "rairl-reward", folder: STORE = Path(".")) -> None:
    """All versions, newest first: alias, dev score, training step, data version, digest of the parameters, commit."""
    from rich.console import Console

    from rairl.registry import read_versions, versions_table

    Console().print(versions_table(read_versions(name, folder)))


@registry_app.command("show")
def registry_show(
    which: Annotated[str, typer.Argument(help="version or alias", metavar="VERSION")] = "champion",
    name: NAME = "rairl-reward",
    folder: STORE = Path("."),
) -> None:
    """All that is known of one version: where it comes from, its dev scores, every parameter."""
    from rairl.registry import description, find, read_versions

    print(description(find(read_versions(name, folder), which)))


@registry_app.command("diff")
def registry_diff(
    first: Annotated[str, typer.Argument(help="version or alias")],
    second: Annotated[str, typer.Argument(help="version or alias")],
    name: NAME = "rairl-reward",
    folder: STORE = Path("."),
) -> None:
    """What tells two versions apart: data, commit, step, parameters and dev scores that differ."""
    from rairl.registry import difference, find, read_versions

    versions = read_versions(name, folder)
    rows = difference(find(versions, first), find(versions, second))
    print("\n".join(f"{key}: {old} -> {new}" for key, (old, new) in rows.items()) or "no difference")


@registry_app.command("promote")
def registry_promote(
    which: Annotated[str, typer.Argument(help="version or alias", metavar="VERSION")],
    name: NAME = "rairl-reward",
    folder: STORE = Path("."),
) -> None:
    """Make this version champion if it beats the present one on dev (`rairl promote` looks for a run's best itself)."""
    from rairl.evaluate.calibrate import CRITERION
    from rairl.registry import find, read_versions
    from rairl.tracking import promote_version

    version = find(read_versions(name, folder), which).number
    print(promote_version(name, version, criterion=CRITERION, root=folder).text)


@app.command()
def ui(
    folder: Annotated[Path, typer.Option("--dir", help="folder of a run")] = Path("."),
    port: Annotated[int, typer.Option(help="port on this machine")] = 5000,
) -> None:
    """Open the MLflow page of the folder's own store, or name the tracking server that is in use.

    It also prints where the prepared views are: runs with their figures, compared by charts, by stage; the rewards.
    """
    from rairl.tracking import tracking_uri, views

    uri = tracking_uri(folder)
    if uri.startswith("http"):
        print(f"runs are tracked at {uri}")
        return
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise RairlError(f"{folder / 'mlflow.db'} does not exist; run `make repro`, or name a run's folder with --dir")
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # eight idle worker processes otherwise
    print(
        f"http://127.0.0.1:{port}  (Ctrl-C ends it)", *views(f"http://127.0.0.1:{port}", folder), sep="\n", flush=True
    )
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--port", str(port)]
    os.execv(sys.executable, command)


def _own(file: Path, reward: str, form: str, skip_bad: bool) -> tuple[list[Trace], RewardModel]:
    """The file's traces and the model; the file is checked before the model is loaded, and its lengths after."""
    from rairl.evaluate.own import read_own, require

    own = read_own(file, form=form, skip_bad=skip_bad)
    for message in own.left_out:
        _say(f"left out: {message}")
    from rairl.use.load import load_reward

    model = load_reward(reward)
    kept = require(own, model.require_readable, skip_bad=skip_bad)
    for message in kept.left_out[len(own.left_out) :]:
        _say(f"left out: {message}")
    _say_kept(file, kept.form, len(kept.traces), len(kept.left_out))
    return kept.traces, model


def _say_kept(file: Path, form: str, kept: int, left_out: int) -> None:
    if left_out:
        _say(f"left out {left_out} of {left_out + kept} lines")
    _say(f"{file}: {kept} traces in the format {form}")


def _signed(figure: Estimate) -> str:
    return f"{figure.value:+.3f} [{figure.low:+.3f}, {figure.high:+.3f}]"


def _write(rows: Iterator[Mapping[str, Any]] | list[dict[str, Any]], output: Path | None) -> None:
    """Rows as JSON lines, each written when it is there; a file appears whole or not at all."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if output is None:
        sys.stdout.writelines(lines)
    else:
        _write_text(output, lines)


def _write_text(output: Path, parts: str | Iterator[str]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    draft = output.with_name(output.name + ".part")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.writelines([parts] if isinstance(parts, str) else parts)
        draft.replace(output)
    finally:
        draft.unlink(missing_ok=True)
    _say(f"wrote {output}")


def _say(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # of several processes the first one speaks
        print(line, file=sys.stderr, flush=True)


_FULL = (
    "No space left on device",
    "os error 28",
    "PytorchStreamWriter failed writing",
    "unexpected pos",
    "database or disk is full",
)


def _disk_full(error: BaseException | None) -> bool:
    """Whether ``error``, or what it came from, says that the disk is full (torch says it in its own words)."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(error) for words in _FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def _explain(error: Exception) -> int:
    """Tell the user what went wrong; return the exit code."""
    if _disk_full(error):
        _say("error: the disk is full; finished stages are kept; free some space and run the same command again")
        return 1
    if isinstance(error, RairlError):
        _say(f"error: {error}")
        return 2
    if isinstance(error, PermissionError):
        _say(f"error: {error.filename}: {error.strerror}")
        return 1
    traceback.print_exception(error)
    return 1


def main() -> None:
    """Entry point; exits with 0, 1 (failure), 2 (a mistake the user can mend) or 130 (interrupted)."""
    end_quickly()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("rairl").setLevel(logging.INFO)
    try:
        app()
    except SystemExit as stop:
        if stop.code == 128 + signal.SIGINT:
            _say("interrupted; finished stages are kept; run the same command again to resume")
        raise
    except Exception as error:
        sys.exit(_explain(error))


if __name__ == "__main__":
    main()
