"""Carrying out the tasks of studies in several processes."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rairl.core.errors import RairlError
from rairl.core.processes import KILLED, cores, pool
from rairl.stages.layout import OUTPUTS
from rairl.stages.runner import run_stage, write_figures
from rairl.study.plan import plan

if TYPE_CHECKING:
    from rairl.core.stats import Estimate
    from rairl.study.plan import Study, Task

SECONDS = {
    "base": 140,
    "second_model": 145,
    "grpo": 60,
    "rairl": 135,
    "sample": 50,
    "rerank": 80,
    "localise": 30,
    "audit": 20,
}
"""Rough cost of a task at the size of params.yaml, so that the bar moves evenly; 5 for the others."""


# --- doing it --------------------------------------------------------------------------------------------------------


def perform(task: Task, root: Path) -> None:
    """Do a task; what it says goes to its log. Runs in a process of its own."""
    task.log.parent.mkdir(parents=True, exist_ok=True)
    with task.log.open("a", encoding="utf-8") as log, _output_to(log.fileno()):
        print(f"--- {task.name} ({task.folder})", flush=True)
        if task.name == "sample":
            _gather(task)
        elif task.stage == "sample":
            _draw(task)
        else:
            outputs = {arg: task.folder / path for arg, path in OUTPUTS[task.name].items()}
            run_stage(task.name, task.params, root=root, **task.inputs, **outputs)
    (task.folder / "finished").touch()


@contextmanager
def _output_to(file: int) -> Iterator[None]:
    """Send standard output and error into a file, those of libraries included."""
    kept = [(stream, os.dup(stream)) for stream in (1, 2)]
    try:
        for stream, _ in kept:
            os.dup2(file, stream)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, copied in kept:
            os.dup2(copied, stream)
            os.close(copied)


def _draw(task: Task) -> None:
    """One policy's candidates: its share of the stage ``sample``."""
    from rairl.core.stats import exact
    from rairl.stages.sample import draw

    task.folder.mkdir(parents=True, exist_ok=True)
    policy = task.name.removeprefix("sample.")
    with tempfile.TemporaryDirectory(prefix=".part-", dir=task.folder) as scratch:
        count = draw(task.params, policy, **task.inputs, candidates=Path(scratch) / "candidates")
        shutil.rmtree(task.folder / "candidates", ignore_errors=True)
        (Path(scratch) / "candidates").rename(task.folder / "candidates")
    task.metrics.parent.mkdir(exist_ok=True)
    write_figures(task.metrics, {f"{task.name}.candidates": exact(count)})


def _gather(task: Task) -> None:
    """The output of the stage ``sample``: the candidates of all policies, as hard links."""
    from rairl.core.stats import from_json

    shutil.rmtree(task.folder, ignore_errors=True)
    figures: dict[str, Estimate] = {}
    for drawn in task.inputs.values():
        shutil.copytree(drawn, task.folder / "candidates", copy_function=os.link, dirs_exist_ok=True)
        figures |= from_json(json.loads((drawn.parent / OUTPUTS["sample"]["metrics"]).read_text()))
    task.metrics.parent.mkdir(exist_ok=True)
    write_figures(task.metrics, figures)


def carry_out(
    tasks: Iterable[Task], root: Path, jobs: int, do: Callable[[Task, Path], None] = perform
) -> dict[Path, str]:
    """Do tasks in ``jobs`` processes at once, the earlier of those that can start first.

    A task that fails stops only those that need it.

    Args:
        tasks: each after the ones it needs; finished ones are left alone.
        root: folder of the tracking store.
        jobs: processes; each gets its share of the cores.
        do: what is done with a task.

    Returns:
        Folder of every task that failed or could not start, to what went wrong.
    """
    from tqdm import tqdm

    waiting = {task.folder: task for task in tasks if not task.finished}
    failed: dict[Path, str] = {}
    running: dict[Future[None], Task] = {}
    at_once = jobs if (root / "mlflow.db").exists() else 1  # the first task sets the tracking store up, undisturbed
    bar = tqdm(total=sum(map(_seconds, waiting.values())), desc="study", bar_format=_BAR)

    def fail(task: Task, why: str) -> None:
        failed[task.folder] = why
        for other in [other for other in waiting.values() if task.folder in other.needs]:
            if waiting.pop(other.folder, None):  # what needs two that failed is gone with the first
                bar.update(_seconds(other))
                fail(other, why)

    with _threads(max(1, cores() // jobs)):
        workers = pool(jobs)
        try:
            while waiting or running:
                undone = waiting.keys() | {task.folder for task in running.values()}
                ready = [task for task in waiting.values() if not task.needs & undone]
                for task in ready[: at_once - len(running)]:
                    running[workers.submit(do, waiting.pop(task.folder), root)] = task
                bar.set_postfix_str("; ".join(f"{task.log.parent}: {task.name}" for task in running.values()))
                done = wait(running, return_when=FIRST_COMPLETED).done
                if any(isinstance(future.exception(), BrokenProcessPool) for future in done):
                    done = wait(running).done  # a process that was killed takes the others' tasks with it
                    workers = pool(jobs)
                for future in done:
                    task = running.pop(future)
                    bar.update(_seconds(task))
                    error = future.exception()
                    if error is not None:
                        bar.write(f"failed: {task.name}: {_reason(error)} (see {task.log})", file=sys.stderr)
                        fail(task, f"{task.name}: {_reason(error)} (see {task.log})")
                at_once = jobs
        finally:
            workers.shutdown(cancel_futures=True)
            bar.close()
    return failed


_BAR = "{desc}: {percentage:3.0f}%|{bar:20}| {elapsed}, {remaining} to go{postfix}"


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Tell processes that start now how many threads to compute with, and not to fill logs with bars."""
    wanted = {"OMP_NUM_THREADS": str(count), "MKL_NUM_THREADS": str(count), "TQDM_MININTERVAL": "30"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _seconds(task: Task) -> int:
    return 1 if task.name == "sample" else SECONDS.get(task.stage, 5)


def _reason(error: BaseException) -> str:
    if isinstance(error, BrokenProcessPool):
        return KILLED
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# --- whole studies ---------------------------------------------------------------------------------------------------


def run_studies(studies: Sequence[Study], root: Path, *, jobs: int, docs: Path | None = None) -> list[Path]:
    """Run studies and write ``<root>/<study>/{study.json,results.md,<study>.png}`` and each run's ``metrics.json``.

    Args:
        studies: from :func:`read_study`, with names of their own.
        root: folder of everything.
        jobs: processes at once.
        docs: a Markdown file whose part between ``<!-- study:NAME -->`` and ``<!-- end -->`` is replaced for each
            study (added at its end where there is none); plots go to ``plots/`` beside it.

    Returns:
        The results files.

    Raises:
        RairlError: after all that could be done is done, naming every run that failed and its log.
    """
    from rairl.study.write import write_results

    plans = {
        (study.name, *run): plan(params, root, root / study.name / run[0] / f"seed-{run[1]}" / "log.txt")
        for study in studies
        for run, params in study.runs.items()
    }
    unique: dict[Path, Task] = {}
    for tasks in plans.values():
        for task in tasks:
            unique.setdefault(task.folder, task)
    failed = carry_out(unique.values(), root, jobs)
    problems = []
    finished: dict[str, dict[tuple[str, int], Path]] = {study.name: {} for study in studies}
    for (name, variant, seed), tasks in plans.items():
        broken = [failed[task.folder] for task in tasks if task.folder in failed]
        if broken:
            problems.append(f"{name}, variant {variant}, seed {seed}: {broken[0]}")
        else:
            folder = finished[name][variant, seed] = root / name / variant / f"seed-{seed}"
            _show(folder, tasks)
    written = [write_results(study, finished[study.name], root / study.name, docs) for study in studies]
    if problems:
        raise RairlError(
            f"{len(problems)} of {len(plans)} runs failed, and the tables leave them out; the same command tries them "
            "again:\n" + "\n".join(problems)
        )
    return written


def _show(folder: Path, tasks: Sequence[Task]) -> None:
    """Lay a run out as `rairl run` would: links to its tasks' outputs, and all figures in one file."""
    from rairl.core.stats import from_json

    figures: dict[str, Estimate] = {}
    for task in tasks:
        figures |= from_json(json.loads(task.metrics.read_text(encoding="utf-8")))
        for path in OUTPUTS[task.name].values() if task.name in OUTPUTS else ():
            link = folder / path
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(task.folder / path, link.parent))
    write_figures(folder / "metrics.json", figures)
