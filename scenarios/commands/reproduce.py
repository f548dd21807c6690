"""`whatif reproduce`: claims of the studied systems against the simulator."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scenarios.commands.output import (
    SCHEMA_VERSION,
    check_target,
    plain_values,
    print_json,
    tool_version,
    write_file,
)
from scenarios.errors import Place, Problem, ScenarioError, nearest
from scenarios.papers import claims, registry
from scenarios.papers.document import document

PUBLISHED = Path(__file__).parents[1] / "published" / "systems_training.csv"
SHIPPED = "scenarios/published/systems_training.csv"


def chosen(rows: Sequence[claims.Claim], systems: Sequence[str]) -> list[claims.Claim]:
    """The rows of the systems asked for; all where none is. Raises ScenarioError for one that no row has."""
    known = list(dict.fromkeys(registry.canonical(row.system) for row in rows))
    wrong = [name for name in systems if not any(registry.is_named(one, name) for one in known)]
    if wrong:
        raise ScenarioError([Problem.at(Place(name or "SYSTEM"), f"no claim of that system; {nearest(name, known, 40)}")
                             for name in wrong])
    return [row for row in rows if not systems or any(registry.is_named(row.system, name) for name in systems)]


def evaluate(systems: Sequence[str], file: str) -> tuple[dict[str, Any], list[Problem]]:
    """The whole document, and the rows that are bad. Raises ScenarioError where nothing can be read."""
    began = time.perf_counter()
    read = claims.read(Path(file), file) if file else claims.read(PUBLISHED, SHIPPED)
    whole: dict[str, Any] = plain_values({
        "schema_version": SCHEMA_VERSION,
        "tool_version": tool_version(),
        "file": file,
        "systems": list(systems),
        **document(chosen(read.rows, systems), read.problems),
        "run": {"wall_s": time.perf_counter() - began, "date": datetime.now(UTC).isoformat(timespec="seconds")},
    })
    return whole, list(read.problems)


def reproduce(systems: Sequence[str], file: str, *, html: str, markdown: str, as_json: bool) -> None:
    """Judge every claim, show and save. Good rows count; bad ones then raise ScenarioError (exit code 2)."""
    never = (Path(file),) if file and "\0" not in file else ()
    for option, path in (("--html", html), ("--markdown", markdown)):
        if path:
            check_target(option, path, never=never)
    whole, problems = evaluate(systems, file)
    if html:
        from scenarios.papers import page

        write_file("--html", html, page.render(whole))
    if markdown:
        from scenarios.papers import report

        write_file("--markdown", markdown, report.markdown(whole))
    if as_json:
        print_json(whole)
    else:
        from rich.console import Console

        from scenarios.papers import report

        report.show(whole, Console(highlight=False, markup=False))
    if problems:
        raise ScenarioError(problems)
