"""What all pages share: the templates, data carried in a page, views of tables and figures."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from reports import charts
from reports.table import assumed, by_size, column, in_seconds, plain, words

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


# Bars made of parts, with their legend and numbers ---------------------------------------------------


def parts_of(values: Mapping[str, float], order: Sequence[str]) -> list[charts.Part]:
    """The parts of a bar in the order of the legend, each marked with its number there."""
    return [charts.Part(words(name), values[name], charts.style(name, position), str(position + 1))
            for position, name in enumerate(order) if values.get(name)]


def legend_of(order: Sequence[str]) -> list[tuple[Markup, str]]:
    return [(charts.swatch(charts.style(name, position)), f"{position + 1} {words(name)}")
            for position, name in enumerate(order)]


def parts_table(rows: Sequence[tuple[str, Mapping[str, float]]], unit: str, order: Sequence[str],
                heading: str = "Stage") -> View:
    """The numbers of bars: a row each, a column for every part, and their total."""
    cells = [(label, *column([*(values.get(name, 0.0) for name in order), math.fsum(values.values())], unit))
             for label, values in rows]
    return table_view((heading, *(words(name) for name in order), "Total"), cells)


def breakdowns(rows: Sequence[tuple[str, Mapping[str, float]]], title: str, heading: str = "") -> View:
    """Several step times (label, {category: seconds}) side by side, each split into its terms, largest first."""
    sums: dict[str, float] = {}
    for _, values in rows:
        sums |= {name: sums.get(name, 0.0) + value for name, value in values.items()}
    order = [name for name, _ in by_size(sums)]
    chart = charts.stacked_bars([(label, parts_of(values, order)) for label, values in rows], title,
                                "; ".join(f"{label} {in_seconds(math.fsum(v.values()))}" for label, v in rows),
                                in_seconds)
    return figure_view(chart, parts_table(rows, "s", order, heading), legend_of(order), title)
