"""What no order can beat: lower bounds of span and makespan under a memory limit, for any placement of chunks.

Of rank k, everything from the start of its first forward to the end of its last backward is counted.

*Ramp up.* Its first backward starts no sooner than a micro-batch needs to go down the model from rank k's first
chunk and back to its last one. Until then it can only run forwards, as many as memory holds (the first-B bubble of
arXiv 2401.10241, appendix B, per rank and for several chunks); the rest of that time is idle.
*Ramp down.* From the start of its last forward to the end of its last backward a micro-batch goes to the model's end
and back. Meanwhile the rank can only run what is left of what it held then: x whole activations (B and W) and y of
which W alone is left, x + y weight_share <= limit. The least over (x, y) is taken, with W left after the last B.
*Chains.* Before rank k starts, its first micro-batch came from rank r; after its last B a gradient goes back to rank
r, which ends with a W. So rank r's span, or the makespan, has both on top.
*Memory over time.* Every activation is held for a whole trip; all of them within limit x duration (Little's law).

At unit times, V placement and activations held until W the sum of the first three is 6 m + 6 p - 3 limit - 1, the lower
bound that arXiv 2405.15362 gives for its schedules.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

from placement.schedules.search.problem import ROUNDING, Problem


@dataclass(frozen=True)
class Trip:
    """Start times of one micro-batch alone, [stages]."""

    forward_s: list[float]
    backward_s: list[float]


@dataclass(frozen=True)
class _Ramps:
    """Of one rank: idle seconds before its first B, and what may still be run after its last F starts."""

    busy_s: float
    idle_s: float
    trip_s: float  # from the start of the last F to the end of the last B
    disjoint: bool  # the last F starts behind the first B, so both ramps count
    last_forward_s: float
    left: list[tuple[float, float]]  # (seconds of B and W, of these W) that memory can have left, per choice
    held_s: float  # integral of what is held from F to B over time


def lower_bound_s(problem: Problem) -> float:
    """Seconds that every order takes at least, in the problem's objective; whole in the unit of the times."""
    trip = trip_of(problem)
    ramps = [_ramps(problem, rank, trip) for rank in range(problem.pipeline)]
    firsts = [min(stages) for stages in problem.stage_of_rank]
    found = 0.0
    for rank, first in enumerate(firsts):
        of_rank = ramps[rank]
        weight_s, limit = problem.weight_s[first], problem.limit[rank]
        start_s = trip.forward_s[first] if problem.objective == "makespan" else 0.0
        found = max(found, start_s + _alone_s(of_rank, weight_s), start_s + _over_time_s(problem, of_rank, rank),
                    start_s + _in_rounds_s(problem, trip, rank))
        for earlier in firsts:
            if earlier >= first:
                continue
            before_s = trip.forward_s[first] - (
                0.0 if problem.objective == "makespan" else trip.forward_s[earlier])
            after_s = (trip.backward_s[earlier] + problem.backward_s[earlier] + problem.weight_s[earlier]
                       - trip.backward_s[first] - problem.backward_s[first])
            inside_s = max(_to_last_backward_s(of_rank), of_rank.held_s / limit)
            found = max(found, before_s + inside_s + after_s)
    return whole_grains(found, problem.grain_s)


def whole_grains(value_s: float, grain_s: float) -> float:
    return math.ceil(value_s / grain_s - 1e-6) * grain_s if grain_s > 0 else value_s


def trip_of(problem: Problem) -> Trip:
    stages = range(problem.stages)
    hops = [problem.hop_s(stage) for stage in stages[:-1]]
    forward_s = list(accumulate((problem.forward_s[i] + hops[i] for i in stages[:-1]), initial=0.0))
    turn_s = forward_s[-1] + problem.forward_s[-1]
    back = list(accumulate((problem.backward_s[i + 1] + hops[i] for i in reversed(stages[:-1])), initial=turn_s))
    return Trip(forward_s, back[::-1])


def _ramps(problem: Problem, rank: int, trip: Trip) -> _Ramps:
    stages, m = problem.stage_of_rank[rank], problem.micro_batches
    first, last = min(stages), max(stages)
    room = min(problem.limit[rank] + ROUNDING, float(m * problem.chunks))
    forwards = sorted((problem.forward_s[stage] for stage in stages for _ in range(m)), reverse=True)
    before_b_s = sum(forwards[:int(room)])
    backward_s, weight_s = (max(of_kind[stage] for stage in stages) for of_kind in problem.times[1:])
    left = []
    for whole in range(1, int(room) + 1):
        most = m * problem.chunks - whole
        half = min(most, int((room - whole) / problem.weight_share)) if problem.weight_share > 0 else most
        left.append((whole * backward_s + (whole + half) * weight_s, (whole + half) * weight_s))
    back_s = [trip.backward_s[stage] + problem.backward_s[stage] for stage in stages]
    held_s = m * sum(end_s - trip.forward_s[stage] for stage, end_s in zip(stages, back_s, strict=True))
    return _Ramps(
        problem.busy_s(rank), max(0.0, trip.backward_s[last] - trip.forward_s[first] - before_b_s),
        trip.backward_s[first] + problem.backward_s[first] - trip.forward_s[last],
        m * problem.chunks > int(room), problem.forward_s[last], left, held_s)


def _alone_s(ramps: _Ramps, weight_s: float) -> float:
    """From the rank's first start to its last end; its last pass is a W behind the last B."""
    down_s = min(max(0.0, ramps.trip_s + weight_s - ramps.last_forward_s - work_s) for work_s, _ in ramps.left)
    return ramps.busy_s + (ramps.idle_s + down_s if ramps.disjoint else max(ramps.idle_s, down_s))


def _to_last_backward_s(ramps: _Ramps) -> float:
    """From the rank's first start to the end of its last B."""
    down_s = min(max(ramps.trip_s - ramps.last_forward_s - work_s, -weights_s) for work_s, weights_s in ramps.left)
    most_after_s = max(weights_s for _, weights_s in ramps.left)
    both_s = ramps.idle_s + down_s if ramps.disjoint else max(ramps.idle_s - most_after_s, down_s)
    return ramps.busy_s + both_s


def _over_time_s(problem: Problem, ramps: _Ramps, rank: int) -> float:
    weights_s = sum(problem.weight_s[stage] for stage in problem.stage_of_rank[rank])
    return (ramps.held_s + problem.weight_share * problem.micro_batches * weights_s) / problem.limit[rank]


def _in_rounds_s(problem: Problem, trip: Trip, rank: int) -> float:
    """With one chunk, forward j + L cannot start before B of j has ended and, to give back a whole activation, one more
    B or W; so the last micro-batch starts after that many rounds, and then goes its way."""
    if problem.chunks > 1 or math.isinf(problem.limit[rank]):
        return 0.0
    stage, most = problem.stage_of_rank[rank][0], int(problem.limit[rank] + ROUNDING)
    rounds, place = divmod(problem.micro_batches - 1, most)
    trip_s = trip.backward_s[stage] + problem.backward_s[stage] - trip.forward_s[stage]
    whole = problem.limit[rank] < most + problem.weight_share - ROUNDING
    more_s = min(problem.backward_s[stage], problem.weight_s[stage]) if whole else 0.0
    return rounds * (trip_s + more_s) + place * problem.forward_s[stage] + trip_s + problem.weight_s[stage]
