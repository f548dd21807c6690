"""A whole sweep: batches go out to an executor, rows come back into the journal, the table is made at the end.

Memory holds the grid's axes, a few batches and eight bytes a variant, whatever the number of variants.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from costmodel.constants import Constants
from scenarios.errors import Place, ScenarioError
from scenarios.load import LoadedScenario
from scenarios.sweep import journal as journals
from scenarios.sweep import table, variants
from scenarios.sweep.evaluate import Base, Variant, evaluate
from scenarios.sweep.executors import Inline, Submits, finished
from scenarios.sweep.grid import Grid
from scenarios.sweep.journal import Journal
from scenarios.sweep.summary import Summary

# Variants that are evaluated together, at most. What is not finished of these is lost with a kill, nothing else is.
CHUNK = {"analytic": 512, "events": 8}
FEWEST_CHUNKS, LEAST_CHUNK = 32, 32  # a small sweep is cut finer, so that there is something to share and to keep
IN_FLIGHT = 48  # batches handed out, where the caller does not say

Progress = Callable[[int, int, int], None]  # variants finished, of all, and of these by an earlier run


@dataclass
class Sweep:
    """What is asked. Raises ScenarioError where a key or a value is not one of the scenario's, or `out` cannot be."""

    loaded: LoadedScenario
    grid: Grid
    fidelity: str = "analytic"
    constants: Constants | None = None
    tool_version: str = ""
    out: Path | None = None
    resume: bool = False
    summary: Summary = field(default_factory=Summary)
    resumed: int = 0  # variants that an earlier run had finished
    cut_bytes: int = 0  # of a line that a kill had left unfinished

    def __post_init__(self) -> None:
        if self.out is not None:
            table.check(self.out)
        elif self.resume:
            raise ScenarioError.at(Place("--resume"), "needs the --out of the sweep that it goes on with")
        variants.check(self.loaded, self.grid)

    @property
    def chunk(self) -> int:
        """Variants in a batch: by the grid alone, since the last digits may depend on it."""
        return min(CHUNK[self.fidelity], max(len(self.grid) // FEWEST_CHUNKS, LEAST_CHUNK))

    @property
    def chunks(self) -> int:
        return self.grid.chunks(self.chunk)

    @property
    def identity(self) -> dict[str, str]:
        """What makes it the same sweep, part by part."""
        loaded = self.loaded
        scenario = repr((loaded.sha256, json.dumps(loaded.raw), loaded.model, loaded.cluster, self.constants))
        return {"scenario": hashlib.sha256(scenario.encode()).hexdigest(), "variants": self.grid.sha256,
                "fidelity": self.fidelity, "version of whatif": self.tool_version}

    def run(
        self, executor: Submits | None = None, in_flight: int = IN_FLIGHT, progress: Progress | None = None
    ) -> Summary:
        """Evaluates what is not finished yet, with at most `in_flight` batches handed out, and writes the table.

        Raises ScenarioError where a journal is in the way or of another sweep, OSError where a file cannot be written.
        """
        with ExitStack() as stack:
            journal = stack.enter_context(self._journal()) if self.out is not None else None
            for row in journal.rows() if journal else ():
                self.summary.add(row)
            done = self.resumed = journal.finished if journal else 0
            for rows in finished(executor or Inline(), evaluate, self._batches(journal), in_flight):
                new = journal.append(rows) if journal else rows
                for row in new:
                    self.summary.add(row)
                done += len(new)
                if progress:
                    progress(done, len(self.grid), self.resumed)
            if journal and self.out is not None:
                table.write(self.out, self.grid, journal.rows())
                journal.path.unlink()
        return self.summary

    def _journal(self) -> Journal:
        assert self.out is not None
        path = journals.path_of(self.out)
        if not self.resume and path.exists() and path.stat().st_size:
            with path.open("rb") as file:
                rows = max(sum(line.endswith(b"\n") for line in file) - 1, 0)
            raise ScenarioError.at(Place(str(path)), f"holds {rows:,} finished results of a sweep that did not end; go "
                                                     "on with --resume, or delete it")
        journal = Journal(path, self.identity, len(self.grid))
        self.cut_bytes = journal.cut_bytes
        return journal

    def _batches(self, journal: Journal | None) -> Iterator[tuple[Base, list[Variant]]]:
        """What is left to do. A batch is always whole: what its rows are may depend on what is evaluated with them, in
        the last digits, and must not depend on kills."""
        digest = hashlib.sha256(json.dumps(self.identity).encode()).hexdigest()
        base = Base(digest, self.loaded, self.fidelity, self.constants)
        for number in range(self.chunks):
            indices = self.grid.chunk(number, self.chunk)
            if journal is None or not all(index in journal for index in indices):
                yield base, [Variant(index, self.grid.settings(index)) for index in indices]
