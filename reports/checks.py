"""The checks of a machine's profile shown: verdicts and figures in the terminal, and the page docs/validation.md.

The document is that of `simulator.real.checks`, with `profile`, `machine` and `run` beside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from reports.table import add_row, amount, change_text, grid, heading, plain

Document = Mapping[str, Any]
Rows = Sequence[tuple[str, ...]]
COMPUTE = ("Case", "Pass", "Simulated", "Measured", "Error", "Spread", "Shapes")
FIGURES = ("Case", "Ranks", "Quantity", "Simulated", "Measured", "Error", "Spread")
SCHEDULES = ("Schedule", "Ranks", "Micro-batches", "Order", "Simulated", "Measured", "Error", "Spread",
             "Bubble simulated", "Bubble measured")
LOSSES = ("Case", "Ranks", "Largest difference")
VERDICTS = ("Check", "Figures", "Worst", "Mean", "Limit", "Verdict")


def _spread(row: Document) -> str:
    return "–" if row["spread"] is None else f"{row['spread']:.1%}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2%}" if 0 < value < 0.01 else f"{value:.1%}"


def verdicts(document: Document) -> Rows:
    words = {True: "held", False: "not held", None: "reported"}
    return [(one["name"], f"{one['judged']}", _share(one["worst"]), _share(one["mean"]),
             f"{one['limit']:g}" if one["limit"] < 1e-3 else _share(one["limit"]),
             words[one["held"]] + (f"; {one['note']}" if one["note"] else "")) for one in document["verdicts"]]


def compute(document: Document) -> Rows:
    return [(row["case"], row["label"].removesuffix(", compute"), amount(row["simulated"], "s"),
             amount(row["measured"], "s"), change_text(row["error"]), _spread(row),
             "measured" if row["calibrated"] else "others") for row in document["compute"]]


def figures(rows: Sequence[Document]) -> Rows:
    return [(row["case"], f"{row['ranks']}", row["label"], amount(row["simulated"], row["unit"]),
             amount(row["measured"], row["unit"]), change_text(row["error"]) or "–", _spread(row)) for row in rows]


def schedules(document: Document) -> Rows:
    return [(row["schedule"], f"{row['ranks']}", f"{row['micro_batches']}",
             "equal" if row["order_equal"] else str(row["first_difference"]), amount(row["simulated_s"], "s"),
             amount(row["measured_s"], "s"), change_text(row["error"]), f"{row['spread']:.1%}",
             f"{row['bubble_simulated']:.1%}", f"{row['bubble_measured']:.1%}") for row in document["schedules"]]


def losses(document: Document) -> Rows:
    return [(row["case"], f"{row['ranks']}", "no losses" if row["difference"] is None else f"{row['difference']:.1e}")
            for row in document["losses"]]


def parts(document: Document) -> list[tuple[str, tuple[str, ...], Rows]]:
    """(title, heads, rows) of every table, in the order of the page."""
    return [
        ("Verdicts", VERDICTS, verdicts(document)),
        ("Compute of every pass, by CPU time (by events on a GPU)", COMPUTE, compute(document)),
        ("Torch's schedules with sleep in place of compute", SCHEDULES, schedules(document)),
        ("Peak memory", FIGURES, figures(document["memory"])),
        ("Losses of layouts against one process", LOSSES, losses(document)),
        ("Wall clock of layouts", FIGURES, figures(document["wall"])),
    ]


def facts(document: Document) -> list[str]:
    """Where and when the runs took place."""
    before = document["before"]
    about = " · ".join(f"{plain(key)} {plain(value)}" for key, value in document["machine"].items())
    busy = f"wall over CPU time of an idle loop {before['wall_over_cpu']:.2f}, load {before['load']:.2f}"
    return [f"profile {plain(document['profile'])}, {document['run']['date']}", about,
            f"{'quiet' if document['quiet'] else 'busy'} machine ({busy})"]


def show(document: Document, console: Console) -> None:
    """The tables in the terminal."""
    for line in facts(document):
        console.print(Text(line, style="dim"))
    for title, heads, rows in parts(document):
        heading(console, title)
        table = grid(*((head.lower(), "left" if number == 0 else "right") for number, head in enumerate(heads)))
        for row in rows:
            add_row(table, row)
        console.print(table)


def markdown(document: Document, intro: str) -> str:
    """The page: the introduction, the facts, every table."""
    text = [intro.strip(), "", *(f"- {line}" for line in facts(document)), ""]
    cell: Callable[[str], str] = lambda value: value.replace("|", "\\|")  # noqa: E731
    for title, heads, rows in parts(document):
        text += [f"## {title}", "", f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
        text += [f"| {' | '.join(map(cell, row))} |" for row in rows]
        text += [""]
    return "\n".join(text)
