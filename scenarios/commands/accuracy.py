"""`whatif accuracy`: predictions against published measured runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from costmodel import constants
from scenarios.accuracy import bands as residuals
from scenarios.accuracy import fit, predict, rows, score
from scenarios.accuracy.document import document
from scenarios.commands.output import (
    SCHEMA_VERSION,
    check_target,
    plain_values,
    print_json,
    tool_version,
    write_file,
)
from scenarios.errors import Place, Problem, ScenarioError
from simulator import bands

PUBLISHED = Path(__file__).parents[1] / "published" / "training.csv"
PUBLISHED_SCHEDULES = PUBLISHED.with_name("pipeline.csv")


def measure(files: Sequence[str]) -> tuple[dict[str, Any], list[Problem]]:
    """The whole document over the files (the shipped rows where none is given), and the rows that are bad.

    Raises ScenarioError where a file cannot be read at all.
    """
    began = time.perf_counter()
    good, problems = _read(files)
    outcomes = predict.outcomes(good, _tell)
    whole: dict[str, Any] = plain_values({
        "schema_version": SCHEMA_VERSION,
        "tool_version": tool_version(),
        **document(files, outcomes, problems),
        "run": {"wall_s": time.perf_counter() - began, "date": datetime.now(UTC).isoformat(timespec="seconds")},
    })
    return whole, problems


def _read(files: Sequence[str]) -> tuple[list[rows.Row], list[Problem]]:
    shipped = [(path, f"scenarios/published/{path.name}") for path in (PUBLISHED, PUBLISHED_SCHEDULES)]
    given = [(Path(name), name) for name in files] or shipped
    read = [rows.read(path, name) for path, name in given]
    return [row for one in read for row in one.rows], [problem for one in read for problem in one.problems]


def _tell(done: str) -> None:
    print(f"accuracy: {done}", file=sys.stderr)


def write_bands(files: Sequence[str], target: Path) -> None:
    """The residual statistics of the rows, written to `target`.

    Raises ScenarioError where no row is fully specified and to be scored, or the file cannot be written.
    """
    check_target("--update-bands", str(target))
    good, _ = _read(files)
    good = [row for row in good if not row.of_schedule]  # bands are those of whole training runs
    cases = fit.cases(good)
    if not cases:
        raise ScenarioError.at(Place("--update-bands"), "no row is fully specified and to be scored")
    outcomes = predict.outcomes(good, _tell)
    scored = [one for outcome in outcomes for one in score.score(outcome)]
    _tell(f"constants refitted without each family, {len(cases)} distinct runs")
    found = residuals.statistics(cases, constants.default(), outcomes, scored)
    write_file("--update-bands", str(target), residuals.yaml_text(found, constants.default()))
    bands.shipped.cache_clear()


def accuracy(
    files: Sequence[str], by: str, *, html: str, markdown: str, as_json: bool, update_bands: bool = False
) -> None:
    """Predict every row, show and save. Good rows count; bad ones then raise ScenarioError (exit code 2).

    `update_bands` first makes the residual statistics behind every error band anew from the rows.
    """
    never = tuple(Path(name) for name in files if "\0" not in name)
    for option, path in (("--html", html), ("--markdown", markdown)):
        if path:
            check_target(option, path, never=never)
    if update_bands:
        write_bands(files, bands.FILE)
    whole, problems = measure(files)
    if html:
        from scenarios.accuracy import page

        write_file("--html", html, page.render(whole, by))
    if markdown:
        from scenarios.accuracy import report

        write_file("--markdown", markdown, report.markdown(whole, by))
    if as_json:
        print_json(whole)
    else:
        from rich.console import Console

        from scenarios.accuracy import report

        console = Console(highlight=False, markup=False)
        report.show(whole, by, console if console.is_terminal else Console(highlight=False, markup=False, width=120))
    if problems:
        raise ScenarioError(problems)
