"""JSON output of fio (`fio --output-format=json`).

A row's time is that of one block at the bandwidth of its job (bytes over runtime), whatever the depth of its queue; the
block is what was moved over the number of operations. Writes that are synced, or that go around the system's cache,
are rows of write-fsync.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from costmodel.calibration.measure.read.rows import Read, ReadError, json_of, known, text_of
from costmodel.calibration.measure.statistics import Timing

_DURABLE = ("fsync", "fdatasync", "sync", "direct", "end_fsync")


def read(path: Path) -> Read:
    """Rows of storage. Raises ReadError."""
    text = text_of(path)
    begin = max(text.find("{"), 0)  # fio prints its warnings before
    document = json_of(path, text[begin:].strip() or text, 1 + text[:begin].count("\n"))
    jobs = document.get("jobs") if isinstance(document, dict) else None
    if not isinstance(jobs, list):
        raise ReadError(f"{path}: has no list 'jobs', which fio --output-format=json writes")
    shared = document.get("global options") or {}
    rows: list[tuple[str, dict[str, Any], Timing]] = []
    for number, job in enumerate(jobs):
        try:
            rows += _rows(f"{path}: job {job.get('jobname', number)}", job, shared)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, ReadError):
                raise
            raise ReadError(f"{path}: job {number} has not the form that fio writes: {error!r}") from None
    if not rows:
        raise ReadError(f"{path}: no job read or wrote anything")
    return Read(str(document.get("fio version", "fio")), tuple(rows))


def _rows(where: str, job: Any, shared: Any) -> list[tuple[str, dict[str, Any], Timing]]:
    if job.get("error"):
        raise ReadError(f"{where}: ended with error {job['error']}")
    options = {**shared, **(job.get("job options") or {})}
    durable = any(str(options.get(name, "0")) not in ("0", "none") for name in _DURABLE)
    rows: list[tuple[str, dict[str, Any], Timing]] = []
    for direction in ("read", "write"):
        done = job[direction]
        operations = int(done["total_ios"])
        if not operations or not done["bw_bytes"]:
            continue
        size = round(done["io_bytes"] / operations)
        kind = "write-fsync" if direction == "write" and durable else direction
        rows.append(("storage", {"kind": kind, "size_bytes": size}, known(size / float(done["bw_bytes"]), operations)))
    return rows
