"""Which registered reward is champion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rairl.core.errors import RairlError
from rairl.core.params import Params
from rairl.tracking.provenance import git_commit, metric_name
from rairl.tracking.store import connect, quietly, reason, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


CHAMPION = "champion"
"""Registry alias of the best reward model by a dev criterion."""

CANDIDATE = "candidate"
"""Registry alias of the version that was last compared with the champion, whether it won or not."""


class Verdict(NamedTuple):
    """What became of a candidate for the alias ``champion``."""

    promoted: bool
    version: str
    """The candidate; empty when no version of the run has the criterion."""
    value: float
    """The candidate's."""
    text: str


def promote(
    variants: Sequence[Params], *, data: str, criterion: str, higher_is_better: bool = True, root: Path = Path(".")
) -> Verdict:
    """Give the alias ``champion`` to the best registered reward of some runs, if it beats the present champion.

    The present champion stays when it was chosen by the same criterion on the same data and is better; on a tie the
    newer version takes over. Criterion and value become tags of the champion. Two calls at the same moment may see the
    same champion: let one task of a pipeline decide, after all others.

    Args:
        variants: the parameters of the runs; their versions compete.
        data: :func:`data_tag` of what they learned from.
        criterion: a key of the ``metrics`` of :meth:`rairl.tracking.run.Run.register_reward`.
        higher_is_better: whether larger values win.
        root: the project's folder, home of the default store.

    Raises:
        RairlError: when MLflow can't be reached, or has no version of these runs.
    """
    uri = tracking_uri(root)
    name = variants[0].tracking.registered_model
    tags = {"rairl.commit": git_commit(root), "rairl.data": data}
    try:
        with quietly():
            client = connect(uri)
            versions = [
                version
                for params in variants
                for version in run_versions(client, name, {"rairl.params": params.digest(), **tags})
            ]
            verdict = crown(client, name, versions, criterion, higher_is_better)
    except Exception as error:  # MLflow and its stores raise anything
        raise RairlError(f"MLflow at {uri} does not answer ({reason(error)}); the champion is as it was") from error
    if not verdict.version:
        raise RairlError(
            f"{verdict.text}; MLflow at {uri} holds none with these parameters, this commit and this data: run the "
            "stage rairl with that store"
        )
    return verdict


def run_versions(client: MlflowClient, name: str, tags: Mapping[str, str]) -> list[ModelVersion]:
    """The registered rewards of a run: those with its parameters, commit and data."""
    query = " and ".join(f"tags.`{key}` = '{tags[key]}'" for key in ("rairl.params", "rairl.commit", "rairl.data"))
    return list(client.search_model_versions(f"name = '{name}' and {query}"))


def crown(
    client: MlflowClient, name: str, versions: Sequence[ModelVersion], criterion: str, higher_is_better: bool
) -> Verdict:
    criterion, sign = metric_name(criterion), 1 if higher_is_better else -1
    scored = [version for version in versions if not math.isnan(_score(version, criterion))]
    if not scored:
        text = f"no registered version of this run has the metric {criterion!r}, so none becomes champion"
        return Verdict(False, "", math.nan, text)
    best = max(scored, key=lambda version: (sign * _score(version, criterion), int(version.version)))
    value = _score(best, criterion)
    client.set_registered_model_alias(name, CANDIDATE, best.version)
    alias = client.get_registered_model(name).aliases.get(CHAMPION)
    if alias is not None and str(alias) != str(best.version):
        holder = client.get_model_version(name, str(alias))
        held = _score(holder, criterion)
        if _comparable(holder, best.tags.get("rairl.data", "none"), criterion, sign) and sign * held > sign * value:
            text = (
                f"version {alias} of {name} stays champion: its {criterion} is {held:.4g}, the best of this run, "
                f"version {best.version}, has {value:.4g}"
            )
            return Verdict(False, str(best.version), value, text)
    client.set_model_version_tag(name, best.version, "champion.criterion", criterion)
    client.set_model_version_tag(name, best.version, "champion.direction", "max" if sign > 0 else "min")
    client.set_model_version_tag(name, best.version, "champion.value", repr(value))
    client.set_registered_model_alias(name, CHAMPION, best.version)
    text = f"version {best.version} of {name} is champion: its {criterion} is {value:.4g}"
    return Verdict(True, str(best.version), value, text)


def _score(version: ModelVersion, criterion: str) -> float:
    return float(version.tags.get(criterion, "nan"))


def _comparable(holder: ModelVersion, data: str, criterion: str, sign: int) -> bool:
    expected = {"rairl.data": data, "champion.criterion": criterion, "champion.direction": "max" if sign > 0 else "min"}
    return data != "none" and all(holder.tags.get(key) == value for key, value in expected.items())
