"""ZB-1p, ZB-2p and any memory limit between: orders of F, B and W made for given times (Qi et al. 2023, arXiv
2401.10241, section 3).

A greedy of rounds. Forwards first fill what the memory limit allows before a rank's first backward can come; from
then on each round gives every rank one forward, down the pipeline, and one backward, up it, and puts a W wherever
it fits into a gap, memory asks for it, or the gap would make this rank the longest. Three yes-or-no choices are open
(a gap before the first B, B before F, a W that overlaps a gap), so eight orders are made and the one with the least
span is kept.
Memory law: ZB-1p at most p micro-batches on a rank, ZB-2p 2 p. Bubble law: none in closed form; the order is played.
"""

from __future__ import annotations

import itertools

from placement.schedules.order import Orders, Pass, Request, Schedule, ScheduleError

ROUNDING = 1e-9  # of a micro-batch, so that shares that add up to the limit fit


class _Rounds:
    """The state of the greedy: per rank a clock, what it holds, how far each kind of pass is."""

    def __init__(self, request: Request, limit: float, bubble_before_b: bool, b_first: bool, greedy_w: bool) -> None:
        self.request, self.times = request, request.times
        self.limit, self.bubble_before_b, self.b_first, self.greedy_w = limit, bubble_before_b, b_first, greedy_w
        p = request.pipeline
        self.ranks, self.count = range(p), request.micro_batches
        self.orders: Orders = [[] for _ in self.ranks]
        self.done = {kind: [0] * p for kind in "FBW"}
        self.clock_s, self.held, self.bubble_s = [0.0] * p, [0.0] * p, [0.0] * p
        self.first_s = [0.0] * p
        self.end_s: dict[str, list[list[float]]] = {kind: [[] for _ in self.ranks] for kind in "FB"}
        self.cost_s = {"F": self.times.forward_s, "B": self.times.backward_s, "W": self.times.weight_s}
        self.change = {"F": 1.0, "B": request.weight_share - 1.0, "W": -request.weight_share}

    def arrives_s(self, rank: int, kind: str) -> float:
        """When what the rank's next pass of this kind needs from its neighbour is there."""
        other = rank - 1 if kind == "F" else rank + 1
        if kind == "W" or other not in self.ranks:
            return 0.0
        return self.end_s[kind][other][self.done[kind][rank]] + self.times.latency_s

    def put(self, rank: int, kind: str) -> None:
        start_s = max(self.clock_s[rank], self.arrives_s(rank, kind))
        if self.orders[rank]:
            self.bubble_s[rank] += start_s - self.clock_s[rank]
        else:
            self.first_s[rank] = start_s
        self.clock_s[rank] = start_s + self.cost_s[kind]
        self.held[rank] += self.change[kind]
        self.orders[rank].append(Pass(kind, 0, self.done[kind][rank]))
        self.done[kind][rank] += 1
        if kind != "W":
            self.end_s[kind][rank].append(self.clock_s[rank])

    def weights_left(self, rank: int) -> bool:
        return self.done["W"][rank] < self.done["B"][rank]

    def run(self) -> tuple[float, Orders]:
        self.start()
        for _ in range(1, self.count):
            for rank, wanted in enumerate(self.wanted_forwards()):
                if wanted:
                    self.fill(rank, "F")
                    self.put(rank, "F")
            for rank in reversed(self.ranks):
                self.fill(rank, "B")
                while rank == 0 and self.done["F"][0] == self.count and self.weights_left(0):
                    self.put(0, "W")
                self.put(rank, "B")
        for rank in self.ranks:
            while self.weights_left(rank):
                self.put(rank, "W")
        span_s = max(end - start for end, start in zip(self.clock_s, self.first_s, strict=True))
        return span_s, self.orders

    def start(self) -> None:
        """The first forward everywhere, the warm-up, the first backward everywhere."""
        for rank in self.ranks:
            self.put(rank, "F")
        more = self.warm_ups()
        for rank in self.ranks:
            for _ in range(more[rank]):
                self.put(rank, "F")
        for rank in reversed(self.ranks):
            self.put(rank, "B")

    def warm_ups(self) -> list[int]:
        """Forwards that fit before each rank's first backward can come, in time and memory, fewer down the pipeline."""
        more = [0] * len(self.ranks)
        last = len(self.ranks) - 1
        backward_s = self.end_s["F"][last][0] + self.cost_s["B"]
        for rank in reversed(self.ranks[:-1]):
            held, clock_s, comes_s = self.held[rank], self.clock_s[rank], backward_s + self.times.latency_s
            while self.done["F"][rank] + more[rank] < self.count and held + 1 <= self.limit + ROUNDING:
                late = clock_s + self.cost_s["F"] > comes_s if self.bubble_before_b else clock_s >= comes_s
                if late:
                    break
                held, clock_s, more[rank] = held + 1, clock_s + self.cost_s["F"], more[rank] + 1
            backward_s = max(clock_s, comes_s) + self.cost_s["B"]
        for rank in self.ranks[1:]:
            while more[rank] > 0 and more[rank] >= more[rank - 1] and self.done["F"][rank] + more[rank] < self.count:
                more[rank] -= 1
        return more

    def wanted_forwards(self) -> list[bool]:
        """Which ranks run a forward this round: all that have one left, or those whose backward would not wait."""
        wanted = [self.done["F"][rank] < self.count and self.forward_pays(rank) for rank in self.ranks]
        for rank in reversed(self.ranks[:-1]):
            wanted[rank] = wanted[rank] and (wanted[rank + 1] or self.done["F"][rank + 1] == self.count)
        for rank in self.ranks[1:]:  # a forward needs the one before it
            if wanted[rank] and not wanted[rank - 1] and self.done["F"][rank] >= self.done["F"][rank - 1]:
                wanted[rank] = False
        return wanted

    def forward_pays(self, rank: int) -> bool:
        if not self.b_first or rank + 1 not in self.ranks or self.done["F"][rank] < self.done["F"][rank + 1] + 2:
            return True
        next_b_s = (self.clock_s[rank + 1] + self.cost_s["F"] + self.cost_s["B"] + self.times.latency_s)
        if self.clock_s[rank] >= next_b_s:
            return False
        held, weights_s, left = self.held[rank] + 1, 0.0, self.done["B"][rank] - self.done["W"][rank]
        while held > self.limit + ROUNDING and left > 0:
            held, weights_s, left = held + self.change["W"], weights_s + self.cost_s["W"], left - 1
        if self.clock_s[rank] + self.cost_s["F"] + weights_s <= next_b_s:
            return True
        return next_b_s - self.clock_s[rank] > max(self.bubble_s) - self.bubble_s[rank]

    def fill(self, rank: int, kind: str) -> None:
        """W passes before the next pass of this kind: for memory, into the gap, and into one that is too short where it
        would otherwise make this rank the longest."""
        while self.held[rank] + self.change[kind] > self.limit + ROUNDING:
            if not self.weights_left(rank):
                raise ScheduleError(f"the memory limit of {self.limit:g} micro-batches is too small on rank {rank}: "
                                    f"{kind}{self.done[kind][rank]} does not fit; the least is 1")
            self.put(rank, "W")
        comes_s = self.arrives_s(rank, kind)
        while self.weights_left(rank) and self.clock_s[rank] + self.cost_s["W"] <= comes_s:
            self.put(rank, "W")
        gap_s = comes_s - self.clock_s[rank]
        if self.weights_left(rank) and gap_s > 0:
            longest = gap_s > max(self.bubble_s) - self.bubble_s[rank]
            if longest or self.greedy_w:
                self.put(rank, "W")


def list_schedule(request: Request, limit: float) -> Orders:
    """The order with the least span of the eight that the greedy makes under `limit` micro-batches a rank.

    Raises ScheduleError for a limit below one micro-batch.
    """
    if limit < 1 - ROUNDING:
        raise ScheduleError(f"a memory limit of {limit:g} micro-batches holds none; the least that works is 1")
    choices = itertools.product((True, False), repeat=3)
    found = [_Rounds(request, limit, *choice).run() for choice in choices]
    return min(found, key=lambda one: one[0])[1]


def one_p_order(request: Request) -> Orders:
    limit = request.pipeline if request.memory_limit is None else request.memory_limit
    return list_schedule(request, float(limit))


def two_p_order(request: Request) -> Orders:
    limit = 2 * request.pipeline if request.memory_limit is None else request.memory_limit
    return list_schedule(request, float(limit))


ZB_1P = Schedule("zb-1p", "ZB-1p", "arXiv 2401.10241, section 3, limit p", one_p_order, splits_backward=True,
                 most_chunks=1,
                 law="made for the times; peak within p")
ZB_2P = Schedule("zb-2p", "ZB-2p", "arXiv 2401.10241, section 3, limit 2 p", two_p_order, splits_backward=True,
                 most_chunks=1,
                 law="made for the times; peak within 2 p")
