"""The page of `whatif reproduce`: verdicts by system as bars, and every claim. No script runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import reports
from reports import charts
from reports.table import plain
from scenarios.papers import report
from scenarios.papers.verdicts import VERDICTS

TEMPLATES = (Path(__file__).parent, Path(reports.__file__).parent / "templates")
_MARKS = ("faster", "forward", "backward", "expert_communication", "spare-3", "bubble")
STYLES = dict(zip(VERDICTS, _MARKS, strict=True))
View = dict[str, Any]


def render(document: Mapping[str, Any]) -> str:
    """The page. Raises ValueError on a number that JSON cannot hold."""
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"linked": plain, "plain": plain}
    environment.globals["definitions"] = charts.definitions()
    return environment.get_template("page.html").render(
        sentence=report.sentence(document), problems=document["problems"], figure=_figure(document),
        systems=_table(report.SYSTEM_HEAD, report.system_rows(document), (0,)),
        claims=_table(report.HEAD, report.claim_rows(document), (0, 1, 2, 3, 4, 7, 8, 9)), data=_embedded(document))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], text: Sequence[int]) -> View:
    return {"head": head, "rows": rows, "text": text}


def _figure(document: Mapping[str, Any]) -> View:
    """One bar per system, made of its verdicts."""
    systems = document["summary"]["systems"]
    bars = [(name, [charts.Part(verdict, float(count), STYLES[verdict], str(count))
                    for verdict, count in of["verdicts"].items() if count]) for name, of in systems.items()]
    chart = charts.stacked_bars(bars or [("none", [])], "Verdicts by system", report.sentence(document),
                                lambda value: f"{value:.0f}")
    legend = [(charts.swatch(STYLES[verdict]), verdict) for verdict in VERDICTS]
    return {"chart": chart, "table": None, "legend": legend, "caption": "", "least_px": 0}


def _embedded(document: Mapping[str, Any]) -> Markup:
    """JSON in which no character can end the script element."""
    text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
