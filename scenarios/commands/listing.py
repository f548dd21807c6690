"""`whatif list`: what is known, by kind."""

from __future__ import annotations

from typing import Any

from scenarios import names
from scenarios.commands.output import print_json


def show(kind: names.Kind, *, as_json: bool) -> None:
    """A table of every name of the kind with its main figures, or the same as JSON."""
    entries = names.describe(kind)
    if as_json:
        print_json({"kind": kind, "entries": entries})
        return
    from rich.console import Console
    from rich.table import Table

    from reports.table import words

    columns = list(dict.fromkeys(key for entry in entries for key in entry))
    table = Table(box=None, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(words(column), overflow="fold", no_wrap=column == "name")
    for entry in entries:
        table.add_row(*(_cell(column, entry.get(column)) for column in columns))
    Console(highlight=False, markup=False).print(table)


def _cell(key: str, value: Any) -> str:
    from reports.table import figure_text

    return "" if value is None else figure_text(key, value)
