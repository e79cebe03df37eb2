"""Parameters put together from small files of ``rairl/presets``: dataset x model x method, optionally reward.

Each file holds some sections, or some keys of them; a later one wins. A method may say ``extends: <other method>``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from rairl.core.errors import RairlError
from rairl.core.yaml_files import parse_yaml, read_yaml

FOLDER = Path(__file__).parents[1] / "presets"
AXES = ("method", "model", "reward", "dataset")
"""Folders of the presets, in the order in which they are laid on top of each other."""
OPTIONAL = ("reward",)


def names(axis: str) -> list[str]:
    """The presets of an axis."""
    return sorted(path.stem for path in (FOLDER / axis).glob("*.yaml"))


def compose(words: Sequence[str]) -> dict[str, Any]:
    """Parameters from words such as ``dataset=gsm8k model=qwen3-4b method=interval policy.kl=0.05``.

    Returns:
        nested sections, not yet validated.

    Raises:
        RairlError: for a word without '=', an unknown preset, or an axis that is missing.
    """
    chosen: dict[str, str] = {}
    changes: list[tuple[list[str], Any]] = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise RairlError(f"{word!r} is not of the form key=value")
        if key in AXES:
            chosen[key] = value
        else:
            changes.append((key.split("."), parse_yaml(value, repr(word))))
    values: dict[str, Any] = {}
    for axis in AXES:
        if axis in chosen:
            values = merged(values, _read(axis, chosen[axis]))
        elif axis not in OPTIONAL:
            raise RairlError(f"name {axis}=...; one of {', '.join(names(axis))}")
    for path, value in changes:
        nested = value
        for name in reversed(path):
            nested = {name: nested}
        values = merged(values, nested)
    return values


def _read(axis: str, name: str) -> dict[str, Any]:
    if name not in names(axis):
        raise unknown(f"{axis}={name}", name, names(axis))
    values = read_yaml(FOLDER / axis / f"{name}.yaml")
    below = values.pop("extends", None)
    return values if below is None else merged(_read(axis, below), values)


def unknown(what: str, name: str, known: Sequence[str]) -> RairlError:
    """The error of a name that no preset has, with the nearest one that is there."""
    near = get_close_matches(name, known, n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    return RairlError(f"{what} is unknown; {meant}one of {', '.join(known)}")


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as one; where both have a value, that of ``above``."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


SOURCES = (
    ("base", "source", "revision"), ("reward", "backbone", "revision"), ("dataset", "demos", "demos_revision"),
    ("dataset", "test", "test_revision"), ("dataset", "questions", "questions_revision"),
    ("dataset", "rationales", "rationales_revision"),
)  # fmt: skip
"""Section, key of a source, and key of its revision."""


def hub_sources(values: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Section, revision key and hub id of every source that is read from the hub (``owner/name``, no such path)."""
    found = []
    for section, key, revision in SOURCES:
        source = values.get(section, {}).get(key)
        hub = isinstance(source, str) and source.count("/") == 1 and not source.endswith((".json", ".jsonl"))
        if hub and not Path(source).exists():
            found.append((section, revision, source))
    return found


def pin(values: dict[str, Any]) -> dict[str, Any]:
    """The same parameters with the hub's present commit wherever a hub source has no revision yet.

    Raises:
        RairlError: when the hub can't be reached, or the source needs access that is not given.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    for section, key, source in hub_sources(values):
        if values[section].get(key) is not None:
            continue
        try:
            info = api.dataset_info(source) if section == "dataset" else api.model_info(source)
        except Exception as error:  # the hub client raises a dozen unrelated types
            raise RairlError(
                f"{section}.{key}: the hub gives no commit of {source} ({type(error).__name__}); check network and "
                "access (`rairl doctor`), or set it by hand"
            ) from error
        values = merged(values, {section: {key: info.sha}})
    return values
