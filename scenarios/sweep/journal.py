"""The finished results of a sweep on disk, so that a killed sweep goes on where it ended.

Lines of JSON: first what the sweep is, then one row a line in the order in which they came. Lines are only ever
added. What a kill left of the last line is cut off when the journal is opened again.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO

from scenarios.errors import Place, ScenarioError
from scenarios.sweep.columns import RESULTS, STATUSES, Row

FORMAT = "whatif sweep journal 1"


def path_of(out: Path) -> Path:
    """Where the journal of a table stands: beside it."""
    return out.with_name(f"{out.name}.journal")


class Journal:
    """Rows of a sweep of `variants`, found by their number; [variants] 8-byte offsets are all that memory holds."""

    def __init__(self, path: Path, identity: Mapping[str, str], variants: int) -> None:
        """Opens or begins the journal. `identity`: what the sweep is, part by part.

        Raises ScenarioError where the file is the journal of another sweep, or in use; OSError where it cannot be
        written.
        """
        self.path = path
        self._offsets = array("q", [-1]) * variants
        self.finished = 0
        path.touch()
        self._file: IO[bytes] = path.open("r+b")
        try:
            _lock(self._file, path)
            self.cut_bytes = self._read(dict(identity))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def __contains__(self, index: int) -> bool:
        return self._offsets[index] >= 0

    def append(self, rows: Iterable[Row]) -> list[Row]:
        """Adds the rows that it does not hold yet, in one piece, and returns these."""
        new = [row for row in rows if row.index not in self]
        end = self._file.seek(0, os.SEEK_END)
        lines = [_line(row) for row in new]
        for row, line in zip(new, lines, strict=True):
            self._offsets[row.index] = end
            end += len(line)
        self._file.write(b"".join(lines))
        self._file.flush()
        self.finished += len(new)
        return new

    def rows(self) -> Iterator[Row]:
        """Every row that it holds, in the order of the variants."""
        place = -1
        for offset in self._offsets:
            if offset < 0:
                continue
            if offset != place:
                self._file.seek(offset)
            line = self._file.readline()
            place = offset + len(line)
            yield _row(line)

    def _read(self, identity: dict[str, str]) -> int:
        """Takes in what is there; returns how many bytes at the end were no whole line."""
        header = self._file.readline()
        if not header.endswith(b"\n"):  # new, or killed before its first line was whole
            self._file.seek(0)
            self._file.truncate()
            self._file.write(json.dumps({"format": FORMAT, **identity}).encode() + b"\n")
            self._file.flush()
            return 0
        _check_identity(header, identity, self.path)
        offset = len(header)
        while line := self._file.readline():
            try:
                index = _row(line).index if line.endswith(b"\n") else -1
            except (ValueError, TypeError, RecursionError):
                index = -1
            if not 0 <= index < len(self._offsets):
                break
            self.finished += index not in self
            self._offsets[index] = offset
            offset += len(line)
        end = self._file.seek(0, os.SEEK_END)
        self._file.truncate(offset)
        return end - offset


def _lock(file: IO[bytes], path: Path) -> None:
    """One sweep at a time; the lock goes when its process does. Where locks are not known there is none."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ScenarioError.at(Place(str(path)), "another sweep is writing here; wait for it, or choose another "
                                                 "--out") from None
    except OSError:
        return


def _check_identity(header: bytes, identity: Mapping[str, str], path: Path) -> None:
    place = Place(str(path), 1, 1)
    try:
        found = json.loads(header)
        is_journal = found.pop("format") == FORMAT
    except (ValueError, AttributeError, LookupError, TypeError, RecursionError):
        is_journal = False
    if not is_journal:
        raise ScenarioError.at(place, "is not the journal of a sweep; choose another --out")
    if differing := [name for name, value in identity.items() if found.get(name) != value]:
        raise ScenarioError.at(place, f"belongs to another sweep ({', '.join(differing)} differ); repeat the command "
                                      "that began it, choose another --out, or delete it")


def _line(row: Row) -> bytes:
    return json.dumps([row.index, row.status, row.reason, *row.numbers], ensure_ascii=False).encode() + b"\n"


def _row(line: bytes) -> Row:
    """Raises ValueError or TypeError where the line is not a row."""
    index, status, reason, *numbers = json.loads(line)
    if status not in STATUSES or len(numbers) != len(RESULTS) or not isinstance(index, int):
        raise ValueError("not a row")
    return Row(index, status, reason, tuple(numbers))
