"""The page of `whatif accuracy`: scatter, tables, and the worst rows with their breakdown. No script runs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

import reports
from reports import charts
from reports.table import amount, by_size, plain, words
from scenarios.accuracy import report
from scenarios.accuracy.score import SPEED

TEMPLATES = (Path(__file__).parent, Path(reports.__file__).parent / "templates")
MARKS = ("forward", "backward", "weight", "slower", "spare-0", "spare-1", "spare-2", "spare-3", "recompute",
         "optimizer", "context_communication", "contention", "pipeline_communication", "other")
SIDE, LEFT, BOTTOM = 520.0, 60.0, 44.0  # of the scatter, in drawing units
View = dict[str, Any]


def render(document: Mapping[str, Any], by: str) -> str:
    """The page; `by` chooses the first table. Raises ValueError on a number that JSON cannot hold."""
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"linked": plain, "plain": plain}
    environment.globals["definitions"] = charts.definitions()
    head = (by, *report.HEAD[1:])
    tables = [_section(f"Speed by {by}", head, report.time_rows(document, by))]
    tables += [_section(f"Speed by {other}", (other, *report.HEAD[1:]), report.time_rows(document, other))
               for other in ("family", *document["groups"]) if other != by]
    tables += [
        _section("Peak memory by distinct configuration", report.MEMORY_HEAD, report.memory_rows(document)),
        _section(report.PASS_TIMES_TITLE, report.PASS_TIMES_HEAD, report.pass_time_rows(document)),
        _section("Speeds converted from TFLOP/s, outside the averages", head,
                 report.group_rows(document["converted"])),
        _section("Reported apart", ("filter", "rows", "MAPE", "bias", "reason"), report.exception_rows(document),
                 (0, 4)),
        _section("Not expressible", ("reason", "rows"),
                 [(reason, str(count)) for reason, count in report.reasons(document).items()]),
    ]
    return environment.get_template("page.html").render(
        convention=report.CONVENTION, sentences=report.sentences(document), scatter=_scatter_figure(document),
        tables=[section for section in tables if section["table"]["rows"]], worst=_worst_table(document["worst"]),
        worst_figure=_breakdowns(document["worst"]), data=_embedded(document))


def _section(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], text: Sequence[int] = (0,)) -> View:
    return {"title": title, "table": {"head": head, "rows": rows, "text": text}}


def _figure(chart: Markup, legend: Sequence[tuple[Markup, str]], least_px: int = 0) -> View:
    return {"chart": chart, "table": None, "legend": legend, "caption": "", "least_px": least_px}


def _embedded(document: Mapping[str, Any]) -> Markup:
    """JSON in which no character can end the script element."""
    text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


# Scatter ---------------------------------------------------------------------------------------------


def _scatter_figure(document: Mapping[str, Any]) -> View:
    points = [row for row in document["per_row"] if row["metric"] == SPEED and row["exception"] is None]
    families = sorted({row["family"] for row in points})
    marks = {family: MARKS[index % len(MARKS)] for index, family in enumerate(families)}
    return _figure(scatter(points, marks), [(charts.swatch(marks[family]), family) for family in families])


def scatter(points: Sequence[Mapping[str, Any]], marks: Mapping[str, str]) -> Markup:
    """Predicted over measured tokens/s per GPU, both logarithmic, with the line of equality and 10 % either side."""
    values = [row[key] for row in points for key in ("measured", "predicted") if row[key] > 0] or [1.0]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 1e-9)
    high = max(high, low + 1)
    width, height = LEFT + SIDE, SIDE + BOTTOM

    def at(measured: float, predicted: float) -> tuple[float, float]:
        scale = SIDE / (high - low)
        return LEFT + scale * (math.log10(measured) - low), SIDE - scale * (math.log10(predicted) - low)

    body = list(_grid(low, high, at, height))
    for factor, kind in ((1.0, "axis"), (1.1, "grid"), (1 / 1.1, "grid")):
        start, end = 10.0**low * max(1.0, 1 / factor), 10.0**high * min(1.0, 1 / factor)
        (x0, y0), (x1, y1) = at(start, start * factor), at(end, end * factor)
        body.append(f'<path class="{kind}" d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}"/>')
    for row in points:
        if row["measured"] > 0 and row["predicted"] > 0:
            x, y = at(row["measured"], row["predicted"])
            told = f"{row['id']}: measured {row['measured']:.4g}, predicted {row['predicted']:.4g}"
            told += f" ({report.percent(row['error'], sign=True)})"
            body.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{charts.STYLES[marks[row["family"]]][0]}" '
                        f'fill-opacity=".7"><title>{escape(told)}</title></circle>')
    text = f"{len(points)} rows; points on the thick line are predicted exactly, between the thin ones within 10%."
    return Markup(f'<svg class="chart" role="img" viewBox="0 0 {width + 12:g} {height:g}"><title>Predicted against '
                  f'measured speed</title><desc>{escape(text)}</desc>{"".join(body)}</svg>')


def _grid(low: int, high: int, at: Any, height: float) -> list[str]:
    """Lines and labels at powers of ten."""
    body = []
    for power in range(low, high + 1):
        x, y = at(10.0**power, 10.0**power)
        body.append(f'<path class="grid" d="M{x:.1f} 0V{SIDE}M{LEFT} {y:.1f}H{LEFT + SIDE}"/>')
        body.append(f'<text class="t" x="{x:.1f}" y="{SIDE + 16}" text-anchor="middle">{10.0**power:,g}</text>')
        body.append(f'<text class="t" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:,g}</text>')
    body.append(f'<text class="t" x="{LEFT + SIDE / 2}" y="{height - 8}" text-anchor="middle">measured, tokens/s per '
                'GPU</text>')
    body.append(f'<text class="t" x="{LEFT + 6}" y="14">predicted, tokens/s per GPU</text>')
    return body


# Worst rows ------------------------------------------------------------------------------------------


def _worst_table(worst: Sequence[Mapping[str, Any]]) -> View | None:
    rows = [
        (row["id"], " ".join(f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
                             for key, value in row["setting"].items()),
         f"{row['measured']:,.4g}", f"{row['predicted']:,.4g}", report.percent(row["error"], sign=True),
         ", ".join(f"{words(name)} {amount(seconds, 's')}" for name, seconds in by_size(row["breakdown_s"])[:5]))
        for row in worst
    ]
    head = ("row", "setting", "measured", "predicted", "error", "largest terms of the predicted step")
    return {"head": head, "rows": rows, "text": (0, 1, 5)} if rows else None


def _breakdowns(worst: Sequence[Mapping[str, Any]]) -> View:
    """Predicted steps as shares of the measured step, so that a missing term shows as a short bar."""
    sums: dict[str, float] = {}
    bars = list[tuple[str, list[charts.Part]]]()
    for row in worst:
        shares = {name: value / row["measured_step_time_s"] for name, value in row["breakdown_s"].items() if value > 0}
        sums |= {name: sums.get(name, 0.0) + value for name, value in shares.items()}
        bars.append((row["id"], [charts.Part(words(name), value, charts.style(name))
                                 for name, value in by_size(shares)]))
    chart = charts.stacked_bars(bars, "Predicted step time over the measured one",
                                "Each bar is a predicted step, in parts of the measured step.",
                                lambda value: f"{100 * value:.0f}%", ("measured", 1.0))
    return _figure(chart, [(charts.swatch(charts.style(name)), words(name)) for name, _ in by_size(sums)])
