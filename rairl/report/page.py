"""The report: a verdict per claim, the tables and plots behind it, and the traces themselves, in one HTML file.

The file needs no network: styles, script, images and traces are inside it. :func:`summary_table` is its short form for
the console.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rairl.report.tables import cell

# --- output ----------------------------------------------------------------------------------------------------------


def data_uri(path: Path) -> str:
    """A PNG file as a ``data:`` address, so that the report needs no other file."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def embed_json(value: Any) -> str:
    """JSON that is safe inside a ``<script>`` element, whatever the traces contain."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def render(context: Mapping[str, Any]) -> str:
    """The HTML page; ``context`` as :mod:`rairl.stages.report` builds it."""
    return _page("report.html", context)


def render_traces(title: str, rows: Sequence[Mapping[str, Any]], *, review: bool = False) -> str:
    """A page with nothing but the viewer; ``rows`` of :func:`every_row`.

    Args:
        review: let the reader mark the first wrong step of each trace; rows then need ``trace`` (as
            ``Trace.to_json`` gives it) and ``group``.
    """
    note = "Trust is what the locator compares: the lowest is where the reward points."
    # Marks are kept in the browser under this key: another file, or a changed one, starts without any.
    key = hashlib.sha256(embed_json([row["trace"] for row in rows]).encode()).hexdigest()[:16] if review else ""
    return _page("traces.html", {"title": title, "viewer": rows, "viewer_note": note, "review": key})


def _page(template: str, context: Mapping[str, Any]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["cell"] = cell
    context = {"review": "", **context}
    return environment.get_template(template).render(**context, viewer_json=Markup(embed_json(context["viewer"])))
