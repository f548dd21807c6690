"""The static player: fixed orders, given durations, nothing shared; compiled where numba is installed."""

from __future__ import annotations

from placement.schedules.play import earliest_times
from simulator.program import Program
from simulator.timeline import Timeline


def play(program: Program, compiled: bool | None = None) -> Timeline:
    """Every task as early as its stream and its dependencies allow.

    Links are not shared: a task takes its `duration_s`. `compiled` None takes numba where it is installed,
    False plain Python (the same bits); True without numba raises RuntimeError.
    """
    start_s, end_s = earliest_times(
        program.order, program.previous, program.dependency_offsets, program.dependency_task,
        program.dependency_lag_s, program.duration_s, compiled,
    )
    return Timeline(program, start_s, end_s)
