"""Commands that run stages, whole pipelines and studies."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from rairl.cli.app import PARAMS, app, say
from rairl.core.errors import RairlError
from rairl.core.params import load_params
from rairl.stages.layout import ABOUT, INPUTS, OUTPUTS, STAGES
from rairl.stages.runner import input_files, run_all, run_stage

stage_app = typer.Typer(no_args_is_help=True, help="Run one stage; its inputs and outputs have default places.")


def _stage_command(name: str) -> Callable[..., None]:
    """A command with one option per path of the stage."""

    def command(params: Path, root: Path, **paths: Path | None) -> None:
        figures = run_stage(
            name, load_params(params), root=root, **{arg: path for arg, path in paths.items() if path is not None}
        )
        say(f"{name}: finished in {figures[f'time.{name}'].value:.1f} s")

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


@app.command(hidden=True)
def inputs(
    params: PARAMS = Path("params.yaml"),
    output: Annotated[Path, typer.Option("--output", "-o", help="where they are noted")] = Path("inputs.json"),
) -> None:
    """Note what is in the files that the parameters name; dvc.yaml asks for it, so that an edited file is seen."""
    output.write_text(json.dumps(input_files(load_params(params)), indent=1) + "\n", encoding="utf-8")


@app.command()
def run(
    params: PARAMS = Path("params.yaml"),
    folder: Annotated[Path, typer.Option("--dir", help="folder of all outputs")] = Path("."),
    fresh: Annotated[bool, typer.Option("--fresh", help="run every stage again")] = False,
) -> None:
    """Run all stages in order without DVC; the same command again resumes an interrupted run."""
    from rairl.preflight.doctor import extras

    loaded = load_params(params)
    for found in extras(loaded):
        if not found.good:
            raise RairlError(f"{found.text}, which these parameters need: {found.remedy}")
    run_all(loaded, root=folder, fresh=fresh, announce=say)
    say(f"report: {folder / 'report' / 'report.html'}")


@app.command()
def study(
    files: Annotated[list[Path], typer.Argument(help="study files; see studies/", metavar="STUDY.yaml...")],
    folder: Annotated[Path, typer.Option("--dir", help="folder of the tables")] = Path("runs/studies"),
    jobs: Annotated[int | None, typer.Option(min=1, help="runs at once; by default one per core")] = None,
    docs: Annotated[Path | None, typer.Option(help="write the tables into this Markdown file, too")] = None,
    tables: Annotated[bool, typer.Option("--tables", help="run nothing; tables of what is finished")] = False,
) -> None:
    """Run seeds and variants of params.yaml as experiments of DVC, and write tables over them; it resumes.

    Runs share every stage that their parameters don't tell apart, by DVC's run cache.
    """
    from rairl.core.processes import cores
    from rairl.study.experiments import run_studies
    from rairl.study.plan import load_studies

    for written in run_studies(load_studies(files), folder, jobs=jobs or cores(), docs=docs, tables_only=tables):
        say(f"wrote {written}")


@app.command()
def summary(folder: Annotated[Path, typer.Option("--dir", help="folder of a finished run")] = Path(".")) -> None:
    """Print the headline figures of a finished run and where the report lies."""
    from rich.console import Console

    from rairl.report.tables import summary_table

    path = folder / "metrics.json"
    if not path.exists():
        raise RairlError(f"{path} does not exist; run `make repro`, or `rairl run --dir {folder}`, first")
    Console().print(summary_table(json.loads(path.read_text(encoding="utf-8"))))
    here = "make ui" if folder == Path(".") else f"rairl ui --dir {folder}"
    print(f"report: {folder / 'report' / 'report.html'}\nMLflow: {here}")
