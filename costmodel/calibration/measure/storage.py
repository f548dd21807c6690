"""Files: written into the system's cache, written and made durable, read back (from the disk where one can ask)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from costmodel.calibration.measure.statistics import Timing
from costmodel.calibration.measure.timing import Budget, sample, wall_clock


def measure(folder: Path, point: dict[str, Any], budget: Budget) -> Timing:
    """One file of `size_bytes` in `folder`, by the wall; it is deleted at the end. Raises OSError (a full disk)."""
    content = os.urandom(point["size_bytes"])
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".whatif-storage-") as file:
        descriptor = file.fileno()
        prepare = {"write": _write, "write-fsync": _write_through, "read": _read}[point["kind"]]
        return sample(lambda _: prepare(descriptor, content), wall_clock, budget, 1)


def _write(descriptor: int, content: bytes) -> Callable[[], object]:
    os.ftruncate(descriptor, 0)  # pages are made anew each time
    return lambda: _put(descriptor, content)


def _write_through(descriptor: int, content: bytes) -> Callable[[], object]:
    os.ftruncate(descriptor, 0)

    def call() -> None:
        _put(descriptor, content)
        os.fsync(descriptor)

    return call


def _read(descriptor: int, content: bytes) -> Callable[[], object]:
    if os.fstat(descriptor).st_size != len(content):
        _put(descriptor, content)
        os.fsync(descriptor)
    if hasattr(os, "posix_fadvise"):  # lets go of the cached pages
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def call() -> None:
        done = 0
        while done < len(content):
            done += len(os.pread(descriptor, min(len(content) - done, 1 << 24), done)) or len(content)

    return call


def _put(descriptor: int, content: bytes) -> None:
    view, done = memoryview(content), 0
    while done < len(content):
        done += os.pwrite(descriptor, view[done:], done)
