"""`whatif sweep`: many variants of a scenario, streamed to a table, with the best few on the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer

from scenarios.calibration import calibration
from scenarios.commands.output import SCHEMA_VERSION, cannot_write, check_target, print_json, tool_version
from scenarios.commands.run import find
from scenarios.errors import Place, ScenarioError
from scenarios.load import LoadedScenario, load
from scenarios.sweep import executors, values
from scenarios.sweep.grid import text
from scenarios.sweep.journal import path_of
from scenarios.sweep.stream import Sweep
from scenarios.sweep.summary import BY

PATIENCE_S = 2.0  # between two lines of progress
_SHORT = {"mfu": "MFU", "cost_usd_per_million_tokens": "$ a million tokens"}
_SHOWN = ("step_time_s", "mfu", "peak_memory_bytes", "cost_usd_per_million_tokens")


def sweep(
    scenario: str,
    varied: Sequence[str],
    fidelity: str,
    *,
    out: str,
    executor: str,
    address: str,
    workers: int | None,
    resume: bool,
    as_json: bool,
) -> None:
    """Evaluate every variant, then say what came out. Raises ScenarioError."""
    began_s = time.perf_counter()
    if address and executor != "dask":
        raise ScenarioError.at(Place(f"--address {address}"), "is of a Dask cluster; add --executor dask")
    asked = _asked(scenario, varied, fidelity, out, resume)
    try:
        with _executor(executor, address, workers, asked.chunks) as (runs, in_flight):
            asked.run(runs, in_flight, _Progress())
    except OSError as error:
        raise cannot_write("--out", out, error) from None
    except BrokenExecutor:
        print(f"sweep: a worker died, as when memory is used up; {_kept(asked)}", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print(f"sweep: stopped; {_kept(asked)}", file=sys.stderr)
        raise
    document = {
        "schema_version": SCHEMA_VERSION,
        "tool_version": tool_version(),
        "scenario": {"name": asked.loaded.scenario.name, "file": asked.loaded.file, "sha256": asked.loaded.sha256},
        "fidelity": fidelity,
        "vary": {key: len(axis) for axis in asked.grid.axes for key in axis.keys},
        **asked.summary.document(asked.grid),
        "out": out or None,
        "run": {"wall_s": time.perf_counter() - began_s, "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "executor": executor, "resumed": asked.resumed},
    }
    if as_json:
        print_json(document)
    else:
        _show(document)


def _asked(scenario: str, varied: Sequence[str], fidelity: str, out: str, resume: bool) -> Sweep:
    """The sweep, with everything checked that can be before the first variant. Raises ScenarioError."""
    path, name = find(scenario)
    if out:
        files = (Path(option.rpartition("@")[2]) for option in varied if "@" in option and "\0" not in option)
        check_target("--out", out, never=(path, *files))
    base = _base(path, name)
    grid = values.grid(varied)
    calibrated = calibration(base, fidelity)
    constants = calibrated.constants if calibrated else None
    return Sweep(replace(base, measured=()), grid, fidelity, constants, tool_version(), Path(out) if out else None,
                 resume)


def _base(path: Path, name: str) -> LoadedScenario:
    """The scenario; its own plan need not fit its model, for variants may mend that. Raises ScenarioError."""
    try:
        return load(path, (), name, related=False)
    except ScenarioError:  # also where only a search of plans would be refused
        return load(path, (), name)


@contextmanager
def _executor(
    name: str, address: str, workers: int | None, chunks: int
) -> Iterator[tuple[executors.Submits, int]]:
    """The executor and how many batches it is given at a time."""
    if name == "dask":
        with executors.dask(address, workers) as (cluster, threads):
            yield cluster, threads * executors.IN_FLIGHT_PER_WORKER
        return
    processes = min(workers or executors.cpus(), chunks)
    with executors.local(processes) as pool:
        yield pool, processes * executors.IN_FLIGHT_PER_WORKER if processes > 1 else 1


class _Progress:
    """Says on stderr where long work is: nothing in its first two seconds, then a line at times further apart."""

    def __init__(self) -> None:
        self.began_s = time.monotonic()
        self.next_s = self.began_s + PATIENCE_S

    def __call__(self, done: int, of: int, resumed: int) -> None:
        now_s = time.monotonic()
        if now_s < self.next_s or done == of:
            return
        passed_s = now_s - self.began_s
        self.next_s = now_s + max(PATIENCE_S, 0.1 * passed_s)
        rate = (done - resumed) / passed_s
        left = f", {rate:,.0f} a second, {(of - done) / rate:,.0f} s to go" if rate else ""
        print(f"sweep: {done:,} of {of:,} variants{left}", file=sys.stderr)


def _kept(asked: Sweep) -> str:
    if asked.out is None:
        return "with --out F.csv finished results are kept for --resume"
    return f"finished results are kept in {path_of(asked.out)}; go on with --resume"


def _show(document: dict[str, Any]) -> None:
    """The summary on the terminal."""
    from rich.console import Console

    from reports.table import words

    console = Console(highlight=False, markup=False)
    statuses = ", ".join(f"{count:,} {status}" for status, count in document["statuses"].items())
    console.print(f"{document['variants']:,} variants of {document['scenario']['name']}: {statuses}")
    if document["invalid_by_key"]:
        faults = ", ".join(f"{key} {count:,}" for key, count in document["invalid_by_key"].items())
        console.print(f"invalid by the key at fault: {faults}")
    best = {words(column).lower(): document[f"best_by_{by}"] for by, column in BY.items()}
    time, cost = best.values()
    if time == cost:
        best = {" and ".join(best): time}
    for by, rows in best.items():
        if rows:
            console.print(_table(f"best by {by}", list(document["vary"]), rows))
    if document["out"]:
        console.print(f"every variant: {document['out']}")


def _table(title: str, keys: Sequence[str], rows: Sequence[dict[str, Any]]) -> Any:
    """Figures first, so that many varied keys may fold at the end of the line."""
    from rich.table import Table

    from reports.table import figure_text, words

    table = Table(box=None, pad_edge=False, show_edge=False, title=title, title_justify="left")
    for figure in _SHOWN:
        table.add_column(_SHORT.get(figure) or words(figure), justify="right", no_wrap=True)
    table.add_column("variant", overflow="fold")
    for row in rows:
        varied = (f"{_short(key, keys)}={text(row['set'][key])}" for key in keys if key in row["set"])
        figures = ("" if row[name] is None else figure_text(name, row[name]) for name in _SHOWN)
        table.add_row(*figures, " ".join(varied))
    return table


def _short(key: str, keys: Sequence[str]) -> str:
    """The last part of a key, where it is the only one of that name."""
    last = key.rpartition(".")[2]
    return key if sum(other.rpartition(".")[2] == last for other in keys) > 1 else last
