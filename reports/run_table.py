"""A run and a comparison of runs in the terminal: the answer, figures, where time and memory go, what was assumed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from reports import shares
from reports.table import (
    CALIBRATION_HEADS,
    FIGURES,
    Document,
    add_row,
    amount,
    assumed,
    band_basis,
    band_text,
    by_size,
    calibration_rows,
    change_text,
    column,
    figure_text,
    fit_text,
    grid,
    heading,
    input_text,
    plain,
    reason,
    scalar,
    settings,
    signed,
    variant_change,
    words,
)

_BAR = 22


def _bars(console: Console, title: str, parts: Mapping[str, float] | None, unit: str, style: str) -> None:
    rows = by_size(parts)
    if not rows:
        return
    total, largest = math.fsum(value for _, value in rows), max(abs(value) for _, value in rows)
    heading(console, f"{title}: {amount(total, unit, 4)}")
    table = grid(("", "left"), ("", "right"), ("", "right"), ("", "left"))
    for (name, value), text in zip(rows, column([value for _, value in rows], unit), strict=True):
        bar = Text("█" * max(1, round(_BAR * abs(value) / largest)), style=style)
        add_row(table, (words(name), text, f"{100 * value / total:.1f}%", bar))
    console.print(table)


def _figures(document: Document, console: Console) -> None:
    table = grid(("", "left"), ("", "left"))
    for key, figure in FIGURES.items():
        if key in document:
            value = document[key]
            text = Text(f"not given: {reason(document, key)}", style="dim") if value is None else Text(
                figure_text(key, value, 4), style="bold")
            add_row(table, (figure.label, text))
    console.print()
    console.print(table)


def _fit(document: Document, console: Console) -> None:
    text = fit_text(document)
    if text:
        console.print()
        console.print(Text(text, style="green" if document["fits"] else "bold red"))
    changes = (document.get("fit") or {}).get("changes") or []
    if changes:
        heading(console, "What would fit")
        table = grid(("change", "left"), ("set", "left"), ("memory", "right"), ("step", "right"))
        for change in changes:
            step = change.get("step_time_s")
            add_row(table, (change.get("name"), settings(change.get("set")),
                            figure_text("peak_memory_bytes", change.get("peak_memory_bytes")),
                            "" if step is None else amount(step, "s")))
        console.print(table)


def _published(document: Document, console: Console) -> None:
    if not document.get("published"):
        return
    heading(console, "Published and predicted")
    table = grid(("metric", "left"), ("published", "right"), ("predicted", "right"), ("error", "right"),
                  ("source", "left"))
    for row in document["published"]:
        metric = str(row.get("metric"))
        add_row(table, (words(metric), figure_text(metric, row.get("published"), 4),
                        figure_text(metric, row.get("predicted"), 4), change_text(row.get("error")),
                        row.get("source") or ""))
    console.print(table)


def _calibration(document: Document, console: Console) -> None:
    if not document.get("calibration"):
        return
    heading(console, "Calibrated to measured runs")
    console.print(Text(plain(document["calibration"]["text"])))
    sides = ("left", "right", "right", "right", "right"), ("left", "right", "right", "right", "left")
    for heads, aligned, rows in zip(CALIBRATION_HEADS, sides, calibration_rows(document), strict=True):
        table = grid(*zip(heads, aligned, strict=True))
        for row in rows:
            add_row(table, row)
        if rows:
            console.print(table)


def _variants(document: Document, console: Console) -> None:
    if not document.get("variants"):
        return
    heading(console, "What if")
    table = grid(("variant", "left"), ("step", "right"), ("change", "right"), ("MFU", "right"),
                  ("memory", "right"), ("fits", "left"))
    for row in [{**document, "name": "as given", "change": {}}, *document["variants"]]:
        values = [(key, scalar(row.get(key))) for key in ("step_time_s", "mfu", "peak_memory_bytes")]
        cells = ["-" if value is None else figure_text(key, value) for key, value in values]
        fits = "-" if row.get("fits") is None else "yes" if row["fits"] else Text("no", style="bold red")
        change = change_text(variant_change(row, "step_time_s"))
        add_row(table, (row.get("name"), cells[0], change, *cells[1:], fits))
    console.print(table)


def _assumptions(document: Document, console: Console) -> None:
    if not document.get("assumptions"):
        return
    heading(console, "Assumptions")
    for row in document["assumptions"]:
        source = f" [{plain(row['source'])}]" if row.get("source") else ""
        console.print(Text.assemble("- ", (assumed(row), "bold"),
                                    f": {plain(row.get('text') or '')}", (source, "dim")))


def show(document: Document, console: Console) -> None:
    """Print a result: the answer, the figures, where the time and the memory go, and what was assumed."""
    scenario = document.get("scenario") or {}
    console.print(Text(plain(scenario.get("name", "Scenario")), style="bold"))
    console.print(Text(plain(document.get("answer") or reason(document, "answer"))))
    if band := band_text(document):
        console.print(Text.assemble(f"{band} ", (f"({band_basis(document)})", "dim")))
    _figures(document, console)
    limiting = document.get("limiting") or {}
    if limiting.get("text"):
        heading(console, "What limits it")
        console.print(Text(plain(limiting["text"])))
    _fit(document, console)
    shares.show(document, console)
    _bars(console, "Where the time of a step goes", document.get("breakdown_s"), "s", "blue")
    _bars(console, "Memory of the fullest GPU", document.get("memory_breakdown_bytes"), "B", "magenta")
    _published(document, console)
    _calibration(document, console)
    _variants(document, console)
    _assumptions(document, console)


def show_comparison(comparison: Mapping[str, Any], console: Console) -> None:
    """Print what `reports.compare.compare` gave: inputs, outputs, and the cause of each difference."""
    names = [plain(name) for name in comparison["names"]]
    for title, rows in (("Changed inputs", comparison["inputs"]), ("Changed outputs", comparison["outputs"])):
        heading(console, title)
        table = grid(("", "left"), *((name, "right") for name in names))
        for row in rows:
            changes = [change_text(c) for c in row.get("changes") or [None] * len(names)]
            cells = [figure_text(row["key"], value, 4) if "label" in row else input_text(value)
                     for value in row["values"]]
            add_row(table, (row.get("label", row["key"]),
                            *(f"{cell} ({c})" if c else cell for cell, c in zip(cells, changes, strict=True))))
        console.print(table if rows else Text("none"))
    for part in comparison["attributions"]:
        if part.get("terms") is None:
            heading(console, f"{plain(part['name'])}: no attribution")
            console.print(Text(plain(part["reason"])))
            continue
        heading(console, f"{plain(part['name'])} against {names[0]}: "
                        f"{signed(part['difference_s'])} per step, by cause")
        table = grid(("", "left"), (names[0], "right"), (part["name"], "right"), ("difference", "right"))
        for term in part["terms"]:
            add_row(table, (words(term["category"]), amount(term["base_s"], "s", 4),
                            amount(term["other_s"], "s", 4), signed(term["difference_s"])))
        console.print(table)
