"""`whatif validate` without a scenario: the checks of this machine's profile by real runs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from costmodel.calibration.measure import machine
from costmodel.calibration.ranks import RanksError
from scenarios.commands.output import SCHEMA_VERSION, check_target, plain_values, print_json, tool_version, write_file
from scenarios.commands.validate import device_of, need_torch, node_of, seconds_of, tell
from scenarios.errors import Place, ScenarioError

INTRO = """# Predictions against real runs

Written by `make validate` (`whatif validate` without a scenario); do not edit. A profile of the machine was measured
and fitted (`whatif calibrate measure --quick`, `whatif calibrate fit --measured`), then small models ran for real in
every layout beside their simulation. Error = simulated / measured - 1. "Others" are widths, sequences and vocabularies
that were not measured for the profile. Compute is CPU time of one thread a rank; wall clock is judged on a quiet
machine alone, since it lies on a busy one.
"""
NO_GPU = """
**GPU: not measured yet.** The same commands run there without a change (`--device cuda`); no GPU was at hand.
"""


def belong(scenario: str, of_scenario: Mapping[str, Any], of_checks: Mapping[str, Any]) -> None:
    """Raises ScenarioError for an option of the one with the other; the mappings are option -> whether it was given."""
    wrong = next((option for option, given in (of_checks if scenario else of_scenario).items() if given), None)
    if wrong:
        rest = "belongs to the checks of the machine; leave SCENARIO out" if scenario else "belongs to a SCENARIO"
        raise ScenarioError.at(Place(wrong), rest)


def check(*, device: str, profile: str, timeout: str, markdown: str, as_json: bool) -> int:
    """Runs the checks; 0, or 1 where one of them does not hold or a rank failed. Raises ScenarioError for bad input."""
    if markdown:
        check_target("--markdown", markdown)
    timeout_s = seconds_of(timeout)
    need_torch()
    node = node_of(profile)
    on, _ = device_of(device)
    from simulator.real import checks

    try:
        found = checks.run(node, on, timeout_s, None if as_json else tell)
    except RanksError as error:
        print(f"whatif validate: {error}", file=sys.stderr)
        return 1
    about = machine.description(on)
    document: dict[str, Any] = plain_values({
        "schema_version": SCHEMA_VERSION, "tool_version": tool_version(), **found, "profile": profile,
        "machine": {key: about[key] for key in ("cpu", "cores", "python", "torch", "gpu") if about.get(key)},
        "run": {"date": datetime.now(UTC).isoformat(timespec="seconds")},
    })
    if markdown:
        from reports.checks import markdown as page

        write_file("--markdown", str(Path(markdown)), page(document, INTRO + NO_GPU * (on == "cpu")))
    if as_json:
        print_json(document)
    else:
        from rich.console import Console

        from reports.checks import show

        show(document, Console(highlight=False))
    return 1 if any(one["held"] is False for one in document["verdicts"]) else 0
