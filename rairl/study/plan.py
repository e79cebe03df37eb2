"""Studies: the pipeline on several seeds and variants of the parameters, and tables over all of them.

The runs are experiments of DVC (:mod:`rairl.study.experiments`): its queue runs them, its run cache gives every stage
that two of them have in common to the second one.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from rairl.core.errors import RairlError
from rairl.core.params import Params, load_params, parse_params
from rairl.core.section import NonNegativeInt, Section
from rairl.core.yaml_files import read_yaml

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
class Run:
    """One run of a study.

    Attributes:
        name: ``<study>-<variant>-<seed>``, of its experiment.
        params: all of its parameters.
        changes: what they change in params.yaml, by dotted key.
    """

    name: str
    params: Params
    changes: dict[str, Any]


@dataclass(frozen=True)
class Study:
    """A study file with its runs.

    Attributes:
        name: the file's name without suffix.
        command: that runs it.
        file: what it says.
        runs: by (variant, seed); all seeds of the baseline first, since the others share most of its stages.
    """

    name: str
    command: str
    file: StudyFile
    runs: dict[tuple[str, int], Run]


def read_study(path: Path, params: Path = Path("params.yaml")) -> Study:
    """Read a study on top of a parameter file.

    Raises:
        RairlError: naming the file, and the key or the variant that is wrong.
    """
    load_params(params)  # whatever is wrong with it is told under its own name
    values = read_yaml(params)
    if not path.exists():
        raise RairlError(f"{path} does not exist; studies/ has examples")
    try:
        file = StudyFile.model_validate(read_yaml(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise RairlError(f"{path}: {'.'.join(map(str, first['loc'])) or 'study'}: {first['msg']}") from error
    order = [file.baseline, *(name for name in file.variants if name != file.baseline)]
    runs = {}
    for variant in order:
        for seed in file.seeds:
            where = f"{path}, variant {variant!r}"
            changes = {**file.variants[variant], "seed": seed}
            own = changed(values, changes, source=where)
            parse_params(own, source=where)
            changes |= _absolute_paths(own)
            whole = parse_params(changed(own, changes), source=where)
            runs[variant, seed] = Run(f"{path.stem}-{variant}-{seed}", whole, changes)
    return Study(path.stem, f"rairl study {path}", file, runs)


def _absolute_paths(values: Mapping[str, Any]) -> dict[str, Any]:
    """Changes that make the relative paths of the parameters absolute: an experiment runs in a folder of its own."""

    def absolute(value: Any) -> Any:
        if isinstance(value, list):
            return [absolute(item) for item in value]
        return os.path.abspath(value) if isinstance(value, str) and "/" in value and os.path.exists(value) else value

    named = {f"dataset.{key}": value for key, value in values["dataset"].items()}
    named |= {"base.source": values["base"].get("source"), "reward.backbone": values["reward"].get("backbone")}
    return {key: absolute(value) for key, value in named.items() if absolute(value) != value}


def load_studies(files: Sequence[Path], params: Path = Path("params.yaml")) -> list[Study]:
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
