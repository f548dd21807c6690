"""Claims of published systems as data: a CSV with the columns of `published/systems_training.csv`.

A bad row is left out and told about with its row and column; the good rows still count.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scenarios.errors import Place, Problem, shown
from scenarios.tables import header_and_records, read_text

COLUMNS = ("system", "arxiv", "claim_id", "setting", "metric", "baseline_name", "baseline_value", "system_value",
           "ratio", "unit", "source_locator")
NUMBERS = ("baseline_value", "system_value", "ratio")
NEEDED = ("system", "claim_id", "metric")
BINARY = {"K": 2.0**10, "M": 2.0**20}  # token counts: 640K, 1M

POINT, INTERVAL, AT_MOST, AT_LEAST, ABOUT = "point", "interval", "at most", "at least", "about"
_NUMBER = re.compile(r"(?P<sign>[+-]?)(?P<digits>\d+(?:\.(?P<decimals>\d+))?(?:[eE][+-]?\d+)?)(?P<scale>[KM](?!\w))?"
                     r"(?=$|[\s%(;,:/+~–-]|[xXBPs×](?!\w))")
_OPENS = re.compile(r"(?:~|≈|<=?|>=?|≤|≥|up to|about|over|at least|at most|\s)*", re.IGNORECASE)
_ORDERS = re.compile(r"\b(one|two|three|four) orders? of magnitude", re.IGNORECASE)
_WORDS = re.compile(r"out ?performs|match|comparable|faster|slower|better|worse|more|less|out of memory|OOM",
                    re.IGNORECASE)
_LEAST = re.compile(r"\bover\b|or more|at least|>|≥|\d\+(?!\d)", re.IGNORECASE)
_MOST = re.compile(r"\bmax\b|up to|at most|<|≤", re.IGNORECASE)


@dataclass(frozen=True)
class Figure:
    """A number as it is printed: a point (low = high), an interval, or a bound. `step`: one in the last digit."""

    low: float
    high: float
    sort: str
    step: float = 0.0

    @property
    def plain(self) -> float | list[float]:
        """The number, or both ends of an interval."""
        return [self.low, self.high] if self.sort == INTERVAL else self.high


def figure(text: str) -> Figure | None:
    """What a cell prints; None where it is blank or says it in words. A signed percentage is a change: -40% is 0.6.

    Raises ValueError where neither a number nor a comparison can be read.

    >>> figure("1.19-2.50").plain, figure("4.8 (max)").sort, figure("-40%").high, figure("640K").high
    ([1.19, 2.5], 'at most', 0.6, 655360.0)
    """
    text = text.strip()
    if not text:
        return None
    if orders := _ORDERS.search(text):
        power = ("one", "two", "three", "four").index(orders[1].lower()) + 1
        return Figure(10.0**power, 10.0**power, _sort(text))
    opening = _OPENS.match(text)
    start = opening.end() if opening else 0
    first = _NUMBER.match(text, start)
    if first is None:
        if _WORDS.search(text):
            return None
        raise ValueError("a number is expected (a range a-b, an 'up to', a ~ are understood)")
    second = re.match(r"\s*[-–]\s*", text[first.end():])
    last = _NUMBER.match(text, first.end() + second.end()) if second else None
    ends = [_value(one) for one in (first, last) if one is not None]
    step = 10.0 ** -len(first["decimals"] or "") * BINARY.get(first["scale"] or "", 1.0)
    tail = text[(last or first).end():].lstrip()
    if tail.startswith("%") and (first["sign"] or "faster" in tail):
        ends, step = [1 + end / 100 for end in ends], step / 100
    if re.search(r"\s/\s|;", text):
        return None  # several figures in one cell
    return Figure(min(ends), max(ends), INTERVAL if last else _sort(text), step)


def _value(found: re.Match[str]) -> float:
    return float(found["sign"] + found["digits"]) * BINARY.get(found["scale"] or "", 1.0)


def _sort(text: str) -> str:
    if _MOST.search(text):
        return AT_MOST
    if _LEAST.search(text):
        return AT_LEAST
    return ABOUT if re.match(r"\s*(~|≈|about)", text) else POINT


@dataclass(frozen=True)
class Claim:
    """One row: what a system's authors say, against what, and where it is printed."""

    system: str
    arxiv: str
    claim_id: str
    setting: str
    metric: str
    baseline_name: str
    baseline_value: str
    system_value: str
    ratio: str
    unit: str
    source_locator: str

    @property
    def baseline_figure(self) -> Figure | None:
        return figure(self.baseline_value)

    @property
    def value_figure(self) -> Figure | None:
        return figure(self.system_value)

    @property
    def ratio_figure(self) -> Figure | None:
        return figure(self.ratio)


@dataclass(frozen=True)
class Claims:
    """The good rows of one file, and what is wrong with the others."""

    rows: tuple[Claim, ...]
    problems: tuple[Problem, ...]


def read(path: Path, name: str | None = None) -> Claims:
    """The claims of a file; `name` is what messages call it.

    Raises ScenarioError where no row can be read: no such file, not text, missing columns.
    """
    place = Place(name or str(path))
    return parse(read_text(path, place), place.file)


def parse(text: str, file: str) -> Claims:
    """The claims of a CSV given as text. Raises ScenarioError as `read`."""
    header, records = header_and_records(text, file, COLUMNS, "published/systems_training.csv")
    rows, problems, seen = list[Claim](), list[Problem](), dict[str, int]()
    for line, record in records:
        cells = {column: cell.strip() for column, cell in zip(header, record, strict=False)}
        claim = Claim(**{column: cells.get(column, "") for column in COLUMNS})
        wrong = _wrong(claim, header, record, file, line)
        if claim.claim_id in seen:
            told = f"stands in line {seen[claim.claim_id]} already; claim ids are unique"
            wrong.append(_problem(claim, header, "claim_id", told, file, line))
        if claim.claim_id:
            seen.setdefault(claim.claim_id, line)
        problems += wrong
        if not wrong:
            rows.append(claim)
    return Claims(tuple(rows), tuple(problems))


def _wrong(claim: Claim, header: Sequence[str], record: Sequence[str], file: str, line: int) -> list[Problem]:
    found = list[Problem]()
    if len(record) != len(header):
        told = f"row {claim.claim_id or '?'}: {len(record)} cells; the header has {len(header)}"
        return [Problem.at(Place(file, line, 1), told)]
    for column in NEEDED:
        if not getattr(claim, column):
            found.append(_problem(claim, header, column, "is blank", file, line))
    for column in NUMBERS:
        try:
            figure(getattr(claim, column))
        except ValueError as error:
            told = f"{shown(getattr(claim, column))}; {error}"
            found.append(_problem(claim, header, column, told, file, line))
    return found


def _problem(claim: Claim, header: Sequence[str], column: str, message: str, file: str, line: int) -> Problem:
    place = Place(file, line, list(header).index(column) + 1)
    return Problem.at(place, f"row {claim.claim_id or '?'}, column {column}: {message}")
