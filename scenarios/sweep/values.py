"""`--vary` in words: lists, ranges and files of values become the axes of a grid.

    plan.tensor=1,2,4                      a list; values as in a scenario file: 400 W, [data, pipeline], true
    plan.micro_batch=1..8                  whole numbers from 1 to 8; 0..1 step 0.25; 200 W..700 W step 100 W
    plan.tensor=1..64 x2                   each twice the one before
    plan.tensor=@values.txt                a value on each line
    @variants.csv                          keys in the header, a variant on each line; an empty cell keeps the
                                           scenario's value
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from scenarios.document import parse_value
from scenarios.errors import Place, Problem, ScenarioError, shown
from scenarios.sweep.grid import Axis, Grid, axis_of
from scenarios.tables import read_text

MOST_VALUES = 1_000_000  # of one axis, or variants of one file
_KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_AMOUNT = r"([-+]?(?:\d[\d_]*)(?:\.\d+)?)\s*([A-Za-zµ$%/]*?)"
_RANGE = re.compile(rf"{_AMOUNT}\.\.{_AMOUNT}(?:\s*(step|x)\s*{_AMOUNT})?")


def grid(varied: Sequence[str]) -> Grid:
    """The grid of some `--vary` options. Raises ScenarioError with the problems of all."""
    if not varied:
        raise ScenarioError.at(Place("--vary"), "is missing; write --vary plan.micro_batch=1,2,4")
    axes: list[Axis] = []
    problems: list[Problem] = []
    for option in varied:
        try:
            axes.append(axis(option))
        except ScenarioError as error:
            problems += error.problems
    if problems:
        raise ScenarioError(problems)
    return Grid(tuple(axes))


def axis(option: str) -> Axis:
    """The axis of one `--vary` option. Raises ScenarioError."""
    place = Place(f"--vary {option}")
    if option.startswith("@"):
        return _table(option[1:], place)
    key, equals, written = option.partition("=")
    key = key.strip()
    if not equals or not _KEY.fullmatch(key):
        raise ScenarioError.at(place, "write it as key=value,value,... such as plan.tensor=1,2,4, or @FILE.csv")
    if written.strip().startswith("@"):
        pairs = list(_lines(written.strip()[1:], place))
    else:
        pairs = [(value, place) for value in values(written, place)]
    if not pairs:
        raise ScenarioError.at(place, f"{key} has no values; give at least one")
    return axis_of((key,), (((value,), (at,)) for value, at in pairs))


def values(written: str, place: Place) -> list[Any]:
    """The values of a list of values and ranges. Raises ScenarioError.

    >>> values("1..3, 8..32 x2, [data], 400 W", Place("--vary"))
    [1, 2, 3, 8, 16, 32, ['data'], '400 W']
    """
    listed = parse_value(f"[{written}]", place.file)
    if not isinstance(listed, list):
        raise ScenarioError.at(place, "a list of values is expected, such as 1,2,4")
    found: list[Any] = []
    for item in listed:
        _check_given(item, place)
        found += _in_range(item, place) if isinstance(item, str) and _RANGE.fullmatch(item) else [item]
        if len(found) > MOST_VALUES:
            raise ScenarioError.at(place, f"more than {MOST_VALUES:,} values; give fewer")
    return found


def _check_given(value: Any, place: Place) -> None:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if value is None:
        raise ScenarioError.at(place, "a value is missing; give one, or leave its comma out")
    for one in inner:
        _check_given(one, place)


def _in_range(written: str, place: Place) -> list[Any]:
    """The values of `A..B`, `A..B step C` or `A..B xC`, exact in decimals; B is one of them where a step meets it."""
    match = _RANGE.fullmatch(written)
    assert match
    first, last = (Decimal(match[group].replace("_", "")) for group in (1, 3))
    step, kind = Decimal((match[6] or "1").replace("_", "")), match[5] or "step"
    units = {unit for unit in (match[2], match[4], "" if kind == "x" else match[7] or "") if unit}
    wrong = ""
    if len(units) > 1 or (kind == "x" and match[7]):
        wrong = "its numbers have different units"
    elif last < first:
        wrong = f"{last} is less than {first}"
    elif kind == "x" and (step <= 1 or first <= 0):
        wrong = "it needs a factor above 1 and a first value above 0"
    elif step <= 0:
        wrong = "its step must be above 0"
    if wrong:
        raise ScenarioError.at(place, f"{shown(written)[5:]} is no range: {wrong}; write 1..8, 1..64 x2 or "
                                      "200 W..700 W step 100 W")
    numbers: list[Any] = []
    while first <= last and len(numbers) <= MOST_VALUES:
        numbers.append(int(first) if first == first.to_integral_value() else float(first))
        first = first * step if kind == "x" else first + step
    unit = next(iter(units), "")
    return [f"{number} {unit}" for number in numbers] if unit else numbers


def _lines(file: str, place: Place) -> Iterator[tuple[Any, Place]]:
    """The values of a file, one a line; blank lines and lines that begin with # are left out."""
    for number, line in enumerate(read_text(Path(file), _named(file, place)).splitlines(), 1):
        written = line.strip()
        if written and not written.startswith("#"):
            at = Place(file, number, line.index(written[0]) + 1)
            value = _cell(written, at)
            _check_given(value, at)
            yield value, at


def _named(file: str, place: Place) -> Place:
    if not file.strip():
        raise ScenarioError.at(place, "a file is expected after @")
    return Place(file)


def _cell(written: str, place: Place) -> Any:
    try:
        return parse_value(written, place.file)
    except ScenarioError as error:
        raise ScenarioError(Problem.at(place, problem.message) for problem in error.problems) from None


def _table(file: str, place: Place) -> Axis:
    """A file of variants: keys in its first line. Raises ScenarioError."""
    reader = csv.reader(read_text(Path(file), _named(file, place)).splitlines(), skipinitialspace=True)
    try:
        keys = [cell.strip() for cell in next(reader, [])]
        for column, key in enumerate(keys):
            if not _KEY.fullmatch(key):
                raise ScenarioError.at(_place(file, 1, keys, column), f"{shown(key)[5:]} is no key; the first line "
                                                                      "names the keys: plan.tensor,plan.pipeline")
        found = axis_of(keys, _rows(reader, file, len(keys))) if keys else None
    except csv.Error as error:
        raise ScenarioError.at(Place(file, reader.line_num, 1), f"not a CSV: {error}") from None
    if not found or not len(found):
        raise ScenarioError.at(Place(file, 1, 1), "holds no variants; write keys in the first line and a variant in "
                                                  "each other line")
    return found


def _rows(reader: Any, file: str, columns: int) -> Iterator[tuple[tuple[Any, ...], tuple[Place, ...]]]:
    """The variants of a table with the places of their cells; equal cells share one value."""
    known: dict[str, Any] = {"": None}
    for number, record in enumerate(reader):
        line = Place(file, reader.line_num, 1)
        if not any(cell.strip() for cell in record):
            continue
        if len(record) != columns:
            raise ScenarioError.at(line, f"{len(record)} cells are given for {columns} keys; put a value with commas "
                                         "in double quotes")
        if number >= MOST_VALUES:
            raise ScenarioError.at(line, f"more than {MOST_VALUES:,} variants; give fewer")
        cells = [cell.strip() for cell in record]
        places = tuple(_place(file, reader.line_num, record, column) for column in range(columns))
        for cell, place in zip(cells, places, strict=True):
            if cell not in known:
                known[cell] = _cell(cell, place)
                _check_given(known[cell], place)
        yield tuple(known[cell] for cell in cells), places


def _place(file: str, line: int, cells: Sequence[str], column: int) -> Place:
    """Where a cell stands, as far as quotes and blanks before it let it be counted."""
    return Place(file, line, 1 + sum(len(cell) + 1 for cell in cells[:column]))
