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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from rairl.core.errors import RairlError
from rairl.core.params import Params, load_params, parse_params
from rairl.core.section import NonNegativeInt, Section
from rairl.core.yaml_files import read_yaml
from rairl.stages.layout import INPUTS, OUTPUTS, STAGES, producer
from rairl.stages.runner import input_files_digest

PROJECT = Path(__file__).parents[2]

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
    values = read_yaml(params)
    try:
        file = StudyFile.model_validate(read_yaml(path))
    except FileNotFoundError as error:
        raise RairlError(f"{path} does not exist; studies/ has examples") from error
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
    return read_yaml(PROJECT / "dvc.yaml")["stages"]


@cache
def _code(stage: str) -> str:
    digest = hashlib.sha256()
    for name in sorted(name for name in _dependencies()[stage]["deps"] if name.startswith("rairl/")):
        place = PROJECT / name
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.suffix in (".py", ".html"):
                digest.update(str(path.relative_to(PROJECT)).encode() + path.read_bytes())
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
            reads.pop("reward.backbone")  # it decides only whether there is a part for the second model
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
            readers = ("base", "sft", "second_model")
            mine = {"data", source, *(readers if policy in (*RANKED, "logged") else ())}
            named = {"data": inputs["data"], "model": inputs[source], **{name: inputs[name] for name in readers}}
            add(f"sample.{policy}", named, [producer(INPUTS[stage][arg]) for arg in sorted(mine)])
        draws = {policy: tasks[f"sample.{policy}"] for policy in sources(params)}
        gathered = {policy: task.folder / "candidates" for policy, task in draws.items()}
        add(stage, gathered, [task.name for task in draws.values()])
    return list(tasks.values())
