"""Small settings as a mixed-integer programme, solved by HiGHS: an optimum with its proof, or a better bound.

Start times are continuous, and a binary says for each pair of passes on a rank which comes first, as in arXiv
2401.10241, appendix G. What makes it small: passes of one kind and chunk keep their sequence, so binaries only fall or
rise along it; each pass has a window between what must come before it and what must come after it in an order better
than the best known one, which fixes most binaries and keeps big-M small; and a pass starts no sooner than everything
placed before it on its rank has run. The programme asks for an order that is better than the known one: if there is
none, the known one is optimal. HiGHS stops after a number of nodes, never by a clock, and runs on one thread, so the
answer is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from placement.schedules.search.bounds import trip_of, whole_grains
from placement.schedules.search.problem import ROUNDING, Problem, Words

MOST_BINARIES = 800  # (4, 12) and (5, 10) with one chunk have fewer
WORK = 400_000  # binaries times nodes that HiGHS may branch on

Place = tuple[int, int, int]  # rank, code, micro-batch


@dataclass(frozen=True)
class Solved:
    """`words` is a better order, None where none was found; no order costs less than `bound_s`."""

    words: Words | None
    bound_s: float


def solved(problem: Problem, cost_s: float, bound_s: float, work: int = WORK) -> Solved:
    """Looks for an order that costs less than `cost_s`, knowing that none costs less than `bound_s`.

    Costs are those of orders played as early as possible: a rank starts when its first forward can. A setting with
    more than `MOST_BINARIES` open pairs is left alone.
    """
    if 3 * problem.stages * problem.micro_batches > MOST_BINARIES:
        return Solved(None, bound_s)
    grain_s = problem.grain_s
    wanted_s = cost_s - (grain_s if grain_s > 0 else 1e-6 * cost_s)
    windows = _windows(problem, wanted_s)
    if any(late < early - ROUNDING * cost_s for early, late in windows.values()):
        return Solved(None, cost_s)
    programme = _Programme(problem, windows, wanted_s, bound_s)
    if len(programme.binaries) > MOST_BINARIES:
        return Solved(None, bound_s)
    return programme.solve(work, cost_s)


def _open(
    problem: Problem, windows: Mapping[Place, tuple[float, float]], one: Place, other: Place
) -> bool | None:
    """Whether the first of two passes of a rank comes before the second in every order wanted; None where both may."""
    (early, late), (early_other, late_other) = windows[one], windows[other]
    slack_s = ROUNDING * (1 + abs(late))
    if comes_first(problem, one, other) or early_other + _length_s(problem, other) > late + slack_s:
        return True
    if comes_first(problem, other, one) or early + _length_s(problem, one) > late_other + slack_s:
        return False
    return None


def _chain(problem: Problem, rank: int, code: int) -> int:
    """Where a pass stands on a micro-batch's way down and up the model; W passes are off it."""
    kind, chunk = divmod(code, problem.chunks)
    stage = problem.stage_of_rank[rank][chunk]
    return stage if kind == 0 else 2 * problem.stages - stage


def comes_first(problem: Problem, one: Place, other: Place) -> bool:
    """Whether `one` comes before `other` of the same rank in every order."""
    (rank, code, j), (_, later, i) = one, other
    v = problem.chunks
    if j > i or (j == i and code == later):
        return False
    if code == later:
        return True
    if code >= 2 * v:  # W before another pass: never certain
        return False
    target = later - v if later >= 2 * v else later  # W comes behind its B
    return code == target or _chain(problem, rank, code) < _chain(problem, rank, target)


def _places(problem: Problem) -> list[list[Place]]:
    codes, count = range(3 * problem.chunks), range(problem.micro_batches)
    return [[(rank, code, j) for code in codes for j in count] for rank in range(problem.pipeline)]


def _length_s(problem: Problem, place: Place) -> float:
    rank, code, _ = place
    kind, chunk = divmod(code, problem.chunks)
    return problem.times[kind][problem.stage_of_rank[rank][chunk]]


def _starts_s(problem: Problem) -> list[float]:
    """When each rank's first forward starts, played as early as possible, [ranks]."""
    forward_s = trip_of(problem).forward_s
    return [forward_s[min(stages)] for stages in problem.stage_of_rank]


def _links(problem: Problem) -> list[tuple[Place, Place, float]]:
    """(before, after, hop) between passes of one micro-batch on neighbouring stages, and on one stage."""
    v, links = problem.chunks, []
    where = {stage: (rank, chunk) for rank, stages in enumerate(problem.stage_of_rank)
             for chunk, stage in enumerate(stages)}
    for j in range(problem.micro_batches):
        for stage in range(problem.stages):
            rank, chunk = where[stage]
            links.append(((rank, chunk, j), (rank, v + chunk, j), 0.0))
            links.append(((rank, v + chunk, j), (rank, 2 * v + chunk, j), 0.0))
            if stage + 1 < problem.stages:
                beyond, part = where[stage + 1]
                hop_s = problem.hop_s(stage)
                links.append(((rank, chunk, j), (beyond, part, j), hop_s))
                links.append(((beyond, v + part, j), (rank, v + chunk, j), hop_s))
    return links


def _windows(problem: Problem, wanted_s: float) -> dict[Place, tuple[float, float]]:
    """(earliest, latest) start of every pass in an order that costs `wanted_s` or less."""
    starts_s = _starts_s(problem)
    allowed_s = [wanted_s + (start_s if problem.objective == "span" else 0.0) for start_s in starts_s]
    early: dict[Place, float] = {}
    late: dict[Place, float] = {}
    for rank, places in enumerate(_places(problem)):
        for place in places:
            length_s = _length_s(problem, place)
            before_s = sum(_length_s(problem, one) for one in places if comes_first(problem, one, place))
            after_s = sum(_length_s(problem, one) for one in places if comes_first(problem, place, one))
            early[place] = starts_s[rank] + before_s
            late[place] = allowed_s[rank] - after_s - length_s
    links = _links(problem)
    by_early = True
    while by_early:  # until nothing moves: chains are no longer than the model twice
        by_early = False
        for before, after, hop_s in links:
            ready_s = early[before] + _length_s(problem, before) + hop_s
            if ready_s > early[after] + ROUNDING:
                early[after], by_early = ready_s, True
            due_s = late[after] - hop_s - _length_s(problem, before)
            if due_s < late[before] - ROUNDING:
                late[before], by_early = due_s, True
        for places in _places(problem):
            for place in places:
                rank, code, j = place
                following = (rank, code, j + 1)
                if following in early:
                    length_s = _length_s(problem, place)
                    if early[place] + length_s > early[following] + ROUNDING:
                        early[following], by_early = early[place] + length_s, True
                    if late[following] - length_s < late[place] - ROUNDING:
                        late[place], by_early = late[following] - length_s, True
        if any(late[place] < early[place] - 1.0 - wanted_s for place in early):
            break
    return {place: (early[place], late[place]) for place in early}


class _Programme:
    """Columns: the cost, a start for each pass, a binary for each open pair. Rows are handed over at once."""

    def __init__(
        self, problem: Problem, windows: Mapping[Place, tuple[float, float]], wanted_s: float, bound_s: float
    ) -> None:
        self.problem, self.windows = problem, windows
        self.lower, self.upper = [bound_s], [max(wanted_s, bound_s)]
        self.feasible = wanted_s >= bound_s - ROUNDING
        self.start: dict[Place, int] = {}
        for place, (early, late) in windows.items():
            self.start[place] = self.column(early, max(early, late))
        self.binaries: dict[tuple[Place, Place], int] = {}
        self.fixed: dict[tuple[Place, Place], bool] = {}
        self.rows: list[tuple[float, dict[int, float]]] = []  # sum of terms >= bound
        self.places = _places(problem)
        for places in self.places:
            self.pairs(places)
        for before, after, hop_s in _links(problem):
            self.row(_length_s(problem, before) + hop_s, {self.start[after]: 1.0, self.start[before]: -1.0})
        for places in self.places:
            self.follow(places)
            self.memory(places)

    def column(self, lower: float, upper: float) -> int:
        self.lower.append(lower)
        self.upper.append(upper)
        return len(self.lower) - 1

    def row(self, least: float, terms: dict[int, float]) -> None:
        self.rows.append((least, terms))

    def pairs(self, places: list[Place]) -> None:
        """Which of two passes of a rank comes first: known, or a binary with its big-M rows."""
        for one, other in combinations(places, 2):
            (early, late), (early_other, late_other) = self.windows[one], self.windows[other]
            length_s, other_s = _length_s(self.problem, one), _length_s(self.problem, other)
            first = _open(self.problem, self.windows, one, other)
            if first is not None:
                self.fixed[one, other] = first
                if first and (one[1] != other[1] or other[2] == one[2] + 1):
                    self.row(length_s, {self.start[other]: 1.0, self.start[one]: -1.0})
                elif not first:
                    self.row(other_s, {self.start[one]: 1.0, self.start[other]: -1.0})
            else:
                binary = self.column(0.0, 1.0)
                self.binaries[one, other] = binary
                big = late + length_s - early_other
                self.row(length_s - big, {self.start[other]: 1.0, self.start[one]: -1.0, binary: -big})
                big = late_other + other_s - early
                self.row(other_s, {self.start[one]: 1.0, self.start[other]: -1.0, binary: big})

    def before(self, one: Place, other: Place) -> tuple[float, dict[int, float]]:
        """1 where `one` comes before `other`, as (constant, terms)."""
        if (one, other) in self.fixed:
            return float(self.fixed[one, other]), {}
        if (other, one) in self.fixed:
            return 1.0 - self.fixed[other, one], {}
        if (one, other) in self.binaries:
            return 0.0, {self.binaries[one, other]: 1.0}
        return 1.0, {self.binaries[other, one]: -1.0}

    def follow(self, places: list[Place]) -> None:
        """Work placed before and behind each pass; what comes first stays first along the micro-batches."""
        problem = self.problem
        rank = places[0][0]
        start_s = _starts_s(problem)[rank]
        base_s = start_s if problem.objective == "span" else 0.0
        for place in places:
            head, tail, fixed_s, total_s = {self.start[place]: 1.0}, {0: 1.0, self.start[place]: -1.0}, 0.0, 0.0
            for other in places:
                if other == place:
                    continue
                length_s = _length_s(problem, other)
                constant, terms = self.before(other, place)
                fixed_s, total_s = fixed_s + constant * length_s, total_s + length_s
                for column, sign in terms.items():
                    head[column] = head.get(column, 0.0) - sign * length_s
                    tail[column] = tail.get(column, 0.0) + sign * length_s
            self.row(start_s + fixed_s, head)
            self.row(_length_s(problem, place) - base_s + total_s - fixed_s, tail)
        for (one, other) in list(self.binaries):
            for later in ((one, (other[0], other[1], other[2] + 1)), ((one[0], one[1], one[2] - 1), other)):
                if later[0] in self.start and later[1] in self.start and one[0] == rank:
                    constant, terms = self.before(*later)
                    if terms:
                        self.row(-constant, {**terms, self.binaries[one, other]: -1.0})

    def memory(self, places: list[Place]) -> None:
        problem = self.problem
        limit = problem.limit[places[0][0]]
        if np.isinf(limit):
            return
        for place in places:
            if place[1] >= problem.chunks:
                continue
            room, row = limit - 1.0, dict[int, float]()
            for other in places:
                if other != place:
                    constant, terms = self.before(other, place)
                    change = problem.changes[other[1] // problem.chunks]
                    room -= constant * change
                    for column, sign in terms.items():
                        row[column] = row.get(column, 0.0) - sign * change
            self.row(-room - ROUNDING, row)

    def solve(self, work: int, cost_s: float) -> Solved:
        if not self.feasible:
            return Solved(None, cost_s)
        import highspy

        plain: Any = highspy.Highs.__base__  # without Python's callbacks, whose making prints a banner on stdout
        highs = plain()
        nodes = work // max(len(self.binaries), 1)
        for option, value in (("output_flag", False), ("threads", 1), ("mip_max_nodes", nodes), ("random_seed", 0),
                              ("mip_rel_gap", 0.0), ("mip_abs_gap", 1e-6), ("time_limit", float("inf"))):
            highs.setOptionValue(option, value)
        highs.passModel(self.model(highspy))
        highs.run()
        status = highs.getModelStatus()
        if status == highspy.HighsModelStatus.kInfeasible:
            return Solved(None, cost_s)
        info = highs.getInfo()
        bound_s = whole_grains(max(self.lower[0], min(info.mip_dual_bound, cost_s)), self.problem.grain_s)
        if info.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
            return Solved(None, bound_s)
        values = highs.getSolution().col_value
        return Solved([[code for _, code, _ in sorted(
            places, key=lambda place: (round(values[self.start[place]], 6), self.rank_in_ties(place)))]
            for places in self.places], bound_s)

    @staticmethod
    def rank_in_ties(place: Place) -> tuple[int, int]:
        """Passes that take no time start together: what comes first in every order goes first."""
        return place[2], place[1]

    def model(self, highspy: Any) -> Any:
        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = len(self.lower), len(self.rows)
        cost = np.zeros(len(self.lower))
        cost[0] = 1.0
        lp.col_cost_, lp.col_lower_, lp.col_upper_ = cost, np.array(self.lower), np.array(self.upper)
        lp.row_lower_ = np.array([least for least, _ in self.rows])
        lp.row_upper_ = np.full(len(self.rows), highspy.kHighsInf)
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.start_ = np.concatenate([[0], np.cumsum([len(terms) for _, terms in self.rows])])
        lp.a_matrix_.index_ = np.array([column for _, terms in self.rows for column in terms])
        lp.a_matrix_.value_ = np.array([value for _, terms in self.rows for value in terms.values()])
        kinds = [highspy.HighsVarType.kContinuous] * len(self.lower)
        for column in self.binaries.values():
            kinds[column] = highspy.HighsVarType.kInteger
        lp.integrality_ = kinds
        return lp
