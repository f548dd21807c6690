"""What a reader gives, and how it opens files."""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from costmodel.calibration.measure.statistics import Timing

_MOST_BYTES = 2 << 30  # unpacked; a longer trace is cut to a few steps by whoever makes it


class ReadError(ValueError):
    """A file that cannot be used; the message begins with FILE or FILE:LINE."""


@dataclass(frozen=True)
class Read:
    """Rows (table, columns of the point, its timing), and the tool that made them."""

    source: str
    rows: tuple[tuple[str, dict[str, Any], Timing], ...]


def text_of(path: Path) -> str:
    """The text of a file, also of a gzipped one. Raises ReadError."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if packed else path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        raise ReadError(f"{path}: no such file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise ReadError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > _MOST_BYTES:
        raise ReadError(f"{path}: is larger than {_MOST_BYTES >> 30} GiB; cut it")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ReadError(f"{path}: is not UTF-8 text") from None


def json_of(path: Path, text: str, first_line: int = 1) -> Any:
    """JSON that begins at a line of the file. Raises ReadError with the line."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ReadError(f"{path}:{first_line + error.lineno - 1}: is not JSON: {error.msg}") from None
    except RecursionError:
        raise ReadError(f"{path}: is JSON nested too deep") from None


def known(seconds: float, repeats: int, least_s: float | None = None) -> Timing:
    """A mean over repeats whose spread the tool does not tell."""
    return Timing(seconds, seconds, seconds if least_s is None else least_s, None, repeats)
