"""`plan.schedule: auto`: the search as a schedule of its own, quick enough for a prediction.

Chunks lie in a V where a rank has two, else they are dealt in turn. The makespan is made small, since a step with a
gradient norm ends with its last rank. Without a limit a rank may hold what 1F1B holds, p micro-batches.
Bubble law: none; the order is played. Memory law: within the limit.
"""

from __future__ import annotations

from dataclasses import replace

from placement.schedules.order import Orders, Request, Schedule, looped, v_shaped
from placement.schedules.search.auto import NAME, auto


def stage_of(rank: int, chunk: int, pipeline: int, chunks: int) -> int:
    return (v_shaped if chunks == 2 else looped)(rank, chunk, pipeline, chunks)


def planned_order(request: Request) -> Orders:
    """Raises ScheduleError for a limit that no order keeps."""
    most = request.pipeline * request.chunks if request.memory_limit is None else request.memory_limit
    placement = v_shaped if request.chunks == 2 else looped
    asked = replace(request, memory_limit=float(most))
    return auto(asked, "makespan", thorough=False, placements=[placement]).orders


AUTO = Schedule(NAME, "Found by a search", "bounds, periodic orders and local search", planned_order,
                stage_of=stage_of, splits_backward=True, law="made for the times; peak within p or the limit")
