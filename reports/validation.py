"""A validation shown: a table in the terminal, a page, and both timelines in one trace.

The document is that of `simulator.real.validate`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from reports.table import add_row, amount, change_text, grid, heading, plain
from reports.trace import chrome_trace
from reports.views import View, embedded, environment, table_view

Document = Mapping[str, Any]
HEADS = ("Quantity", "Simulated", "Measured", "Error", "Spread", "Verdict")


def rows(document: Document) -> list[tuple[str, ...]]:
    """A row a quantity, as terminal and page have it."""
    limit = document["max_error"]
    return [(plain(one["label"]), amount(one["simulated"], one["unit"]), amount(one["measured"], one["unit"]),
             change_text(one["error"]) or "–", "–" if one["spread"] is None else f"{one['spread']:.1%}",
             _verdict(one, limit)) for one in document["quantities"]]


def _verdict(row: Document, limit: float | None) -> str:
    if not row["judged"]:
        return f"reported: {plain(row['reason'])}"
    if limit is None or row["error"] is None:
        return ""
    return "within" if abs(row["error"]) <= limit else "beyond"


def facts(document: Document) -> list[str]:
    """Where the run took place."""
    machine = document["machine"]
    count = machine["ranks"]
    versions = ", ".join(f"{name} {plain(value)}" for name, value in machine["versions"].items())
    ratio = machine["wall_over_cpu"]
    return [f"{plain(machine['node'])}, {machine['device']}, {count} rank{'s' * (count > 1)}", versions,
            "machine quiet" if machine["quiet"] else "machine busy", f"{document['run']['date']}",
            *([f"wall over CPU time {ratio:.2f}"] if ratio and count == 1 else [])]  # ranks wait for one another


def answer(document: Document) -> str:
    if document["failures"]:
        return "; ".join(plain(one) for one in document["failures"])
    judged = [one["error"] for one in document["quantities"] if one["judged"] and one["error"] is not None]
    if not judged:
        return "Nothing that was measured can be judged."
    worst, mean = max(map(abs, judged)), sum(map(abs, judged)) / len(judged)
    limit = document["max_error"]
    text = f"{len(judged)} judged quantities: error {mean:.1%} on average, {worst:.1%} at most"
    return text + (f"; all within {limit:.0%}." if limit is not None else ".")


def show(document: Document, console: Console) -> None:
    """The table in the terminal."""
    console.print(Text(plain(document["scenario"]["name"]), style="bold"))
    console.print(Text(" · ".join(facts(document)), style="dim"))
    if document["changes"]:
        heading(console, "What the real run does otherwise")
        table = grid(("key", "left"), ("scenario", "right"), ("run", "right"), ("why", "left"))
        for one in document["changes"]:
            add_row(table, (one["key"], one["before"], one["after"], one["why"]))
        console.print(table)
    heading(console, "Simulated and measured")
    sides = ("left", "right", "right", "right", "right", "left")
    table = grid(*((head.lower(), side) for head, side in zip(HEADS, sides, strict=True)))
    for row in rows(document):
        add_row(table, row)
    console.print(table)
    console.print(Text(f"losses: {', '.join(f'{loss:.4f}' for loss in document['losses'])}"))
    for key, one in (document.get("updated") or {}).items():
        clipped = ", at the end of its physical range" if one["clipped"] else ""
        console.print(Text(f"kept in the profile: {key} {one['before']:g} -> {one['after']:g}{clipped}"))
    console.print()
    console.print(Text(answer(document), style="bold red" if document["failures"] else "green"))


def trace(document: Document) -> dict[str, Any]:
    """One process a simulated stage, and one a measured rank."""
    lines = [*document["timelines"]["simulated"], *document["timelines"]["measured"]]
    tasks = [{"rank": number, "stream": "compute", "label": label, "category": kind, "start_s": start_s,
              "duration_s": duration_s, "args": {"chunk": chunk, "micro batch": micro_batch}}
             for number, line in enumerate(lines)
             for kind, label, chunk, micro_batch, start_s, duration_s in line["tasks"]]
    return chrome_trace(tasks, rank_names={number: line["name"] for number, line in enumerate(lines)})


def page(document: Document) -> str:
    """The page of a validation."""
    return environment().get_template("validation.html").render(
        head={"name": plain(document["scenario"]["name"]), "description": plain(document["scenario"]["description"]),
              "facts": facts(document), "answer": answer(document), "good": not document["failures"]},
        quantities=table_view(HEADS, rows(document), (0, 5)), changes=_changes(document),
        losses=table_view(("Step", "Loss"), [(f"{step}", f"{loss:.6f}")
                                             for step, loss in enumerate(document["losses"])]),
        updated=_updated(document), data=embedded(dict(document)))


def _changes(document: Document) -> View | None:
    cells = [(plain(one["key"]), plain(one["before"]), plain(one["after"]), plain(one["why"]))
             for one in document["changes"]]
    return table_view(("Key", "Scenario", "Real run", "Why"), cells, (0, 3)) if cells else None


def _updated(document: Document) -> View | None:
    cells = [(key, f"{one['before']:g}", f"{one['after']:g}", "at the end of its range" if one["clipped"] else "")
             for key, one in (document.get("updated") or {}).items()]
    return table_view(("Constant", "Before", "After", ""), cells, (0, 3)) if cells else None
