"""The runs of studies as DVC's experiments: queued, run in folders of their own, read back from git and DVC's cache."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rairl.core.errors import RairlError
from rairl.core.params import parse_params
from rairl.core.processes import cores
from rairl.core.yaml_files import parse_yaml, read_yaml
from rairl.stages.runner import input_files
from rairl.study.plan import Run, Study
from rairl.study.tables import STAGES
from rairl.study.write import write_results

PAUSE = 15.0
"""Seconds between two looks at the queue."""


def run_studies(
    studies: Sequence[Study], folder: Path, *, jobs: int, docs: Path | None = None, tables_only: bool = False
) -> list[Path]:
    """Run what no experiment has run yet, wait for it, and write the tables of each study.

    Args:
        studies: from :func:`rairl.study.plan.load_studies`.
        folder: gets ``<study>/{study.json,results.md,<study>.png}`` and ``<study>/<variant>/seed-<n>/`` with the run's
            ``metrics.json`` and ``plots/*/questions.json``.
        jobs: experiments at once.
        docs: see :func:`rairl.study.write.write_results`.
        tables_only: run nothing.

    Returns:
        The results files.

    Raises:
        RairlError: outside a repository of git and DVC, when DVC refuses; and at the end, naming every run that is
            not finished.
    """
    if not Path("dvc.yaml").exists() or not Path(".dvc").exists():
        raise RairlError("a study needs dvc.yaml and DVC, but there is none here; run it from a clone of the project")
    if not tables_only:
        _run_missing(studies, jobs)
    done = finished_runs(studies)
    written = [_write_tables(study, folder / study.name, docs, done) for study in studies]
    states, _ = _queue()
    problems = [
        f"{run.name}: {state.lower()}" + (f" (see `dvc queue logs {run.name}`)" if state == "Failed" else "")
        for digest, run in _distinct(studies).items()
        if digest not in done and (state := states.get(run.name, "Not queued"))
    ]
    if problems:
        raise RairlError(
            f"{len(problems)} runs are not finished, and the tables leave them out; `{studies[0].command}` tries them "
            "again:\n" + "\n".join(problems)
        )
    return written


def _distinct(studies: Sequence[Study]) -> dict[str, Run]:
    """The runs of all studies by the digest of their parameters: those of equal parameters are one experiment."""
    runs: dict[str, Run] = {}
    for study in studies:
        for run in study.runs.values():
            runs.setdefault(run.params.digest(), run)
    return runs


def _run_missing(studies: Sequence[Study], jobs: int) -> None:
    done = finished_runs(studies)
    missing = [run for digest, run in _distinct(studies).items() if digest not in done]
    if not missing:
        return
    states, _ = _queue()
    lost = [name for name, state in states.items() if state == "Lost"]
    if lost:  # the stages that they had finished are in the run cache
        _dvc("queue", "kill", *lost)
    here = _git("rev-parse", "HEAD").strip()
    taken = {ref.rpartition("/")[2] for ref in _git("for-each-ref", f"refs/exps/{here[:2]}/{here[2:]}").split()}
    for run in missing:
        if states.get(run.name) in ("Queued", "Running"):
            continue
        if run.name in states:
            _dvc("queue", "remove", run.name)
        if run.name in taken:  # made by other code or parameters than the present ones
            _dvc("exp", "remove", run.name)
        changes = [f"++{key}={json.dumps(value, ensure_ascii=False)}" for key, value in run.changes.items()]
        _dvc("exp", "run", "--queue", "--name", run.name, *(word for change in changes for word in ("-S", change)))
    _start(jobs)
    _wait({run.name for run in missing}, jobs)


def _environment(jobs: int) -> dict[str, str]:
    """What the queue's workers, and so the stages, find in their environment.

    An experiment runs in a temporary folder with the code that it was queued with: that is the code to run (hence the
    Python path), and what must outlive the folder lies in the project's: the tracking store, what it has not
    got yet, and unfinished training.
    """
    here = Path.cwd()
    return {
        "PYTHONPATH": ".",
        "MLFLOW_TRACKING_URI": os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{here / 'mlflow.db'}"),
        "RAIRL_CHECKPOINTS": os.environ.get("RAIRL_CHECKPOINTS", str(here / ".rairl" / "checkpoints")),
        "RAIRL_TRACKING": os.environ.get("RAIRL_TRACKING", str(here / ".rairl" / "tracking")),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // jobs))),
        "TQDM_MININTERVAL": "30",  # no bars in logs
    }


def _wait(names: set[str], jobs: int) -> None:
    """Until the queue has done with the experiments; says how many are in which state whenever that changes."""
    known: Counter[str] = Counter()
    looks = 0  # in a row at which only lost ones were left
    try:
        while True:
            states, working = _queue()
            counts = Counter(state for name, state in states.items() if name in names)
            if counts != known:
                known = counts
                _say("runs: " + ", ".join(f"{count} {state.lower()}" for state, count in sorted(counts.items())))
            unfinished = {"Queued", "Running", "Lost"} & counts.keys()
            looks = looks + 1 if unfinished == {"Lost"} else 0
            if not unfinished or looks == 3:
                return
            if (
                "Queued" in unfinished and not working
            ):  # workers leave when the queue is empty, as it may just have been
                _start(jobs)
            time.sleep(PAUSE)
    except KeyboardInterrupt:
        raise RairlError(
            "the queue works on without us: `dvc queue status` shows it, `dvc queue stop --kill` ends it, and the same "
            "command follows it again"
        ) from None


def _start(jobs: int) -> None:
    _dvc("queue", "start", "--jobs", str(jobs), **_environment(jobs))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _queue() -> tuple[dict[str, str], bool]:
    """State of each task of the queue by its experiment's name, and whether there are workers.

    DVC's states, and ``Lost``: DVC calls a task running for ever whose worker was killed. A worker that leaves finishes
    its task, but is no longer among the workers; so the task's process decides.
    """
    shown = _dvc("queue", "status")
    working = re.search(r"^Worker status: 0 active, 0 idle", shown, re.M) is None
    states: dict[str, str] = {}
    rows = re.findall(r"^([0-9a-f]{7})\s+(\S+)\s.*\b(Queued|Running|Failed|Success)\s*$", shown, re.M)
    for task, name, state in rows:  # those that are not done come first
        lost = state == "Running" and not working and not _has_process(task)
        states.setdefault(name, "Lost" if lost else state)
    return states, working


def _has_process(task: str) -> bool:
    for file in Path(".dvc/tmp/exps/run").glob(f"{task}*/*.pid"):
        try:
            os.kill(int(file.read_text()), 0)
            return True
        except (ProcessLookupError, ValueError):
            continue
    return False


def finished_runs(studies: Sequence[Study]) -> dict[str, str]:
    """The runs of studies that experiments have made: digest of the parameters to the experiment's commit.

    An experiment counts, on whatever commit and under whatever name it was run, if its code, its parameters and the
    files they name are the present ones.
    """
    runs, code = _distinct(studies), _code()
    found: dict[str, str] = {}
    for commit in _git("for-each-ref", "--format=%(objectname)", "refs/exps/*/*/*").split():
        digest = _digest(commit)
        if digest not in runs or _git("diff", "--name-only", commit, "--", *code):
            continue
        files = input_files(runs[digest].params)
        if not files or json.loads(_files(commit, "inputs.json").get("inputs.json", "{}")) == files:
            found[digest] = commit
    return found


def _digest(commit: str) -> str | None:
    """Of the parameters of an experiment; None if the present code doesn't know them."""
    try:
        return parse_params(parse_yaml(_git("show", f"{commit}:./params.yaml"), source=commit)).digest()
    except RairlError:
        return None


def _code() -> list[str]:
    """dvc.yaml and the code that its stages depend on."""
    stages = read_yaml("dvc.yaml")["stages"].values()
    return ["dvc.yaml", *sorted({dep for stage in stages for dep in stage.get("deps", []) if dep.startswith("rairl/")})]


def _write_tables(study: Study, folder: Path, docs: Path | None, done: dict[str, str]) -> Path:
    places = {}
    for (variant, seed), run in study.runs.items():
        commit = done.get(run.params.digest())
        if commit is None:
            continue
        place = places[variant, seed] = folder / variant / f"seed-{seed}"
        shutil.rmtree(place, ignore_errors=True)
        for name, text in _files(
            commit, "metrics.json", *(f"plots/{stage}/questions.json" for stage in STAGES)
        ).items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(text, encoding="utf-8")
    return write_results(study, places, folder, docs)


# --- git and DVC -----------------------------------------------------------------------------------------------------


def _files(commit: str, *paths: str) -> dict[str, str]:
    """Those of the files that an experiment has, from git or from DVC's cache."""
    from dvc.api import DVCFileSystem

    files = DVCFileSystem(".", rev=commit)
    return {path: files.read_text(path, encoding="utf-8") for path in paths if files.exists(path)}


def _dvc(*words: str, **environment: str) -> str:
    # Workers call `dvc`, and DVC's shell `rairl`, by name: those beside this Python.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return _output([sys.executable, "-m", "dvc", *words], {"PATH": path, **environment})


def _git(*words: str) -> str:
    return _output(["git", *words], {})


def _output(command: Sequence[str], environment: dict[str, str]) -> str:
    # Into files: the queue's workers would keep a pipe open as long as they live.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        done = subprocess.run(command, env={**os.environ, **environment}, stdout=out, stderr=err)
        out.seek(0)
        err.seek(0)
        said, complaint = out.read(), err.read()
    if done.returncode:
        shown = " ".join(command[2 if command[1] == "-m" else 0 :])
        reason = ((complaint.strip() or said.strip()).splitlines() or ["no word why"])[0]
        raise RairlError(f"`{shown}` failed: {reason}")
    return said
