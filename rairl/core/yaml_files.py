"""YAML as everything here reads and writes it: with the words and numbers of YAML 1.2, which DVC and people write.

``off`` is a word and ``1e-5`` a number; PyYAML keeps to YAML 1.1, where they are False and a text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from rairl.core.errors import RairlError

_BOOL, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
_NUMBER = re.compile(r"([-+]?((\d+\.\d*|\.\d+)([eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(inf|Inf|INF))|\.(nan|NaN|NAN))\Z")


class _Loader(yaml.SafeLoader):
    pass


class _Dumper(yaml.SafeDumper):
    """Puts quotes around a text that :class:`_Loader`, or PyYAML's own, would take for something else."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_BOOL, _FLOAT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"(true|True|TRUE|false|False|FALSE)\Z"), list("tTfF"))
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(_FLOAT, _NUMBER, list("-+.0123456789"))


def parse_yaml(text: str, source: str = "the text") -> Any:
    """What a YAML text holds.

    Raises:
        RairlError: naming ``source`` when it is not valid YAML.
    """
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
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
