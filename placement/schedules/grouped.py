"""Grouped interleaved schedules (PipeOffload; Wan et al. 2025, arXiv 2503.01328, section 4): micro-batches go in groups
of g, with W behind each B, so that fewer of them need to run ahead.

A rank's time goes in turns of one F, one B and one W. Micro-batches pass a chunk in groups of g; the next chunk's turn
comes once the first of the group is round all p ranks, which takes ceil(p/2) turns (or more where F or B is more than
half of a turn). *GIS* has g = p, *GIS-H* g = ceil(p/2), both without a free turn between groups; any g between may be
asked for. *Uniform repeating* has g = 1: chunks take turns one micro-batch at a time, so that their activations come
and go evenly, which is what copies to the host want (`placement.schedules.offload`).
Backwards take the chunks in reverse, the first one right behind the last chunk's first forward on the last rank.
Memory law, rank r: g (v - 1) + p - r chunk activations. Bubble law, times of one chunk's passes, latency c:
(p - 1)(F + B + 2 c) + (v - 1)(p (F + c) - g F + p (B + c) - g (B + W)), neither difference below 0: the table 1 of the
paper, (p - 1)(F + B) for GIS and (v - 1) p/2 (F + B - W) more for GIS-H, where B >= W and c = 0. Both laws hold where g
divides m, the first of a group is round within g turns and W >= 2 c; elsewhere, and for uniform repeating, the order is
played.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from placement.schedules.order import Orders, Pass, Request, Schedule, ScheduleError


def turns_around(request: Request) -> int:
    """Turns that the first of a group needs from a chunk to the next one of its rank."""
    p, times = request.pipeline, request.times
    longest_s = max(times.forward_s, times.backward_s) + times.latency_s
    turn_s = times.forward_s + times.backward_s + times.weight_s
    return max(-(-p // 2), math.ceil(p * longest_s / turn_s - 1e-9))


def table(request: Request, group: int) -> list[tuple[int, int, int]]:
    """(turn, chunk, micro-batch) of the forwards of a rank, in order; every turn holds at most one.

    A chunk follows the one before after whole groups, and one group later still where it would meet another chunk.
    """
    chunks, groups = request.chunks, -(-turns_around(request) // group)
    free = chunks // math.gcd(chunks, groups)
    starts = [group * (groups * chunk + chunk // free) for chunk in range(chunks)]
    return sorted(
        (starts[chunk] + j % group + group * chunks * (j // group), chunk, j)
        for chunk in range(chunks) for j in range(request.micro_batches)
    )


def grouped_order(request: Request, group: int) -> Orders:
    """Turns of (F, B, W); rank r's first backward waits for the last chunk and the ranks behind it."""
    p, last = request.pipeline, request.chunks - 1
    forwards = table(request, group)
    first_back = next(turn for turn, chunk, _ in forwards if chunk == last)
    orders: Orders = []
    for rank in range(p):
        behind = first_back + p - 1 - rank
        passes = [(turn, 0, Pass("F", chunk, j)) for turn, chunk, j in forwards]
        passes += [(turn + behind, 1, Pass("B", last - chunk, j)) for turn, chunk, j in forwards]
        passes += [(turn + behind, 2, Pass("W", last - chunk, j)) for turn, chunk, j in forwards]
        orders.append([one for _, _, one in sorted(passes)])
    return orders


def gis_order(request: Request) -> Orders:
    """Raises ScheduleError for a group below half of the ranks, or above their number."""
    p, group = request.pipeline, request.group
    if not -(-p // 2) <= group <= p:
        raise ScheduleError(f"gis: the group of micro-batches must be between half of the {p} ranks, {-(-p // 2)}, and "
                            f"{p} (got {group})")
    return grouped_order(request, group)


def gis_half_order(request: Request) -> Orders:
    return grouped_order(request, -(-request.pipeline // 2))


def uniform_order(request: Request) -> Orders:
    return grouped_order(request, 1)


def gis_bubble_s(
    p: Any, m: Any, v: Any, forward_s: Any, backward_s: Any, latency_s: Any = 0.0, weight_s: Any = 0.0,
    group: Any = None,
) -> Any:
    """Seconds; exact where the group divides m and its turns are enough (`turns_around`), and 2 latency <= weight/v.

    Between chunks a rank waits in its ramps: for the first of the group to come round, less what the group itself
    takes. `group` None is p. Shapes broadcast.
    """
    group = p if group is None else group
    f, b, w, c = forward_s / v, (backward_s - weight_s) / v, weight_s / v, np.where(np.greater(p, 1), latency_s, 0.0)
    waits = np.maximum(p * (f + c) - group * f, 0.0) + np.maximum(p * (b + c) - group * (b + w), 0.0)
    return (p - 1) * (f + b + 2 * c) + (v - 1) * waits + 0.0 * m


def gis_half_bubble_s(
    p: Any, m: Any, v: Any, forward_s: Any, backward_s: Any, latency_s: Any = 0.0, weight_s: Any = 0.0
) -> Any:
    """Seconds; as `gis_bubble_s`. Shapes broadcast."""
    return gis_bubble_s(p, m, v, forward_s, backward_s, latency_s, weight_s, -(-p // 2))


def gis_peak_in_flight(p: Any, rank: Any, m: Any, v: Any, group: Any = None) -> Any:
    """Chunk activations from F to W. `group` None is p. Shapes broadcast."""
    return np.minimum(m * v, (v - 1) * (p if group is None else group) + p - rank)


def gis_half_peak_in_flight(p: Any, rank: Any, m: Any, v: Any) -> Any:
    """Chunk activations from F to W. Shapes broadcast."""
    return gis_peak_in_flight(p, rank, m, v, -(-p // 2))


def _schedule(
    name: str, title: str, order: Any, bubble_s: Any, peak: Any, takes_group: bool = False, *, law: str
) -> Schedule:
    return Schedule(name, title, "arXiv 2503.01328", order, bubble_s, peak, splits_backward=True, least_chunks=2,
                    takes_group=takes_group, law=law)


GIS = _schedule("gis", "Grouped interleaving (GIS)", gis_order, gis_bubble_s, gis_peak_in_flight, takes_group=True,
                law="bubble (p - 1)(F + B)/v without latency; peak p")
GIS_H = _schedule("gis-h", "Grouped interleaving, half groups (GIS-H)", gis_half_order, gis_half_bubble_s,
                  gis_half_peak_in_flight,
                  law="GIS's bubble + (v - 1)(p/2)(F + B - W)/v; peak (ceil(p/2)(v - 1) + p)/v")
UNIFORM = _schedule("uniform-repeating", "Uniform repeating (PipeOffload without copies)", uniform_order, None, None,
                    law="no closed form")
