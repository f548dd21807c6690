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

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from placement.schedules.building_block import (
    CODES,
    PERIOD,
    SLOTS,
    Skeleton,
    Ticks,
    block_orders,
    block_words,
    span_bubble_s,
    squeezed,
)
from placement.schedules.order import Orders, Pass, Request, Schedule, ScheduleError, v_shaped
from placement.schedules.search.problem import Words

TRIED = 6  # blocks beside the published ones


def v_min_ticks(p: int) -> Ticks:
    delta = 2 if p % 3 == 0 else 0
    return [(i, 2 * p - i - 1, 2 * p + delta + i, 4 * p + delta - i - 1) for i in range(p)]


def v_half_ticks(p: int) -> Ticks:
    delta = 3 if p % 2 == 0 else 0
    return [(2 * i, 3 * p - i - 2, 3 * p + delta + 2 * i - 1, 6 * p + delta - i - 2) for i in range(p)]


def v_half_spread_ticks(p: int) -> Ticks:
    """Another block of V-Half's memory: every step takes 1.5 ticks, so that each hop may take half a tick.

    In the paper's, F1 and B0 follow each other without a gap, and a hop of any length costs a bubble every period.
    (Found by the periodic search and checked for 2 to 33 ranks: no two passes meet and the memory law holds.)
    """
    later, turn = (3 if p % 2 == 0 else 0), 3 * (p - 1) + 1
    return [(1.5 * i, turn - 1.5 * i, turn + 1 + 1.5 * i + (later if i else 0), 2 * turn + 2 + later - 1.5 * i)
            for i in range(p)]


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


def v_min_order(request: Request) -> Orders:
    """Raises ScheduleError for a memory limit below the law, as the next two."""
    return _from_block(V_MIN, v_min_ticks, v_min_peak, request)


def v_half_order(request: Request) -> Orders:
    return _from_block(V_HALF, v_half_ticks, v_half_peak, request, ready=[v_half_spread_ticks])


def v_zb_order(request: Request) -> Orders:
    """With the hand-made ZBV among what is squeezed: where the block alone leaves a bubble in a ramp, it does not."""
    return _from_block(V_ZB, v_zb_ticks, v_zb_peak, request, hand_made=_hand_made(request))


def _from_block(
    schedule: Schedule, ticks: Callable[[int], Ticks], law: Any, request: Request,
    ready: Sequence[Callable[[int], Ticks]] = (), hand_made: Sequence[Skeleton] = (),
) -> Orders:
    """The blocks of `ready` are squeezed too, and also stand as they are."""
    p, m = request.pipeline, request.micro_batches
    least = float(law(p, 0, m, 2))
    limit = least if request.memory_limit is None else request.memory_limit
    if limit < least:
        raise ScheduleError(f"{schedule.name}: a memory limit of {limit:g} chunk activations is too small on {p} "
                            f"ranks; the least that works is {least:g}")
    counted = replace(request, weight_share=1.0)  # whole chunks from F to W, as the paper does
    skeletons = [partial(block_words, one(p)) for one in (ticks, *ready)]
    as_they_are = [partial(block_orders, one(p)) for one in ready]
    return squeezed(skeletons, counted, schedule, limit, as_they_are, hand_made, starts=2)


def _hand_made(request: Request) -> list[Skeleton]:
    """ZBV's F and B, where there are micro-batches enough for it."""
    p = request.pipeline
    return [partial(_zbv_skeleton, p)] if request.micro_batches >= 2 * p - 1 else []


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


def _zbv_skeleton(p: int, micro_batches: int) -> Words:
    """F and B of the hand-made order."""
    return [[CODES[one.kind, one.chunk] for one in _zbv_rank(p, micro_batches, rank) if one.kind != "W"]
            for rank in range(p)]


def _one_at_a_time(p: int, micro_batches: int) -> Words:
    """One micro-batch there and back, then the next: two chunks are enough for it."""
    return [[CODES[slot] for slot in SLOTS] * micro_batches for _ in range(p)]


def _blocks(p: int, limit: float) -> list[Ticks]:
    """The `TRIED` building blocks that end first: F0, F1, B1 and B0 of a micro-batch move by 1 to 4 ticks from rank to
    rank with up to a period between them, no two meet on a rank, and the lifespans promise about `limit` chunks."""
    ranks, up = np.arange(p), np.arange(p)[::-1]
    steps = np.array(list(itertools.product(range(1, 5), repeat=4)), dtype=np.int64)
    gaps = np.array(list(itertools.product((1, 2, 3), range(1, PERIOD + 1), (1, 2, 3))), dtype=np.int64)
    step, gap = (one[..., None] for one in (steps[:, None].repeat(len(gaps), 1), gaps[None].repeat(len(steps), 0)))
    first = step[:, :, 0] * ranks
    second = first[..., -1:] + gap[:, :, 0] + step[:, :, 1] * up
    third = second[..., :1] + gap[:, :, 1] + step[:, :, 2] * ranks
    fourth = third[..., -1:] + gap[:, :, 2] + step[:, :, 3] * up
    ticks = np.stack([first, second, third, fourth], axis=-1).reshape(-1, p, 4)
    apart = (np.diff(np.sort(ticks % PERIOD, axis=-1), axis=-1) > 0).all(axis=(1, 2))
    ticks = ticks[apart]
    held = -(-(ticks[..., 3] - ticks[..., 0] + 1) // PERIOD) - (-(ticks[..., 2] - ticks[..., 1] + 1) // PERIOD)
    ticks = ticks[held.max(axis=1) <= limit]
    chosen = ticks[np.argsort(ticks[:, 0, 3], kind="stable")]
    seen: dict[bytes, Ticks] = {}
    for one in chosen[:50 * TRIED]:
        seen.setdefault(np.argsort(one, axis=None, kind="stable").tobytes(), one.tolist())
    return list(seen.values())[:TRIED]


def adaptive_order(request: Request) -> Orders:
    """The best of the blocks under `memory_limit` chunk activations (2 p unless said), and no worse than the largest of
    V-Min, V-Half and V-ZB that fits.

    Raises ScheduleError for a limit below 2, which none can have.
    """
    counted = replace(request, weight_share=1.0)
    found = [_best(request, V_ADAPTIVE, counted)]
    limit = 2.0 * request.pipeline if request.memory_limit is None else request.memory_limit
    for order, law in ((v_zb_order, v_zb_peak), (v_half_order, v_half_peak), (v_min_order, v_min_peak)):
        if law(request.pipeline, 0, request.micro_batches, 2) <= limit:
            found.append(order(replace(request, memory_limit=limit)))
            break
    return min(found, key=lambda one: span_bubble_s(one, counted, V_ADAPTIVE))


def zbv_auto_order(request: Request) -> Orders:
    """The same with memory counted as it is: a part goes back with B already."""
    return _best(request, ZBV_AUTO, request)


def _best(request: Request, schedule: Schedule, counted: Request) -> Orders:
    p = request.pipeline
    limit = 2.0 * p if request.memory_limit is None else request.memory_limit
    if limit < 2:
        raise ScheduleError(f"{schedule.name}: a memory limit of {limit:g} chunk activations is too small: rank 0 "
                            "holds both chunks of a micro-batch at once; the least that works is 2")
    skeletons = [
        partial(block_words, ticks)
        for ticks in (v_min_ticks(p), v_half_ticks(p), v_half_spread_ticks(p), v_zb_ticks(p), *_blocks(p, limit))
    ]
    ready = [partial(block_orders, v_half_spread_ticks(p))]
    others: list[Skeleton] = [*skeletons, partial(_one_at_a_time, p)]
    return squeezed(others, counted, schedule, limit, ready, _hand_made(request), starts=4)


def _v(name: str, title: str, source: str, order: Any, peak: Any, law: str) -> Schedule:
    return Schedule(name, title, source, order, None, peak, stage_of=v_shaped, splits_backward=True, least_chunks=2,
                    most_chunks=2, law=law)


V_MIN = _v("v-min", "V-Min", "arXiv 2405.15362", v_min_order, v_min_peak,
           law="about 2/3 of 1F1B's bubble; peak floor((p + 4)/3)")
V_HALF = _v("v-half", "V-Half", "arXiv 2405.15362", v_half_order, v_half_peak,
            law="about 1/2 of 1F1B's bubble; peak floor((p + 2)/2)")
V_ZB = _v("v-zb", "V-ZB", "arXiv 2405.15362", v_zb_order, v_zb_peak,
          law="next to no bubble in the span; peak p")
V_ADAPTIVE = _v("v-adaptive", "V under a memory limit", "arXiv 2405.15362, section 4", adaptive_order, None,
                law="made for the times; peak within p or the limit")
ZBV = _v("zbv", "ZBV", "arXiv 2401.10241, section 6", zbv_order, v_zb_peak,
         law="no bubble in the span at F = B = W; peak p")
ZBV_AUTO = _v("zbv-auto", "ZBV for given times", "arXiv 2401.10241, section 6", zbv_auto_order, None,
              law="made for the times; peak within p or the limit")
