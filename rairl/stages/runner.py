"""Running a stage: paths, tracking, time, and outputs that appear whole or not at all."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from rairl.core.errors import RairlError
from rairl.core.params import Params
from rairl.core.processes import uncollected
from rairl.stages.layout import INPUTS, STAGES, producer, stage_paths
from rairl.tracking.provenance import file_digest

if TYPE_CHECKING:
    from rairl.core.stats import Estimate


TOGETHER = ("base", "sft", "second_model", "grpo", "rairl")
"""The stages whose work several processes share, see :mod:`rairl.learn.distributed`."""

WITH_MODELS = (*TOGETHER, "rerank", "localise", "audit")
"""The stages that run a model in their own process; ``sample`` may leave it to others."""


def run_stage(name: str, params: Params, *, root: Path = Path("."), **paths: Path | str) -> dict[str, Estimate]:
    """Run one stage and write its metrics file.

    The stage writes into a scratch folder beside its outputs; they replace the old ones when it has succeeded, so a
    stage that fails or is interrupted leaves what was there before. Of several processes (``accelerate launch``,
    ``torchrun``) the first one does all this; the others share the work of a stage in :data:`TOGETHER` and wait
    for the rest.

    Args:
        name: one of :data:`STAGES`.
        params: all parameters.
        root: folder of the default paths.
        paths: any input or output elsewhere, by its argument name.

    Returns:
        The stage's figures, with ``time.<name>`` in seconds; a figure that is not a number is left out.

    Raises:
        RairlError: for a missing input (it names the stage to run first) and for whatever the stage refuses.
    """
    inputs, outputs = stage_paths(name, root=root, **paths)
    for arg, path in inputs.items():
        if not path.exists():
            first = producer(INPUTS[name][arg])
            raise RairlError(f"stage {name} needs {path}, which does not exist; run `rairl stage {first}` first")
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return _lead(name, params, root, inputs, outputs)
    if os.environ.get("RANK", "0") == "0":
        figures = _lead(name, params, root, inputs, outputs)
    elif name in TOGETHER:
        os.environ["TQDM_DELAY"] = "1e9"  # read when tqdm is imported: only the first process shows its bars
        _follow(name, params, inputs, outputs)
    from rairl.learn.distributed import by_first

    return by_first(lambda: figures)


def stage_command(name: str, params_file: Path, paths: Mapping[str, Path]) -> list[str]:
    """The command line of a stage with all its paths, from ``rairl`` on."""
    flags = [part for arg, path in paths.items() for part in (f"--{arg.replace('_', '-')}", str(path))]
    return ["rairl", "stage", name, "--params", str(params_file), *flags]


def _stage(name: str) -> Callable[..., dict[str, Estimate]]:
    if name in WITH_MODELS:
        load_libraries()
    return getattr(import_module(f"rairl.stages.{name}"), name)


def load_libraries() -> None:
    """Import what every stage in :data:`WITH_MODELS` needs sooner or later, at once."""
    with uncollected():
        for module in ("torch", "transformers.modeling_utils", "rairl.models.reward"):
            import_module(module)


def _follow(name: str, params: Params, inputs: Mapping[str, Path], outputs: Mapping[str, Path]) -> None:
    """Share the work of a stage whose results another process keeps: nothing is tracked, and the files go."""
    from rairl.tracking.run import Run

    with tempfile.TemporaryDirectory(prefix="rairl-") as scratch:
        drafts = {arg: Path(scratch) / arg for arg in outputs if arg != "metrics"}
        _stage(name)(params, Run(), **inputs, **drafts)


def _lead(
    name: str, params: Params, root: Path, inputs: Mapping[str, Path], outputs: dict[str, Path]
) -> dict[str, Estimate]:
    from rairl.core.stats import exact
    from rairl.tracking.run import stage_run

    metrics = outputs.pop("metrics")
    metrics.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        drafts = {arg: _draft(path, stack) for arg, path in outputs.items()}
        card = inputs["data"] / "card.json" if "data" in inputs else None
        with stage_run(name, params, root=Path(root), card=card) as run:
            stage = _stage(name)
            start = time.monotonic()
            found = stage(params, run, **inputs, **drafts)
            figures = {key: figure for key, figure in found.items() if not any(map(math.isnan, figure))}
            figures[f"time.{name}"] = exact(time.monotonic() - start)
            run.log_estimates(figures)
        for arg, path in outputs.items():
            if not drafts[arg].exists():
                drafts[arg].mkdir()  # a stage with nothing to do in this mode still hands on an (empty) folder
            _replace(drafts[arg], path)
    write_figures(metrics, figures)
    return figures


def _draft(path: Path, stack: ExitStack) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix=".part-", dir=path.parent))
    return Path(scratch) / path.name


def _replace(draft: Path, path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        os.replace(path, draft.parent / "old")  # goes with the scratch folder
    os.replace(draft, path)


def write_figures(path: Path, figures: Mapping[str, Estimate]) -> None:
    """Write ``{name: {"value", "low", "high", "n"}}``, sorted by name, atomically."""
    from rairl.core.stats import to_json

    rows = to_json(dict(sorted(figures.items())))
    draft = path.with_name(path.name + ".part")
    draft.write_text(json.dumps(rows, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    draft.replace(path)


def run_all(
    params: Params, *, root: Path = Path("."), fresh: bool = False, announce: Callable[[str], None] = lambda line: None
) -> None:
    """Run every stage in order under ``root``, without DVC.

    A stage that an earlier call finished with the same parameters, code and input files is not run again, as long as
    nothing before it is; so the same call resumes an interrupted one.

    Args:
        params: all parameters.
        root: folder of all outputs.
        fresh: run every stage again.
        announce: called with one line per stage.
    """
    stamps = Path(root) / ".rairl" / "finished"
    stamps.mkdir(parents=True, exist_ok=True)
    state = f"{params.digest()} {code_digest()} {input_files_digest(params)}"
    for number, name in enumerate(STAGES, start=1):
        stamp, title = stamps / name, f"[{number}/{len(STAGES)}] {name}"
        outputs = stage_paths(name, root=root)[1].values()
        if not fresh and stamp.exists() and stamp.read_text() == state and all(path.exists() for path in outputs):
            announce(f"{title}: finished before")
            continue
        fresh = True
        announce(title)
        stamp.unlink(missing_ok=True)
        figures = run_stage(name, params, root=root)
        stamp.write_text(state)
        announce(f"{title}: {figures[f'time.{name}'].value:.1f} s")


def code_digest() -> str:
    """Short hash of the package's source."""
    package = Path(__file__).parents[1]
    files = {str(path.relative_to(package)): file_digest(path) for path in package.rglob("*.py")}
    return _short_digest(files)


def input_files(params: Params) -> dict[str, str]:
    """SHA-256 of every file that the parameters name, also inside folders, by its path (a hub id names none)."""
    files: list[Path] = []
    named = [params.base.source, params.reward.backbone]
    for value in params.dataset.model_dump().values():
        named += value if isinstance(value, list) else [value]
    for value in named:
        # A prompt is text, too, and longer than a file system takes for a name.
        path = Path(value) if isinstance(value, str) and os.path.exists(value) else None
        if path is not None and path.is_file():
            files.append(path)
        elif path is not None and path.is_dir():
            files.extend(sorted(item for item in path.rglob("*") if item.is_file()))
    return {str(path): file_digest(path) for path in files}


def input_files_digest(params: Params) -> str:
    """Short hash of :func:`input_files`."""
    return _short_digest(input_files(params))


def _short_digest(files: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:12]
