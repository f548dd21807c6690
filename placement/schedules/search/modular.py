"""The periodic problem: one micro-batch's passes repeated every period, whose size does not grow with micro-batches.

Each pass of a micro-batch starts at a time of its own and again every period T; on a rank, passes may not overlap on
the circle of length T, and what the rank holds in the steady state follows from how many periods lie between the
forward and the backward of a chunk (cyclic scheduling; Hanen and Munier 1995; arXiv 2405.15362 calls one solution a
building block). With one chunk a rank, or two laid out as a V, a micro-batch passes neighbours only, so that all that
rank r must know of the ranks beyond it are the times from its F0 to its F1, from there to its B1 and to its B0. Whole
sets of such triples (in ticks, as Boolean arrays) are carried from the turn of the V back to rank 0: a dynamic
programme that is exact in ticks, linear in ranks, and proves that no periodic order holds less where each W takes the
first gap behind its B that is long enough.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from placement.schedules.search.problem import ROUNDING, Problem, Words

Triples = NDArray[np.bool_]  # [F0 to F1, F1 to B1, B1 to B0] in ticks; [F0 to B0] with one chunk

MOST_TICKS = 18  # of a period in which times are rounded; the work grows with their cube
MOST_CELLS = 4_000_000
MOST_LAPS = 2  # periods for each stage that a micro-batch stays at the most
TRIPS = (0.0, 0.5, 1.0)
LONGEST = 1.5  # times the busy time: the longest period looked at


@dataclass(frozen=True)
class Ticks:
    """Whole ticks of the passes, [F, B, W][stages], and of a hop; `unit_s` seconds each, `exact` when not rounded."""

    passes: tuple[tuple[int, ...], ...]
    hop: int
    unit_s: float
    exact: bool


@dataclass(frozen=True)
class Block:
    """Start ticks of one micro-batch's passes, per rank by (kind, chunk), and the period."""

    period: int
    starts: list[dict[tuple[str, int], int]]
    held: float  # the most that a rank holds in the steady state
    ticks: Ticks


def ticks_of(problem: Problem, most: int = MOST_TICKS) -> Ticks:
    """Times in whole ticks, at most `most` of which are a rank's busy time for one micro-batch."""
    busy_s = max(problem.busy_s(rank) for rank in range(problem.pipeline)) / problem.micro_batches
    grain_s = problem.grain_s
    exact = grain_s > 0 and busy_s / grain_s <= most * (1 + ROUNDING)
    unit_s = grain_s if exact else busy_s / most
    passes = tuple(tuple(max(round(time / unit_s), 1 if time > 0 else 0) for time in of_kind)
                   for of_kind in problem.times)
    return Ticks(passes, round(problem.latency_s / unit_s), unit_s, exact)


def periodic(problem: Problem, ticks: Ticks | None = None, longest: float = LONGEST) -> Block | None:
    """The block of the shortest period under the problem's memory limit; None where none up to `longest` busy times
    exists."""
    found = _shortest(problem, ticks_of(problem) if ticks is None else ticks, longest, TRIPS[:1])
    return found[0] if found else None


def _shortest(problem: Problem, ticks: Ticks, longest: float, trips: tuple[float, ...]) -> list[Block]:
    busy = busy_ticks(problem, ticks)
    least = max(busy, math.ceil(_trip_memory(problem, ticks) - ROUNDING))
    for period in range(least, int(longest * busy) + 1):
        found = blocks_of_period(problem, ticks, period, trips)
        if found:
            return found
    return []


def blocks(problem: Problem) -> list[Block]:
    """Blocks of the shortest period under the limit, with short, middling and long trips of a micro-batch: a longer one
    holds more and makes ramps shorter, and which serves best is seen only when they are filled up."""
    return _shortest(problem, ticks_of(problem), LONGEST, TRIPS)


def least_memory(problem: Problem, period: int, ticks: Ticks, most: int) -> tuple[int, Block] | None:
    """(chunk activations, block): the fewest that a rank must hold for this period, up to `most`."""
    for limit in range(problem.chunks, most + 1):
        limited = replace(problem, limit=(float(limit),) * problem.pipeline)
        found = blocks_of_period(limited, ticks, period, TRIPS[:1])
        if found:
            return limit, found[0]
    return None


def busy_ticks(problem: Problem, ticks: Ticks) -> int:
    """Of the busiest rank for one micro-batch: no period is shorter."""
    return max(sum(of_kind[stage] for of_kind in ticks.passes for stage in stages)
               for stages in problem.stage_of_rank)


def _trip_memory(problem: Problem, ticks: Ticks) -> float:
    """The period below which a rank cannot hold all that is on its way, however the passes lie."""
    forward, backward, _ = ticks.passes
    last, worst = problem.stages - 1, 0.0
    for rank, stages in enumerate(problem.stage_of_rank):
        trip = 0
        for stage in stages:
            hops = sum(problem.hop_s(one) > 0 for one in range(stage, last)) * ticks.hop
            trip += sum(forward[stage:]) + sum(backward[stage:]) + 2 * hops
        worst = max(worst, trip / problem.limit[rank])
    return worst


def _steps(problem: Problem, ticks: Ticks, rank: int) -> list[tuple[tuple[int, ...], int]]:
    """How the times between a rank's passes grow over those of the next rank: (direction, least ticks)."""
    forward, backward, _ = ticks.passes
    here, beyond = problem.stage_of_rank[rank], problem.stage_of_rank[rank + 1]
    if problem.chunks == 1:
        return [((1,), forward[here[0]] + ticks.hop), ((1,), backward[beyond[0]] + ticks.hop)]
    return [((1, 0, 0), forward[here[0]] + ticks.hop), ((1, -1, 0), forward[beyond[1]] + ticks.hop),
            ((0, -1, 1), backward[here[1]] + ticks.hop), ((0, 0, 1), backward[beyond[0]] + ticks.hop)]


def blocks_of_period(problem: Problem, ticks: Ticks, period: int, trips: tuple[float, ...]) -> list[Block]:
    """Blocks of exactly this period, none where none exists. Of all possible times from the first to the last pass of a
    micro-batch on rank 0, `trips` 0 takes the shortest and 1 the longest."""
    size = _size(problem, period)
    forward, backward, _ = ticks.passes
    allowed = [_allowed(problem, ticks, period, rank, size) for rank in range(problem.pipeline)]
    reached = [allowed[-1].copy()]
    turn = problem.stage_of_rank[-1]
    reached[0][:forward[turn[0]]] = False
    if problem.chunks == 2:
        reached[0][:, :, :backward[turn[1]]] = False
    for rank in range(problem.pipeline - 2, -1, -1):
        grown = reached[0]
        for direction, least in _steps(problem, ticks, rank):
            grown = _grow(grown, direction, least)
        reached.insert(0, grown & allowed[rank])
    if problem.chunks == 2:
        reached[0][:, :forward[problem.stage_of_rank[0][1]]] = False
    ends = sorted(np.argwhere(reached[0]).tolist(), key=lambda one: (sum(one), one))
    places = dict.fromkeys(int(share * (len(ends) - 1)) for share in trips) if ends else {}
    return [_block(problem, ticks, period, reached, tuple(ends[place])) for place in places]


def _block(
    problem: Problem, ticks: Ticks, period: int, reached: Sequence[Triples], lag: tuple[int, ...]
) -> Block:
    """The block with these times between rank 0's passes: those of the ranks beyond are traced back."""
    lags, offsets = [lag], [0]
    for rank in range(problem.pipeline - 1):
        lag, step = _back(reached[rank + 1], lags[-1], _steps(problem, ticks, rank))
        lags.append(lag)
        offsets.append(offsets[-1] + step)
    starts, held = [], 0.0
    for rank, (of_rank, offset) in enumerate(zip(lags, offsets, strict=True)):
        durations = tuple(tuple(of_kind[stage] for stage in problem.stage_of_rank[rank]) for of_kind in ticks.passes)
        placed = _placed(durations, period, of_rank, problem.weight_share)
        assert placed is not None
        starts.append({key: offset + time for key, time in placed[0].items()})
        held = max(held, placed[1])
    return Block(period, starts, held, ticks)


def _size(problem: Problem, period: int) -> tuple[int, ...]:
    """Times between passes that the largest memory allows: chunk 0 is held over all of them, chunk 1 over the middle.
    As long as `MOST_CELLS` hold them: more memory makes no shorter period than all but the slowest trips need."""
    whole = int(min(max(problem.limit), MOST_LAPS * problem.stages) * period) + period
    if problem.chunks == 1:
        return (whole,)
    whole = min(whole, int((2 * MOST_CELLS) ** (1 / 3)))
    return (whole, whole // 2 + 1, whole)


def _grow(reached: Triples, direction: tuple[int, ...], least: int) -> Triples:
    """Everything `least` or more steps of `direction` away."""
    moved = _shift(reached, direction, least)
    axis = next(i for i, step in enumerate(direction) if step > 0)
    if sum(map(abs, direction)) == 1:
        return np.logical_or.accumulate(moved, axis=axis)
    other = next(i for i, step in enumerate(direction) if step < 0)
    view = np.moveaxis(moved, (axis, other), (0, 1))
    for i in range(1, len(view)):
        view[i, :-1] |= view[i - 1, 1:]
    return moved


def _shift(reached: Triples, direction: tuple[int, ...], by: int) -> Triples:
    moved = np.zeros_like(reached)
    into, out = [], []
    for step, length in zip(direction, reached.shape, strict=True):
        by_here = min(by, length)
        into.append(slice(by_here, None) if step > 0 else slice(0, length - by_here) if step < 0 else slice(None))
        out.append(slice(0, length - by_here) if step > 0 else slice(by_here, None) if step < 0 else slice(None))
    moved[tuple(into)] = reached[tuple(out)]
    return moved


def _back(
    beyond: Triples, lag: tuple[int, ...], steps: Sequence[tuple[tuple[int, ...], int]]
) -> tuple[tuple[int, ...], int]:
    """(times between the next rank's passes, ticks from this rank's F0 to the next one's), with the least waiting."""
    grown = [beyond]
    for direction, least in steps:
        grown.append(_grow(grown[-1], direction, least))
    at, first = lag, 0
    for number in range(len(steps) - 1, -1, -1):
        direction, least = steps[number]
        taken = least
        while True:
            before = tuple(place - taken * step for place, step in zip(at, direction, strict=True))
            if all(0 <= place < length for place, length in zip(before, beyond.shape, strict=True)) and \
                    grown[number][before]:
                break
            taken += 1
        at, first = before, taken
    return at, first


def _allowed(problem: Problem, ticks: Ticks, period: int, rank: int, size: tuple[int, ...]) -> Triples:
    """Times between passes that do not overlap on the circle and that the rank's memory allows."""
    stages = problem.stage_of_rank[rank]
    durations = tuple(tuple(of_kind[stage] for stage in stages) for of_kind in ticks.passes)
    table = _table(durations, period, problem.weight_share)
    held = table[np.ix_(*(np.arange(length) % period for length in size))].copy()
    weights = (1,) if problem.chunks == 1 else (1, 2, 1)  # chunks held over this time
    for axis, (length, weight) in enumerate(zip(size, weights, strict=True)):
        shape = [1] * len(size)
        shape[axis] = length
        held += (np.arange(length, dtype=np.float32) // period * weight).reshape(shape)
    return np.asarray(held <= problem.limit[rank] + 1e-4)


@cache
def _table(durations: tuple[tuple[int, ...], ...], period: int, weight_share: float) -> NDArray[np.float32]:
    """[period, ...]: the most held for times between passes below a period, inf where passes overlap."""
    count = 2 * len(durations[0]) - 1
    table = np.full((period,) * count, np.inf, dtype=np.float32)
    for lag in itertools.product(range(period), repeat=count):
        placed = _placed(durations, period, lag, weight_share)
        if placed is not None:
            table[lag] = placed[1]
    return table


Starts = dict[tuple[str, int], int]


def _placed(
    durations: tuple[tuple[int, ...], ...], period: int, lag: Sequence[int], weight_share: float
) -> tuple[Starts, float] | None:
    """(start ticks of all passes of a rank, F0 at 0; the most it holds) with W passes taking gaps in the better
    sequence; None where passes overlap on the circle."""
    chunks = len(durations[0])
    free, times = [True] * period, Starts()
    names = [("F", 0), ("B", 0)] if chunks == 1 else [("F", 0), ("F", 1), ("B", 1), ("B", 0)]
    for name, time in zip(names, itertools.accumulate(lag, initial=0), strict=True):
        if not _take(free, time, durations["FB".index(name[0])][name[1]]):
            return None
        times[name] = time
    found = [starts for sequence in itertools.permutations(range(chunks))
             if (starts := _with_weights(durations, period, times, list(free), sequence)) is not None]
    held = [(_held(starts, durations, period, weight_share), starts) for starts in found]
    best = min(held, key=lambda one: one[0], default=None)
    return None if best is None else (best[1], best[0])


def _take(free: list[bool], time: int, length: int) -> bool:
    """Marks a pass on the circle; False, and nothing marked, where something lies there."""
    spots = [(time + tick) % len(free) for tick in range(length)]
    if length > len(free) or not all(free[spot] for spot in spots):
        return False
    for spot in spots:
        free[spot] = False
    return True


def _with_weights(
    durations: tuple[tuple[int, ...], ...], period: int, times: Starts, free: list[bool], sequence: Sequence[int]
) -> Starts | None:
    """Each W in the first gap behind its B that is long enough, chunks in this sequence."""
    whole = dict(times)
    for chunk in sequence:
        begin = times["B", chunk] + durations[1][chunk]
        time = next((one for one in range(begin, begin + period) if _take(free, one, durations[2][chunk])), None)
        if time is None:
            return None
        whole["W", chunk] = time
    return whole


def _held(times: Starts, durations: tuple[tuple[int, ...], ...], period: int, weight_share: float) -> float:
    """The most held at the start of a forward in the steady state."""
    _, backward, weight = durations
    highest = 0.0
    for chunk in range(len(backward)):
        now = times["F", chunk]
        held = 0.0
        for other in range(len(backward)):
            after_b = (now - times["B", other] - backward[other]) // period
            after_w = (now - times["W", other] - weight[other]) // period
            held += (now - times["F", other]) // period - after_b + weight_share * (after_b - after_w)
        highest = max(highest, held)
    return highest


def words(block: Block, problem: Problem) -> Words:
    """F and B of every micro-batch in the order of their ticks, per rank."""
    v = problem.chunks
    result = []
    for times in block.starts:
        found = sorted((time + j * block.period, "FBW".index(kind) * v + chunk)
                       for (kind, chunk), time in times.items() if kind != "W" for j in range(problem.micro_batches))
        result.append([code for _, code in found])
    return result
