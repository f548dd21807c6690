"""The page of a pipeline schedule, or of several side by side: one self-contained HTML file.

Documents are those of `whatif schedule show --json` and `compare --json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from reports import schedule_charts as drawings
from reports.schedule_table import COMPARED, compared_rows, figures, percent, time_text
from reports.table import amount, number, plain
from reports.views import View, embedded, environment, figure_view, table_view

Document = Mapping[str, Any]
MOST_CARRIED = 5000  # passes of which the page carries every start and end


def render(shown: Document, compared: Document) -> str:
    """The page of one schedule; `compared` {rows, cannot_run} holds all others in the same setting."""
    unit = shown["settings"]["unit"]
    rows = sorted([_row(shown), *compared["rows"]], key=lambda row: (row["makespan"], row["span"]))
    mine = next(i for i, row in enumerate(rows) if row["name"] == shown["name"])
    view = _compared_view(rows, compared["cannot_run"], unit, "Against all others at equal work")
    view["table"]["rows"][mine] = [f"▶ {cell}" if not i else cell for i, cell in enumerate(view["table"]["rows"][mine])]
    return environment().get_template("schedule.html").render(
        head={"title": plain(shown["title"]), "kind": "pipeline schedule",
              "facts": [*_facts(shown["settings"]), *(plain(shown[key]) for key in ("source", "law") if shown[key])]},
        cards=_cards(shown), schedules=[_schedule(shown, shown["makespan"], "Passes over time")], compared=view,
        compared_first=False, settings=_settings(shown["settings"]), data=embedded(carried(shown)))


def render_comparison(compared: Document) -> str:
    """The page of several schedules: their table, then each drawn on one scale of time."""
    shown = compared["schedules"]
    unit = compared["settings"]["unit"]
    length = max((one["makespan"] for one in shown), default=1.0)
    names = [plain(one["title"]) for one in shown]
    title = " / ".join(names) if 0 < len(names) <= 3 else f"{len(names)} schedules"
    return environment().get_template("schedule.html").render(
        head={"title": title, "kind": "pipeline schedules", "facts": _facts(compared["settings"])}, cards=[],
        compared_first=True, compared=_compared_view(compared["rows"], compared["cannot_run"], unit, "At equal work"),
        schedules=[_schedule(one, length, f"{plain(one['title'])} ({plain(one['name'])})") for one in shown],
        settings=_settings(compared["settings"]),
        data=embedded({**compared, "schedules": [carried(one) for one in shown]}))


def carried(shown: Document) -> dict[str, Any]:
    """The document as the page carries it: of long orders without the passes and their times."""
    if sum(map(len, shown["order"])) <= MOST_CARRIED:
        return dict(shown)
    return {key: value for key, value in shown.items() if key not in ("order", "start", "end", "memory")}


def _facts(settings: Document) -> list[str]:
    facts = [f"{settings['stages']} ranks", f"{settings['microbatches']} micro-batches"]
    if settings.get("chunks"):
        facts.append(f"{settings['chunks']} chunk{'s' * (settings['chunks'] > 1)} a rank")
    return facts


def _row(shown: Document) -> dict[str, Any]:
    peaks = {key: max(shown[key]) for key in ("peak_activations_micro_batches", "peak_memory_micro_batches")}
    return {**shown, "chunks": shown["settings"]["chunks"], **peaks}


def _cards(shown: Document) -> list[View]:
    unit, size = shown["settings"]["unit"], shown["peak_memory_bytes"]
    held = number(max(shown["peak_memory_micro_batches"]))
    cards = [
        ("Makespan", time_text(shown["makespan"], unit), "with a barrier at the step's end"),
        ("Longest span of a rank", time_text(shown["span"], unit), "without one"),
        ("Bubble of the makespan", percent(shown["bubble_rate_makespan"]), ""),
        ("Bubble of the span", percent(shown["bubble_rate_span"]), ""),
        ("Most in flight", f"{number(max(shown['peak_activations']))} chunks",
         f"{number(max(shown['peak_activations_micro_batches']))} micro-batches, from F to the last backward pass"),
        ("Most activation memory", held if size is None else amount(max(size), "B"),
         "micro-batches on a rank" if size is None else f"{held} micro-batches on a rank"),
        ("Traffic between ranks", "–" if shown["p2p_volume"] is None else f"{number(shown['p2p_volume'])}x",
         "of one stage a rank"),
        ("Parameters", f"{shown['parameter_copies']}x", "copies held"),
    ]
    return [{"label": label, "value": value, "note": note} for label, value, note in cards]


def _schedule(shown: Document, length: float, title: str) -> View:
    unit, ranks = shown["settings"]["unit"], len(shown["order"])

    def show_time(value: float) -> str:
        return time_text(value, unit)

    picture, columns = drawings.gantt(shown, length, show_time)
    count = sum(map(len, shown["order"]))
    caption = "One row a rank, time from left to right" + (
        "; a lighter tone is a later chunk." if shown["settings"]["chunks"] > 1 else ".")
    notes = [plain(note) for note in shown["notes"]]
    if columns:
        notes.append(f"{count:,} passes are more than the picture has room for: each column shows the pass that fills "
                     "most of it. --json has them all.")
    chosen = drawings.drawn_ranks(ranks)
    held = "Activations over time" + ("" if len(chosen) == ranks else f", {len(chosen)} of {ranks} ranks")
    start = None
    if count > drawings.MOST_BOXES:
        until = drawings.readable(shown)
        start = figure_view(drawings.gantt(shown, until, show_time)[0], None, (), f"The first {show_time(until)}", 860)
    return {
        "id": "schedule-" + "".join(c if c.isalnum() else "-" for c in shown["name"]), "title": title, "notes": notes,
        "gantt": figure_view(picture, _rank_table(shown), drawings.legend(shown), caption, 860), "start": start,
        "memory": figure_view(drawings.memory_lines(shown, length, show_time), None, drawings.memory_legend(ranks),
                              held, 320),
        "numbers": table_view(("Figure", "Value"), figures(shown), (0, 1)),
    }


def _rank_table(shown: Document) -> View:
    unit, size = shown["settings"]["unit"], shown["peak_memory_bytes"]
    head = ("Rank", "Stages", "Passes", "Busy", "In flight, chunks", "In flight, micro-batches",
            "Memory, micro-batches", *(["Memory"] if size else []))
    rows = [
        (str(rank), " ".join(map(str, stages)), f"{len(shown['order'][rank]):,}", time_text(shown["busy"][rank], unit),
         number(shown["peak_activations"][rank]), number(shown["peak_activations_micro_batches"][rank]),
         number(shown["peak_memory_micro_batches"][rank]), *([amount(size[rank], "B")] if size else []))
        for rank, stages in enumerate(shown["stages_of_rank"])]
    return table_view(head, rows)


def _compared_view(rows: Sequence[Document], refused: Sequence[Document], unit: str, title: str) -> View:
    return {
        "title": title,
        "text": "The same forward, backward and weight time on every rank for every micro-batch. Bubbles with and "
                "without a barrier at the step's end; traffic between ranks in that of one stage a rank.",
        "table": table_view(COMPARED, [tuple(plain(cell) for cell in row) for row in compared_rows(rows, unit)]),
        "refused": table_view(("Schedule", "Why"), [(one["name"], plain(one["reason"])) for one in refused], (0, 1)),
    }


def _settings(settings: Document) -> list[tuple[str, str]]:
    """What was asked for; long tables of times as their size."""
    shown = {key: value for key, value in settings.items() if value is not None and key not in ("times", "pass_times")}
    for kind, value in settings["times"].items():
        text = json.dumps(value)
        shown[f"time of {kind}"] = text if len(text) <= 200 else f"{len(value)} rows"
    return [(key.replace("_", " "), f"{value}") for key, value in shown.items()]
