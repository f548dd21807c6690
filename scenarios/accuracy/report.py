"""The document of `whatif accuracy` as a terminal report and as a table for the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

Document = Mapping[str, Any]
CONVENTION = ("error = predicted / measured - 1 of tokens per second (of bytes for memory, of the printed metric for "
              "tables of schedules); bias > 0: predicted too high")
HEAD = ("", "rows", "units", "MAPE", "median", "p90", "bias", "tau", "specified", "left out", "range width", "hit")


def percent(value: float | None, sign: bool = False) -> str:
    """A fraction in per cent with one decimal; a dash where there is none.

    >>> percent(0.0512), percent(-0.2, sign=True), percent(None)
    ('5.1%', '-20.0%', '-')
    """
    return "-" if value is None else f"{100 * value:+.1f}%" if sign else f"{100 * value:.1f}%"


def _tau(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def group_rows(groups: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """One row of text per group, columns as HEAD; `specified` is the MAPE of the fully specified rows."""
    return [
        (name, str(of["rows"]), str(of["units"]), percent(of["mape"]), percent(of["median_ape"]),
         percent(of["p90_ape"]), percent(of["bias"], sign=True), _tau(of["kendall_tau"]),
         percent(of["specified"]["mape"]), percent(of.get("left_out")), percent(of["ranges"]["width"]),
         percent(of["ranges"]["hit_rate"]))
        for name, of in groups.items()
    ]


def average_row(document: Document, key: str, name: str) -> tuple[str, ...]:
    of = document[key]
    return (name, str(of["rows"]), str(of["families"]), percent(of["mape"]), percent(of["median_ape"]),
            percent(of["p90_ape"]), percent(of["bias"], sign=True), "", "", "", "")


def time_rows(document: Document, by: str) -> list[tuple[str, ...]]:
    """The table of speeds by a grouping; by family it ends with the averages over families."""
    if by != "family":
        return group_rows(document["groups"][by])
    rows = group_rows(document["families"])
    means = [average_row(document, "average", "mean of families"),
             average_row(document, "average_specified", "mean, fully specified")]
    both = document["average_schedules"]["rows"] not in (0, document["average"]["rows"])
    return [*rows, *means, *([average_row(document, "average_schedules", "mean, schedule tables")] if both else [])]


MEMORY_HEAD = ("memory", "rows", "configurations", "MAPE", "median", "p90", "bias")


def memory_rows(document: Document) -> list[tuple[str, ...]]:
    """Allocated, reserved and device-level peaks, each with its families beneath it."""
    rows = list[tuple[str, ...]]()
    for name, of in document["memory"].items():
        if of["rows"]:
            rows.append(_memory_row(name, of))
            rows += [_memory_row(f"  {family}", part) for family, part in of["families"].items()]
    return rows


def _memory_row(name: str, of: Mapping[str, Any]) -> tuple[str, ...]:
    return (name, str(of["rows"]), str(of["units"]), percent(of["mape"]), percent(of["median_ape"]),
            percent(of["p90_ape"]), percent(of["bias"], sign=True))


PASS_TIMES = {
    "equal_stages": "the order played with them", "ends": "and unequal ends, embedding and head",
    "sends": "and sends in the way of passes", "optimizer": "and the optimizer: all terms",
    "from_shapes": "from the model's shapes alone",
}
PASS_TIMES_HEAD = ("from measured pass times", "rows", "MAPE", "median", "p90", "bias")
PASS_TIMES_TITLE = "Throughput from measured pass times (arXiv 2401.10241, table 6), term by term"


def pass_time_rows(document: Document) -> list[tuple[str, ...]]:
    """The error after each term; nothing where no pass times are published."""
    found = document["pass_times"]
    if not found["rows"]:
        return []
    return [(text, str(found["rows"]), percent(of["mape"]), percent(of["median_ape"]), percent(of["p90_ape"]),
             percent(of["bias"], sign=True)) for name, text in PASS_TIMES.items() for of in [found[name]]]


def sentences(document: Document) -> list[str]:
    """Coverage, ranking, memory verdicts and what is missing, in words."""
    coverage, ranking, memory = document["coverage"], document["ranking"], document["out_of_memory"]
    lines = [f"{document['predicted']:,} of {document['rows']:,} rows predicted"]
    if coverage["scored_rows"]:
        lines[0] += (f"; {coverage['predicted']:,} of the {coverage['scored_rows']:,} rows to be scored "
                     f"({percent(coverage['share'])})")
    if ranking["sweeps"]:
        lines.append(f"ranking inside {ranking['sweeps']} sweeps: Kendall tau median "
                     f"{_tau(ranking['kendall_tau_median'])}; {percent(ranking['pairs_ordered_right'])} of "
                     f"{ranking['pairs']:,} pairs that differ by 3-35% ordered right; the chosen plan loses "
                     f"{percent(ranking['loss_of_chosen_plan_median'])} (median)")
    if memory["rows"]:
        lines.append(f"{memory['called_out_of_memory']} of {memory['rows']:,} fully specified rows, which all ran, "
                     f"are called out of memory ({percent(memory['share'])})")
    if (printed := document["printed_out_of_memory"])["rows"]:
        lines.append(f"{printed['called_out_of_memory']} of {printed['rows']} values printed as out of memory are "
                     "called so")
    if document["blanks"]:
        lines.append("blanks that became ranges: " + _counted(document["blanks"]))
    if document["approximated"]:
        lines.append("stated, but without an input in the core: " + _counted(document["approximated"]))
    return lines


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in counts.items())


def reasons(document: Document) -> dict[str, int]:
    """Why rows could not be expressed, and how many."""
    found: dict[str, int] = {}
    for row in document["not_expressible"]:
        found[row["reason"]] = found.get(row["reason"], 0) + 1
    return dict(sorted(found.items(), key=lambda item: -item[1]))


# Terminal --------------------------------------------------------------------------------------------


def show(document: Document, by: str, console: Console) -> None:
    console.print(_table((by, *HEAD[1:]), time_rows(document, by)))
    console.print(CONVENTION, style="dim")
    if rows := memory_rows(document):
        console.print(_table(MEMORY_HEAD, rows))
    if rows := pass_time_rows(document):
        console.print(f"\n{PASS_TIMES_TITLE}")
        console.print(_table(PASS_TIMES_HEAD, rows))
    if document["converted"]:
        console.print("\nSpeeds converted from TFLOP/s, outside the averages")
        console.print(_table(("family", *HEAD[1:]), group_rows(document["converted"])))
    if document["exceptions"]:
        console.print("\nReported apart")
        console.print(_table(("filter", "rows", "MAPE", "bias", "reason"), exception_rows(document)))
    console.print("")
    for line in sentences(document):
        console.print(line)
    if document["not_expressible"]:
        console.print("\nNot expressible")
        console.print(_table(("rows", "reason"), [(str(count), reason) for reason, count in reasons(document).items()]))


def exception_rows(document: Document) -> list[tuple[str, ...]]:
    return [(one["name"], str(one["rows"]), percent(one["mape"]), percent(one["bias"], sign=True), one["reason"])
            for one in document["exceptions"]]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False, show_edge=False)
    for column in head:
        words = column in ("filter", "reason", "memory", PASS_TIMES_HEAD[0]) or column == head[0] != "rows"
        table.add_column(column, justify="left" if words else "right", overflow="fold",
                         no_wrap=column == head[0] or not words, min_width=len(column) if not words else None)
    for row in rows:
        table.add_row(*row)
    return table


# Documentation ---------------------------------------------------------------------------------------


def markdown(document: Document, by: str) -> str:
    """The report as Markdown, for docs/accuracy.md."""
    command = " ".join(["whatif accuracy", *document["files"], f"--by {by} --markdown docs/accuracy.md"])
    parts = [
        "# Accuracy against published runs",
        f"Made by `{command}`; do not edit.",
        f"{CONVENTION}. A family is reduced by itself, then families are averaged. A row with blanks is scored by the "
        "median of its range; `range width` is (highest - lowest) / median of those rows, `hit` the share of them "
        "whose measured value lies inside. `units`: vTrain counts as its cells of hidden width, tensor degree and "
        "micro-batch. `specified`: MAPE of the rows that state degrees, micro-batch, batch, sequence, recompute and "
        "precision; `left out`: the same with the constants of whole runs fitted on the other families "
        "(costmodel/calibration/constants.yaml).",
        _pipes((by, *HEAD[1:]), time_rows(document, by)),
    ]
    if rows := memory_rows(document):
        parts += ["## Peak memory, by distinct configuration", _pipes(MEMORY_HEAD, rows)]
    if rows := pass_time_rows(document):
        parts += [f"## {PASS_TIMES_TITLE}", _pipes(PASS_TIMES_HEAD, rows)]
    if document["converted"]:
        parts += ["## Speeds converted from printed TFLOP/s, outside the averages",
                  _pipes(("family", *HEAD[1:]), group_rows(document["converted"]))]
    if document["exceptions"]:
        parts += ["## Reported apart", _pipes(("filter", "rows", "MAPE", "bias", "reason"), exception_rows(document))]
    parts += ["## Coverage, ranking, inputs", "\n".join(f"- {line}" for line in sentences(document))]
    if document["not_expressible"]:
        parts += ["## Not expressible", _pipes(("reason", "rows"),
                                               [(reason, str(n)) for reason, n in reasons(document).items()])]
    return "\n\n".join(parts) + "\n"


def _pipes(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.strip().replace("|", "\\|") for cell in line) + " |" for line in lines)
