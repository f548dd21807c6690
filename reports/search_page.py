"""The page of a search: one self-contained HTML file, the answer first.

The document is that of `whatif search --json`, which the page also carries; the words are those of the terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from markupsafe import Markup

from reports import charts
from reports import search_charts as drawings
from reports import search_words as said
from reports.compare import flatten
from reports.search_words import Row
from reports.table import (
    FIGURES,
    Document,
    change_text,
    figure_text,
    in_bytes,
    in_seconds,
    number,
    plain,
    reason,
    scalar,
    signed,
    words,
)
from reports.views import View, breakdowns, embedded, environment, figure_view, table_view

_BARS = 20  # plans whose time is drawn
_TOLD = 5  # plans after the best of which the reasons are open
_SPOTS = 600  # of the Pareto front that are drawn
_FRONT = 40  # of it that the table lists
_RUN: dict[str, tuple[str, Callable[[float], str]]] = {
    "wall_s": ("time to search", in_seconds), "pricing_s": ("of it pricing", in_seconds),
    "plans_per_s": ("plans priced per second", number)}
_OF_FRONT = ("step_time_s", "peak_memory_bytes", "cost_usd", "energy_j", "gpus")


def render(document: Document) -> str:
    """The page of a search. Raises ValueError on a number that is not finite, which JSON cannot hold."""
    return environment().get_template("search.html").render(
        head=_head(document), cards=_cards(document), plan=_plan(document), ranking=_ranking(document),
        lost=_lost(document), pareto=_pareto(document), missed=_missed(document), searched=_searched(document),
        origin=_origin(document), data=embedded(document))


def _head(document: Document) -> View:
    scenario = document.get("scenario") or {}
    return {"name": plain(scenario.get("name") or "Search"), "kind": plain(document.get("kind") or "search"),
            "description": plain(scenario.get("description") or ""), "facts": said.facts(document),
            "answer": plain(document.get("answer") or reason(document, "answer")), "proof": said.proof_text(document),
            "found": bool(said.best(document)), "proven": (document.get("proof") or {}).get("status") == "optimal"}


def _cards(document: Document) -> list[View]:
    found, own = said.best(document), document.get("base") or {}
    first = found[0] if found else {}
    cards = []
    for key in said.ROW_FIGURES:
        value, before = scalar(first.get(key)), scalar(own.get(key))
        if value is None:
            continue
        notes = [f"{change_text(value / before - 1)} against the scenario's plan" if before and before != value else ""]
        if key == "step_time_s" and (said.events(first) or {}).get(key) is not None:
            notes.insert(0, f"{figure_text(key, first['events'][key])} by events")
        if key == "peak_memory_bytes" and document.get("limit_bytes") is not None:
            notes.insert(0, f"of {in_bytes(document['limit_bytes'])}")
        cards.append({"label": FIGURES[key].label, "value": figure_text(key, value if key != "gpus" else int(value)),
                      "note": "; ".join(note for note in notes if note)})
    priced = (document.get("counts") or {}).get("plans_evaluated")
    if priced is not None:
        cards.append({"label": "Plans priced", "value": f"{priced:,}", "note": said.speed_text(document)})
    return cards


# The plans -------------------------------------------------------------------------------------------


def _plan(document: Document) -> View | None:
    """The best plan beside the scenario's own, and the commands that run it."""
    found, own = said.best(document), document.get("base")
    if not found:
        return None
    rows: list[Row] = [found[0], *([own] if own else [])]
    heads = ("Best", *(["Scenario"] if own else []))
    names = said.keys(document, rows)
    differing = said.varying(rows, names)
    settings = [(said.key_text(key), *_marked([said.value_text(said.settings_of(row).get(key)) for row in rows],
                                      key in differing)) for key in names]
    figures = [(FIGURES[key].label, *texts) for key, texts in said.figures(rows)]
    figures.append(("Fits in memory", *(said.fits_text(row) for row in rows)))
    text = "" if not own else "Bold: otherwise than in the scenario." if differing else (
        "The scenario's own plan is the best of those searched.")
    commands = [{"title": "Run it", "pieces": said.command(document, found[0])}]
    if (other := said.first_by_events(document)) is not None:
        commands.append({"title": f"Run the first by events (rank {plain(other.get('rank'))} by the closed form)",
                         "pieces": said.command(document, other)})
    return {"settings": table_view(("Key", *heads), settings), "figures": table_view(("Figure", *heads), figures),
            "text": text, "commands": commands}


def _marked(texts: Sequence[str], differing: bool) -> Iterable[Any]:
    return [Markup("<b>{}</b>").format(texts[0]), *texts[1:]] if differing else texts


def _ranking(document: Document) -> View | None:
    """Both fidelities side by side, what each plan sets, and where its time goes."""
    rows = said.best(document)
    if not rows:
        return None
    names = said.keys(document, rows)
    bars = [(rank, row["breakdown_s"]) for rank, row in zip(_ranks(rows), rows, strict=True) if row.get("breakdown_s")]
    many = f", the first {_BARS}" if len(bars) > _BARS else ""
    title = f"Where the time of a step goes by rank, closed form{many}"
    several = len(rows) > 1
    return {"title": f"The {len(rows)} best plans" if several else "The plan in figures",
            "text": said.events_text(document), "changes": said.rank_changes(document),
            "table": _by_columns(_ranking_columns(rows, names)), "alike": said.alike(rows, names) if several else "",
            "figure": breakdowns(bars[:_BARS], title, "Rank") if bars else None}


def _ranking_columns(rows: Sequence[Row], names: Sequence[str]) -> list[tuple[str, Sequence[Any]]]:
    """Rank and step time by both fidelities, the settings that differ, then the other figures."""
    played = [said.events(row) for row in rows]
    columns: list[tuple[str, Sequence[Any]]] = [("Rank", _ranks(rows)),
                                                ("Step time", said.figure_column(rows, "step_time_s"))]
    if any(played):
        columns += [("Step by events", said.figure_column(played, "step_time_s")),
                    ("Change", [_change(row, "step_time_s") for row in rows]),
                    ("Rank by events", [_flagged(said.rank_by_events(row)) for row in rows])]
    columns += _settings(rows, said.varying(rows, names))
    for key in said.known_figures(rows):
        if key not in ("step_time_s", "tokens_per_s_per_gpu"):  # the second says what the first says
            columns.append((FIGURES[key].short or FIGURES[key].label, said.figure_column(rows, key)))
        if key == "peak_memory_bytes" and any(played):
            columns.append(("Memory by events", said.figure_column(played, key)))
    if any(said.fits_text(row) not in ("✓ yes", said.NOTHING) for row in rows):
        columns.append(("Fits", [said.fits_text(row) for row in rows]))
    return columns


def _flagged(rank: str) -> str:
    return Markup("<b>{}</b>").format(rank) if rank.endswith(("▲", "▼")) else rank


def _ranks(rows: Sequence[Row]) -> list[str]:
    return [plain(row.get("rank") or position) for position, row in enumerate(rows, 1)]


def _change(row: Row, key: str) -> str:
    """How far the events are from the closed form."""
    closed, played = scalar(row.get(key)), scalar((said.events(row) or {}).get(key))
    return change_text(played / closed - 1) if closed and played is not None else said.NOTHING


def _settings(rows: Sequence[Row], names: Sequence[str]) -> list[tuple[str, Sequence[str]]]:
    """A column for every key."""
    return [(said.key_text(key), [said.value_text(said.settings_of(row).get(key)) for row in rows]) for key in names]


def _by_columns(columns: Sequence[tuple[str, Sequence[Any]]], text: Collection[int] = ()) -> View:
    return table_view([head for head, _ in columns], list(zip(*(cells for _, cells in columns), strict=True)), text)


def _lost(document: Document) -> View | None:
    """Why each plan is not the best; of the second the difference by cause."""
    rows = said.best(document)
    if len(rows) < 2:
        return None
    told = [(rank, said.against(rows[0], row), plain(row.get("why") or said.NOTHING))
            for rank, row in list(zip(_ranks(rows), rows, strict=True))[1:]]
    head = ("Rank", "Against the best", "Why")
    terms = [(words(plain(one.get("category"))), one["seconds"]) for one in rows[1].get("differences") or []
             if one.get("seconds")]
    figure = None
    if len(terms) > 1:
        title = f"Time of a step of rank {_ranks(rows)[1]} against the best, by cause"
        text = "; ".join(f"{label} {signed(value)}" for label, value in terms)
        figure = figure_view(charts.differences(terms, title, f"{text}.", signed), None, (), title)
    return {"figure": figure, "table": table_view(head, told[:_TOLD], (1, 2)),
            "rest": table_view(head, told[_TOLD:], (1, 2)) if len(told) > _TOLD else None}


# The front -------------------------------------------------------------------------------------------


def _pareto(document: Document) -> View | None:
    """Time against memory of the plans that none beats in everything, and the same as a table."""
    rows = sorted(document.get("pareto") or [], key=lambda row: scalar(row.get("step_time_s")) or 0.0)
    if not rows:
        return None
    keys = [key for key in _OF_FRONT if key in said.known_figures(rows)]
    named = [words(key).lower().removesuffix(" per step") if key != "gpus" else "GPUs" for key in keys]
    text = (f"{len(rows):,} plans that no other beats in all of {', '.join(named)}." if len(rows) > 1 else
            "One plan is the best in everything at once.")
    listed = said.spread(rows, _FRONT)
    if len(rows) > len(listed):
        text += f" The table lists {len(listed)} of them, from the fastest to the leanest."
    names = said.keys(document, listed)
    columns: list[tuple[str, Sequence[str]]] = [
        (FIGURES[key].short or FIGURES[key].label, said.figure_column(listed, key)) for key in keys]
    columns += _settings(listed, said.varying(listed, names))
    return {"text": text, "figure": _front_figure(document, rows), "table": _by_columns(columns),
            "alike": said.alike(listed, names) if len(listed) > 1 else ""}


def _front_figure(document: Document, rows: Sequence[Row]) -> View | None:
    drawn = said.spread([row for row in rows if None not in _place(row)], _SPOTS)
    if len(drawn) < 2:
        return None
    varied = next((key for key in ("gpus", "energy_j", "cost_usd") if _varies(drawn, key)), None)
    shades, legend = _shades(drawn, varied) if varied is not None else ([0] * len(drawn), [])
    spots = [drawings.Spot(*_place(row), _told(row), shade) for row, shade in zip(drawn, shades, strict=True)]
    marks = [mark for mark in _marks(document) if drawings.within(spots, mark)]
    limit = document.get("limit_bytes")
    title = "Step time and peak memory of the Pareto front"
    text = (f"{len(spots)} plans from {in_seconds(min(s.y for s in spots))} to {in_seconds(max(s.y for s in spots))} a "
            "step; the line is the shortest step for the memory on its left.")
    chart = drawings.pareto(spots, marks, None if limit is None else ("limit", limit), title, text,
                            (("peak memory per GPU", in_bytes), ("step time", in_seconds)))
    caption = "Step time against peak memory; the line is the shortest step that a memory allows"
    return figure_view(chart, None, legend, caption)


def _shades(rows: Sequence[Row], key: str) -> tuple[list[int], list[tuple[Markup, str]]]:
    """The shade of every row by a figure, and the legend."""
    of, parts = drawings.shades([scalar(row[key]) or 0.0 for row in rows])
    legend = []
    for shade, low, high in parts:
        ends = [f"{end:,.0f}" if key == "gpus" else figure_text(key, end) for end in (low, high)]
        legend.append((drawings.spot_swatch(shade), f"{words(key)} {' to '.join(dict.fromkeys(ends))}"))
    return of, legend


def _place(row: Row) -> tuple[Any, Any]:
    """(memory, time) of a plan; None where one is missing."""
    return scalar(row.get("peak_memory_bytes")), scalar(row.get("step_time_s"))


def _varies(rows: Sequence[Row], key: str) -> bool:
    values = [scalar(row.get(key)) for row in rows]
    known = [value for value in values if value is not None]
    return len(known) == len(rows) and min(known) < max(known)


def _told(row: Row) -> str:
    """A plan with its figures, for the pointer."""
    figures = "; ".join(f"{words(key)} {figure_text(key, row[key])}" for key in _OF_FRONT if row.get(key) is not None)
    return f"{said.plan_text(said.settings_of(row))}: {figures}"


def _marks(document: Document) -> Iterable[drawings.Mark]:
    """The best plan, the scenario's own and the fastest that does not fit."""
    found = said.best(document)
    named = (("best", found[0] if found else None, True), ("scenario's plan", document.get("base"), False),
             ("fastest, does not fit", document.get("fastest_that_does_not_fit"), False))
    for label, row, ring in named:
        if row and None not in _place(row):
            yield drawings.Mark(*_place(row), label, f"{label}: {_told(row)}", ring)


# What there was to choose from -----------------------------------------------------------------------


def _missed(document: Document) -> View | None:
    """Plans that miss a limit by the least, and what the fastest of them would take."""
    rows, fastest = document.get("nearest_misses") or [], document.get("fastest_that_does_not_fit")
    if not rows and not fastest:
        return None
    table = figure = None
    if rows:
        names = said.keys(document, rows)
        figures = [(FIGURES[key].label, said.figure_column(rows, key)) for key in ("peak_memory_bytes", "step_time_s")]
        plans = [said.plan_text({key: said.settings_of(row).get(key) for key in said.varying(rows, names) or names})
                 for row in rows]
        columns = [("", [str(position) for position in range(1, len(rows) + 1)]), *figures,
                   ("Misses", [said.miss_text(row) for row in rows]), ("Plan", plans)]
        table, figure = _by_columns(columns, (3, 4)), _misses_figure(rows, document.get("limit_bytes"))
    told = "" if not fastest else (
        f"The fastest plan that does not fit takes {_one(fastest, 'step_time_s')} a step and needs "
        f"{_one(fastest, 'peak_memory_bytes')} of memory per GPU: {said.plan_text(said.settings_of(fastest))}.")
    return {"title": "The nearest misses" if rows else "Just out of reach", "table": table, "figure": figure,
            "alike": said.alike(rows, said.keys(document, rows)) if len(rows) > 1 else "", "fastest": told}


def _one(row: Row, key: str) -> str:
    return said.figure_column([row], key)[0]


def _misses_figure(rows: Sequence[Row], limit: float | None) -> View | None:
    """What the plans need, within the limit and above it."""
    sizes = [scalar(row.get("peak_memory_bytes")) for row in rows]
    if limit is None or not any(size is not None and size > limit for size in sizes):
        return None
    bars = [(str(position), [charts.Part("Within the limit", min(size, limit), "parameters"),
                             charts.Part("Too much", max(size - limit, 0.0), "slower")])
            for position, size in enumerate(sizes, 1) if size is not None]
    title = "Memory per GPU of the nearest misses, in the order of the table"
    chart = charts.stacked_bars(bars, title, f"{len(bars)} plans against a limit of {in_bytes(limit)}.", in_bytes,
                                ("limit", limit))
    legend = [(charts.swatch("parameters"), "within the limit"), (charts.swatch("slower"), "too much")]
    return figure_view(chart, None, legend, title)


def _searched(document: Document) -> View:
    steps, dropped = said.funnel(document), said.rejected_rows(document)
    figure = None
    if steps:
        title = "Plans left by step of the search (bars logarithmic)"
        figure = figure_view(drawings.funnel(steps, title, "; ".join(f"{name} {many:,}" for name, many in steps)), None,
                             (), title)
    axes = said.axis_rows(document)
    return {"funnel": figure, "rejected": table_view(("Reason", "Plans"), dropped) if dropped else None,
            "axes": table_view(("Key", "Count", "Values"), axes, (0, 2)) if axes else None,
            "limits": said.constraint_rows(document)}


def _origin(document: Document) -> View:
    """Which run made this, and the scenario as given."""
    scenario, run = document.get("scenario") or {}, document.get("run") or {}
    made = {"tool version": document.get("tool_version"), "schema version": document.get("schema_version"),
            "file": scenario.get("file"), "solver": document.get("solver"), "objective": document.get("objective"),
            **{name: show(run[key]) for key, (name, show) in _RUN.items() if run.get(key) is not None},
            "date": run.get("date")}
    return {"made": [(key, plain(value)) for key, value in made.items() if value is not None],
            "inputs": list(flatten(scenario.get("inputs") or {}).items())}
