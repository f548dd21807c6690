"""What all pages share: the templates, data carried in a page, views of tables and figures."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from reports import charts
from reports.table import assumed, plain

_ADDRESS = re.compile(r"(https?://[^\s<>\"')\]]+)")
View = dict[str, Any]


def linked(value: Any) -> Markup:
    """Text whose web addresses can be clicked."""
    pieces = _ADDRESS.split(plain(value))
    return Markup("").join(
        Markup('<a href="{0}" rel="noreferrer">{0}</a>').format(piece) if index % 2 else escape(piece)
        for index, piece in enumerate(pieces))


def environment() -> Environment:
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True,
                              undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"linked": linked, "plain": plain, "assumed": assumed}
    environment.globals["definitions"] = charts.definitions()
    return environment


def embedded(data: Any) -> Markup:
    """JSON that is safe inside a script element: no character there can end the element or open a comment."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def table_view(head: Sequence[str], rows: Sequence[Sequence[Any]], text: Collection[int] = (0,)) -> View:
    """A table of the templates; the columns in `text` hold words (set left), others numbers (right)."""
    return {"head": head, "rows": rows, "text": text}


def figure_view(chart: Markup, table: View | None, legend: Sequence[tuple[Markup, str]] = (), caption: str = "",
            least_px: int = 0) -> View:
    """A chart with its legend and its numbers; wider than a phone if `least_px` says so (it then scrolls)."""
    return {"chart": chart, "table": table, "legend": legend, "caption": caption, "least_px": least_px}
