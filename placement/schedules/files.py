"""Schedules read from files of orders, and orders of `torch.distributed.pipelining` imported.

A file lists the passes of every rank, as JSON (`{"order": [["F0", "B0"], ...]}`, or the bare list) or as CSV (one
line a rank, one pass a cell). A pass is written in one of two notations:

    own    F3.1, micro-batch 3 of chunk 1 (F3 is chunk 0); +B3.1 runs in one slot with the pass before it
    torch  5F3, micro-batch 3 on stage 5; B a whole backward, I for the input, W for the weight; what moves data
           (SEND, RECV, UNSHARD, RESHARD, REDUCE_GRAD) is left out, (5F3;2B1)OVERLAP_F_B is played one after the other

Empty cells and nulls are bubbles, which the player finds itself. JSON may also say `name`, `stages_of_rank` (stages of
each rank's chunks in model order; torch's notation tells them), `routes` and `barriers` (`Schedule`). A file with
`cases`, each such an object, holds several schedules.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from placement.schedules.order import KINDS, Orders, Pass, Request, Schedule, ScheduleError, looped

ENDINGS = (".json", ".csv")
_OWN = re.compile(rf"(\+?)([{''.join(KINDS)}])(\d+)(?:\.(\d+))?")
_TORCH = re.compile(r"(\d+)([FBIW])(\d+)")
_TORCH_SILENT = re.compile(r"\d*(?:UNSHARD|RESHARD|REDUCE_GRAD|(?:SEND|RECV)_[FB])\d*")
_TORCH_OVERLAP = re.compile(r"\((.*)\)OVERLAP_F_B")
MOST_NUMBER = 10**6  # of a stage, chunk or micro-batch: above it a file is not an order


class OrderFileError(ScheduleError):
    """A file that holds no order. `line` and `column` count from 1; 0 where it has no place."""

    def __init__(self, message: str, line: int = 0, column: int = 0) -> None:
        super().__init__(message)
        self.line, self.column = line, column


@dataclass(frozen=True)
class OrderFile:
    """The orders of a file and what follows from them; `notes` say what was put right on reading."""

    schedule: Schedule
    orders: Orders
    chunks: int
    micro_batches: int
    notes: tuple[str, ...]

    @property
    def pipeline(self) -> int:
        return len(self.orders)


@dataclass(frozen=True)
class _Cell:
    """One pass as written: rank and place count from 0, line and column from 1 (0 in JSON, which is searched)."""

    text: str
    rank: int
    place: int
    source: str
    line: int = 0
    column: int = 0

    def refused(self, what: str) -> OrderFileError:
        place = (self.line, self.column) if self.line else _where(self.source, json.dumps(self.text))
        return OrderFileError(f"rank {self.rank}, pass {self.place}: {what}", *place)


def is_file(name: str) -> bool:
    """Whether the name of a schedule is that of a file."""
    return name.lower().endswith(ENDINGS)


def load_schedule(path: str) -> Schedule:
    """The schedule of a file, read once while it does not change.

    Raises ScheduleError, placed in the file, where it cannot be read or holds no order.
    """
    try:
        state = Path(path).stat()
        return _load(path, state.st_mtime_ns, state.st_size)
    except OrderFileError as error:
        place = f":{error.line}:{error.column}" if error.line else ""
        raise ScheduleError(f"{path}{place}: {error}") from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        what = getattr(error, "strerror", None) or "is not UTF-8 text"
        raise ScheduleError(f"{path}: cannot be read: {what}") from None


@functools.cache
def _load(path: str, modified_ns: int, size: int) -> Schedule:
    return read_orders(Path(path).read_text(encoding="utf-8-sig"), Path(path).name).schedule


def text_of(one: Pass) -> str:
    """A pass in our notation: text_of(Pass("F", 1, 3)) -> 'F3.1'."""
    chunk = f".{one.chunk}" if one.chunk else ""
    return f"{'+' if one.joined else ''}{one.kind}{one.micro_batch}{chunk}"


def read_orders(
    text: str, file: str, case: str = "", pipeline: int | None = None, micro_batches: int | None = None
) -> OrderFile:
    """The schedule in the text of a file; `file` ends in .json or .csv and names the schedule where it does not.

    Of a file with several cases the one is taken whose name (its `schedule`) or number is `case` and that has
    `pipeline` ranks and `micro_batches`, where those are given.
    Raises OrderFileError for what is no order, and for a case that is not there or not the only one.
    """
    if file.lower().endswith(".csv"):
        return _order_file({"name": file}, list(_csv_rows(text)), file)
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise OrderFileError(f"not JSON: {error.msg}", error.lineno, error.colno) from None
    except (RecursionError, ValueError) as error:
        raise OrderFileError(f"not usable JSON: {error}") from None
    if isinstance(data, dict) and isinstance(data.get("cases"), list):
        data = _case(data["cases"], case, pipeline, micro_batches)
    elif case:
        raise OrderFileError(f"holds one schedule, not several cases (asked for {case!r})")
    if isinstance(data, list):
        data = {"order": data}
    if not isinstance(data, dict):
        raise OrderFileError("holds no order: a list of passes for each rank is expected")
    return _order_file(data, _json_rows(data, text), file)


def _case(cases: Sequence[Any], wanted: str, pipeline: int | None, micro_batches: int | None) -> Any:
    found = []
    for number, one in enumerate(cases):
        if not isinstance(one, dict):
            raise OrderFileError(f"case {number} is no object with the order of a schedule")
        fits = all(asked is None or one.get(key, asked) == asked
                   for key, asked in (("p", pipeline), ("m", micro_batches)))
        if fits and wanted in ("", str(number), str(one.get("schedule"))):
            found.append(one)
    if len(found) == 1:
        return found[0]
    known = ", ".join(f"{number}: {one.get('schedule')} p={one.get('p')} m={one.get('m')}"
                      for number, one in enumerate(cases) if isinstance(one, dict))
    what = f"{len(found)} cases fit" if found else "no case fits"
    raise OrderFileError(f"holds {len(cases)} schedules and {what}; name one as FILE#NAME or FILE#NUMBER ({known})")


def _csv_rows(text: str) -> Iterator[list[_Cell]]:
    try:
        records = list(csv.reader(io.StringIO(text)))
    except csv.Error as error:
        raise OrderFileError(f"not a CSV: {error}") from None
    while records and not any(cell.strip() for cell in records[-1]):
        records.pop()
    for rank, cells in enumerate(records):
        starts, column = [], 1
        for cell in cells:
            starts.append(column)
            column += len(cell) + 1
        yield [_Cell(cell.strip(), rank, place, text, rank + 1, start)
               for place, (cell, start) in enumerate(zip(cells, starts, strict=True))]


def _json_rows(data: dict[str, Any], text: str) -> list[list[_Cell]]:
    rows = data.get("order", data.get("orders"))
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise OrderFileError("has no 'order': a list of passes for each rank is expected")
    result = []
    for rank, row in enumerate(rows):
        cells = []
        for place, value in enumerate(row):
            if value is not None and not isinstance(value, str):
                line, column = _where(text, json.dumps(value))
                raise OrderFileError(f"rank {rank}, pass {place}: text such as \"F0\" is expected", line, column)
            cells.append(_Cell("" if value is None else value.strip(), rank, place, text))
        result.append(cells)
    return result


def _where(text: str, piece: str) -> tuple[int, int]:
    """Line and column, from 1, at which a piece of the text first stands; (0, 0) where it does not."""
    at = text.find(piece)
    return (0, 0) if at < 0 else (text.count("\n", 0, at) + 1, at - (text.rfind("\n", 0, at) + 1) + 1)


def _order_file(data: dict[str, Any], rows: list[list[_Cell]], file: str) -> OrderFile:
    if not rows:
        raise OrderFileError("holds no order: there is no rank in it")
    cells = [[cell for cell in row if cell.text] for row in rows]
    torch = any(_TORCH.fullmatch(cell.text) or _TORCH_OVERLAP.fullmatch(cell.text) for row in cells for cell in row)
    notes: list[str] = []
    if torch:
        orders, stages, split = _from_torch(cells, notes)
    else:
        orders = [[_own_pass(cell) for cell in row] for row in cells]
        stages = _placement(data.get("stages_of_rank"), orders)
        split = any(one.kind == "W" for order in orders for one in order)
    for rank, order in enumerate(orders):
        if not order:
            raise OrderFileError(f"rank {rank} has no pass", rank + 1 if file.lower().endswith(".csv") else 0, 1)
    routes, barriers = (_small(data, key, default, most) for key, default, most in (
        ("routes", 1, 2), ("barriers", 0, 2)))
    chunks = len(stages[0])
    micro_batches = 1 + max(one.micro_batch for order in orders for one in order)
    title = str(data.get("name") or data.get("schedule") or file)
    schedule = Schedule(
        name=title, title=title, source=f"read from {file}", order=_fixed(title, orders, micro_batches),
        stage_of=lambda rank, chunk, p, v: stages[rank][chunk],
        splits_backward=split, least_chunks=chunks, most_chunks=chunks, routes=routes, barriers=barriers)
    return OrderFile(schedule, orders, chunks, micro_batches, tuple(notes))


def _small(data: dict[str, Any], key: str, default: int, most: int) -> int:
    value = data.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not default <= value <= most:
        raise OrderFileError(f"{key} must be a number from {default} to {most} (got {value!r})")
    return value


def _fixed(title: str, orders: Orders, micro_batches: int) -> Any:
    def order(request: Request) -> Orders:
        if (request.pipeline, request.micro_batches) != (len(orders), micro_batches):
            raise ScheduleError(f"{title}: the file's order is for {len(orders)} ranks and {micro_batches} "
                                f"micro-batches (got {request.pipeline} and {request.micro_batches})")
        return orders

    return order


def _own_pass(cell: _Cell) -> Pass:
    match = _OWN.fullmatch(cell.text)
    if not match:
        raise cell.refused(f"{cell.text[:40]!r} is no pass; write KIND MICRO_BATCH . CHUNK such as F3.1 with a kind of "
                           f"{', '.join(KINDS)}, or STAGE KIND MICRO_BATCH such as 5F3 with F, B, I or W")
    joined, kind, micro_batch, chunk = match.groups()
    return Pass(kind, _number(cell, chunk or "0"), _number(cell, micro_batch), bool(joined))


def _number(cell: _Cell, text: str) -> int:
    if len(text) > 7 or int(text) > MOST_NUMBER:
        raise cell.refused(f"{text[:12]} is more than a pass can count ({MOST_NUMBER:,})")
    return int(text)


def _placement(given: Any, orders: Orders) -> list[list[int]]:
    """[ranks][chunks] of stages in model order: as given, else dealt in turn."""
    chunks = 1 + max((one.chunk for order in orders for one in order), default=0)
    if given is None:
        return [[looped(rank, chunk, len(orders), chunks) for chunk in range(chunks)] for rank in range(len(orders))]
    whole = isinstance(given, list) and len(given) == len(orders) and all(
        isinstance(row, list) and len(row) == chunks and all(type(stage) is int and stage >= 0 for stage in row)
        for row in given)
    if not whole:
        raise OrderFileError(f"stages_of_rank must list {chunks} stages for each of the {len(orders)} ranks")
    return [list(row) for row in given]


def _torch_actions(cell: _Cell) -> Iterator[tuple[int, str, int]]:
    """(stage, kind, micro-batch) of each computation in a cell."""
    overlap = _TORCH_OVERLAP.fullmatch(cell.text)
    for part in overlap[1].split(";") if overlap else [cell.text]:
        match = _TORCH.fullmatch(part.strip())
        if match:
            yield _number(cell, match[1]), match[2], _number(cell, match[3])
        elif not _TORCH_SILENT.fullmatch(part.strip()):
            raise cell.refused(f"{part[:40]!r} is no action of torch; STAGE KIND MICRO_BATCH such as 5F3 with F, B, I "
                               f"or W is expected")


def _from_torch(cells: list[list[_Cell]], notes: list[str]) -> tuple[Orders, list[list[int]], bool]:
    """(orders, stages of each rank's chunks, whether some backwards are split); what was put right goes to `notes`."""
    actions = [[action for cell in row for action in _torch_actions(cell)] for row in cells]
    stages = [sorted({stage for stage, _, _ in rank}) for rank in actions]
    if len({len(row) for row in stages}) > 1:
        counts = ", ".join(str(len(row)) for row in stages)
        raise OrderFileError(f"every rank must run equally many stages (they run {counts})")
    if sorted(stage for row in stages for stage in row) != list(range(sum(map(len, stages)))):
        raise OrderFileError("the ranks must run every stage from 0 on, each on one rank")
    split = any(kind in "IW" for rank in actions for _, kind, _ in rank)
    orders = []
    for rank, (row, of_rank) in enumerate(zip(actions, stages, strict=True)):
        order: list[Pass] = []
        for stage, kind, micro_batch in _counted_from_zero(row, rank, notes):
            chunk = of_rank.index(stage)
            order.append(Pass("B" if kind == "I" else kind, chunk, micro_batch))
            if kind == "B" and split:  # a whole backward among split ones
                order.append(Pass("W", chunk, micro_batch, joined=True))
        orders.append(order)
    return orders, stages, split


def _counted_from_zero(row: list[tuple[int, str, int]], rank: int, notes: list[str]) -> list[tuple[int, str, int]]:
    """The actions with torch 2.13.0's table of 1F1B put right: it counts the last rank's forwards from 1."""
    forwards = {micro_batch for _, kind, micro_batch in row if kind == "F"}
    backwards = {micro_batch for _, kind, micro_batch in row if kind in "BI"}
    if not forwards or forwards != {micro_batch + 1 for micro_batch in backwards} or 0 not in backwards:
        return row
    notes.append(f"rank {rank}: forwards {min(forwards)} to {max(forwards)} were read as 0 to {max(backwards)} (torch "
                 "2.13.0 writes 1F1B's last rank off by one)")
    return [(stage, kind, micro_batch - (kind == "F")) for stage, kind, micro_batch in row]
