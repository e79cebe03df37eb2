"""The report: a verdict per claim, the tables and plots behind it, and the traces themselves, in one HTML file.

The file needs no network: styles, script, images and traces are inside it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rairl.report.tables import cell

FOLDER = Path(__file__).parent


def data_uri(path: Path) -> str:
    """A PNG file as a ``data:`` address, so that the report needs no other file."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def embed_json(value: Any) -> str:
    """JSON that is safe inside a ``<script>`` element, whatever the traces contain."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def render(context: Mapping[str, Any]) -> str:
    """The HTML page; ``context`` as :mod:`rairl.stages.report` builds it."""
    return fill(FOLDER / "report.html", context)


def fill(template: Path, context: Mapping[str, Any]) -> str:
    """A page from a template, which may include the viewer of traces.

    Args:
        template: the file.
        context: what the template names; ``viewer`` holds the rows of the viewer.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader([template.parent, FOLDER]), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["cell"] = cell
    context = {"review": "", **context}
    return environment.get_template(template.name).render(**context, viewer_json=Markup(embed_json(context["viewer"])))
