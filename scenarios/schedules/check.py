"""Published rows of schedules (the columns of published/schedules.csv) played and compared.

Times in these tables are of one pass of a chunk or segment; where `ideal_busy` says that they are of a device-stage, a
pass takes its part. A row whose order is fixed must come out to the printed digits: cost (longest span), makespan,
bubble rate of the span and the peak of every rank. A row that a search made agrees when an order of ours costs at most
as much and holds at most its `mem_limit` (or its own peak where there is none). Blank cells are not compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from placement import schedules
from placement.schedules.evaluate import Evaluation, evaluate
from placement.schedules.order import Schedule, ScheduleError, Times
from scenarios.errors import Place, Problem, ScenarioError, nearest
from scenarios.schedules.names import HEURISTIC, Named, read_name
from scenarios.tables import header_and_records, read_text

COLUMNS = ("id", "schedule", "p", "m", "F", "B", "W")
_WHOLE = ("p", "m", "chunks_per_dev")
_NUMBERS = ("F", "B", "W", "C", "mem_F", "mem_B", "mem_W", "mem_limit")
# what is compared -> the columns that may hold it
_RESULTS = {
    "cost": ("tool_cost_longest_stage",), "makespan": ("asap_makespan_all_stages",),
    "bubble_rate": ("asap_bubble_rate_span", "tool_bubble_rate"), "busy": ("ideal_busy",),
    "peak_max": ("peak_mem_max",),
}
_PEAKS = "peak_mem_per_stage"
_RELATIVE = 1e-9  # of floating point, beside the digits printed
MOST_PASSES = 5_000_000  # of one row
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """`rows`: id, schedule, notes and the numbers by column, None where blank. `digits`: the finest decimal printed."""

    rows: list[Row]
    digits: dict[str, int]


def check(file: str, tell: Callable[[str], None]) -> dict[str, Any]:
    """The document of `whatif schedule check`; `tell` hears each row before its turn.

    Raises ScenarioError with line and column for a bad file.
    """
    table = read_table(file)
    per_row, not_checked = [], []
    for number, row in enumerate(table.rows, 1):
        tell(f"row {number} of {len(table.rows)}: {row['id']} {row['schedule']}")
        result, reason = check_row(row, table.digits)
        if result is None:
            not_checked.append({"id": row["id"], "schedule": row["schedule"], "reason": reason})
        else:
            per_row.append(result)
    agreeing = sum(row["agrees"] for row in per_row)
    return {"file": file, "rows": len(table.rows), "checked": len(per_row), "agreeing": agreeing,
            "disagreeing": len(per_row) - agreeing, "not_checked": not_checked, "per_row": per_row}


def read_table(file: str) -> Table:
    text = read_text(Path(file), Place(file))
    header, records = header_and_records(text, file, COLUMNS, "published/schedules.csv")
    problems: list[Problem] = []
    rows: list[Row] = []
    digits = dict.fromkeys(header, 0)
    numbers = [*_WHOLE, *_NUMBERS, *(column for columns in _RESULTS.values() for column in columns)]
    for line, record in records:
        cells = dict(zip(header, (cell.strip() for cell in record), strict=False))
        row: dict[str, Any] = {column: cells.get(column, "") for column in ("id", "schedule", "notes", "peak_unit")}
        row["id"] = row["id"] or f"line {line}"
        for column in numbers:
            place = Place(file, line, header.index(column) + 1) if column in header else Place(file, line, 1)
            row[column] = _number(cells.get(column, ""), column, place, problems)
            digits[column] = max(digits.get(column, 0), _decimals(cells.get(column, "")))
        peaks = cells.get(_PEAKS, "").split()
        place = Place(file, line, header.index(_PEAKS) + 1 if _PEAKS in header else 1)
        row[_PEAKS] = [_number(one, _PEAKS, place, problems) for one in peaks]
        digits[_PEAKS] = max([digits.get(_PEAKS, 0), *map(_decimals, peaks)])
        rows.append(row)
    if problems:
        raise ScenarioError(problems)
    return Table(rows, digits)


def _number(cell: str, column: str, place: Place, problems: list[Problem]) -> float | None:
    """The number in a cell, None where it is blank; what cannot be one becomes a problem."""
    if not cell:
        return None
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    least = 1 if column in _WHOLE else -math.inf if column in ("mem_B", "mem_W") else 0
    if not math.isfinite(value) or value < least or (column in _WHOLE and (value != int(value) or value > 10**6)):
        what = "a whole number from 1" if column in _WHOLE else "a number" if least < 0 else "a number of at least 0"
        problems.append(Problem.at(place, f"{column} must be {what} (got {cell[:40]!r})"))
        return None
    return value


def _decimals(cell: str) -> int:
    _, dot, part = cell.partition(".")
    return len(part) if dot and "e" not in cell.lower() else 0


@dataclass(frozen=True)
class _Played:
    """One row's order, played: peaks in the unit of the row's limit and peaks."""

    evaluation: Evaluation
    limit: float | None

    def value(self, name: str) -> float:
        found = self.evaluation
        return {"cost": found.span_s, "makespan": found.makespan_s, "bubble_rate": found.span_bubble_fraction,
                "busy": float(found.busy_s.mean()), "peak_max": float(found.peak.max())}[name]


def check_row(row: Row, digits: Mapping[str, int]) -> tuple[dict[str, Any] | None, str]:
    """(the row's result, "") or (None, why it was not checked)."""
    named = read_name(row["schedule"])
    if named is None:
        return None, f"no schedule {row['schedule']!r} is known; {nearest(row['schedule'], schedules.names())}"
    if missing := [column for column in ("p", "m", "F", "B", "W") if row[column] is None]:
        return None, f"{', '.join(missing)} not given" + (f" (notes: {row['notes']})" if row["notes"] else "")
    expected = _expected(row)
    if not expected and not row[_PEAKS]:
        return None, "no cost, makespan, bubble rate or peak given"
    if (passes := 3 * row["p"] * row["m"] * (row["chunks_per_dev"] or 1)) > MOST_PASSES:
        return None, f"about {passes:,.0f} passes are more than a check plays ({MOST_PASSES:,})"
    result = {"id": row["id"], "schedule": row["schedule"], "as": named.schedule, "rule": named.rule,
              "p": int(row["p"]), "m": int(row["m"])}
    try:
        played = _play(row, named)
    except ScheduleError as error:
        return {**result, "agrees": False, "reason": f"cannot be played: {error}"}, ""
    return {**result, **_compared(row, named, played, expected, digits)}, ""


def _expected(row: Row) -> dict[str, tuple[str, float]]:
    """What the row gives: name -> (column, value)."""
    found: dict[str, tuple[str, float]] = {}
    for name, columns in _RESULTS.items():
        for column in columns:
            if row[column] is not None:
                found.setdefault(name, (column, float(row[column])))
    return found


def _play(row: Row, named: Named) -> _Played:
    schedule = schedules.get(named.schedule)
    if named.release == "op":
        schedule = replace(schedule, early=True)
    p, m = int(row["p"]), int(row["m"])
    chunks = int(row["chunks_per_dev"] or named.settings.get("chunks") or schedule.least_chunks)
    segments = named.settings.get("segments", 1)
    forward, backward, weight = (float(row[kind]) * _part(row, schedule, chunks, segments) for kind in "FBW")
    unit = abs(row["mem_F"] or 1.0)
    memory = None if row["mem_F"] is None else {
        kind: (row[f"mem_{kind}"] or 0.0) / unit for kind in "FBW"}
    if memory is not None and not schedule.splits_backward:
        memory["B"] += memory.pop("W")
    limit = None if row["mem_limit"] is None else row["mem_limit"] / unit
    if limit is None and "limit" in named.settings:
        limit = float(named.settings["limit"])
    share = 0.5 if memory is None else -memory.get("W", 0.0)
    latency = float(row["C"] or 0.0)
    orders = schedule.generate(
        p, m, chunks, named.settings.get("group") if schedule.takes_group else None,
        segments if schedule.takes_segments else None, Times(forward, backward, weight, latency), limit, share)
    found = evaluate(orders, schedule, forward, backward, weight, latency, memory)
    return _Played(found, limit)


def _part(row: Row, schedule: Schedule, chunks: int, segments: int) -> float:
    """Of the times given, what one pass takes: all, unless the busy time says that they are of a device-stage."""
    passes = row["m"] * chunks * segments / schedule.routes
    total = row["F"] + row["B"] + row["W"]
    busy = row["ideal_busy"]
    of_stage = busy is not None and math.isclose(busy, row["m"] * total, rel_tol=1e-6)
    return row["m"] / passes if of_stage and passes != row["m"] else 1.0


def _compared(
    row: Row, named: Named, played: _Played, expected: Mapping[str, tuple[str, float]], digits: Mapping[str, int]
) -> dict[str, Any]:
    peaks = played.evaluation.peak
    values = {name: played.value(name) for name in expected}
    given = {name: value for name, (_, value) in expected.items()}
    slack = {name: _tolerance(digits[column], value) for name, (column, value) in expected.items()}
    wrong = list(_worse(played, given, slack, row[_PEAKS], digits) if named.rule == HEURISTIC
                 else _different(values, given, slack, peaks, row[_PEAKS], digits))
    cost = given.get("cost")
    return {
        "cost": played.value("cost"), "expected": cost,
        "difference": None if cost is None else played.value("cost") - cost,
        "makespan": played.value("makespan"), "expected_makespan": given.get("makespan"),
        "bubble_rate": played.value("bubble_rate"), "expected_bubble_rate": given.get("bubble_rate"),
        "peak": peaks, "expected_peak": row[_PEAKS], "peak_limit": played.limit,
        "agrees": not wrong, "reason": "; ".join(wrong),
    }


def _tolerance(decimals: int, value: float) -> float:
    return 0.5 * 10.0**-decimals * (1 + 1e-6) + _RELATIVE * abs(value)


def _different(
    values: Mapping[str, float], given: Mapping[str, float], slack: Mapping[str, float], peaks: Sequence[float] | Any,
    printed: Sequence[float], digits: Mapping[str, int],
) -> Iterable[str]:
    for name, value in given.items():
        if abs(values[name] - value) > slack[name]:
            yield f"{name} {values[name]:.10g} instead of {value:.10g}"
    if not printed:
        return
    if len(printed) != len(peaks):
        yield f"peaks of {len(printed)} stages are given; there are {len(peaks)}"
        return
    off = [rank for rank, (mine, other) in enumerate(zip(peaks, printed, strict=True))
           if abs(mine - other) > _tolerance(digits[_PEAKS], other)]
    if off:
        yield f"peak {peaks[off[0]]:.10g} instead of {printed[off[0]]:.10g} on stage {off[0]}"


def _worse(
    played: _Played, given: Mapping[str, float], slack: Mapping[str, float], printed: Sequence[float],
    digits: Mapping[str, int],
) -> Iterable[str]:
    """A search may be beaten: no more cost, no more memory than its limit. Its makespan is not what it optimised."""
    better: Callable[[str], bool] = lambda name: played.value(name) <= given[name] + slack[name]  # noqa: E731
    for name in ("cost", "bubble_rate"):
        if name in given and not better(name):
            yield f"{name} {played.value(name):.10g}, more than {given[name]:.10g}"
    if "cost" not in given and "makespan" in given and not better("makespan"):
        yield f"makespan {played.value('makespan'):.10g}, more than {given['makespan']:.10g}"
    limits = [one for one in (played.limit, given.get("peak_max"), max(printed, default=None)) if one is not None]
    peak = float(np.max(played.evaluation.peak))
    if limits and peak > limits[0] + _tolerance(digits[_PEAKS], limits[0]):
        yield f"a stage holds {peak:.10g}, more than {limits[0]:.10g}"
