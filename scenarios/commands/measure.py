"""`whatif calibrate measure`: the hardware at hand, into a folder that `whatif calibrate fit --measured` reads."""

from __future__ import annotations

import re
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer

from costmodel.calibration.measure import run
from costmodel.calibration.measure.read import READERS, Read, ReadError
from costmodel.calibration.measure.session import Session, SessionError, refuse_finished
from costmodel.calibration.ranks import TORCH_MISSING, RanksError, has_torch
from scenarios.commands.output import cannot_write, print_json
from scenarios.errors import Place, ScenarioError, nearest, one_line, shown

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MOST_RANKS = 64
READ_ALONE = "read"  # of --only: measure nothing, only take what --read names


def measure(device: str, name: str, folder: str, only: Sequence[str], ranks: str, reads: Sequence[str], *,
            quick: bool, as_json: bool) -> None:
    """Measures into FOLDER.partial and renames it at the end.

    Raises ScenarioError for bad options, files and folders, and where the system refuses; a rank that dies ends the
    command with 1. Whatever stops it, what was measured stays in FOLDER.partial for the same command to go on.
    """
    begin = time.monotonic()
    families = _families(only)
    counts = _ranks(ranks)
    target = _target(folder, name)
    found = [_read(one) for one in reads]
    if not has_torch():
        raise ScenarioError.at(Place("whatif calibrate measure"), TORCH_MISSING)
    own = _device(device)
    if own == "cuda" and counts and max(counts) > run.gpus():
        raise ScenarioError.at(Place(f"--ranks {ranks}"), f"there are {run.gpus()} GPUs, and each rank needs one")
    order = run.Order(name, own, quick, families, run.default_ranks(own, quick) if counts is None else counts)
    session = _open(target, order)
    with _kept(session):
        if session.resumed:
            _tell(f"going on in {session.partial}: {sum(session.counts().values())} rows are there")
        for kind_file, one in zip(reads, found, strict=True):
            _take(session, kind_file, one)
        run.measure(order, session, _tell)
        session.finish()
    _show(order, session, time.monotonic() - begin, as_json)


def _open(target: Path, order: run.Order) -> Session:
    try:
        return Session(target, run.machine(order))
    except SessionError as error:
        raise ScenarioError.at(*_place(str(error))) from None
    except OSError as error:
        raise cannot_write("-o", str(target), error) from None


@contextmanager
def _kept(session: Session) -> Iterator[None]:
    """Closes the session however the work ends, says how to go on, and gives each cause its exit."""
    rest = f"; what was measured is in {session.partial}, and the same command goes on there"
    try:
        yield
    except SessionError as error:
        raise ScenarioError.at(*_place(str(error))) from None
    except OSError as error:
        raise ScenarioError.at(Place(f"-o {session.folder}"),
                               f"cannot be written: {error.strerror or error}{rest}") from None
    except RanksError as error:
        print(f"collectives: {error}{rest}", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print(f"interrupted{rest}", file=sys.stderr)
        raise
    finally:
        session.close()


def _families(only: Sequence[str]) -> tuple[str, ...]:
    wanted = [part.strip() for one in only for part in one.split(",")]
    known = (*run.FAMILIES, READ_ALONE)
    for one in wanted:
        if one not in known:
            raise ScenarioError.at(Place(f"--only {one_line(one)}"), f"no family {shown(one)}; {nearest(one, known)}")
    return tuple(one for one in run.FAMILIES if one in wanted) if wanted else run.FAMILIES


def _ranks(text: str) -> tuple[int, ...] | None:
    """Distinct numbers of ranks; None where the default is to be taken."""
    if not text:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) < 4 and 2 <= int(part) <= _MOST_RANKS for part in parts):
        raise ScenarioError.at(Place(f"--ranks {one_line(text)}"),
                               f"numbers from 2 to {_MOST_RANKS} are expected, as in 2,4")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _target(folder: str, name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise ScenarioError.at(Place(f"--name {one_line(name)}"),
                               "letters, digits, dots, hyphens and underscores are expected, at most 64")
    target = Path(folder or f"{name}.measured")
    if "\0" in folder or not target.name:
        raise ScenarioError.at(Place(f"-o {one_line(folder)}"), "the name of a folder to be made is expected")
    if not target.parent.is_dir():
        raise ScenarioError.at(Place(f"-o {target}"), f"the folder {target.parent} does not exist; make it first")
    try:
        refuse_finished(target)
    except SessionError as error:
        raise ScenarioError.at(*_place(str(error))) from None
    return target


def _device(asked: str) -> str:
    try:
        return run.device_of(asked)
    except run.DeviceError as error:
        raise ScenarioError.at(Place(f"--device {asked}"), str(error)) from None


def _read(text: str) -> Read:
    """The rows of KIND:FILE, read before anything is measured."""
    kind, colon, file = text.partition(":")
    place = Place(f"--read {one_line(text)}")
    if not colon or not file or "\0" in file:
        raise ScenarioError.at(place, f"KIND:FILE is expected, with KIND one of {', '.join(READERS)}")
    if kind not in READERS:
        raise ScenarioError.at(place, f"no kind {shown(kind)}; {nearest(kind, tuple(READERS))}")
    try:
        return READERS[kind](Path(file))
    except ReadError as error:
        raise ScenarioError.at(*_place(str(error))) from None


def _take(session: Session, kind_file: str, found: Read) -> None:
    """Adds rows that the session lacks, and notes where they come from (the name of the file without its folder)."""
    before = sum(session.counts().values())
    for table, point, timing in found.rows:
        session.add(table, point, timing)
    added = sum(session.counts().values()) - before
    file = Path(kind_file.partition(":")[2]).name
    note = {"file": file, "made_by": found.source, "rows": len(found.rows)}
    known = session.notes.get("read", [])
    if note not in known:
        session.note("read", [*known, note])
    _tell(f"{file}: {len(found.rows)} rows of {found.source}, {added} of them new")


def _show(order: run.Order, session: Session, wall_s: float, as_json: bool) -> None:
    counts, reasons = session.counts(), run.skipped(order)
    spreads = {table: statistics.median(known) for table in counts if (known := session.spreads(table))}
    if as_json:
        print_json({"folder": str(session.folder), "machine": session.notes, "rows": counts, "median_spread": spreads,
                    "skipped": reasons, "run": {"wall_s": round(wall_s, 1)}})
        return
    for table, rows in counts.items():
        spread = f"median spread {spreads[table]:6.1%}" if table in spreads else "spread not known"
        print(f"{table:12} {rows:5} rows  {spread}")
    for table, reason in reasons.items():
        print(f"{table:12} skipped: {reason}")
    busy = session.notes["state_after"]["wall_over_cpu"]
    if busy > 1.1:
        print(f"machine busy: wall / CPU time = {busy:.2f}; storage and collectives go by the wall and may be too slow")
    print(f"measured in {wall_s:.0f} s: {session.folder}\n"
          f"next: whatif calibrate fit --measured {session.folder}")


def _place(message: str) -> tuple[Place, str]:
    where, _, what = message.partition(": ")
    file, _, line = where.rpartition(":")
    return (Place(file, int(line), 1), what) if file and line.isdigit() else (Place(where), what)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
