"""`whatif schedule show|compare|check`: pipeline schedules on their own."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from scenarios.commands.output import (
    SCHEMA_VERSION,
    check_target,
    plain_values,
    print_json,
    to_json,
    tool_version,
    write_file,
)
from scenarios.errors import Place, ScenarioError, one_line
from scenarios.schedules.settings import Options, described, setting

PATIENCE_S = 2.0


def show(name: str, options: Options, *, orders: str, html: str, as_json: bool) -> None:
    """One schedule: its order, what it costs and holds, its laws. Raises ScenarioError."""
    from placement import schedules
    from scenarios.schedules.choose import choose
    from scenarios.schedules.comparison import comparison
    from scenarios.schedules.played import document, order_file

    _check_targets(name, {"--html": html, "--orders": orders})
    asked = setting(options)
    chosen = choose(name, asked)
    shown = _headed(document(chosen))
    if orders:
        write_file("--orders", orders, to_json(order_file(shown)))
    if html:
        from reports import schedule_page

        others = [other for other in schedules.names() if other != name]
        alike = replace(asked, pipeline=chosen.setting.pipeline, micro_batches=chosen.setting.micro_batches)
        compared = plain_values(comparison(others, alike, _Progress()))
        write_file("--html", html, schedule_page.render(shown, compared))
    if as_json:
        print_json(shown)
    else:
        from rich.console import Console

        from reports import schedule_table

        schedule_table.show(shown, Console(highlight=False))


def compare(names: Sequence[str], options: Options, *, every: bool, html: str, as_json: bool) -> None:
    """Several schedules at equal work. Raises ScenarioError."""
    from placement import schedules
    from scenarios.schedules.comparison import comparison

    if not names and not every:
        raise ScenarioError.at(Place("schedule compare"), "name schedules to compare, or give --all")
    _check_targets("", {"--html": html})
    asked = setting(options)
    wanted = list(dict.fromkeys([*names, *(schedules.names() if every else [])]))
    compared = _headed({"settings": described(asked), **comparison(wanted, asked, _Progress())})
    if compared["schedules"]:  # a file of orders may have said how many
        for key in ("stages", "microbatches"):
            compared["settings"][key] = compared["schedules"][0]["settings"][key]
    if html:
        from reports import schedule_page

        write_file("--html", html, schedule_page.render_comparison(compared))
    if as_json:
        print_json(compared)
    else:
        from rich.console import Console

        from reports import schedule_table

        schedule_table.show_comparison(compared, Console(highlight=False))


def check(file: str, *, as_json: bool) -> None:
    """Published rows against what their orders give; exit code 1 where one disagrees. Raises ScenarioError."""
    from scenarios.schedules.check import check as check_rows

    checked = _headed(check_rows(file, _Progress()))
    if as_json:
        print_json(checked)
    else:
        from rich.console import Console

        from reports import schedule_table

        schedule_table.show_check(checked, Console(highlight=False))
    if checked["disagreeing"]:
        raise typer.Exit(1)


class _Progress:
    """Says on stderr where long work is: nothing in its first two seconds, then at most a line in two seconds."""

    def __init__(self) -> None:
        self.told_s = time.monotonic()

    def __call__(self, text: str) -> None:
        if time.monotonic() - self.told_s > PATIENCE_S:
            self.told_s = time.monotonic()
            print(f"schedule: {one_line(text)}", file=sys.stderr)


def _headed(document: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = plain_values({"schema_version": SCHEMA_VERSION, "tool_version": tool_version(), **document})
    return plain


def _check_targets(name: str, targets: dict[str, str]) -> None:
    source = Path(name.partition("#")[0])
    for option, target in targets.items():
        if target:
            check_target(option, target, never=(source,) if name and "\0" not in name else ())
