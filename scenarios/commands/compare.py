"""`whatif compare`: several scenarios or saved results side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from scenarios.commands.output import (
    MALFORMED,
    SCHEMA_VERSION,
    check_target,
    print_json,
    read_result,
    tool_version,
    write_file,
)
from scenarios.commands.run import predict_prepared, prepare
from scenarios.errors import Place, Problem, ScenarioError


def compare(scenarios: Sequence[str], fidelity: str, *, html: str, as_json: bool) -> None:
    """Predict each scenario (a .json file is a saved result) and compare with the first.

    Raises ScenarioError.
    """
    if len(scenarios) < 2:
        raise ScenarioError.at(Place("compare"), "give two scenarios or more: whatif compare A.yaml B.yaml")
    if html:
        check_target("--html", html, never=tuple(Path(s) for s in scenarios if "\0" not in s))
    documents = _documents(scenarios, fidelity)

    from reports import compare as reports_compare

    try:
        compared = reports_compare.compare(documents)
    except MALFORMED as error:
        raise ScenarioError.at(Place("compare"), f"a saved result is not whole ({error!r})") from None
    comparison = {"schema_version": SCHEMA_VERSION, "tool_version": tool_version(), **compared}
    if html:
        from reports import page

        write_file("--html", html, page.render_comparison(comparison))
    if as_json:
        print_json(comparison)
    else:
        from rich.console import Console

        from reports import run_table

        run_table.show_comparison(comparison, Console(highlight=False))


def _documents(scenarios: Sequence[str], fidelity: str) -> list[dict[str, Any]]:
    """The result of each argument; all inputs are read and checked before the first is predicted."""
    ready: list[Callable[[], dict[str, Any]]] = []
    problems: list[Problem] = []
    for name in scenarios:
        try:
            if name.endswith(".json"):
                ready.append(partial(dict, read_result(name)))
            else:
                ready.append(partial(predict_prepared, *prepare(name), fidelity))
        except ScenarioError as error:
            problems += error.problems
    if problems:
        raise ScenarioError(problems)
    return [result() for result in ready]
