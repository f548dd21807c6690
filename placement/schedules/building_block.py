"""Orders from a repeating building block: the start ticks of one micro-batch's passes on each rank, repeated once a
period, then squeezed (Qi et al. 2024, arXiv 2405.15362, sections 3 and 4).

Squeezing fills up the order of the ticks by list scheduling (`placement.schedules.search.fill`). Which passes may come
early is tried out on a short run; the best is bettered by local search where it misses the lower bound, and a long run
repeats the period in its middle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from placement.schedules.evaluate import evaluate
from placement.schedules.order import Orders, Pass, Request, Schedule, ScheduleError
from placement.schedules.search.bounds import lower_bound_s
from placement.schedules.search.fill import filled
from placement.schedules.search.improve import KEPT, improved
from placement.schedules.search.problem import Words, cost_s, orders_of, problem_of, words_of

Ticks = Sequence[Sequence[float]]  # [ranks][F0, F1, B1, B0], start of a micro-batch's passes, period 6
SLOTS = (("F", 0), ("F", 1), ("B", 1), ("B", 0))
PERIOD = 6
TRIAL = 3  # micro-batches a rank on which the variants are compared
TRIED = 12_000  # micro-batches on ranks, over all variants compared
ROUNDS = 2  # of local search from the best order found
# what may come early, and at the end, by how often it is the best
EARLY = (("F", "B"), ("FB", "B"), ("B", "B"), ("", ""), ("F", ""), ("", "B"), ("FB", ""), ("B", ""))
ROUNDING = 1e-9

CODES = {(kind, chunk): 2 * place + chunk for place, kind in enumerate("FB") for chunk in (0, 1)}
Skeleton = Callable[[int], Any]  # of a number of micro-batches


def block_words(ticks: Ticks, micro_batches: int) -> Words:
    """The F and B passes of every rank in the order of their start ticks, as words of codes."""
    codes = [CODES[slot] for slot in SLOTS]
    return [
        [code for _, code in sorted(
            (tick + PERIOD * j, code) for tick, code in zip(of_rank, codes, strict=True) for j in range(micro_batches))]
        for of_rank in ticks
    ]


def block_orders(ticks: Ticks, micro_batches: int) -> Orders:
    """The block as it stands, with each W in the first free tick behind its B (section 3 of the paper)."""
    result = []
    for of_rank in ticks:
        starts: dict[tuple[str, int], float] = dict(zip(SLOTS, of_rank, strict=True))
        for chunk in (1, 0):
            tick = starts["B", chunk] + 1.0
            while any(min((tick - other) % PERIOD, (other - tick) % PERIOD) < 1 for other in starts.values()):
                tick += 0.5
            starts["W", chunk] = tick
        passes = sorted((tick + PERIOD * j, kind, chunk, j)
                        for (kind, chunk), tick in starts.items() for j in range(micro_batches))
        result.append([Pass(kind, chunk, j) for _, kind, chunk, j in passes])
    return result


def squeeze(
    words: Words, request: Request, schedule: Schedule, limit: float, early: str = "", early_tail: str = ""
) -> Orders:
    """The order that words of F and B fill up to (`placement.schedules.search.fill`) within `limit` chunk activations.

    Raises ScheduleError where the limit leaves ranks waiting for each other.
    """
    problem = problem_of(replace(request, memory_limit=limit), "span", schedule.stage_of)
    found = filled(words, problem, early, early_tail=early_tail)
    if found is None:
        raise ScheduleError(f"a memory limit of {limit:g} chunk activations is too small for this building block")
    return orders_of(found, problem)


def squeezed(
    skeletons: Sequence[Skeleton], request: Request, schedule: Schedule, limit: float, ready: Sequence[Skeleton] = (),
    hand_made: Sequence[Skeleton] = (), starts: int = 1,
) -> Orders:
    """The order with the least span under `limit` of those that the skeletons squeeze into, and of the `ready` ones.

    A skeleton gives the F and B passes of every rank for a number of micro-batches, a ready one the whole order; a
    hand-made one is first taken in its own order, without anything early. They are tried on a run of `TRIAL` p
    micro-batches, the fewer ways the more passes it has, and judged by their bubble and by how it grows; the `starts`
    best are bettered by local search unless one reaches the lower bound. Raises ScheduleError where none fits the
    limit.
    """
    trial = min(request.micro_batches, TRIAL * request.pipeline)
    more = request.micro_batches - trial
    short = replace(request, micro_batches=trial, memory_limit=limit)
    least_s = least_bubble_s(replace(short, micro_batches=request.micro_batches), schedule)
    found: list[tuple[float, Orders, Callable[[int], Orders]]] = []
    refused = None
    for number, way in enumerate(_ways(skeletons, ready, hand_made, request, schedule, limit)):
        if found and number * trial * request.pipeline > TRIED:
            break
        try:
            orders = way(trial)
        except ScheduleError as error:
            refused = error
            continue
        bubble_s = _long_bubble_s(orders, short, more, schedule)
        found.append((bubble_s, orders, way))
        if bubble_s <= least_s * (1 + ROUNDING):
            break
    if not found:
        assert refused is not None
        raise refused
    found.sort(key=lambda one: one[0])
    best_s, best, way = found[0]
    if best_s > least_s * (1 + ROUNDING):
        kept = KEPT if more else 0.0
        better = _bettered(_different(found, starts), short, schedule, kept)
        best = min(better, key=lambda orders: _long_bubble_s(orders, short, more, schedule))
    if not more:
        return best
    longer = lengthened(best, more)
    if longer is not None and span_bubble_s(longer, request, schedule) <= best_s * (1 + ROUNDING):
        return longer
    both = [one for one in (longer, way(request.micro_batches)) if one is not None]
    return min(both, key=lambda one: span_bubble_s(one, request, schedule))


def _different(found: Sequence[tuple[float, Orders, Any]], most: int) -> list[Orders]:
    """The first `most` orders, one of each bubble: orders of equal bubble are mostly the same."""
    bubbles = [bubble_s for bubble_s, _, _ in found]
    return [orders for place, (bubble_s, orders, _) in enumerate(found) if bubble_s not in bubbles[:place]][:most]


def _bettered(orders: Sequence[Orders], request: Request, schedule: Schedule, kept: float) -> list[Orders]:
    """By local search, and the best of them `ROUNDS` times more."""
    problem = problem_of(request, "span", schedule.stage_of)
    bound_s, found = lower_bound_s(problem), [words_of(one, problem) for one in orders]
    found = [improved(words, problem, bound_s, kept=kept) for words in found]
    for seed in range(2, 2 + ROUNDS):
        best = min(found, key=lambda words: cost_s(orders_of(words, problem), schedule, problem))
        found.append(improved(best, problem, bound_s, kept=kept, seed=seed))
    return [orders_of(words, problem) for words in found]


def least_bubble_s(request: Request, schedule: Schedule) -> float:
    """The bubble that no order has less of within its longest span, under `request.memory_limit`."""
    problem = problem_of(request, "span", schedule.stage_of)
    return max(lower_bound_s(problem) - problem.busy_s(0), 0.0)


def _ways(
    skeletons: Sequence[Skeleton], ready: Sequence[Skeleton], hand_made: Sequence[Skeleton], request: Request,
    schedule: Schedule, limit: float,
) -> list[Callable[[int], Orders]]:
    """Orders for a number of micro-batches, those first that are the best most often."""
    def ways(of: Sequence[Skeleton], early: tuple[str, str]) -> list[Callable[[int], Orders]]:
        return [partial(_squeezed, skeleton, request, schedule, limit, *early) for skeleton in of]

    as_they_are = [partial(_within, orders, request, schedule, limit) for orders in ready]
    others = [way for early in EARLY[1:] for way in ways(skeletons, early)]
    changed = [way for early in EARLY if any(early) for way in ways(hand_made, early)]
    return [*ways(hand_made, ("", "")), *ways(skeletons, EARLY[0]), *as_they_are, *changed, *others]


def _squeezed(
    skeleton: Skeleton, request: Request, schedule: Schedule, limit: float, early: str, early_tail: str, count: int
) -> Orders:
    return squeeze(skeleton(count), replace(request, micro_batches=count), schedule, limit, early, early_tail)


def _within(orders: Skeleton, request: Request, schedule: Schedule, limit: float, count: int) -> Orders:
    """The order of this many micro-batches; raises ScheduleError where it holds more than the limit."""
    found: Orders = orders(count)
    share = request.weight_share
    memory = {"F": 1.0, "B": share - 1.0, "W": -share}
    peak = float(evaluate(found, schedule, 1.0, 1.0, 1.0, memory=memory).peak.max())
    if peak > limit + ROUNDING:
        raise ScheduleError(f"a memory limit of {limit:g} chunk activations is too small: this order holds {peak:g}")
    return found


def _long_bubble_s(orders: Orders, request: Request, more: int, schedule: Schedule) -> float:
    """The bubble that a run of `more` micro-batches would have by how it grows over the next p; inf where the ranks'
    middles do not fit each other."""
    bubble_s, p = span_bubble_s(orders, request, schedule), request.pipeline
    if not more:
        return bubble_s
    longer = lengthened(orders, p)
    if longer is None:
        return float("inf")
    try:
        longer_s = span_bubble_s(longer, replace(request, micro_batches=request.micro_batches + p), schedule)
    except ScheduleError:
        return float("inf")
    return bubble_s + more * max(longer_s - bubble_s, 0.0) / p


def lengthened(orders: Orders, more: int) -> Orders | None:
    """The same with `more` micro-batches: each rank's period nearest the middle repeated; None where one has none."""
    result = []
    for passes in orders:
        names = [(one.kind, one.chunk) for one in passes]
        size = len(set(names))
        starts = sorted(range(len(names) - size + 1), key=lambda i: abs(2 * i + size - len(names)))
        start = next((i for i in starts if len(set(names[i:i + size])) == size), None)
        if start is None:
            return None
        counts: dict[tuple[str, int], int] = {}
        rank = []
        for name in [*names[:start], *names[start:start + size] * more, *names[start:]]:
            counts[name] = counts.get(name, -1) + 1
            rank.append(Pass(*name, counts[name]))
        result.append(rank)
    return result


def span_bubble_s(orders: Orders, request: Request, schedule: Schedule) -> float:
    """Longest span of a rank less its busy time."""
    times = request.times
    played = evaluate(orders, schedule, times.forward_s, times.backward_s, times.weight_s, times.latency_s)
    return played.span_s - float(played.busy_s.max())
