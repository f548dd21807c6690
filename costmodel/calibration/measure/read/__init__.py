"""Rows from outputs of other tools: `READERS` by kind, each a function of a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from costmodel.calibration.measure.read import fio, nccl_tests, trace
from costmodel.calibration.measure.read.rows import Read, ReadError

READERS: dict[str, Callable[[Path], Read]] = {"nccl-tests": nccl_tests.read, "fio": fio.read, "trace": trace.read}

__all__ = ["READERS", "Read", "ReadError"]
