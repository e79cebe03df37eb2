"""Studies: the pipeline on several seeds and variants of the parameters, nothing computed twice, and tables over all.

A study is a plan of tasks. A task is a stage (or, for candidates, one policy's share of the sample stage) on certain
parameters and inputs; its outputs lie in a folder named by a hash of all that decides them: the parameters that the
stage reads, its code, its inputs. Runs that agree so far therefore share the task, within a study and between studies,
and a study that was interrupted goes on where it stood. What a stage reads is written in dvc.yaml, which the tests hold
equal to the code.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import yaml
from pydantic import Field, ValidationError, model_validator

from rairl.errors import RairlError
from rairl.params import NonNegativeInt, Params, Section, load_params, parse_params
from rairl.processes import KILLED, cores, pool
from rairl.stages import INPUTS, OUTPUTS, STAGES, input_files_digest, producer, run_stage, write_figures

if TYPE_CHECKING:
    from rairl.stats import Estimate

PROJECT = Path(__file__).parents[1]
SECONDS = {"base": 140, "peer": 145, "grpo": 60, "rairl": 135, "sample": 50, "rerank": 80, "localise": 30, "audit": 20}
"""Rough cost of a task at the size of params.yaml, so that the bar moves evenly; 5 for the others."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]


class StudyFile(Section):
    """What a study file may say."""

    title: str
    seeds: Annotated[list[NonNegativeInt], Field(min_length=1)] = Field(description="one run of each variant per seed")
    variants: Annotated[dict[Name, dict[str, Any]], Field(min_length=1)] = Field(
        description="changes of the parameters: dotted key to value"
    )
    baseline: str = Field(description="the variant that the others are compared with")

    @model_validator(mode="after")
    def _consistent(self) -> StudyFile:
        if self.baseline not in self.variants:
            raise ValueError(f"baseline {self.baseline!r} is none of the variants: {', '.join(self.variants)}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds names one twice")
        for name, changes in self.variants.items():
            if "seed" in changes:
                raise ValueError(f"variant {name!r} changes 'seed'; the seeds of a study are its own key")
        return self


@dataclass(frozen=True)
class Study:
    """A study file with the parameters of its runs.

    Attributes:
        name: the file's name without suffix.
        command: that runs it.
        file: what it says.
        runs: (variant, seed) to parameters; the baseline first.
    """

    name: str
    command: str
    file: StudyFile
    runs: dict[tuple[str, int], Params]


def read_study(path: Path, params: Path) -> Study:
    """Read a study on top of a parameter file.

    Raises:
        RairlError: naming the file, and the key or the variant that is wrong.
    """
    load_params(params)  # whatever is wrong with it is told under its own name
    values = yaml.safe_load(params.read_text(encoding="utf-8"))
    try:
        file = StudyFile.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise RairlError(f"{path} does not exist; studies/ has examples") from error
    except yaml.YAMLError as error:
        raise RairlError(f"{path} is not valid YAML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise RairlError(f"{path}: {'.'.join(map(str, first['loc'])) or 'study'}: {first['msg']}") from error
    order = [file.baseline, *(name for name in file.variants if name != file.baseline)]
    runs = {}
    for seed in file.seeds:
        for variant in order:
            where = f"{path}, variant {variant!r}"
            own = changed(values, {**file.variants[variant], "seed": seed}, source=where)
            runs[variant, seed] = parse_params(own, source=where)
    command = f"rairl study {path}" + ("" if params == Path("params.yaml") else f" --params {params}")
    return Study(path.stem, command, file, runs)


def load_studies(files: Sequence[Path], params: Path) -> list[Study]:
    """Read study files on top of a parameter file.

    Raises:
        RairlError: as :func:`read_study`, and for two files of one name.
    """
    studies = [read_study(path, params) for path in files]
    names = [study.name for study in studies]
    if len(set(names)) < len(names):
        raise RairlError(f"two of the study files have one name: {', '.join(map(str, files))}")
    return studies


def changed(values: Mapping[str, Any], changes: Mapping[str, Any], *, source: str = "study") -> dict[str, Any]:
    """A copy of nested ``values`` with the values at dotted keys replaced.

    Raises:
        RairlError: for a key in a section that does not exist.
    """
    result = copy.deepcopy(dict(values))
    for key, value in changes.items():
        place = result
        *sections, last = key.split(".")
        for section in sections:
            if not isinstance(place.get(section), dict):
                raise RairlError(f"{source}: unknown key {key!r}; there is no section {section!r}")
            place = place[section]
        place[last] = value
    return result


# --- the plan --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """One piece of work.

    Attributes:
        name: a stage, or ``sample.<policy>``.
        params: of the first run that needs it (any other that does agrees in what the stage reads).
        inputs: argument to path; for the stage ``sample`` policy to the folder of its candidates.
        folder: of its outputs, at their default places.
        needs: folders of the tasks that must be finished before.
        log: where its messages go; the log of the first run that needs it.
    """

    name: str
    params: Params = field(repr=False, compare=False)
    inputs: dict[str, Path] = field(repr=False, compare=False)
    folder: Path
    needs: frozenset[Path] = field(repr=False, compare=False)
    log: Path = field(repr=False, compare=False)

    @property
    def stage(self) -> str:
        """The stage it is, or is a part of."""
        return self.name.split(".")[0]

    @property
    def metrics(self) -> Path:
        """Its figures."""
        return self.folder / OUTPUTS[self.stage]["metrics"]

    @property
    def finished(self) -> bool:
        """Whether all its outputs are there."""
        return (self.folder / "finished").exists()


@cache
def _dependencies() -> dict[str, Any]:
    return yaml.safe_load((PROJECT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


@cache
def _code(stage: str) -> str:
    files = [name for name in _dependencies()[stage]["deps"] if name.startswith("rairl/")]
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(name.encode() + (PROJECT / name).read_bytes())
    return digest.hexdigest()


def _reads(stage: str, params: Params) -> dict[str, Any]:
    """Values of the parameters that a stage reads."""
    values = params.model_dump()
    found = {}
    for key in _dependencies()[stage]["params"]:
        place: Any = values
        for part in key.split("."):
            place = place[part]
        found[key] = place
    return found


def plan(params: Params, root: Path, log: Path) -> list[Task]:
    """The tasks of one run, each after the ones it needs; all stages but the report."""
    from rairl.stages.sample import RANKED, sources

    files = input_files_digest(params)
    tasks: dict[str, Task] = {}

    def add(name: str, inputs: dict[str, Path], needs: Sequence[str]) -> None:
        stage = name.split(".")[0]
        folders = frozenset(tasks[other].folder for other in needs)
        reads = _reads(stage, params)
        if name != stage:
            reads.pop("reward.backbone")  # it decides only whether there is a part for the peer
        parts = [name, reads, _code(stage), sorted(folder.name for folder in folders)]
        key = hashlib.sha256(json.dumps([*parts, files], sort_keys=True).encode()).hexdigest()[:16]
        tasks[name] = Task(name, params, inputs, root / "tasks" / name / key, folders, log)

    for stage in STAGES:
        if stage == "report":
            continue
        inputs = {arg: tasks[producer(path)].folder / path for arg, path in INPUTS[stage].items()}
        if stage != "sample":
            add(stage, inputs, [producer(path) for path in INPUTS[stage].values()])
            continue
        for policy, source in sources(params).items():
            readers = ("base", "sft", "peer")
            mine = {"data", source, *(readers if policy in (*RANKED, "logged") else ())}
            named = {"data": inputs["data"], "model": inputs[source], **{name: inputs[name] for name in readers}}
            add(f"sample.{policy}", named, [producer(INPUTS[stage][arg]) for arg in sorted(mine)])
        draws = {policy: tasks[f"sample.{policy}"] for policy in sources(params)}
        gathered = {policy: task.folder / "candidates" for policy, task in draws.items()}
        add(stage, gathered, [task.name for task in draws.values()])
    return list(tasks.values())


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
    from rairl.stages.sample import draw
    from rairl.stats import exact

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
    from rairl.stats import from_json

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
    from rairl.evaluate.study import write_results

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
    """Lay a run out as :func:`rairl.stages.run_all` would: links to its tasks' outputs, and all figures in one file."""
    from rairl.stats import from_json

    figures: dict[str, Estimate] = {}
    for task in tasks:
        figures |= from_json(json.loads(task.metrics.read_text(encoding="utf-8")))
        for path in OUTPUTS[task.name].values() if task.name in OUTPUTS else ():
            link = folder / path
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(task.folder / path, link.parent))
    write_figures(folder / "metrics.json", figures)
