"""Schedules of two chunks a rank laid out as a V: rank r holds stages r and 2 p - 1 - r.

*ZBV* (Qi et al. 2023, arXiv 2401.10241, section 6): a hand-made order without bubbles at equal times.
*V-Min, V-Half, V-ZB* (controllable memory; Qi et al. 2024, arXiv 2405.15362): building blocks that hold a third, a half
or all of 1F1B's memory, squeezed for the given times (`placement.schedules.building_block`). *V-adaptive* and
*ZBV-auto* search blocks between them for any memory limit.
Memory law, chunk activations from F to W: V-Min 2 floor((p + 4)/3), V-Half 2 floor((p + 2)/2), V-ZB and ZBV 2 p.
Bubble law at unit times: cost 6 m + 6 p - 3 memory - 1 (the paper's lower bound; V-Min at p = 2 mod 3 up to 4 more);
V-ZB and ZBV no bubble within a span. At other times the orders are played.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from placement.schedules.building_block import Ticks, span_s, squeezed
from placement.schedules.order import Orders, Pass, Request, Schedule, ScheduleError, v_shaped


def v_min_ticks(p: int) -> Ticks:
    delta = 2 if p % 3 == 0 else 0
    return [(i, 2 * p - i - 1, 2 * p + delta + i, 4 * p + delta - i - 1) for i in range(p)]


def v_half_ticks(p: int) -> Ticks:
    delta = 3 if p % 2 == 0 else 0
    return [(2 * i, 3 * p - i - 2, 3 * p + delta + 2 * i - 1, 6 * p + delta - i - 2) for i in range(p)]


def v_zb_ticks(p: int) -> Ticks:
    """F0 runs down in steps of 4 ticks, the rest as fast as the period of 6 lets them (arXiv 2405.15362, figure 4)."""
    return [(4 * i, 4 * p - 2 * i - 1, 4 * p + 2 * i, 8 * p - 2 * i) for i in range(p)]


def v_min_peak(p: Any, rank: Any, m: Any, v: Any) -> Any:
    """Chunk activations that a rank may hold (the first may hold fewer). Shapes broadcast."""
    return np.minimum(2 * m, 2 * ((p + 4) // 3)) + 0 * (rank + v)


def v_half_peak(p: Any, rank: Any, m: Any, v: Any) -> Any:
    """Chunk activations. Shapes broadcast."""
    return np.minimum(2 * m, 2 * ((p + 2) // 2)) + 0 * (rank + v)


def v_zb_peak(p: Any, rank: Any, m: Any, v: Any) -> Any:
    """Chunk activations. Shapes broadcast."""
    return np.minimum(2 * m, 2 * p) + 0 * (rank + v)


def _limit(request: Request, law: Any) -> float:
    return float(law(request.pipeline, 0, request.micro_batches, 2)) if request.memory_limit is None else (
        request.memory_limit)


def v_min_order(request: Request) -> Orders:
    return squeezed(v_min_ticks(request.pipeline), _whole(request), V_MIN, _limit(request, v_min_peak))


def v_half_order(request: Request) -> Orders:
    return squeezed(v_half_ticks(request.pipeline), _whole(request), V_HALF, _limit(request, v_half_peak))


def v_zb_order(request: Request) -> Orders:
    return squeezed(v_zb_ticks(request.pipeline), _whole(request), V_ZB, _limit(request, v_zb_peak))


def _whole(request: Request) -> Request:
    """Memory counted in whole chunks from F to W, as the paper does."""
    from dataclasses import replace

    return replace(request, weight_share=1.0)


def zbv_order(request: Request) -> Orders:
    """Raises ScheduleError below 2 p - 1 micro-batches."""
    p, m = request.pipeline, request.micro_batches
    if m < 2 * p - 1:
        raise ScheduleError(f"zbv: rank 0 runs 2 p - 1 forwards before its first backward, so it needs at least "
                            f"2 x {p} - 1 = {2 * p - 1} micro-batches (got {m})")
    return [_zbv_rank(p, m, rank) for rank in range(p)]


def _zbv_rank(p: int, m: int, rank: int) -> list[Pass]:
    passes: list[Pass] = []
    count = {(kind, chunk): 0 for kind in "FBW" for chunk in (0, 1)}

    def run(*names: str) -> None:
        for name in names:
            key = (name[0], int(name[1]))
            passes.append(Pass(*key, count[key]))
            count[key] += 1

    run(*["F0"] * (2 * (p - rank) - 1))
    for _ in range(rank):
        run("F1", "F0")
    for _ in range(p - rank):
        run("F1", "B1", "W1")
    while count["F", 1] < m:
        if count["F", 0] < m:
            run("F0")
        run("B0", "W0", "F1", "B1", "W1")
    for _ in range(rank):
        run("B0", "B1")
    for _ in range(p - rank):
        run("B0", "W0")
    run(*["W1"] * (m - count["W", 1]), *["W0"] * (m - count["W", 0]))
    return passes


def _blocks(p: int) -> Iterator[Ticks]:
    """Building blocks of evenly spaced passes: F0 and B1 go down in steps of 1, 2 or 4 ticks, F1 and B0 up in
    steps of 1 or 2, with up to half a period between them."""
    yield from (v_min_ticks(p), v_half_ticks(p), v_zb_ticks(p))
    for down in (1, 2, 3, 4):
        for up in (1, 2):
            for gap in (0, 2, 3):
                turn = down * (p - 1) + 1
                back = turn + up * (p - 1) + 1 + gap
                end = back + (2 if down > 1 else 1) * (p - 1) + 1
                yield [(down * i, turn + up * (p - 1 - i), back + (2 if down > 1 else 1) * i, end + up * (p - 1 - i))
                       for i in range(p)]


def adaptive_order(request: Request) -> Orders:
    """The best of the blocks under `memory_limit` chunk activations (2 p unless said).

    Raises ScheduleError for a limit under which none of them runs, with the least that works.
    """
    return _best(request, V_ADAPTIVE, _whole(request))


def zbv_auto_order(request: Request) -> Orders:
    """The same with memory counted as it is: a part goes back with B already."""
    return _best(request, ZBV_AUTO, request)


def _best(request: Request, schedule: Schedule, counted: Request) -> Orders:
    limit = 2.0 * request.pipeline if request.memory_limit is None else request.memory_limit
    from dataclasses import replace

    trial = replace(counted, micro_batches=min(request.micro_batches, 3 * request.pipeline))
    found = []
    for ticks in _blocks(request.pipeline):
        try:
            found.append((span_s(squeezed(ticks, trial, schedule, limit), trial, schedule), ticks))
        except ScheduleError:
            continue
    if not found:
        least = int(v_min_peak(request.pipeline, 0, request.micro_batches, 2))
        raise ScheduleError(f"{schedule.name}: no order of {request.pipeline} ranks holds only {limit:g} chunk "
                            f"activations; the least that works is {least} (V-Min)")
    return squeezed(min(found, key=lambda one: one[0])[1], counted, schedule, limit)


def _v(name: str, title: str, source: str, order: Any, peak: Any) -> Schedule:
    return Schedule(name, title, source, order, None, peak, stage_of=v_shaped, splits_backward=True, least_chunks=2,
                    most_chunks=2)


V_MIN = _v("v-min", "V-Min", "arXiv 2405.15362", v_min_order, v_min_peak)
V_HALF = _v("v-half", "V-Half", "arXiv 2405.15362", v_half_order, v_half_peak)
V_ZB = _v("v-zb", "V-ZB", "arXiv 2405.15362", v_zb_order, v_zb_peak)
V_ADAPTIVE = _v("v-adaptive", "V under a memory limit", "arXiv 2405.15362, section 4", adaptive_order, None)
ZBV = _v("zbv", "ZBV", "arXiv 2401.10241, section 6", zbv_order, v_zb_peak)
ZBV_AUTO = _v("zbv-auto", "ZBV for given times", "arXiv 2401.10241, section 6", zbv_auto_order, None)
