"""Orders from a repeating building block: the start ticks of one micro-batch's passes on each rank, repeated once a
period, then squeezed (Qi et al. 2024, arXiv 2405.15362, sections 3 and 4).

Squeezing plays the ranks forward in time: each takes the passes in the order of their ticks; while the next one
is not ready, a later one of the nearest few may come first if memory, counted along the order, still allows all
between them, and the weight pass of a backward done fills what is left of the gap. Which passes may come first is
tried out on a short run; the best is bettered by local search where the times leave a bubble that the paper's bound
does not explain, and a long run repeats the period in its middle.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from placement.schedules.evaluate import evaluate
from placement.schedules.order import Orders, Pass, Request, Schedule, ScheduleError
from placement.schedules.search.bounds import lower_bound_s
from placement.schedules.search.improve import KEPT, improved
from placement.schedules.search.problem import cost_s, orders_of, problem_of, words_of

Ticks = Sequence[Sequence[float]]  # [ranks][F0, F1, B1, B0], start of a micro-batch's passes, period 6
SLOTS = (("F", 0), ("F", 1), ("B", 1), ("B", 0))
PERIOD = 6
WINDOW = 12  # how far ahead of the next pass another may be taken: two periods
TRIAL = 3  # micro-batches a rank on which the variants are compared
TRIED = 12_000  # micro-batches on ranks, over all variants compared
ROUNDS = 2  # of local search from the best order found
# what may come early, and at the end, by how often it is the best
EARLY = (("F", "B"), ("FB", "B"), ("B", "B"), ("", ""), ("F", ""), ("", "B"), ("FB", ""), ("B", ""))
ROUNDING = 1e-9

Sequences = Sequence[list[tuple[str, int, int]]]  # [ranks] of (kind, chunk, micro-batch)
Skeleton = Callable[[int], Any]  # of a number of micro-batches


def block_sequences(ticks: Ticks, micro_batches: int) -> list[list[tuple[str, int, int]]]:
    """(kind, chunk, micro-batch) of the F and B passes of every rank in the order of their start ticks."""
    return [
        [(kind, chunk, j) for _, kind, chunk, j in sorted(
            (tick + PERIOD * j, kind, chunk, j)
            for tick, (kind, chunk) in zip(of_rank, SLOTS, strict=True) for j in range(micro_batches))]
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


class Squeeze:
    """Plays F and B sequences forward in time under a memory limit, in chunk activations, with W passes in gaps."""

    def __init__(
        self, sequences: Sequences, request: Request, limit: float, schedule: Schedule, early: str, early_tail: str
    ) -> None:
        """`early`: kinds of passes ("", "F", "B", "FB") that may come before the next one, `early_tail` those on a rank
        that has run all its forwards."""
        self.sequences, self.request, self.limit = sequences, request, limit
        self.early, self.early_tail = early, early_tail
        split = schedule.splits_backward
        times, ranks, chunks = request.times, len(sequences), request.chunks
        self.latency_s, self.split = times.latency_s, split
        whole_s = times.backward_s + (0.0 if split else times.weight_s)
        self.cost_s = {"F": times.forward_s, "B": whole_s, "W": times.weight_s}
        self.change = {"F": 1.0, "B": request.weight_share - 1.0 if split else -1.0, "W": -request.weight_share}
        self.stage = [
            [schedule.stage_of(rank, chunk, ranks, chunks) for chunk in range(chunks)] for rank in range(ranks)]
        self.rank_of = {stage: rank for rank, stages in enumerate(self.stage) for stage in stages}
        self.last = ranks * chunks - 1
        self.ends: dict[tuple[str, int, int], float] = {}
        self.head = [0] * ranks
        self.forwards_left = [sum(kind == "F" for kind, _, _ in sequence) for sequence in sequences]
        self.taken: list[set[int]] = [set() for _ in range(ranks)]
        self.weights: list[list[tuple[int, int]]] = [[] for _ in range(ranks)]
        self.next_weight = [0] * ranks
        self.held, self.busy_s = [0.0] * ranks, [0.0] * ranks
        self.orders: Orders = [[] for _ in range(ranks)]
        self.events = [(0.0, rank) for rank in range(ranks)]

    def run(self) -> Orders:
        """Raises ScheduleError where the limit leaves ranks waiting for each other."""
        while self.events:
            now_s, rank = heapq.heappop(self.events)
            if self.busy_s[rank] <= now_s:
                self.act(rank, now_s)
        for rank, sequence in enumerate(self.sequences):
            if self.head[rank] < len(sequence):
                kind, chunk, j = sequence[self.head[rank]]
                raise ScheduleError(f"a memory limit of {self.limit:g} chunk activations is too small: {kind}{j} of "
                                    f"chunk {chunk} on rank {rank} never fits")
        return self.orders

    def act(self, rank: int, now_s: float) -> None:
        choice, ready_s = self.choose(rank, now_s)
        if choice is not None:
            kind, chunk, j = self.sequences[rank][choice]
            if self.held[rank] + self.change[kind] > self.limit + ROUNDING:
                if self.next_weight[rank] < len(self.weights[rank]):
                    self.run_weight(rank, now_s)
                return
            self.take(rank, choice)
            self.put(rank, Pass(kind, chunk, j), now_s)
            return
        fits = ready_s is None or ready_s >= now_s + self.cost_s["W"] or self.head[rank] == len(self.sequences[rank])
        if fits and self.next_weight[rank] < len(self.weights[rank]):
            self.run_weight(rank, now_s)

    def choose(self, rank: int, now_s: float) -> tuple[int | None, float | None]:
        """(place of the pass to run now, when the next one in order is ready); None where that is not known yet."""
        sequence, taken = self.sequences[rank], self.taken[rank]
        place = self.head[rank]
        if place == len(sequence):
            return None, None
        first_s = self.ready_s(rank, sequence[place])
        if first_s is not None and first_s <= now_s:
            return place, first_s
        early = self.early if self.forwards_left[rank] else self.early_tail
        if not early:
            return None, first_s
        waiting = len(self.weights[rank]) - self.next_weight[rank]
        held = self.held[rank] + waiting * self.change["W"]
        highest, seen, looked = 0.0, set(), 0
        while place < len(sequence) and looked < WINDOW:
            if place not in taken:
                one = sequence[place]
                kind, chunk, _ = one
                if kind in early and (kind, chunk) not in seen:
                    ready_s = self.ready_s(rank, one)
                    room = kind == "B" or max(highest, held) + 1 <= self.limit + ROUNDING
                    if ready_s is not None and ready_s <= now_s and room:
                        return place, first_s
                seen.add((kind, chunk))
                held += 1 if kind == "F" else -1
                highest = max(highest, held)
                looked += 1
            place += 1
        return None, first_s

    def ready_s(self, rank: int, one: tuple[str, int, int]) -> float | None:
        kind, chunk, j = one
        stage = self.stage[rank][chunk]
        if kind == "F":
            if stage == 0:
                return 0.0
            source = ("F", stage - 1, j)
        else:
            source = ("B", stage + 1, j) if stage < self.last else ("F", stage, j)
        if kind == "B" and ("F", stage, j) not in self.ends:
            return None
        end_s = self.ends.get(source)
        if end_s is None:
            return None
        return end_s if self.rank_of[source[1]] == rank else end_s + self.latency_s

    def take(self, rank: int, place: int) -> None:
        self.forwards_left[rank] -= self.sequences[rank][place][0] == "F"
        self.taken[rank].add(place)
        while self.head[rank] in self.taken[rank]:
            self.taken[rank].remove(self.head[rank])
            self.head[rank] += 1

    def run_weight(self, rank: int, now_s: float) -> None:
        chunk, j = self.weights[rank][self.next_weight[rank]]
        self.next_weight[rank] += 1
        self.put(rank, Pass("W", chunk, j), now_s)

    def put(self, rank: int, one: Pass, now_s: float) -> None:
        end_s = now_s + self.cost_s[one.kind]
        self.busy_s[rank] = end_s
        self.orders[rank].append(one)
        self.held[rank] += self.change[one.kind]
        heapq.heappush(self.events, (end_s, rank))
        if one.kind == "W":
            return
        if one.kind == "B" and self.split:
            self.weights[rank].append((one.chunk, one.micro_batch))
        stage = self.stage[rank][one.chunk]
        self.ends[one.kind, stage, one.micro_batch] = end_s
        there = self.rank_of.get(stage + 1 if one.kind == "F" else stage - 1)
        if there is not None and there != rank:
            heapq.heappush(self.events, (end_s + self.latency_s, there))


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
    return Squeeze(skeleton(count), replace(request, micro_batches=count), limit, schedule, early, early_tail).run()


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
