"""Reading measured tables (CSV, plain or gzipped) with errors that name file and row."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd


class TableError(ValueError):
    """A table that cannot be used; the message begins with FILE or FILE:LINE (the header is line 1)."""


def read_table(path: Path, text: Sequence[str], numbers: Sequence[str],
               keep: Mapping[str, Collection[str]] | None = None) -> Any:
    """The named columns as a data frame, `numbers` as floats; only rows whose text is in `keep`, where named.

    Raises TableError with file and row; a last column of `numbers` holds times and must be above zero.
    """
    try:
        frame = pd.read_csv(path, low_memory=False)
    except pd.errors.EmptyDataError:
        raise TableError(f"{path}: is empty; a CSV table with a header is expected") from None
    except (OSError, EOFError, zlib.error) as error:
        raise TableError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise TableError(f"{path}: is not a CSV table: {error}") from None
    missing = [column for column in (*text, *numbers) if column not in frame.columns]
    if missing:
        raise TableError(f"{path}:1: has no column {missing[0]!r}; it has {', '.join(map(str, frame.columns))}")
    if frame.empty:
        raise TableError(f"{path}: has a header but no rows")
    frame = frame[[*text, *numbers]]
    for column, allowed in (keep or {}).items():
        frame = frame[frame[column].isin(allowed)]
    if frame.empty:
        wanted = "; ".join(f"{column} {' or '.join(allowed)}" for column, allowed in (keep or {}).items())
        raise TableError(f"{path}: has no rows with {wanted}")
    return frame.assign(**{column: _numbers(frame[column], path, positive=column == numbers[-1]) for column in numbers})


def _numbers(values: Any, path: Path, positive: bool) -> Any:
    found = pd.to_numeric(values, errors="coerce").to_numpy(dtype=float)
    bad = np.flatnonzero(~np.isfinite(found) | ((found <= 0.0) & positive))
    if len(bad):
        row = int(bad[0])
        expected = "a number above 0" if positive else "a finite number"
        shown = str(values.iloc[row])[:60]
        raise TableError(f"{path}:{int(values.index[row]) + 2}: {values.name} is {shown!r}; {expected} is expected")
    return found


def shape_numbers(frame: Any, columns: Sequence[str]) -> Any:
    """A number for each row; rows that agree in all columns share it."""
    return frame.groupby(list(columns), sort=True).ngroup().to_numpy()


def versions(engine: str, frame: Any) -> str:
    """The engine with the releases that the rows name."""
    return f"{engine} {', '.join(sorted(set(map(str, frame['version']))))}"
