"""A search in the terminal: the answer, the best plan, the ranking, why the others lost, what was searched.

The document is that of `whatif search --json`; the words are those of the page.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from reports import search_words as said
from reports.search_words import Row
from reports.table import FIGURES, Document, add_row, grid, heading, plain, reason

_REASONS = 8  # shown of why plans were dropped
_CHANGES = 4  # of rank that are told apart from the table
_FRONT = 10  # plans shown of the Pareto front
_HEADS = {"step_time_s": "step", "tokens_per_s_per_gpu": "tokens/s", "mfu": "MFU", "peak_memory_bytes": "memory",
          "cost_usd": "cost", "energy_j": "energy", "gpus": "GPUs"}


def show(document: Document, console: Console) -> None:
    """Print a search within the width of the console (100 columns hold it well)."""
    scenario, found = document.get("scenario") or {}, said.best(document)
    console.print(Text(plain(scenario.get("name") or "Search"), style="bold"))
    console.print(Text(plain(document.get("answer") or reason(document, "answer")), style="" if found else "bold red"))
    if facts := said.facts(document):
        console.print(Text(", ".join(facts), style="dim"))
    if found:
        _best(document, console)
        _ranking(document, console)
        _lost(document, console)
        _front(document, console)
    _misses(document, console)
    _searched(document, console)
    if found:
        _command(document, found[0], "Run the best plan", console)
        if (other := said.first_by_events(document)) is not None:
            _command(document, other, f"Run the first by events, rank {other.get('rank')} above", console)


def _best(document: Document, console: Console) -> None:
    """The best plan beside the scenario's own."""
    first, own = said.best(document)[0], document.get("base")
    rows: list[Row | None] = [first, own] if own else [first]
    heading(console, "The best plan")
    table = grid(("", "left"), ("best", "right"), *([("scenario", "right")] if own else []))
    for key in said.keys(document, [row for row in rows if row]):
        texts = [said.value_text(said.settings_of(row).get(key)) for row in rows]
        changed = own is not None and texts[0] != texts[1]
        add_row(table, (said.key_text(key), Text(texts[0], style="bold" if changed else ""), *texts[1:]))
    for key, texts in said.figures(rows):
        add_row(table, (Text(FIGURES[key].label, style="dim"), *texts))
    if own is not None and own.get("fits") is not None:
        add_row(table, (Text("Fits", style="dim"), *(said.fits_text(row or {}) for row in rows)))
    console.print(table)


def _ranking(document: Document, console: Console) -> None:
    """The plans by rank; of the settings what differs from the first."""
    rows = said.best(document)
    if len(rows) < 2:
        return
    played = any(said.events(row) for row in rows)
    keys = [key for key in ("step_time_s", "mfu", "peak_memory_bytes", "cost_usd", "energy_j", "gpus")
            if key in said.known_figures(rows)]
    columns = [said.figure_column(rows, key) for key in keys]
    heads = [(_HEADS[key], "right") for key in keys]
    if played:
        columns[1:1] = [said.figure_column([said.events(row) for row in rows], "step_time_s"),
                        [said.rank_by_events(row) for row in rows]]
        heads[1:1] = [("events", "right"), ("rank", "right")]
    heading(console, f"The {len(rows)} best plans")
    if text := said.events_text(document):
        console.print(Text(text))
    table = grid(("#", "right"), *heads, ("against the first", "left"))
    for position, (row, *cells) in enumerate(zip(rows, *columns, strict=True)):
        moved = cells[2].endswith(("▲", "▼")) if played else False
        shown = [Text(cell, style="bold yellow") if moved and place == 2 else cell for place, cell in enumerate(cells)]
        add_row(table, (str(row.get("rank", position + 1)), *shown, _difference(rows[0], row) if position else ""))
    console.print(table)
    changes = said.rank_changes(document)
    for text in changes[:_CHANGES]:
        console.print(Text(f"! {text}", style="yellow"))
    if len(changes) > _CHANGES:
        console.print(Text(f"! and {len(changes) - _CHANGES} more, marked above", style="yellow"))


def _difference(first: Row, row: Row) -> str:
    """What a plan sets otherwise than the first, short; that it does not fit by events, if so."""
    text = said.plan_text(said.changed_settings(first, row)) or "the same settings"
    tight = (said.events(row) or {}).get("fits") is False
    return f"{text}; does not fit by events" if tight else text


def _lost(document: Document, console: Console) -> None:
    told = [(row.get("rank", position), plain(row["why"])) for position, row in enumerate(said.best(document), 1)
            if position > 1 and row.get("why")]
    if told:
        heading(console, "Why the next best lost")
        table = grid(("", "right"), ("", "left"))
        for rank, why in told[:3]:
            add_row(table, (str(rank), why))
        console.print(table)


def _front(document: Document, console: Console) -> None:
    rows = sorted(document.get("pareto") or [], key=lambda row: row.get("step_time_s") or 0.0)
    if len(rows) < 2:
        return
    keys = [key for key in said.known_figures(rows) if key not in ("tokens_per_s_per_gpu", "mfu")]
    many = f", {_FRONT} of {len(rows)} from the fastest to the leanest" if len(rows) > _FRONT else ""
    heading(console, f"No plan is better in everything than these (Pareto front{many})")
    rows = said.spread(rows, _FRONT)
    names = said.keys(document, rows)
    differing = said.varying(rows, names)
    table = grid(*((_HEADS[key], "right") for key in keys), ("plan", "left"))
    columns = [said.figure_column(rows, key) for key in keys]
    for row, *cells in zip(rows, *columns, strict=True):
        add_row(table, (*cells, said.plan_text({key: said.settings_of(row).get(key) for key in differing})))
    console.print(table)
    if text := said.alike(rows, names):
        console.print(Text(f"In all: {text}", style="dim"))


def _misses(document: Document, console: Console) -> None:
    rows, fastest = document.get("nearest_misses") or [], document.get("fastest_that_does_not_fit")
    if rows:
        heading(console, "The nearest misses")
        names = said.keys(document, rows)
        differing = said.varying(rows, names) or names
        table = grid(("memory", "right"), ("step", "right"), ("misses", "left"), ("plan", "left"))
        columns = [said.figure_column(rows, key) for key in ("peak_memory_bytes", "step_time_s")]
        for row, *cells in zip(rows, *columns, strict=True):
            add_row(table, (*cells, said.miss_text(row),
                            said.plan_text({key: said.settings_of(row).get(key) for key in differing})))
        console.print(table)
        if differing != names:
            console.print(Text(f"In all: {said.alike(rows, names)}", style="dim"))
    if fastest:
        heading(console, "The fastest plan that does not fit")
        step, memory = (said.figure_column([fastest], key)[0] for key in ("step_time_s", "peak_memory_bytes"))
        console.print(Text(f"{step} a step with {memory} of memory: {said.plan_text(said.settings_of(fastest))}"))


def _searched(document: Document, console: Console) -> None:
    """The funnel, why plans were dropped, the axes, the limits, the proof and the speed."""
    steps, dropped = said.funnel(document), said.rejected_rows(document)
    heading(console, "What was searched")
    _pairs(console, [(label, f"{count:,}") for label, count in steps])
    if dropped:
        console.print(Text("Dropped:"))
        _pairs(console, [(f"  {why}", plans) for why, plans in dropped[:_REASONS]])
        if len(dropped) > _REASONS:
            console.print(Text(f"  and {len(dropped) - _REASONS} more reasons", style="dim"))
    axes = [(key, f"{many}:", values) for key, many, values in said.axis_rows(document)]
    if axes:
        console.print(Text("Values:"))
        table = grid(("", "left"), ("", "right"), ("", "left"))
        for key, many, values in axes:
            add_row(table, (f"  {key}", many, values))
        console.print(table)
    if limits := said.constraint_rows(document):
        console.print(Text("Limits: " + "; ".join(f"{name} {text}" for name, text in limits)))
    if proof := said.proof_text(document):
        console.print(Text(f"Proof: {proof}"))
    if speed := said.speed_text(document):
        console.print(Text(f"Priced: {speed}"))


def _pairs(console: Console, rows: Sequence[tuple[str, str]]) -> None:
    table = grid(("", "left"), ("", "right"))
    for row in rows:
        add_row(table, row)
    if rows:
        console.print(table)


def _command(document: Document, row: Row, title: str, console: Console) -> None:
    """The command over as many lines as the width asks for, each but the last ending with a backslash."""
    heading(console, title)
    lines = [""]
    for piece in said.command(document, row):
        if lines[-1] and len(lines[-1]) + len(piece) + 3 > console.width:
            lines.append("  ")
        lines[-1] += piece if not lines[-1].strip() else f" {piece}"
    for index, line in enumerate(lines):
        console.print(Text(line + (" \\" if index < len(lines) - 1 else "")), soft_wrap=True)
