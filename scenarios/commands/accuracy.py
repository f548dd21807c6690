"""`whatif accuracy`: predictions against published measured runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scenarios.accuracy import predict, rows
from scenarios.accuracy.document import document
from scenarios.commands.output import (
    SCHEMA_VERSION,
    check_target,
    plain_values,
    print_json,
    tool_version,
    write_file,
)
from scenarios.errors import Problem, ScenarioError

PUBLISHED = Path(__file__).parents[1] / "published" / "training.csv"


def measure(files: Sequence[str]) -> tuple[dict[str, Any], list[Problem]]:
    """The whole document over the files (the shipped rows where none is given), and the rows that are bad.

    Raises ScenarioError where a file cannot be read at all.
    """
    began = time.perf_counter()
    given = [(Path(name), name) for name in files] or [(PUBLISHED, "scenarios/published/training.csv")]
    read = [rows.read(path, name) for path, name in given]
    problems = [problem for one in read for problem in one.problems]
    good = [row for one in read for row in one.rows]
    outcomes = predict.outcomes(good, lambda done: print(f"accuracy: {done}", file=sys.stderr))
    whole: dict[str, Any] = plain_values({
        "schema_version": SCHEMA_VERSION,
        "tool_version": tool_version(),
        **document([name for _, name in given] if files else [], outcomes, problems),
        "run": {"wall_s": time.perf_counter() - began, "date": datetime.now(UTC).isoformat(timespec="seconds")},
    })
    return whole, problems


def accuracy(files: Sequence[str], by: str, *, html: str, markdown: str, as_json: bool) -> None:
    """Predict every row, show and save. Good rows count; bad ones then raise ScenarioError (exit code 2)."""
    never = tuple(Path(name) for name in files if "\0" not in name)
    for option, path in (("--html", html), ("--markdown", markdown)):
        if path:
            check_target(option, path, never=never)
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
