"""The folder of one measurement while it grows: rows flushed one by one, a restart skips those that exist.

While it is made it is FOLDER.partial; `finish` renames it. Numbers are written so that reading gives them back.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from costmodel.calibration.measure.statistics import Timing

_TIMES = ("seconds", "least_s", "spread", "repeats", "wall_over_cpu")
KEYS: dict[str, tuple[str, ...]] = {
    "gemm": ("type", "m", "n", "k"),
    "attention": ("type", "direction", "batch", "heads", "kv_heads", "head_dim", "sequence"),
    "operators": ("operator", "direction", "type", "rows", "width", "size_bytes"),
    "copies": ("kind", "size_bytes"),
    "launch": ("kind",),
    "storage": ("kind", "size_bytes"),
    "collectives": ("collective", "backend", "ranks", "size_bytes"),
}
COLUMNS = {table: (*keys, *(("low_s",) if table == "collectives" else ()), *_TIMES) for table, keys in KEYS.items()}
SAME = ("name", "device", "description", "threads")  # what a folder's rows must have in common

Key = tuple[str, ...]


class SessionError(ValueError):
    """A folder that cannot be begun or gone on with; the message begins with the folder or FILE:LINE."""


def key_of(table: str, row: Mapping[str, Any]) -> Key:
    """What makes a row of a table one of its kind."""
    return tuple(str(row[name]) for name in KEYS[table])


def refuse_finished(folder: Path) -> None:
    """Raises SessionError where FOLDER exists: what is measured is not overwritten, and only partial ones go on."""
    if folder.exists():
        raise SessionError(f"{folder}: exists already; choose another with -o, or remove it to measure anew")


class Session:
    """An open folder: `has` and `add` rows, `note` what belongs to all of them, `finish`, `close`."""

    def __init__(self, folder: Path, machine: Mapping[str, Any]) -> None:
        """Opens FOLDER.partial anew, or one of the same machine to go on with.

        Raises SessionError where FOLDER exists, where the partial one is of another machine or not readable, and
        OSError where the system refuses.
        """
        self.folder, self.partial = folder, folder.with_name(folder.name + ".partial")
        refuse_finished(folder)
        self._files: dict[str, TextIO] = {}
        self._keys: dict[str, set[Key]] = {}
        known = _notes(self.partial / "machine.yaml")
        if known is not None and (other := [one for one in SAME if known.get(one) != _plain(machine.get(one))]):
            raise SessionError(f"{self.partial}: was begun with another {' and '.join(other)}; "
                               "choose another folder with -o, or remove it to begin anew")
        self.partial.mkdir(exist_ok=True)
        self.notes: dict[str, Any] = known or dict(machine)
        self.resumed = known is not None
        self._write_notes()

    def has(self, table: str, row: Mapping[str, Any]) -> bool:
        """Whether the row's point has been measured."""
        return key_of(table, row) in self._known(table)

    def add(self, table: str, row: Mapping[str, Any], timing: Timing) -> None:
        """Writes one row, flushed at once; a point that exists is left as it is."""
        if self.has(table, row):
            return
        values = {**row, **asdict(timing)}
        text = [_text(values[name]) for name in COLUMNS[table]]
        if table not in self._files:
            self._files[table] = self._open(table)
        csv.writer(self._files[table], lineterminator="\n").writerow(text)
        self._files[table].flush()
        self._known(table).add(key_of(table, row))

    def counts(self) -> dict[str, int]:
        """Rows of each table that has some."""
        return {table: len(self._known(table)) for table in KEYS if self._known(table)}

    def spreads(self, table: str) -> list[float]:
        """The spread of each row of a table, where it is known."""
        path = self.folder if self.folder.exists() else self.partial
        with (path / f"{table}.csv").open(encoding="utf-8", newline="") as file:
            return [float(row["spread"]) for row in csv.DictReader(file) if row["spread"]]

    def note(self, name: str, value: Any) -> None:
        """Writes one entry of machine.yaml."""
        self.notes[name] = value
        self._write_notes()

    def finish(self) -> None:
        """Closes the tables and gives the folder its name."""
        self.close()
        os.rename(self.partial, self.folder)

    def close(self) -> None:
        for file in self._files.values():
            with contextlib.suppress(OSError):  # every row was flushed; a full disk has been told of
                file.close()
        self._files.clear()

    def _known(self, table: str) -> set[Key]:
        if table not in self._keys:
            self._keys[table] = _keys(self.partial / f"{table}.csv", table)
        return self._keys[table]

    def _open(self, table: str) -> TextIO:
        path = self.partial / f"{table}.csv"
        _cut_broken_row(path)
        new = not path.exists() or path.stat().st_size == 0
        file = path.open("a", encoding="utf-8", newline="")
        if new:
            csv.writer(file, lineterminator="\n").writerow(COLUMNS[table])
        return file

    def _write_notes(self) -> None:
        path = self.partial / "machine.yaml"
        beside = path.with_suffix(".part")
        with beside.open("w", encoding="utf-8") as file:
            _yaml().dump(_plain(self.notes), file)
        beside.replace(path)


def _yaml() -> Any:
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    yaml.width = 110
    return yaml


def _notes(path: Path) -> dict[str, Any] | None:
    """What a machine.yaml says; None where there is none."""
    if not path.exists():
        return None
    try:
        found = _yaml().load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise SessionError(f"{where}: is not YAML; remove the folder to begin anew") from None
    if not isinstance(found, dict):
        raise SessionError(f"{path}:1: is not a mapping; remove the folder to begin anew")
    return found


def _plain(value: Any) -> Any:
    """As YAML would give it back."""
    return json.loads(json.dumps(value))


def _keys(path: Path, table: str) -> set[Key]:
    if not path.exists():
        return set()
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(_whole_lines(file))
        header = next(rows, None)
        if header is not None and tuple(header) != COLUMNS[table]:
            raise SessionError(f"{path}:1: has columns {', '.join(header)[:80]}; {', '.join(COLUMNS[table])} expected")
        count = len(KEYS[table])
        found = set()
        for line, row in enumerate(rows, start=2):
            if len(row) != len(COLUMNS[table]):
                raise SessionError(f"{path}:{line}: has {len(row)} cells; {len(COLUMNS[table])} are expected")
            found.add(tuple(row[:count]))
        return found


def _whole_lines(lines: Iterable[str]) -> Iterable[str]:
    """Without a last line that a kill has cut."""
    return (line for line in lines if line.endswith("\n"))


def _cut_broken_row(path: Path) -> None:
    if path.exists() and (text := path.read_bytes()) and not text.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(text.rfind(b"\n") + 1)


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
