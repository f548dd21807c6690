"""Reads a CSV with the columns of `published/training.csv` or `published/pipeline.csv`; the header decides which. What
is wrong names its row and column.

A bad row is left out and told about; the good rows still count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scenarios.accuracy import papers
from scenarios.errors import Place, Problem, shown
from scenarios.tables import header_and_records, read_text

INTEGERS = (
    "layers", "hidden", "ffn_hidden", "heads", "kv_heads", "head_dim", "vocab", "experts", "topk", "gpus", "tp",
    "sp", "pp", "vp", "dp", "cp", "ep", "etp", "seq", "micro_batch", "global_batch", "score_time", "score_memory",
)
NUMBERS = ("params_b", "gpu_mem_gb", "step_time_s", "tokens_per_s_per_gpu", "model_tflops_per_gpu", "peak_mem_gib",
           "reserved_mem_gib")
TEXTS = (
    "family", "source", "source_locator", "model", "accelerator", "inter_node_link", "zero_or_fsdp", "recompute",
    "offload", "precision", "framework", "flash_attention", "stage_layers", "metric_basis", "memory_basis",
    "memory_rank", "flop_convention", "notes",
)
COLUMNS = ("id", *TEXTS, *INTEGERS, *NUMBERS)
FLAGS = ("sp", "score_time", "score_memory")  # 0 or 1; every other number is above 0 (or as `signed` says)


@dataclass(frozen=True)
class Row:
    """One published run. `values` holds the columns that are not blank, numbers as numbers."""

    id: str
    values: Mapping[str, str | float]
    place: Place

    @property
    def of_schedule(self) -> bool:
        """Whether it is one value of a paper on pipeline schedules (pipeline.csv) and not a whole run."""
        return "metric" in self.values

    def text(self, column: str) -> str:
        """The text of a column, "" where it is blank."""
        return str(self.values.get(column, ""))

    def number(self, column: str) -> float | None:
        value = self.values.get(column)
        return float(value) if value is not None else None

    def integer(self, column: str) -> int | None:
        value = self.values.get(column)
        return int(value) if value is not None else None

    @property
    def family(self) -> str:
        return self.text("family")

    @property
    def scores_time(self) -> bool:
        return self.integer("score_time") == 1

    @property
    def scores_memory(self) -> bool:
        return self.integer("score_memory") == 1

    @property
    def fully_specified(self) -> bool:
        """Degrees, micro-batch, batch, sequence, recompute and precision are stated."""
        needed = ["gpus", "tp", "pp", "dp", "seq", "micro_batch", "global_batch", "recompute", "precision"]
        if (self.integer("pp") or 1) > 1:
            needed.append("vp")
        return all(column in self.values for column in needed)


@dataclass(frozen=True)
class Rows:
    """The good rows of one file, and what is wrong with the others."""

    rows: tuple[Row, ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class Columns:
    """The columns of one kind of table by what they hold, and what its rows are checked for beside. `marks` are the
    columns that only this table has."""

    table: str
    texts: Sequence[str]
    integers: Sequence[str]
    numbers: Sequence[str]
    marks: Sequence[str]
    contradictions: Callable[[Sequence[str], Row], list[Problem]]
    signed: Sequence[str] = ()  # numbers that may be zero or negative
    derived: Callable[[Mapping[str, str | float]], Mapping[str, str | float]] = lambda _: {}

    @property
    def all(self) -> tuple[str, ...]:
        return ("id", *self.texts, *self.integers, *self.numbers)

    def number(self, column: str, text: str) -> float | None:
        """The number of a cell, None where it is none that the column can hold."""
        try:
            value = float(text)
        except ValueError:
            return None
        if not math.isfinite(value) or (column in self.integers and value != int(value)):
            return None
        good = value in (0, 1) if column in FLAGS else value > 0 or column in self.signed
        return value if good else None


def read(path: Path, name: str | None = None) -> Rows:
    """The rows of a file; `name` is what messages call it.

    Raises ScenarioError where no row can be read: no such file, not text, no header, missing columns.
    """
    place = Place(name or str(path))
    return parse(read_text(path, place), place.file)


def parse(text: str, file: str) -> Rows:
    """The rows of a CSV given as text. Raises ScenarioError as `read`."""
    first = text.lstrip().splitlines()[:1]
    marked = {cell.strip() for line in first for cell in line.split(",")}
    kind = next((one for one in (PIPELINE, TRAINING) if marked.issuperset(one.marks)), TRAINING)
    header, records = header_and_records(text, file, kind.all, f"published/{kind.table}")
    rows, problems, seen = list[Row](), list[Problem](), dict[str, int]()
    for line, record in records:
        row, wrong = _row(kind, header, record, file, line)
        if row.id in seen:
            wrong.append(_problem(header, row, "id", f"stands in line {seen[row.id]} already; ids are unique"))
        seen.setdefault(row.id, line)
        problems += wrong
        if not wrong:
            rows.append(row)
    return Rows(tuple(rows), tuple(problems))


def _row(
    kind: Columns, header: Sequence[str], record: Sequence[str], file: str, line: int
) -> tuple[Row, list[Problem]]:
    cells = dict(zip(header, record, strict=False))
    row = Row(cells.get("id", "").strip(), {}, Place(file, line, 1))
    wrong = list[Problem]()
    if len(record) != len(header):
        wrong.append(Problem.at(row.place, f"row {row.id}: {len(record)} cells; the header has {len(header)}"))
    if not row.id:
        wrong.append(_problem(header, row, "id", "is blank"))
    values: dict[str, str | float] = {}
    for column in kind.all[1:]:
        if not (text := cells.get(column, "").strip()):
            continue
        value = text if column in kind.texts else kind.number(column, text)
        if value is None:
            what = "0 or 1" if column in FLAGS else "a whole number" if column in kind.integers else "a number"
            above = "" if column in FLAGS or column in kind.signed else " above 0"
            wrong.append(_problem(header, row, column, f"{shown(text)}; {what}{above} is expected"))
        else:
            values[column] = value
    row = Row(row.id, {**values, **kind.derived(values)}, row.place)
    return row, wrong or kind.contradictions(header, row)


def _contradictions(header: Sequence[str], row: Row) -> list[Problem]:
    """Degrees that do not multiply to the GPUs, and experts that do not divide. A row whose notes say that its
    source contradicts itself is left to the importer."""
    if "INCONSISTENT" in row.text("notes"):
        return []
    gpus, tp, pp, dp = (row.integer(column) for column in ("gpus", "tp", "pp", "dp"))
    cp, found = row.integer("cp") or 1, list[Problem]()
    if gpus and tp and pp and dp and tp * pp * dp * cp != gpus:
        product = f"tp {tp} x pp {pp} x dp {dp} x cp {cp} = {tp * pp * dp * cp}"
        found.append(_problem(header, row, "gpus", f"{gpus} contradicts {product}"))
    ep, etp = row.integer("ep") or 1, row.integer("etp")
    if tp and dp and etp and (dp * cp * tp) % (ep * etp):
        reason = f"{ep} with etp {etp} does not divide dp x cp x tp = {dp * cp * tp}"
        found.append(_problem(header, row, "ep", reason))
    return found


def _problem(header: Sequence[str], row: Row, column: str, message: str) -> Problem:
    place = Place(row.place.file, row.place.line, header.index(column) + 1)
    return Problem.at(place, f"row {row.id or '?'}, column {column}: {message}")


def _degrees_of_a_pipeline(header: Sequence[str], row: Row) -> list[Problem]:
    """Degrees that are all stated and do not multiply to the GPUs."""
    gpus, tp, pp, dp = (row.integer(column) for column in ("gpus", "tp", "pp", "dp"))
    if gpus and tp and pp and dp and tp * pp * dp != gpus:
        return [_problem(header, row, "gpus", f"{gpus} contradicts tp {tp} x pp {pp} x dp {dp} = {tp * pp * dp}")]
    return []


TRAINING = Columns("training.csv", TEXTS, INTEGERS, NUMBERS, ("family", "score_time"), _contradictions)
PIPELINE = Columns(
    "pipeline.csv",
    texts=("source", "table", "model", "vocab", "gpu", "schedule", "metric", "unit", "notes"),
    integers=("layers", "hidden", "heads", "seq", "gpus", "pp", "vp", "tp", "dp", "micro_batch", "num_micro"),
    numbers=("params_b", "value"),
    marks=("metric", "num_micro"),
    contradictions=_degrees_of_a_pipeline,
    signed=("value",),
    derived=papers.derived,
)
