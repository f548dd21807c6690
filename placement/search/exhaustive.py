"""Every plan of a space priced: the best ones, the front that trades time for memory, cost and energy, and a proof.

Plans whose schedule has a law are priced exactly (placement.search.pricing). The others are bounded from below first,
and their orders are made and played only in the order of that bound, until no plan left can be among the best: a
branch and bound whose branches are single plans. The proof says where that ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodel import money
from placement.memory import DEVICE_OVERHEAD_BYTES, host_capacity_bytes
from placement.passes import Setting
from placement.plan import PlanError
from placement.schedules import ScheduleError
from placement.search.pareto import front
from placement.search.pricing import Prices, Pricing
from placement.search.space import Block, Space, Values, blocks, placed
from placement.step import BUSY, analytic_step

Number = Any
OBJECTIVES = ("time", "memory", "cost", "energy")
MOST_HELD = 200_000  # candidates held before they are cut to the best and the front
MOST_BOUNDED = 20_000  # plans without a law that are kept for playing
NEAREST = 3  # plans that miss the memory limit by least


@dataclass(frozen=True)
class Case:
    """A setting to search around: what no axis of the space changes. `values` are those of axes outside the space
    (GPU count, workload), for the report."""

    base: Setting
    global_batch: int
    values: Values = field(default_factory=dict)
    price_usd_per_gpu_hour: float | None = None

    @property
    def gpus(self) -> int:
        return int(self.base.cluster.accelerators)

    def scores(self, step_time_s: Number, needed_bytes: Number, busy_s: Number) -> dict[str, Number]:
        """What each objective makes small; cost and energy are left out where price or power is unknown."""
        found = {"time": step_time_s, "memory": needed_bytes}
        accelerator, node = self.base.cluster.accelerator, self.base.cluster.node
        price = self.price_usd_per_gpu_hour
        price = accelerator.price_usd_per_hour if price is None else price
        if price is not None:
            found["cost"] = money.cost_usd(self.gpus, price, step_time_s)
        if accelerator.power_w is not None:
            overhead_w = (node.overhead_power_w or 0.0) / node.accelerators
            found["energy"] = money.energy_j(
                self.gpus, accelerator.power_w, step_time_s, busy_fraction=busy_s / step_time_s,
                overhead_power_w_per_accelerator=overhead_w,
            )
        return found


@dataclass(frozen=True)
class Limits:
    """Of one plan: bytes of a device, and the most that each objective may be."""

    memory_bytes: float
    most: Mapping[str, float] = field(default_factory=dict)

    def ratios(self, scores: Mapping[str, Number]) -> dict[str, Number]:
        """Each score over its limit, memory aside; infinite where no more than 0 is allowed."""
        return {name: scores[name] / most if most else np.where(np.greater(scores[name], 0), np.inf, 0.0)
                for name, most in self.most.items()}

    def excess(self, scores: Mapping[str, Number]) -> Number:
        """The largest of the ratios; at most 1 where every limit is kept."""
        ratios = list(self.ratios(scores).values())
        return np.maximum.reduce(ratios) if ratios else np.zeros_like(scores["memory"])

    def allows(self, scores: Mapping[str, Number]) -> Number:
        return (scores["memory"] <= self.memory_bytes) & (self.excess(scores) <= 1.0)


@dataclass(frozen=True)
class Candidate:
    """One plan with what it costs, or at least costs."""

    case: Case
    setting: Setting
    values: Values  # of the axes
    scores: Mapping[str, float]


@dataclass
class Counts:
    """How many combinations there are, and how many are left after each sieve."""

    combinations: int = 0
    placed: int = 0  # whose degrees the accelerators can be dealt to
    distinct: int = 0
    priced: int = 0  # of these: what must divide does
    feasible: int = 0
    bounded: int = 0  # of the priced: by a bound, since their schedule has no law
    played: int = 0
    rejected: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """`gap`: by what share a plan that was not played could at most better the best; 0 is a proof. `list_is_proven`:
    whether none of those not played can be among the others shown either."""

    best: list[Candidate]
    pareto: list[Candidate]
    nearest_misses: list[Candidate]  # of those that fit the memory by the other limits, else by memory
    fastest_miss: Candidate | None
    counts: Counts
    gap: float
    list_is_proven: bool = True


Progress = Callable[[Counts], None]  # told what has been counted so far, block by block


class _Held:
    """Candidates of many blocks as columns: which plan, and its scores."""

    def __init__(self, objective: str, top: int) -> None:
        self.objective, self.top = objective, top
        self.names: tuple[str, ...] = ()
        self._where: list[NDArray[np.int64]] = []
        self._scores: list[NDArray[np.float64]] = []
        self._size = 0

    def add(self, number: int, flat: NDArray[np.intp], scores: Mapping[str, NDArray[np.float64]]) -> None:
        if not len(flat):
            return
        self.names = tuple(scores)
        self._where.append(np.stack([np.full(len(flat), number), flat]))
        self._scores.append(np.stack([scores[name].reshape(-1)[flat] for name in self.names]))
        self._size += len(flat)
        if self._size > MOST_HELD:
            self.cut()

    def add_best(self, number: int, flat: NDArray[np.intp], scores: Mapping[str, NDArray[np.float64]]) -> None:
        """Adds those of a block that can be among the best."""
        if len(flat) > self.top:
            column = scores[self.objective].reshape(-1)[flat]
            flat = flat[np.argpartition(column, self.top - 1)[: self.top]]
        self.add(number, flat, scores)

    def cut(self) -> None:
        """Keeps what is among the best or on the front."""
        if not self._where:
            return
        where, scores = np.concatenate(self._where, axis=1), np.concatenate(self._scores, axis=1)
        kept = np.union1d(self._best(scores), front(scores.T))
        self._where, self._scores, self._size = [where[:, kept]], [scores[:, kept]], len(kept)

    def _best(self, scores: NDArray[np.float64]) -> NDArray[np.intp]:
        by = [scores[self.names.index(name)] for name in dict.fromkeys((self.objective, *self.names))]
        first = by[0]
        if len(first) > 4 * self.top:  # the few best first, so that ties are sorted among few
            bar = np.partition(first, self.top)[self.top]
            few = np.flatnonzero(first <= bar)
        else:
            few = np.arange(len(first))
        order: NDArray[np.intp] = few[np.lexsort([column[few] for column in reversed(by)])][: self.top]
        return order

    def best(self) -> list[tuple[int, int, dict[str, float]]]:
        return self._rows(self._best)

    def front(self) -> list[tuple[int, int, dict[str, float]]]:
        return self._rows(lambda scores: front(scores.T))

    def _rows(
        self, choose: Callable[[NDArray[np.float64]], NDArray[np.intp]]
    ) -> list[tuple[int, int, dict[str, float]]]:
        if not self._where:
            return []
        where, scores = np.concatenate(self._where, axis=1), np.concatenate(self._scores, axis=1)
        return [
            (int(where[0, i]), int(where[1, i]), dict(zip(self.names, scores[:, i].tolist(), strict=True)))
            for i in choose(scores)
        ]


def search(
    cases: Sequence[Case],
    space: Space,
    limits: Callable[[Case], Limits],
    objective: str = "time",
    top: int = 10,
    most_played: int = 20,
    progress: Progress | None = None,
) -> Outcome:
    """The best `top` plans of all cases, with ties in the order of the space.

    `most_played`: orders made and played for plans whose schedule has no law. Raises ValueError for an objective
    that cannot be computed (no price, no power in the catalogue).
    """
    return _Search(cases, space, limits, objective, top, most_played).run(progress)


class _Search:
    def __init__(
        self, cases: Sequence[Case], space: Space, limits: Callable[[Case], Limits], objective: str, top: int,
        most_played: int,
    ) -> None:
        self.cases, self.space, self.limits = cases, space, limits
        self.objective, self.top, self.most_played = objective, top, most_played
        self.counts = Counts()
        self.blocks: list[tuple[Case, Pricing, Block]] = []
        self.exact, self.bounded = _Held(objective, top), _Held(objective, MOST_BOUNDED)
        self.misses, self.fastest_misses = _Held("memory", NEAREST), _Held("time", 1)
        self.late = _Held("excess", NEAREST)  # fit, but miss another limit

    def run(self, progress: Progress | None) -> Outcome:
        self.counts.combinations = self.space.combinations * len(self.cases)
        for case in self.cases:
            self._case(case, progress)
        best = [self._candidate(*row) for row in self.exact.best()]
        pareto = [self._candidate(*row) for row in self.exact.front()]
        gap, proven = 0.0, True
        if self.counts.bounded:
            best, gap, proven = self._with_played(best, progress)
            scores = [[one.scores[name] for name in self.exact.names or self.bounded.names] for one in (*pareto, *best)]
            pareto = [(*pareto, *best)[index] for index in front(scores)] if scores else []
        misses = [self._candidate(*row) for row in self.late.best() or self.misses.best()]
        fastest = [self._candidate(*row) for row in self.fastest_misses.best()]
        return Outcome(best, pareto, misses, fastest[0] if fastest else None, self.counts, gap, proven)

    def _case(self, case: Case, progress: Progress | None) -> None:
        pricing, limits = Pricing(case.base, self.space, case.global_batch), self.limits(case)
        self.counts.placed += placed(self.space, case.gpus)
        for block in blocks(self.space, case.base.model, case.gpus):
            self.counts.distinct += block.plans
            if fault := pricing.layout_fault(block):
                self._reject({fault: block.plans})
                continue
            prices = pricing.price(block)
            self._reject(prices.rejected)
            self._take(case, pricing, block, prices, limits)
            if progress:
                progress(self.counts)

    def _reject(self, rejected: Mapping[str, int]) -> None:
        for reason, plans in rejected.items():
            self.counts.rejected[reason] = self.counts.rejected.get(reason, 0) + plans

    def _take(self, case: Case, pricing: Pricing, block: Block, prices: Prices, limits: Limits) -> None:
        scores = case.scores(prices.step_time_s, prices.needed_bytes, prices.busy_s)
        for name in (self.objective, *limits.most):
            if name not in scores:
                what = "price" if name == "cost" else "power limit"
                raise ValueError(f"the catalogue has no {what} for {case.base.cluster.accelerator.name}, so {name} is "
                                 "not known")
        sound = prices.divides
        held = scores["memory"] <= limits.memory_bytes
        fitting = sound & held & (prices.host_bytes <= host_capacity_bytes(case.base.cluster))
        excess = limits.excess(scores)
        allowed = fitting & (excess <= 1.0)
        number = len(self.blocks)
        self.blocks.append((case, pricing, block))
        self.counts.priced += int(np.count_nonzero(sound))
        self.counts.feasible += int(np.count_nonzero(allowed)) if prices.exact else 0
        (self.exact if prices.exact else self.bounded).add(number, np.flatnonzero(allowed), scores)
        self.counts.bounded += 0 if prices.exact else int(np.count_nonzero(sound))
        missed = np.flatnonzero(sound & ~held)
        for kept in (self.misses, self.fastest_misses):
            kept.add_best(number, missed, scores)
        if limits.most:
            self.late.add_best(number, np.flatnonzero(fitting & ~allowed), {**scores, "excess": excess})

    def _candidate(self, number: int, flat: int, scores: Mapping[str, float]) -> Candidate:
        case, pricing, block = self.blocks[number]
        index = np.unravel_index(flat, block.shape)
        keys = (*self.space.base, *self.space.axes)
        values = block.values_at([int(place) for place in index], keys)
        shown = {key: values[key] for key in self.space.axes}
        return Candidate(case, pricing.plan_setting(values), {**case.values, **shown}, scores)

    def _with_played(self, best: list[Candidate], progress: Progress | None) -> tuple[list[Candidate], float, bool]:
        """The best with those plans whose order had to be played, the gap that is left, and whether none was left."""

        def bar() -> float:
            return best[self.top - 1].scores[self.objective] if len(best) >= self.top else np.inf

        gap, proven = 0.0, True
        for row in self.bounded.best():
            bound = row[2][self.objective]
            if bound >= bar():
                break
            if self.counts.played >= self.most_played:
                gap, proven = max(1.0 - bound / best[0].scores[self.objective], 0.0) if best else 1.0, False
                break
            self.counts.played += 1
            if progress:
                progress(self.counts)
            played = _played(self._candidate(*row))
            if played is not None and self.limits(played.case).allows(played.scores):
                self.counts.feasible += 1
                best = sorted([*best, played], key=lambda one: one.scores[self.objective])[: self.top]
        return best, gap, proven


def _played(candidate: Candidate) -> Candidate | None:
    """The candidate with its order made and played; None where its schedule does not run it."""
    case = candidate.case
    try:
        step = analytic_step(candidate.setting, case.global_batch)
    except (PlanError, ScheduleError):
        return None
    busy_s = sum(step.breakdown_s.get(category, 0.0) for category in BUSY)
    scores = case.scores(step.step_time_s, max(step.peak_bytes) + DEVICE_OVERHEAD_BYTES, busy_s)
    return Candidate(case, candidate.setting, candidate.values, scores)

