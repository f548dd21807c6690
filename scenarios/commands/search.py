"""`whatif search`: the best plan for a scenario, with what stands behind it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from costmodel import units
from scenarios.commands.output import check_target, print_json, write_file
from scenarios.commands.run import find
from scenarios.document import parse_value
from scenarios.errors import Place, ScenarioError
from scenarios.load import load
from scenarios.search.axes import Axis, asked, gpu_counts
from scenarios.search.document import Wanted, document
from scenarios.sweep.values import axis


def search(
    scenario: str, settings: Sequence[str], vary: Sequence[str], *, solver: str, objective: str, top: int,
    play: int, orders: int, max_memory: str, max_gpus: int | None, deadline: str, budget_usd: float | None, html: str,
    as_json: bool,
) -> int:
    """Searches and shows; the exit code: 1 where no plan fits. Raises ScenarioError."""
    if html:
        check_target("--html", html, never=(Path(scenario),) if "\0" not in scenario else ())
    path, name = find(scenario)
    loaded = load(path, settings, name, related=False)
    if loaded.scenario.workload.lengths is not None:
        place = loaded.document.key_place(("workload", "lengths"))
        raise ScenarioError.at(place, "workload.lengths: plans are searched for sequences of equal length; leave it "
                               "out (`whatif sweep` varies plans for unequal ones)")
    given = [_axis(text) for text in vary]
    wanted = Wanted(objective, top, play, orders, _quantity("--max-memory", max_memory, "bytes"), max_gpus,
                    _quantity("--deadline", deadline, "s"), budget_usd)
    result = document(loaded, asked(loaded, given, gpu_counts(loaded, max_gpus) if max_gpus else ()), wanted, solver,
                      _given(settings))
    if html:
        from reports import search_page

        write_file("--html", html, search_page.render(result))
    if as_json:
        print_json(result)
    else:
        from rich.console import Console

        from reports import search_table

        search_table.show(result, Console(highlight=False))
    return 0 if result["best"] else 1


def _given(settings: Sequence[str]) -> dict[str, object]:
    """What `--set` says, for the document (it has been checked)."""
    pairs = (text.partition("=") for text in settings)
    return {key.strip(): parse_value(value, f"--set {key}") for key, _, value in pairs}


def _quantity(option: str, text: str, dimension: str) -> float | None:
    if not text:
        return None
    try:
        value = units.parse(text, dimension)
    except units.UnitError as error:
        raise ScenarioError.at(Place(f"{option} {text}"), str(error)) from None
    if value <= 0:
        raise ScenarioError.at(Place(f"{option} {text}"), "must be more than 0")
    return value


def _axis(text: str) -> Axis:
    """An axis as `whatif sweep` reads it: a list, ranges, or a file of values."""
    read = axis(text)
    if len(read.keys) > 1:
        raise ScenarioError.at(Place(f"--vary {text}"), "a search needs a key and its values, not a table of variants")
    return Axis(read.keys[0], read.values[0], read.places[0])
