"""`whatif compare`: several scenarios or saved results side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scenarios.commands.output import (
    SCHEMA_VERSION,
    check_target,
    print_json,
    read_result,
    tool_version,
    write_file,
)
from scenarios.commands.run import predict_scenario
from scenarios.errors import Place, Problem, ScenarioError


def compare(scenarios: Sequence[str], fidelity: str, *, html: str, as_json: bool) -> None:
    """Predict each scenario (a .json file is a saved result) and compare with the first.

    Raises ScenarioError.
    """
    if len(scenarios) < 2:
        raise ScenarioError.at(Place("compare"), "give two scenarios or more: whatif compare A.yaml B.yaml")
    if html:
        check_target("--html", html, never=tuple(Path(s) for s in scenarios if "\0" not in s))
    documents, problems = [], list[Problem]()
    for name in scenarios:
        try:
            saved = name.endswith(".json")
            documents.append(read_result(name) if saved else predict_scenario(name, (), fidelity))
        except ScenarioError as error:
            problems += error.problems
    if problems:
        raise ScenarioError(problems)

    from reports import compare as reports_compare

    comparison = {"schema_version": SCHEMA_VERSION, "tool_version": tool_version(),
                  **reports_compare.compare(documents)}
    if html:
        from reports import page

        write_file("--html", html, page.render_comparison(comparison))
    if as_json:
        print_json(comparison)
    else:
        from rich.console import Console

        from reports import table

        table.show_comparison(comparison, Console(highlight=False))
