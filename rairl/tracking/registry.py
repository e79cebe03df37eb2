"""The registered reward models as somebody reads them: what each learned from, how good it is, what tells two apart.

What decides who is champion is :func:`rairl.tracking.champion.promote`, and nothing here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rairl.core.errors import RairlError
from rairl.tracking.store import open_store

if TYPE_CHECKING:
    from rich.table import Table

_LINEAGE = ("rairl.data", "rairl.core.params", "rairl.commit", "stage", "step", "granularity", "seed", "rairl.kfp_run")


@dataclass(frozen=True)
class Version:
    """One registered reward checkpoint.

    Attributes:
        number: counts up within the registered model.
        aliases: such as ``champion`` and ``candidate``.
        made: when it was registered, UTC.
        run: id of the tracking run that made it.
        lineage: ``rairl.data`` (digest of the data card), ``rairl.core.params`` (of all parameters), ``rairl.commit``,
            ``stage``, ``step`` (training step, with the policy of that step), ``granularity``, ``seed``.
        scores: dev scores.
        params: all parameters, flat.
    """

    number: int
    aliases: tuple[str, ...]
    made: datetime
    run: str
    lineage: dict[str, str]
    scores: dict[str, float]
    params: dict[str, str]


def read_versions(name: str, root: Path = Path(".")) -> list[Version]:
    """All versions of a registered model, newest first.

    Raises:
        RairlError: when there is no store, or no such model in it.
    """
    with open_store(root) as client:
        aliases = client.get_registered_model(name).aliases
        found, token = [], None
        while True:
            page = client.search_model_versions(f"name = '{name}'", max_results=200, page_token=token)
            found += page
            token = page.token
            if not token:
                break
        versions = [
            Version(
                number=int(item.version),
                aliases=tuple(sorted(alias for alias, at in aliases.items() if str(at) == str(item.version))),
                made=datetime.fromtimestamp(item.creation_timestamp / 1000, UTC),
                run=item.run_id,
                lineage={key: item.tags[key] for key in _LINEAGE if key in item.tags},
                scores={key: float(value) for key, value in sorted(item.tags.items()) if key.startswith("dev")},
                params=client.get_logged_model(item.source.removeprefix("models:/")).params,
            )
            for item in found
        ]
    return sorted(versions, key=lambda version: -version.number)


def find(versions: Sequence[Version], which: str) -> Version:
    """The version with a number or an alias.

    Raises:
        RairlError: naming what there is.
    """
    for version in versions:
        if which == str(version.number) or which in version.aliases:
            return version
    known = [str(version.number) for version in versions] + [name for one in versions for name in one.aliases]
    raise RairlError(f"no version or alias {which!r}; there are {', '.join(known) or 'none'}")


def difference(first: Version, second: Version) -> dict[str, tuple[str, str]]:
    """What tells two versions apart: per name of a lineage entry, parameter or score the two values.

    The digests of parameters are left out where the parameters themselves say it. ``–`` stands for a missing value.
    """
    both = [
        {**version.lineage, **version.params, **{key: f"{value:.4f}" for key, value in version.scores.items()}}
        for version in (first, second)
    ]
    names = [key for key in {**both[0], **both[1]} if key != "rairl.core.params"]
    values = {key: (both[0].get(key, "–"), both[1].get(key, "–")) for key in names}
    return {key: pair for key, pair in values.items() if pair[0] != pair[1]}


def versions_table(versions: Sequence[Version]) -> Table:
    """One row per version, for a console of 80 columns: digests by their first seven digits, ``–`` for nothing."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        title="registered rewards",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    for column in ("no.", "alias", "dev", "step", "reads", "seed", "data", "params", "commit", "made"):
        number = column in ("no.", "dev", "step", "seed")
        table.add_column(column, no_wrap=True, justify="right" if number else "left")
    for one in versions:
        score = one.scores.get("dev/score")
        told = {key: one.lineage.get(key, "–") for key in _LINEAGE}
        table.add_row(
            str(one.number),
            "\n".join(one.aliases) or "–",
            "–" if score is None else f"{score:.3f}",
            *(told[key] for key in ("step", "granularity", "seed")),
            *(told[key][:7] for key in ("rairl.data", "rairl.core.params")),
            told["rairl.commit"][:7] + ("*" if told["rairl.commit"].endswith("-dirty") else ""),
            f"{one.made:%Y-%m-%d}",
        )
    if any(one.lineage.get("rairl.commit", "").endswith("-dirty") for one in versions):
        table.caption = "* and changes that were not committed"
    return table


def description(version: Version) -> str:
    """All that is known of a version, one ``name: value`` a line."""
    rows = {
        "version": str(version.number),
        "aliases": ", ".join(version.aliases) or "none",
        "made": f"{version.made:%Y-%m-%d %H:%M} UTC",
        "run": version.run,
        **version.lineage,
        **{key: f"{value:.4f}" for key, value in version.scores.items()},
        **version.params,
    }
    return "\n".join(f"{key}: {value}" for key, value in rows.items())
