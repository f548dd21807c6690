"""Pipeline schedules in the terminal: figures, the order drawn with characters, tables of a comparison and a check.

Documents are those of `whatif schedule show`, `compare` and `check` with `--json`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reports.table import amount, number

Document = Mapping[str, Any]
MOST_ROWS = 64  # ranks drawn with characters
_COLOURS = {"F": "white on blue", "B": "black on yellow", "W": "black on green", "R": "white on magenta",
            "S": "black on cyan", "T": "white on red"}
_PASS = re.compile(r"\+?([A-Z])(\d+)(?:\.(\d+))?")


def pass_parts(text: str) -> tuple[str, int, int]:
    """(kind, micro-batch, chunk) of a pass as documents write it.

    >>> pass_parts("F3.1"), pass_parts("+B12")
    (('F', 3, 1), ('B', 12, 0))
    """
    match = _PASS.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no pass")
    return match[1], int(match[2]), int(match[3] or 0)


def time_text(value: float, unit: str) -> str:
    return amount(value, "s", 4) if unit == "s" else number(value, 5)


def percent(value: float) -> str:
    return f"{100 * value:.2f}%"


def figures(shown: Document) -> list[tuple[str, str]]:
    """The numbers of a schedule in words."""
    unit, size = shown["settings"]["unit"], shown["peak_memory_bytes"]
    chunks, held = number(max(shown["peak_activations"])), number(max(shown["peak_activations_micro_batches"]))
    rows = [
        ("Makespan", time_text(shown["makespan"], unit)),
        ("Longest span of a rank", time_text(shown["span"], unit)),
        ("Bubble of the makespan", percent(shown["bubble_rate_makespan"])),
        ("Bubble of the span", percent(shown["bubble_rate_span"])),
        ("Most activations in flight", f"{chunks} chunks = {held} micro-batches"),
        ("Most activation memory", f"{number(max(shown['peak_memory_micro_batches']))} micro-batches"
         + ("" if size is None else f" = {amount(max(size), 'B')}")),
        ("Traffic between ranks", "none" if shown["p2p_volume"] is None
         else f"{number(shown['p2p_volume'])} x one stage a rank"),
        ("Copies of the parameters", str(shown["parameter_copies"])),
    ]
    return rows + list(_laws(shown)) + list(_search(shown))


def _laws(shown: Document) -> Iterable[tuple[str, str]]:
    laws, unit = shown["laws"], shown["settings"]["unit"]
    if "bubble" in laws:
        law = laws["bubble"]
        yield "Bubble by its law", f"{time_text(law['law'], unit)}, played {time_text(law['played'], unit)}" + (
            "" if law["agrees"] else " (outside the law's domain)")
    if "peak_activations" in laws:
        law = laws["peak_activations"]
        yield "Activations by its law", f"{number(max(law['law']))} chunks, played {number(max(law['played']))}"


def _search(shown: Document) -> Iterable[tuple[str, str]]:
    unit = shown["settings"]["unit"]
    for key, label in (("found", "Found"), ("objective", "Searched for the least"),
                       ("bound", "No order takes less than"), ("gap", "Gap to that bound"), ("proof", "Proof")):
        if shown.get(key) is not None:
            value = shown[key]
            yield label, percent(value) if key == "gap" else time_text(value, unit) if key == "bound" else str(value)


def show(shown: Document, console: Console) -> None:
    settings = shown["settings"]
    console.print(f"{shown['title']} ({shown['name']}): {settings['stages']} ranks, {settings['microbatches']} "
                  f"micro-batches, {settings['chunks']} chunk{'s' * (settings['chunks'] > 1)} a rank", markup=False)
    console.print(f"Source: {shown['source']}", markup=False)
    console.print(f"Law: {shown['law']}\n" if shown["law"] else "", markup=False)
    table = Table(box=None, show_header=False, pad_edge=False)
    for label, value in figures(shown):
        table.add_row(label, value)
    console.print(table)
    console.print()
    console.print(_ranks(shown))
    for note in shown["notes"]:
        console.print(f"Note: {note}", markup=False)
    console.print()
    for line in gantt(shown, console.width):
        console.print(line, no_wrap=True, overflow="crop")


def _ranks(shown: Document) -> Table:
    table = Table(box=None, pad_edge=False)
    size, unit = shown["peak_memory_bytes"], shown["settings"]["unit"]
    heads = ("Rank", "Stages", "Busy", "In flight, chunks", "Micro-batches", "Memory", *(["Bytes"] if size else []))
    for head in heads:
        table.add_column(head, justify="right")
    for rank, stages in enumerate(shown["stages_of_rank"]):
        table.add_row(
            str(rank), " ".join(map(str, stages)), time_text(shown["busy"][rank], unit),
            number(shown["peak_activations"][rank]), number(shown["peak_activations_micro_batches"][rank]),
            number(shown["peak_memory_micro_batches"][rank]), *([amount(size[rank], "B")] if size else []))
    return table


def gantt(shown: Document, width: int) -> list[Text]:
    """A line a rank in at most `width` characters; chunks after the first in small letters. A line that says so where
    the passes are too many for that."""
    order, starts, ends = shown["order"], shown["start"], shown["end"]
    room = width - 5
    lengths = [end - start for row in zip(starts, ends, strict=True) for start, end in zip(*row, strict=True)]
    least = min((one for one in lengths if one > 0), default=0.0)
    if not least or len(order) > MOST_ROWS or least * room / shown["makespan"] < 1:
        return [Text("The order is too long to be drawn here; --html draws it.", style="italic")]
    scale = min(room / shown["makespan"], 4 / least)
    if whole := int(scale * least):  # equal passes look equal
        scale = whole / least
    lines = []
    for rank, passes in enumerate(order):
        line, at = Text(f"{rank:>3}  "), 0
        for text, start, end in zip(passes, starts[rank], ends[rank], strict=True):
            first, last = round(start * scale), round(end * scale)
            kind, micro_batch, chunk = pass_parts(text)
            if kind not in _COLOURS or last <= first:
                continue
            line.append(" " * (first - at))
            line.append(_label(kind, micro_batch, chunk, last - first), style=_COLOURS[kind])
            at = last
        lines.append(line)
    return lines


def _label(kind: str, micro_batch: int, chunk: int, width: int) -> str:
    letter = kind.lower() if chunk else kind
    name = f"{letter}{micro_batch}"
    return (name if len(name) <= width else letter).ljust(width, "-" if width > 2 else " ")[:width]


COMPARED = ("Schedule", "Chunks", "Makespan", "Span", "Bubble (makespan)", "Bubble (span)", "In flight, micro-batches",
            "Memory, micro-batches", "Traffic", "Parameters")


_NARROW = ("Schedule", "Chunks", "Make- span", "Span", "Bubble", "of the span", "In flight", "Memory", "p2p", "Params")


def compared_rows(rows: Sequence[Document], unit: str) -> list[tuple[str, ...]]:
    return [(
        f"{row['title']} ({row['name']})" if row["title"] != row["name"] else row["name"], str(row["chunks"]),
        time_text(row["makespan"], unit), time_text(row["span"], unit), percent(row["bubble_rate_makespan"]),
        percent(row["bubble_rate_span"]), number(row["peak_activations_micro_batches"]),
        number(row["peak_memory_micro_batches"]), "–" if row["p2p_volume"] is None else f"{number(row['p2p_volume'])}x",
        f"{row['parameter_copies']}x",
    ) for row in rows]


def show_comparison(compared: Document, console: Console) -> None:
    settings = compared["settings"]
    console.print(f"{settings['stages']} ranks, {settings['microbatches']} micro-batches, equal work on each\n")
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for index, head in enumerate(_NARROW):
        table.add_column(head, justify="right" if index else "left", no_wrap=not index)
    for row, cells in zip(compared["rows"], compared_rows(compared["rows"], settings["unit"]), strict=True):
        table.add_row(row["name"], *cells[1:])
    console.print(table)
    for refused in compared["cannot_run"]:
        console.print(f"{refused['name']} does not run here: {refused['reason']}", markup=False)


def show_check(checked: Document, console: Console) -> None:
    console.print(f"{checked['rows']} rows, {checked['checked']} checked: {checked['agreeing']} agree, "
                  f"{checked['disagreeing']} do not; {len(checked['not_checked'])} could not be checked\n")
    groups: dict[tuple[str, str, str], list[Document]] = {}
    for row in checked["per_row"]:
        groups.setdefault((row["schedule"], row["as"], row["rule"]), []).append(row)
    table = Table(box=None, pad_edge=False)
    for index, head in enumerate(("Schedule", "Played as", "Rule", "Rows", "Agree", "Largest difference of cost")):
        table.add_column(head, justify="left" if index < 3 else "right")
    for (name, known, rule), rows in groups.items():
        off = [row["difference"] / row["expected"] for row in rows if row.get("expected")]
        largest = max(off, key=abs, default=None)
        table.add_row(name, known, rule, str(len(rows)), str(sum(row["agrees"] for row in rows)),
                      "–" if largest is None else f"{100 * largest:+.3f}%")
    console.print(table)
    for row in checked["per_row"]:
        if not row["agrees"]:
            console.print(f"{row['id']} {row['schedule']}, p={row['p']} m={row['m']}: {row['reason']}", markup=False)
    for row in checked["not_checked"]:
        console.print(f"{row['id']} not checked: {row['reason']}", markup=False)
