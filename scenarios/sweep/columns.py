"""What a row of a sweep holds, and how it is written: the same text for the same result, anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scenarios.sweep.grid import Grid, text

OK, DOES_NOT_FIT, INVALID = "ok", "does not fit", "invalid"
STATUSES = (OK, DOES_NOT_FIT, INVALID)
DIGITS = 12  # significant ones: what is left of a result on every processor

RESULTS = ("step_time_s", "tokens_per_s_per_gpu", "mfu", "peak_memory_bytes", "bubble_fraction", "cost_usd",
           "cost_usd_per_million_tokens", "energy_j")


@dataclass(frozen=True)
class Row:
    """One variant's result; `numbers` in the order of RESULTS, rounded, None where not known."""

    index: int
    status: str
    reason: str  # why it does not fit or is invalid
    numbers: tuple[float | None, ...] = (None,) * len(RESULTS)

    @property
    def fits(self) -> bool | None:
        return None if self.status == INVALID else self.status == OK

    def number(self, name: str) -> float | None:
        return self.numbers[RESULTS.index(name)]


def rounded(value: Any) -> float | None:
    """To DIGITS significant digits.

    >>> rounded(2 / 3), rounded(None), rounded(1e15 / 3)
    (0.666666666667, None, 333333333333000.0)
    """
    return None if value is None else float(f"{value:.{DIGITS}g}")


def names(grid: Grid) -> tuple[str, ...]:
    """The columns of the table: the variant, what was varied, what came out."""
    return ("variant", *grid.keys, "status", "reason", "fits", *RESULTS)


def cells(grid: Grid, row: Row) -> tuple[Any, ...]:
    """The row's values under `names`; varied values as they are, None where a variant keeps the scenario's."""
    return (grid.name(row.index), *grid.values(row.index), row.status, row.reason, row.fits, *row.numbers)


def texts(values: Sequence[Any]) -> list[str]:
    """Cells as text; numbers so that reading them gives the same number.

    >>> texts((None, True, 0.5, 4, "400 W", ["data"]))
    ['', 'true', '0.5', '4', '400 W', '[data]']
    """
    return [value if isinstance(value, str) else text(value) for value in values]
