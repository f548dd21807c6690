"""Whole orders from the wanted order of forwards and backwards: ramps by list scheduling, weights in the gaps.

Ranks are played forward in time. Each takes the next wanted pass that is there and fits in memory; while it is not, a
later one of the nearest few may come first, or a weight pass runs if the gap is long enough, or memory needs it.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from itertools import islice, product

from placement.schedules.search.problem import ROUNDING, Problem, Words

WINDOW = 12  # wanted passes looked at ahead of the next one
EARLY = ("", "B", "F", "FB")  # kinds that may come before the next wanted pass
SHORTEST_GAP = (1.0, 0.5, 0.0)  # of a weight pass's length, for it to run in a gap


@dataclass
class _Rank:
    wanted: list[int]
    forwards: int  # still to run
    taken: set[int] = field(default_factory=set)
    head: int = 0
    busy_until_s: float = 0.0
    held: float = 0.0
    weights: deque[int] = field(default_factory=deque)  # chunks whose weight pass waits
    word: list[int] = field(default_factory=list)


class _Filling:
    def __init__(self, wanted: Words, problem: Problem, early: str, early_tail: str, shortest_gap: float) -> None:
        self.problem, self.early, self.early_tail, self.shortest_gap = problem, early, early_tail, shortest_gap
        self.ranks = [_Rank(list(of_rank), sum(code < problem.chunks for code in of_rank)) for of_rank in wanted]
        self.rank_of_stage = problem.rank_of_stage
        self.hops = [problem.hop_s(stage) for stage in range(problem.stages - 1)]
        self.ends_s: list[list[list[float]]] = [[[] for _ in range(problem.stages)] for _ in range(2)]
        self.events = [(0.0, rank) for rank in range(problem.pipeline)]

    def run(self) -> Words | None:
        """None where memory leaves ranks waiting for each other."""
        while self.events:
            now_s, rank = heapq.heappop(self.events)
            if self.ranks[rank].busy_until_s <= now_s:
                self.act(rank, now_s)
        if any(one.head < len(one.wanted) for one in self.ranks):
            return None
        return [one.word for one in self.ranks]

    def act(self, rank: int, now_s: float) -> None:
        one = self.ranks[rank]
        weight_s = max(self.problem.weight_s[stage] for stage in self.problem.stage_of_rank[rank])
        if one.head == len(one.wanted):
            if one.weights:
                self.weight(rank, now_s)
            return
        shortest_s = self.shortest_gap * weight_s * (1 - ROUNDING)  # a gap of just the pass's length is enough
        code = one.wanted[one.head]
        ready_s = self.ready_s(rank, code)
        fits = code >= self.problem.chunks or one.held + 1 <= self.problem.limit[rank] + ROUNDING
        if ready_s is not None and ready_s <= now_s and fits:
            self.take(rank, one.head, now_s)
            return
        place = self.earlier(rank, now_s)
        if place is not None:
            self.take(rank, place, now_s)
        elif one.weights and (not fits or ready_s is None or ready_s - now_s >= shortest_s):
            self.weight(rank, now_s)

    def earlier(self, rank: int, now_s: float) -> int | None:
        """A wanted pass behind the next one that can run now without taking the room of those between."""
        one, v = self.ranks[rank], self.problem.chunks
        early = self.early if one.forwards else self.early_tail
        if not early:
            return None
        held = one.held - len(one.weights) * self.problem.weight_share
        highest, seen = held, set()
        waiting = (place for place in range(one.head, len(one.wanted)) if place not in one.taken)
        for place in islice(waiting, WINDOW):
            code = one.wanted[place]
            if code not in seen and place > one.head and "FB"[code // v] in early:
                ready_s = self.ready_s(rank, code)
                room = code >= v or max(highest + 1, one.held + 1) <= self.problem.limit[rank] + ROUNDING
                if ready_s is not None and ready_s <= now_s and room:
                    return place
            seen.add(code)
            held += 1.0 if code < v else -1.0
            highest = max(highest, held)
        return None

    def ready_s(self, rank: int, code: int) -> float | None:
        """When what the rank's next pass of this code needs is there; None where that is not known yet."""
        kind, stage = divmod(code, self.problem.chunks)
        stage = self.problem.stage_of_rank[rank][stage]
        j = len(self.ends_s[kind][stage])
        if kind == 1 and len(self.ends_s[0][stage]) <= j:
            return None
        before = stage - 1 if kind == 0 else stage + 1
        if before < 0:
            return 0.0
        if before == self.problem.stages:
            return self.ends_s[0][stage][j]
        ends_s = self.ends_s[kind][before]
        return ends_s[j] + self.hops[min(stage, before)] if len(ends_s) > j else None

    def take(self, rank: int, place: int, now_s: float) -> None:
        one = self.ranks[rank]
        code = one.wanted[place]
        one.taken.add(place)
        while one.head in one.taken:
            one.taken.remove(one.head)
            one.head += 1
        kind, chunk = divmod(code, self.problem.chunks)
        stage = self.problem.stage_of_rank[rank][chunk]
        one.forwards -= kind == 0
        if kind == 1:
            one.weights.append(chunk)
        end_s = self.put(rank, code, self.problem.times[kind][stage], now_s)
        self.ends_s[kind][stage].append(end_s)
        after = stage + 1 if kind == 0 else stage - 1
        if 0 <= after < self.problem.stages and self.rank_of_stage[after] != rank:
            heapq.heappush(self.events, (end_s + self.hops[min(stage, after)], self.rank_of_stage[after]))

    def weight(self, rank: int, now_s: float) -> None:
        chunk = self.ranks[rank].weights.popleft()
        stage = self.problem.stage_of_rank[rank][chunk]
        self.put(rank, 2 * self.problem.chunks + chunk, self.problem.weight_s[stage], now_s)

    def put(self, rank: int, code: int, length_s: float, now_s: float) -> float:
        one = self.ranks[rank]
        one.busy_until_s = now_s + length_s
        one.held += self.problem.changes[code // self.problem.chunks]
        one.word.append(code)
        heapq.heappush(self.events, (one.busy_until_s, rank))
        return one.busy_until_s


WAYS = tuple(product(EARLY, SHORTEST_GAP))


def filled(
    wanted: Words, problem: Problem, early: str = "", shortest_gap: float = 1.0, early_tail: str | None = None
) -> Words | None:
    """The order that the wanted order of F and B fills up to; None where it deadlocks.

    `early`: kinds that may come before the next wanted pass, `early_tail` those on a rank that has run all its forwards
    (the same unless given). `shortest_gap`: of a weight pass's length, for it to run in a gap.
    """
    return _Filling(wanted, problem, early, early if early_tail is None else early_tail, shortest_gap).run()


def serial(problem: Problem) -> Words:
    """One micro-batch after another: fits every memory limit that any order fits."""
    v = problem.chunks
    once = [*range(v), *range(2 * v - 1, v - 1, -1), *range(2 * v, 3 * v)]
    return [once * problem.micro_batches for _ in range(problem.pipeline)]


def alternating(problem: Problem, pace: float) -> Words:
    """With one chunk: forwards ahead of the first backward as memory allows, at most 1 + `pace` for each rank behind,
    then B and F in turn."""
    wanted = []
    for rank in range(problem.pipeline):
        ahead = int(pace * (problem.pipeline - 1 - rank) + 1 + ROUNDING)
        ahead = int(max(1, min(ahead, problem.micro_batches, problem.limit[rank] + ROUNDING)))
        wanted.append([0] * ahead + [1, 0] * (problem.micro_batches - ahead) + [1] * ahead)
    return wanted


def interleaved(problem: Problem, group: int, pace: float) -> Words:
    """Chunks dealt in turn: groups of micro-batches go through a chunk before the next one's turn; as many forwards
    ahead as one group needs to come back and `pace` for each rank behind, as memory allows, then B and F in turn
    (grouped interleaving, arXiv 2503.01328)."""
    v, m = problem.chunks, problem.micro_batches
    sizes = [min(group, m - first) for first in range(0, m, group)]
    forwards = [chunk for size in sizes for chunk in range(v) for _ in range(size)]
    backwards = [v + chunk for size in sizes for chunk in reversed(range(v)) for _ in range(size)]
    wanted = []
    for rank in range(problem.pipeline):
        ahead = int(group * (v - 1) + pace * (problem.pipeline - 1 - rank) + 1 + ROUNDING)
        ahead = int(max(1, min(ahead, v * m, problem.limit[rank] + ROUNDING)))
        turns = [code for pair in zip(backwards, forwards[ahead:], strict=False) for code in pair]
        wanted.append(forwards[:ahead] + turns + backwards[v * m - ahead:])
    return wanted
