"""Commands before a run: parameters, plan, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rairl.cli.app import PARAMS, app, say, write_text
from rairl.core.errors import RairlError
from rairl.core.params import load_params, parse_params


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

    rairl params dataset=gsm8k model=qwen3-4b method=interval policy.kl=0.05 writes params.yaml from three presets
    and the changes given; a later word wins. rairl params --preset arithmetic prints the default parameters.
    """
    if words:
        from rairl.core.yaml_files import dump_yaml
        from rairl.preflight import presets

        values = presets.compose(words)
        parse_params(values, source=" ".join(words))  # a mistake is told before the hub is asked
        values = presets.pin(values) if pin else values
        digest = parse_params(values).digest()
        write_text(output, dump_yaml(values, sort_keys=False))
        say(f"{output} is valid (digest {digest})")
        return
    from rairl.preflight.presets import FOLDER

    names = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    if check is not None:
        digest = load_params(check).digest()
        say(f"{check} is valid (digest {digest})")
    elif preset is None:
        from rairl.preflight.presets import AXES, OPTIONAL
        from rairl.preflight.presets import names as choices

        say("whole files, printed by `rairl params --preset NAME`:")
        print("\n".join(names))
        say("parts that compose, as in `rairl params dataset=gsm8k model=qwen3-4b method=interval`:")
        for axis in sorted(AXES):
            say(f"{axis}: {', '.join(choices(axis))}{' (may be left out)' * (axis in OPTIONAL)}")
    elif preset not in names:
        from rairl.preflight.presets import unknown

        raise unknown(f"preset {preset!r}", preset, names)
    else:
        print((FOLDER / f"{preset}.yaml").read_text(encoding="utf-8"), end="")


@app.command()
def plan(
    params: PARAMS = Path("params.yaml"),
    gpu: Annotated[
        str | None, typer.Option(help="h100, h200, a100, l40s or 'rtx 4090'; else the one found here")
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="how many of them")] = 1,
) -> None:
    """Say what a run needs before it is paid for: parameters, memory per GPU, tokens, hours; fail if it can't fit."""
    from rairl.preflight.doctor import find_gpu, needs

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
    from rairl.preflight.doctor import doctor as findings

    bad = 0
    for finding in findings(load_params(params), folder):
        bad += not finding.good
        print(f"{'ok  ' if finding.good else 'FIX '} {finding.text}" + ("" if finding.good else f": {finding.remedy}"))
    if bad:
        raise RairlError(f"{bad} checks failed" if bad > 1 else "1 check failed")
