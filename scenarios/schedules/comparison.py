"""All schedules in one setting: the same work on every rank and micro-batch, whatever the chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from placement import schedules
from placement.schedules.order import ScheduleError
from scenarios.errors import ScenarioError
from scenarios.schedules.choose import AUTO, choose
from scenarios.schedules.played import document
from scenarios.schedules.settings import Setting

FIGURES = ("makespan", "span", "bubble_rate_makespan", "bubble_rate_span", "p2p_volume", "parameter_copies")


def documents(
    names: Sequence[str], setting: Setting, tell: Callable[[str], None]
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """(the documents of those that run, [{name, reason}] of those that do not); options that a schedule does not have
    are left out for it. `tell` hears each name before its turn.

    Raises ScenarioError for a name that is no schedule and for a file of another setting.
    """
    found, refused = [], []
    for name in names:
        tell(name)
        try:
            found.append(document(choose(name, _fitting(name, setting))))
        except ScenarioError as error:
            if name not in (*schedules.names(), AUTO):
                raise
            refused.append({"name": name, "reason": error.problems[0].message})
    return found, refused


def _fitting(name: str, setting: Setting) -> Setting:
    """The setting without what this schedule has no use for: it then takes its least chunks."""
    try:
        schedule = schedules.get(name)
    except ScheduleError:
        return setting
    return replace(
        setting,
        chunks=setting.chunks if setting.chunks and schedule.accepts_chunks(setting.chunks) else None,
        group=setting.group if schedule.takes_group else None,
        segments=setting.segments if schedule.takes_segments else None)


def row(shown: dict[str, Any]) -> dict[str, Any]:
    """One line of the comparison; peaks are the worst rank's, in micro-batches."""
    return {
        "name": shown["name"], "title": shown["title"], "chunks": shown["settings"]["chunks"],
        **{key: shown[key] for key in FIGURES},
        "peak_activations_micro_batches": float(shown["peak_activations_micro_batches"].max()),
        "peak_memory_micro_batches": float(shown["peak_memory_micro_batches"].max()),
        "peak_memory_bytes": None if shown["peak_memory_bytes"] is None else float(shown["peak_memory_bytes"].max()),
    }


def comparison(names: Sequence[str], setting: Setting, tell: Callable[[str], None]) -> dict[str, Any]:
    """{rows, cannot_run, schedules}: the table by makespan, and the whole documents that it is taken from."""
    found, refused = documents(names, setting, tell)
    found.sort(key=lambda shown: (shown["makespan"], shown["span"]))
    return {"rows": [row(shown) for shown in found], "cannot_run": refused, "schedules": found}
