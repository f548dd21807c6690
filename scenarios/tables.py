"""CSV tables as files: read with errors that name file, line and column, and copied in part."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from scenarios.errors import Place, Problem, ScenarioError


def read_text(path: Path, place: Place) -> str:
    """The text of a file; ScenarioError at `place` where there is none or it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ScenarioError.at(place, "no such file") from None
    except UnicodeDecodeError:
        raise ScenarioError.at(place, "is not UTF-8 text") from None
    except (OSError, ValueError) as error:
        raise ScenarioError.at(place, f"cannot be read: {error}") from None


def header_and_records(
    text: str, file: str, columns: Sequence[str], expected: str
) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and (line, cells) of every row that is not blank.

    Raises ScenarioError for what is no CSV and for each of `columns` that the header lacks; `expected` names the
    table that has them.
    """
    reader = csv.reader(text.splitlines())
    try:
        header = [cell.strip() for cell in next(reader, [])]
        records = [(reader.line_num, record) for record in reader if any(cell.strip() for cell in record)]
    except csv.Error as error:
        raise ScenarioError.at(Place(file, reader.line_num, 1), f"not a CSV: {error}") from None
    if missing := [column for column in columns if column not in header]:
        raise ScenarioError([
            Problem.at(Place(file, 1, 1), f"column {column!r} is missing; the columns of {expected} are expected")
            for column in missing
        ])
    return header, records


def copy_rows(source: Path, target: Path, keep: Callable[[Mapping[str, str]], bool]) -> int:
    """Copies the rows that `keep` takes, with all columns, in order; returns how many."""
    with source.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        columns = list(reader.fieldnames or ())
        rows = [row for row in reader if keep(row)]
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return len(rows)
