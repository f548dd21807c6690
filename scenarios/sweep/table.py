"""The table of a sweep, CSV or Parquet: written row by row beside its place, then renamed into it."""

from __future__ import annotations

import csv
import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from scenarios.errors import Place, ScenarioError
from scenarios.sweep import columns
from scenarios.sweep.grid import Grid, text

ROWS_OF_A_GROUP = 10_000  # of a Parquet file, held while they are gathered
Cells = Iterable[Sequence[Any]]


def check(out: Path) -> None:
    """Whether a table of this name can be written. Raises ScenarioError."""
    place = Place(f"--out {out}")
    if out.suffix not in _WRITERS:
        raise ScenarioError.at(place, f"a table is written to a {' or '.join(_WRITERS)} file")
    if out.suffix == ".parquet":
        _pyarrow()


def write(out: Path, grid: Grid, rows: Iterable[columns.Row]) -> None:
    """Writes the table whole or not at all. Raises OSError."""
    out = out.resolve()  # a link stays one, its target is replaced
    beside = out.with_name(f".{out.name[:100]}.{os.getpid()}.part")
    try:
        _WRITERS[out.suffix](beside, grid, (columns.cells(grid, row) for row in rows))
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, out)
    finally:
        beside.unlink(missing_ok=True)


def _csv(path: Path, grid: Grid, rows: Cells) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns.names(grid))
        writer.writerows(map(columns.texts, rows))


def _parquet(path: Path, grid: Grid, rows: Cells) -> None:
    pyarrow, parquet = _pyarrow()
    types = _types(grid)
    schema = pyarrow.schema([(name, getattr(pyarrow, kind)()) for name, kind in types.items()])
    with parquet.ParquetWriter(path, schema) as writer:
        for group in _groups(iter(rows)):
            arrays = [
                pyarrow.array([_as(value, types[field.name]) for value in column], field.type)
                for field, column in zip(schema, zip(*group, strict=True), strict=True)
            ]
            writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))


def _groups(rows: Iterator[Sequence[Any]]) -> Iterator[list[Sequence[Any]]]:
    while group := list(islice(rows, ROWS_OF_A_GROUP)):
        yield group


def _types(grid: Grid) -> dict[str, str]:
    """Column -> its type, by the names that pyarrow has for them."""
    varied = {key: _type(values) for axis in grid.axes for key, values in zip(axis.keys, axis.values, strict=True)}
    types = {"variant": "string", **varied, "status": "string", "reason": "string", "fits": "bool_"}
    return {name: types.get(name, "float64") for name in columns.names(grid)}


def _type(values: Sequence[Any]) -> str:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int} and all(abs(value) < 2**63 for value in values if value is not None):
        return "int64"
    return "bool_" if kinds == {bool} else "float64" if kinds and kinds <= {int, float} else "string"


def _as(value: Any, kind: str) -> Any:
    if value is None or kind != "string" or isinstance(value, str):
        return float(value) if kind == "float64" and value is not None else value
    return text(value)


def _pyarrow() -> tuple[Any, Any]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ScenarioError.at(Place("--out F.parquet"), "needs pyarrow, which is not installed; install the extra: "
                                                         "pip install 'whatif-planner[parquet]', or write a .csv "
                                                         "file") from None


_WRITERS: dict[str, Callable[[Path, Grid, Cells], None]] = {".csv": _csv, ".parquet": _parquet}
