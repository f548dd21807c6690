"""The best order that can be found for given times and memory, with a bound, the gap to it and what is proved.

Tried in turn until one reaches the lower bound (`bounds`): the registered schedules of this number of chunks that keep
the limit; orders filled up from periodic blocks (`modular`) and from plain alternation (`fill`); a mixed-integer
programme (`exact`) where the setting is small; local search from the best of these (`improve`).
Long runs are searched on a short one, of which each rank's period in the middle is then repeated. Nothing depends on a
clock or on chance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from placement.schedules.building_block import lengthened
from placement.schedules.order import Orders, Request, Schedule, ScheduleError, looped, v_shaped
from placement.schedules.search import exact, fill, modular
from placement.schedules.search.bounds import lower_bound_s
from placement.schedules.search.improve import KEPT, improved
from placement.schedules.search.player import Player, Score
from placement.schedules.search.problem import (
    ROUNDING,
    Problem,
    Words,
    cost_s,
    fits,
    orders_of,
    problem_of,
    schedule_of,
    words_of,
)

Placement = Callable[[int, int, int, int], int]

NAME = "auto"
IMPROVED = ", improved"
SLOW = ("v-min", "v-half", "v-zb", "v-adaptive", "zbv-auto")  # search themselves, for seconds where they miss the bound
SHORT = 3  # micro-batches a rank of the short run that stands for a long one
LONG_RUN = 4  # micro-batches a rank from which a run is long
STARTS = 4  # orders that local search starts from
PACES = (1.0, 1.5, 2.0, 3.0)  # forwards ahead for each rank behind, with one chunk


@dataclass(frozen=True)
class Found:
    """An order with its cost and what is known about the best: none costs less than `bound_s`."""

    name: str
    schedule: Schedule
    orders: Orders
    cost_s: float
    bound_s: float
    objective: str

    @property
    def gap(self) -> float:
        """Share of the cost that a better order could save at the most."""
        return max(0.0, 1 - self.bound_s / self.cost_s) if self.cost_s > 0 else 0.0

    @property
    def optimal(self) -> bool:
        return self.cost_s <= self.bound_s * (1 + ROUNDING)

    @property
    def proof(self) -> str:
        return "optimal" if self.optimal else "none"


@dataclass(frozen=True)
class _Recipe:
    """How an order is filled up: where the wanted order of F and B comes from, for any number of micro-batches."""

    name: str
    wanted: Callable[[Problem], Words]
    way: tuple[str, float]


@dataclass(frozen=True)
class _Candidate:
    score: Score
    name: str
    words: Words
    recipe: _Recipe | None = None


def auto(
    request: Request,
    objective: str = "span",
    *,
    forward_s: Any = None,
    backward_s: Any = None,
    weight_s: Any = None,
    limits: Any = None,
    thorough: bool = True,
    placements: Sequence[Placement] | None = None,
) -> Found:
    """The best order found in any placement of `request.chunks` chunks a rank.

    `*_s` [stages] replace the request's times, `limits` [ranks] its memory limit; if not `thorough`, no generator that
    searches itself and no programme is asked; `placements` are all there are unless given.
    Raises ScheduleError for a limit that no order keeps, with the rank and the least that works.
    """
    given = {"forward_s": forward_s, "backward_s": backward_s, "weight_s": weight_s, "limits": limits}
    problems = [problem_of(request, objective, stage_of, **given) for stage_of in placements or _placements(request)]
    searches = [_Search(problem, _scalar(request, problem), thorough) for problem in problems]
    found: list[Found] = []
    for search in searches:
        if not found or search.bound_s < min(one.cost_s for one in found) * (1 - ROUNDING):
            found.append(search.run())
    best = min(found, key=lambda one: one.cost_s)
    return replace(best, bound_s=min(best.cost_s, *(search.bound_s for search in searches)))


def _placements(request: Request) -> list[Placement]:
    if request.chunks == 1 or request.pipeline == 1:
        return [looped]
    return [v_shaped, looped] if request.chunks == 2 else [looped]


def _scalar(request: Request, problem: Problem) -> Request:
    """What generators that know one time for all stages and one limit are asked for."""
    forward_s, backward_s, weight_s = (float(np.mean(of_kind)) for of_kind in problem.times)
    limit = min(problem.limit)
    times = replace(request.times, forward_s=forward_s, backward_s=backward_s, weight_s=weight_s)
    return replace(request, group=request.pipeline, times=times, memory_limit=None if np.isinf(limit) else limit)


class _Search:
    """The candidates of one placement, best first."""

    def __init__(self, problem: Problem, request: Request, thorough: bool) -> None:
        self.problem, self.request, self.thorough = problem, request, thorough
        self.bound_s = lower_bound_s(problem)
        self.player = Player(problem)
        self.candidates: list[_Candidate] = []
        self.bettered: list[_Candidate] = []  # where local search has started from
        self.tried_s = 0.0  # the cost below which the programme has looked

    @property
    def best(self) -> _Candidate:
        return min(self.candidates, key=lambda one: one.score)

    @property
    def reached(self) -> bool:
        return bool(self.candidates) and self.best.score[0] <= self.bound_s * (1 + ROUNDING)

    def run(self) -> Found:
        problem = self.problem
        long_run = problem.micro_batches > LONG_RUN * problem.pipeline
        made = self.short if long_run else self.filled
        steps = [self.quick, self.slow, made, self.proved, self.better, self.proved] if self.thorough else [
            self.quick, made, self.better]
        for step in steps:
            if not self.reached:
                step()
        best = self.best
        schedule = schedule_of(problem, NAME, f"found: {best.name}")
        orders = orders_of(best.words, problem)
        return Found(best.name, schedule, orders, cost_s(orders, schedule, problem), self.bound_s, problem.objective)

    def add(self, name: str, words: Words, recipe: _Recipe | None = None) -> None:
        if fits(words, self.problem):
            played = self.player.play(words)
            if played is not None:
                self.candidates.append(_Candidate(self.player.score(*played), name, words, recipe))

    def quick(self) -> None:
        self.registered([one for one in applicable(self.problem) if one.name not in SLOW])

    def slow(self) -> None:
        self.registered([one for one in applicable(self.problem) if one.name in SLOW])

    def registered(self, known: Iterable[Schedule]) -> None:
        for schedule in known:
            if self.reached:
                return
            for request in (self.request, replace(self.request, memory_limit=None)):
                try:
                    orders = schedule.order(request)
                except ScheduleError:
                    continue
                if {one.kind for passes in orders for one in passes} <= set("FBW"):
                    self.add(schedule.name, _split(words_of(orders, self.problem), schedule, self.problem))
                break

    def filled(self) -> None:
        for recipe in _recipes(self.problem):
            self.fill(recipe)
        self.add("one micro-batch after another", fill.serial(self.problem))

    def fill(self, recipe: _Recipe) -> None:
        words = fill.filled(recipe.wanted(self.problem), self.problem, *recipe.way)
        if words is not None:
            self.add(recipe.name, words, recipe)

    def short(self) -> None:
        """A long run from a short one: the ways that filled it best, and its best orders with their middle repeated."""
        few = SHORT * self.problem.pipeline
        found = _Search(replace(self.problem, micro_batches=few), self.request, self.thorough)
        found.filled()
        for one in found.first(STARTS):
            if one.recipe is not None:
                self.fill(one.recipe)
        if not found.reached:
            found.better(KEPT)
        for one in found.first(STARTS):
            longer = lengthened(orders_of(one.words, found.problem), self.problem.micro_batches - few)
            if longer is not None:
                self.add(one.name, words_of(longer, self.problem))
        self.add("one micro-batch after another", fill.serial(self.problem))

    def first(self, count: int) -> list[_Candidate]:
        """The best few that differ in their scores."""
        found: dict[Score, _Candidate] = {}
        for one in sorted(self.candidates, key=lambda one: one.score):
            found.setdefault(one.score, one)
        return list(found.values())[:count]

    def better(self, kept: float = 0.0) -> None:
        """Local search from the best few."""
        starts = [one for one in self.first(STARTS) if one not in self.bettered]
        self.bettered += starts
        for one in starts:
            words = improved(one.words, self.problem, self.bound_s, kept=kept)
            if words != one.words:
                self.add(f"{one.name.removesuffix(IMPROVED)}{IMPROVED}", words)
                self.bettered.append(self.candidates[-1])
            if self.reached:
                return

    def proved(self) -> None:
        """A small setting as a mixed-integer programme: a better order, a better bound, or both."""
        if self.tried_s == self.best.score[0]:
            return
        self.tried_s = self.best.score[0]
        solved = exact.solved(self.problem, self.tried_s, self.bound_s)
        self.bound_s = max(self.bound_s, solved.bound_s)
        if solved.words is not None:
            self.add("mixed-integer programme" + _placed(self.problem), solved.words)


def applicable(problem: Problem) -> Iterator[Schedule]:
    """The registered schedules of F, B and W passes for this number and placement of chunks."""
    from placement import schedules

    known = [schedules.get(name) for name in schedules.names()]
    for schedule in known:
        plain = schedule.routes == 1 and not schedule.barriers and not schedule.takes_segments
        if plain and schedule.name != NAME and schedule.accepts_chunks(problem.chunks) and _places(schedule, problem):
            yield schedule


def _places(schedule: Schedule, problem: Problem) -> bool:
    p, v = problem.pipeline, problem.chunks
    return problem.stage_of_rank == tuple(
        tuple(schedule.stage_of(rank, chunk, p, v) for chunk in range(v)) for rank in range(p))


def _split(words: Words, schedule: Schedule, problem: Problem) -> Words:
    """Each backward as B and W behind it where the schedule has them in one."""
    v = problem.chunks
    if schedule.splits_backward:
        return words
    return [[one for code in word for one in ((code, code + v) if code >= v else (code,))] for word in words]


def _recipes(problem: Problem) -> Iterator[_Recipe]:
    placed = _placed(problem)
    wanted: list[tuple[str, Callable[[Problem], Words]]] = []
    if problem.chunks == 1:
        wanted += [("alternating", partial(fill.alternating, pace=pace)) for pace in PACES]
    if problem.chunks == 1 or problem.stage_of is v_shaped:
        wanted += [("modular", partial(modular.words, block)) for block in modular.blocks(problem)]
    if placed == ", looped placement":
        groups = sorted({max(1, problem.pipeline // part) for part in (1, 2, 4)} | {-(-problem.pipeline // 2)})
        wanted += [("interleaved in groups", partial(fill.interleaved, group=group, pace=pace))
                   for group in reversed(groups) for pace in PACES[::2]]
    for name, words in wanted:
        for way in fill.WAYS:
            yield _Recipe(name + placed, words, way)


def _placed(problem: Problem) -> str:
    if problem.chunks == 1 or problem.pipeline == 1:
        return ""
    return ", V placement" if problem.stage_of is v_shaped else ", looped placement"
