"""Renders a template with plain data as one self-contained HTML file: it needs no server and no network."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from expunge.base.record import write_file
from expunge.reporting.slim import Pieces
from expunge.reporting.svg import Drawing

HERE = Path(__file__).parent


def write_page(path: Path, template: str, context: dict[str, Any], drawings: Iterable[Drawing]) -> None:
    """Write a page.

    Args:
        path: The file to write.
        template: Name of the template in this folder.
        context: Values for the template.
        drawings: All drawings on the page; the values that they read out are embedded.

    Raises:
        RunError: The page could not be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": True, "separators": (",", ":")}
    files = {name: Markup((HERE / f"page.{name}").read_text(encoding="utf-8")) for name in ("css", "js")}
    shown = list(drawings)
    charts = {drawing.name: drawing.chart for drawing in shown}
    # A global, because imported macros do not see the context.
    environment.globals["pieces"] = Pieces(shown)
    write_file(path, environment.get_template(template).render(context | files | {"charts": charts}))
