"""Text output of nccl-tests (`all_reduce_perf` and its kin), as their src/util.cu prints it.

Times are means over the iterations, out of place. `size` is the larger of what a rank sends and receives, which for
every collective is the whole tensor of one rank, as `costmodel.collectives` has it; `count` differs by collective and
is not used. sendrecv sends to the next rank of a ring while receiving from the one before.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from costmodel.calibration.measure.read.rows import Read, ReadError, known, text_of
from costmodel.calibration.measure.statistics import Timing

COLLECTIVES = {"all_reduce": "all_reduce", "all_gather": "all_gather", "reduce_scatter": "reduce_scatter",
               "alltoall": "all_to_all", "broadcast": "broadcast", "sendrecv": "point_to_point"}
_PROGRAM = re.compile(r"\b([a-z_]+)_perf\b")


def read(path: Path) -> Read:
    """Rows of collectives. Raises ReadError."""
    lines = text_of(path).splitlines()
    collective = _collective(path, lines)
    ranks = _ranks(path, lines)
    counted = (re.search(r"(?<!warmup )(?<!agg )iters: (\d+)", line) for line in lines)
    iterations = next((int(found.group(1)) for found in counted if found), 1)
    rows: list[tuple[str, dict[str, Any], Timing]] = []
    columns: list[str] = []
    for number, line in enumerate(lines, start=1):
        words = line.lstrip("# ").split()
        if line.startswith("#") and words[:2] == ["size", "count"]:
            columns = words
        elif columns and words[:1] and words[0].isdigit() and not line.startswith("#"):
            size, seconds, least = _row(f"{path}:{number}", words, columns)
            if size > 0 and seconds > 0:
                point = {"collective": collective, "backend": "nccl", "ranks": ranks, "size_bytes": size}
                rows.append(("collectives", point, known(seconds, iterations, least)))
    if not rows:
        raise ReadError(f"{path}: has no rows of nccl-tests (a header '# size count type ...' and lines of numbers)")
    version = next((line.split()[3] for line in lines if line.startswith("# nccl-tests version")), "")
    return Read(f"nccl-tests {version}".strip(), tuple(rows))


def _collective(path: Path, lines: list[str]) -> str:
    """From the line that newer versions print, else from the file's name."""
    started = next((line for line in lines if "Collective test starting" in line), "")
    found = _PROGRAM.search(started) or _PROGRAM.search(path.name)
    if found is None:
        raise ReadError(f"{path}: does not say which collective it measured; name the file after the program, as in "
                        "all_reduce_perf.txt")
    if found.group(1) not in COLLECTIVES:
        raise ReadError(f"{path}: {found.group(1)}_perf measures no collective of the cost model; known: "
                        + ", ".join(f"{name}_perf" for name in COLLECTIVES))
    return COLLECTIVES[found.group(1)]


def _ranks(path: Path, lines: list[str]) -> int:
    listed = [(int(found.group(1)), found.group(2)) for line in lines
              if (found := re.match(r"#\s*Rank\s+(\d+)\b.*?\bon\s+(\S+)", line))]
    if not listed:
        raise ReadError(f"{path}: lists no ranks ('# Rank 0 ... on HOST device 0')")
    if len({host for _, host in listed}) > 1:
        raise ReadError(f"{path}: ran over several hosts; the tables are those of one machine")
    return len({rank for rank, _ in listed})


def _row(where: str, words: list[str], columns: list[str]) -> tuple[int, float, float | None]:
    """Size in bytes, seconds, and the least seconds where iterations were timed one by one.

    An empty redop or root (older versions) leaves a row short; columns count from the right there.
    """
    time = next((columns.index(name) for name in ("time", "cputime") if name in columns), -1)
    if time < 0:
        raise ReadError(f"{where}: the header has no column time")
    at = time - max(len(columns) - len(words), 0)
    try:
        seconds = float(words[at]) * 1e-6
        least = float(words[at + columns.index("i_min") - time]) * 1e-6 if "i_min" in columns else None
        return int(words[0]), seconds, least
    except (ValueError, IndexError):
        raise ReadError(f"{where}: has no number under time; {len(columns)} columns are expected: "
                        + " ".join(columns)) from None
