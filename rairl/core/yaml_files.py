"""YAML as everything here reads and writes it: a number may be written ``1e-5``.

PyYAML keeps to YAML 1.1, where that is text; people, DVC (which writes ``1e-05``) and YAML 1.2 mean the number.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from rairl.core.errors import RairlError

_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)[eE][-+]?[0-9]+\Z")
"""The floats of YAML 1.2 that 1.1 does not know."""


class _Loader(yaml.SafeLoader):
    pass


class _Dumper(yaml.SafeDumper):
    """Puts quotes around a text that :class:`_Loader` would take for a number."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def parse_yaml(text: str, source: str = "the text") -> Any:
    """What a YAML text holds.

    Raises:
        RairlError: naming ``source`` when it is not valid YAML.
    """
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # an impossible date or number is a ValueError
        raise RairlError(f"{source} is not valid YAML: {error}") from error


def read_yaml(path: str | Path) -> Any:
    """What a YAML file holds.

    Raises:
        RairlError: naming the file when it is a folder, no UTF-8 text, or not valid YAML.
        FileNotFoundError: when it does not exist; only the caller knows what to do then.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except IsADirectoryError as error:
        raise RairlError(f"{path} is a folder; a YAML file is needed") from error
    except UnicodeDecodeError as error:
        raise RairlError(f"{path} is not UTF-8 text (byte {error.start}); convert it first") from error
    return parse_yaml(text, str(path))


def dump_yaml(values: Any, **options: Any) -> str:
    """Values as YAML that :func:`parse_yaml` reads back alike; ``options`` are those of ``yaml.dump``."""
    return yaml.dump(values, Dumper=_Dumper, **options)
