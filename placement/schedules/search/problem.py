"""A scheduling problem: which passes there are, how long they take and what each rank may hold.

All micro-batches are alike, so nothing is lost by taking the passes of one kind and chunk in the order of their
micro-batches: whatever the order, the j-th forward of a stage has j forwards of the stage before behind it, and so
for backwards. An order of a rank is then a word over `codes`, one letter for each kind and chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from placement.schedules.evaluate import evaluate
from placement.schedules.order import Orders, Pass, Request, Schedule, ScheduleError, v_shaped

KINDS = "FBW"
OBJECTIVES = ("span", "makespan")
ROUNDING = 1e-9

Words = list[list[int]]  # per rank, codes in the order in which it runs them


@dataclass(frozen=True)
class Problem:
    """Stages are in model order; `stage_of_rank[rank][chunk]`. Times are seconds of one chunk's pass, [stages].

    `limit` [ranks] is in chunk activations, inf for none; a forward takes 1, its B gives back 1 - `weight_share`
    at its end and its W the rest.
    """

    pipeline: int
    micro_batches: int
    chunks: int
    stage_of_rank: tuple[tuple[int, ...], ...]
    forward_s: tuple[float, ...]
    backward_s: tuple[float, ...]
    weight_s: tuple[float, ...]
    latency_s: float
    limit: tuple[float, ...]
    weight_share: float
    objective: str
    stage_of: Callable[[int, int, int, int], int]

    @property
    def stages(self) -> int:
        return self.pipeline * self.chunks

    @property
    def rank_of_stage(self) -> list[int]:
        found = [0] * self.stages
        for rank, stages in enumerate(self.stage_of_rank):
            for stage in stages:
                found[stage] = rank
        return found

    @property
    def times(self) -> tuple[tuple[float, ...], ...]:
        """[F, B, W][stages]."""
        return (self.forward_s, self.backward_s, self.weight_s)

    @property
    def changes(self) -> tuple[float, float, float]:
        """What F, B and W add to what a rank holds."""
        return (1.0, self.weight_share - 1.0, -self.weight_share)

    def busy_s(self, rank: int) -> float:
        return self.micro_batches * sum(of_kind[stage] for of_kind in self.times for stage in self.stage_of_rank[rank])

    def hop_s(self, stage: int) -> float:
        """Latency between this stage and the next."""
        ranks = self.rank_of_stage
        return self.latency_s if ranks[stage] != ranks[stage + 1] else 0.0

    @property
    def grain_s(self) -> float:
        """A unit of which all times, and so every cost, are whole multiples; 0 where there is none in thousandths."""
        every = [time for of_kind in self.times for time in of_kind] + [self.latency_s]
        for scale in (1, 10, 100, 1000):
            whole = [round(time * scale) for time in every]
            most = ROUNDING * max(every) * scale
            if all(abs(time * scale - near) <= most for time, near in zip(every, whole, strict=True)):
                return math.gcd(*whole) / scale
        return 0.0


def problem_of(
    request: Request,
    objective: str = "span",
    stage_of: Callable[[int, int, int, int], int] = v_shaped,
    forward_s: Any = None,
    backward_s: Any = None,
    weight_s: Any = None,
    limits: Any = None,
) -> Problem:
    """The problem of a request; `*_s` per stage replace its times, `limits` per rank its memory limit.

    `stage_of` is where chunks lie; with one chunk all placements are the same. Raises ScheduleError for a limit
    under which no order exists: a rank holds one micro-batch in all its chunks at once.
    """
    if objective not in OBJECTIVES:
        raise ScheduleError(f"no objective {objective!r}; there are {' and '.join(OBJECTIVES)}")
    p, v = request.pipeline, request.chunks
    if not 0 <= request.weight_share <= 1:
        raise ScheduleError(f"weight_share is a share of an activation, from 0 to 1 (got {request.weight_share:g})")
    given = (request.times.forward_s, request.times.backward_s, request.times.weight_s)
    rows = [_row(name, of_stage if of_stage is not None else time, p * v) for name, of_stage, time in zip(
        ("forward", "backward", "weight"), (forward_s, backward_s, weight_s), given, strict=True)]
    limit = math.inf if request.memory_limit is None else request.memory_limit
    of_ranks = _row("memory limit", limit if limits is None else limits, p, "ranks")
    for rank, most in enumerate(of_ranks):
        if most < v - ROUNDING:
            raise ScheduleError(
                f"rank {rank}: a memory limit of {most:g} chunk activations is too small for any order: a "
                f"micro-batch's first backward needs its forwards of all chunks held; the least that works is {v}")
    stage_of_rank = tuple(tuple(stage_of(rank, chunk, p, v) for chunk in range(v)) for rank in range(p))
    return Problem(p, request.micro_batches, v, stage_of_rank, rows[0], rows[1], rows[2], request.times.latency_s,
                   of_ranks, request.weight_share, objective, stage_of)


def _row(name: str, value: Any, count: int, of_what: str = "stages") -> tuple[float, ...]:
    row = np.asarray(value, dtype=float)
    if row.ndim > 1 or row.size not in (1, count):
        raise ScheduleError(f"{name}: {row.size} values given; there are {count} {of_what}")
    if (row < 0).any() or np.isnan(row).any():
        raise ScheduleError(f"{name}: every value must be at least 0 (got {row.min():g})")
    return tuple(np.broadcast_to(row, count).tolist())


def schedule_of(problem: Problem, name: str, title: str) -> Schedule:
    """A schedule to evaluate found orders with; asked for an order it has none to give."""
    def unknown(request: Request) -> Orders:
        raise ScheduleError(f"{name} is the result of a search for one setting; ask the search again")

    return Schedule(name, title, "search", unknown, stage_of=problem.stage_of, splits_backward=True,
                    least_chunks=problem.chunks, most_chunks=problem.chunks)


def orders_of(words: Words, problem: Problem) -> Orders:
    v = problem.chunks
    orders: Orders = []
    for word in words:
        count = [0] * (3 * v)
        passes = []
        for code in word:
            passes.append(Pass(KINDS[code // v], code % v, count[code]))
            count[code] += 1
        orders.append(passes)
    return orders


def words_of(orders: Orders, problem: Problem) -> Words:
    v = problem.chunks
    return [[KINDS.index(one.kind) * v + one.chunk for one in passes] for passes in orders]


def peaks(words: Sequence[Sequence[int]], problem: Problem) -> list[float]:
    """[ranks], chunk activations held at most, counted along the order."""
    change = [one for one in problem.changes for _ in range(problem.chunks)]
    return [max(accumulate(map(change.__getitem__, word)), default=0.0) for word in words]


def fits(words: Sequence[Sequence[int]], problem: Problem) -> bool:
    return all(peak <= most + ROUNDING for peak, most in zip(peaks(words, problem), problem.limit, strict=True))


def cost_s(orders: Orders, schedule: Schedule, problem: Problem) -> float:
    """What the orders take in the problem's objective, played as early as possible."""
    played = evaluate(orders, schedule, problem.forward_s, problem.backward_s, problem.weight_s, problem.latency_s)
    return played.span_s if problem.objective == "span" else played.makespan_s
