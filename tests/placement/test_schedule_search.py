"""Search for schedules against brute force, published results, proved optima and the paper's bounds."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from costmodel.stack import Stack
from placement import schedules
from placement.passes import Setting
from placement.schedules import Request, ScheduleError, Times, evaluate
from placement.schedules.search import exact, modular
from placement.schedules.search.auto import Found, applicable, auto
from placement.schedules.search.bounds import lower_bound_s
from placement.schedules.search.improve import improved
from placement.schedules.search.player import Player
from placement.schedules.search.problem import (
    Problem,
    Words,
    cost_s,
    fits,
    orders_of,
    problem_of,
    schedule_of,
    words_of,
)
from placement.step import analytic_step
from simulator.engine import static
from simulator.training import lower
from tests.training_cases import setting

TABLE_6 = Times(10.0, 11.0, 8.0, 1.0)  # of the reference notes, section 6


def request(p: int, m: int, limit: float | None = None, v: int = 1, times: Times = TABLE_6,
            share: float = 0.5) -> Request:
    return Request(p, m, v, times=times, memory_limit=limit, weight_share=share)


def words_of_rank(problem: Problem, rank: int) -> Iterator[list[int]]:
    """Every word of a rank that keeps its chunks' F, B, W order and the memory limit."""
    v, m = problem.chunks, problem.micro_batches
    total, change = 3 * v * m, problem.changes

    def grow(word: list[int], count: list[int], held: float) -> Iterator[list[int]]:
        if len(word) == total:
            yield list(word)
            return
        for code in range(3 * v):
            after = held + change[code // v]
            done = count[code] == m or (code >= v and count[code] >= count[code - v])
            if done or after > problem.limit[rank] + 1e-9:
                continue
            count[code] += 1
            word.append(code)
            yield from grow(word, count, after)
            word.pop()
            count[code] -= 1

    yield from grow([], [0] * (3 * v), 0.0)


def optimum_s(problem: Problem) -> float:
    """The least cost over all orders of all ranks together."""
    best = np.inf
    for words in itertools.product(*(list(words_of_rank(problem, rank)) for rank in range(problem.pipeline))):
        best = min(best, slow_cost_s(list(words), problem))
    return float(best)


def slow_cost_s(words: Words, problem: Problem) -> float:
    orders = orders_of(words, problem)
    try:
        return cost_s(orders, schedule_of(problem, "all", "all"), problem)
    except ScheduleError:
        return float("inf")


SMALL = [
    (p, m, v, times, limit, share) for p, m, v in ((2, 2, 1), (2, 3, 1), (3, 2, 1), (1, 3, 1), (2, 1, 2))
    for times in (Times(), TABLE_6, Times(3.0, 1.0, 2.0, 0.5))
    for limit, share in ((v, 0.5), (v + 1, 0.5), (2 * v, 1.0))
]


@pytest.mark.parametrize("objective", ["span", "makespan"])
@pytest.mark.parametrize(("p", "m", "v", "times", "limit", "share"), SMALL)
def test_search_bound_and_programme_against_brute_force(
    p: int, m: int, v: int, times: Times, limit: float, share: float, objective: str
) -> None:
    asked = request(p, m, limit, v, times, share)
    problem = problem_of(asked, objective)
    best_s = optimum_s(problem)
    assert lower_bound_s(problem) <= best_s + 1e-9
    better = exact.solved(problem, best_s + 2, 0.0)
    assert better.words is not None
    assert fits(better.words, problem)
    assert (slow_cost_s(better.words, problem), better.bound_s) == (best_s, pytest.approx(best_s))
    assert exact.solved(problem, best_s, 0.0) == exact.Solved(None, best_s)
    found = auto(asked, objective)
    assert found.bound_s <= found.cost_s <= best_s + 1e-9  # another placement may be better still
    assert found.optimal


@pytest.mark.parametrize(("p", "m", "limit", "times", "optimum"), [
    (2, 4, 2, TABLE_6, 133), (3, 4, 3, TABLE_6, 150), (4, 4, 4, TABLE_6, 161), (4, 8, 4, TABLE_6, 283),
    (4, 8, 8, TABLE_6, 245), (4, 8, 4, Times(5, 6, 4), 141)])
def test_optima_that_a_constraint_solver_proved_are_found_and_proved(
    p: int, m: int, limit: float, times: Times, optimum: float
) -> None:
    """The table of the reference notes, section 6 (the last row was open there: 141 against a bound of 120)."""
    found = auto(request(p, m, limit, times=times))
    assert (found.cost_s, found.bound_s, found.gap, found.proof) == (optimum, optimum, 0.0, "optimal")
    check(found, request(p, m, limit, times=times))


def check(found: Found, asked: Request) -> None:
    """An order is whole, keeps the limit as `evaluate` counts it, and takes what was said."""
    share, times = asked.weight_share, asked.times
    memory = {"F": 1.0, "B": share - 1.0, "W": -share}
    played = evaluate(found.orders, found.schedule, times.forward_s, times.backward_s, times.weight_s,
                      times.latency_s, memory)
    assert found.cost_s == (played.span_s if found.objective == "span" else played.makespan_s)
    if asked.memory_limit is not None:
        assert played.peak.max() <= asked.memory_limit + 1e-9
    assert sum(map(len, found.orders)) == 3 * asked.chunks * asked.pipeline * asked.micro_batches


@pytest.mark.parametrize("p", [3, 4, 5, 6, 7, 8, 9, 12])
def test_the_bound_at_unit_times_is_the_papers(p: int) -> None:
    """arXiv 2405.15362: 6 m + 6 p - 3 limit - 1 with whole chunks held until W; runs are short, so that memory over
    time is no tighter."""
    for limit in range(2 * ((p + 4) // 3), 2 * p):
        problem = problem_of(request(p, 2 * p, limit, 2, Times(), 1.0))
        assert lower_bound_s(problem) == 12 * p + 6 * p - 3 * limit - 1


@pytest.mark.parametrize("objective", ["span", "makespan"])
@pytest.mark.parametrize("times", [Times(), TABLE_6, Times(1.0, 2.5, 0.25, 0.5), Times(3.0, 2.0, 4.0)])
@pytest.mark.parametrize(("p", "m", "v"), [(2, 5, 1), (4, 9, 1), (8, 16, 1), (2, 4, 2), (4, 8, 2)])
def test_no_registered_order_beats_the_bound(p: int, m: int, v: int, times: Times, objective: str) -> None:
    checked = 0
    for stage_of in {schedules.get(name).stage_of for name in schedules.names()}:
        problem = problem_of(request(p, m, None, v, times), objective, stage_of)
        for schedule in applicable(problem):
            if schedule.name in ("v-adaptive", "zbv-auto", "v-min"):
                continue  # slow, and of the same family as the others
            try:
                orders = schedule.order(request(p, m, None, v, times))
            except ScheduleError:
                continue
            peak = max(split_peaks(orders, schedule, problem))
            limited = replace(problem, limit=(peak,) * p)
            cost = evaluate(orders, schedule, times.forward_s, times.backward_s, times.weight_s, times.latency_s)
            assert lower_bound_s(limited) <= (cost.span_s if objective == "span" else cost.makespan_s) + 1e-9
            checked += 1
    assert checked >= 2


def split_peaks(orders: schedules.Orders, schedule: schedules.Schedule, problem: Problem) -> list[float]:
    played = evaluate(orders, schedule, 1.0, 1.0, 1.0, memory={
        "F": 1.0, "B": problem.weight_share - 1.0 if schedule.splits_backward else -1.0, "W": -problem.weight_share})
    return played.peak.tolist()


@pytest.mark.parametrize("p", [3, 4, 5, 6, 7, 8, 9, 10, 11, 12])
def test_periodic_orders_of_least_memory_hold_what_v_min_holds(p: int) -> None:
    """Unit times, no bubble in the period: 4 chunks at p = 4 (proved by CP-SAT, reference notes), 8 at p = 8, and the
    law of V-Min everywhere."""
    problem = problem_of(request(p, 8, None, 2, Times(), 1.0))
    ticks = modular.ticks_of(problem)
    assert ticks.exact
    found = modular.least_memory(problem, 6, ticks, 2 * p)
    assert found is not None
    assert found[0] == found[1].held == 2 * ((p + 4) // 3)


def test_periodic_orders_at_unequal_times_need_more() -> None:
    """(3, 4, 2): no period without bubble at V-Min's memory of 8 on eight ranks; 10 do (reference notes, section 6)."""
    problem = problem_of(request(8, 8, None, 2, Times(3, 4, 2), 1.0))
    found = modular.least_memory(problem, 18, modular.ticks_of(problem), 12)
    assert found is not None
    assert found[0] == 10


@pytest.mark.parametrize("p", [2, 4, 8])
def test_periodic_orders_of_one_chunk_hold_p(p: int) -> None:
    """As 1F1B does, and none without a bubble holds less."""
    problem = problem_of(request(p, 8, None, 1, Times(), 1.0))
    found = modular.least_memory(problem, 3, modular.ticks_of(problem), 2 * p)
    assert found is not None
    assert found[0] == p


def test_blocks_repeat_without_overlap_and_in_time() -> None:
    """Every block is played for some periods by hand: serial ranks, passes behind what they need, memory as said."""
    for p, v, times in ((4, 2, Times()), (4, 2, Times(3, 4, 2, 1)), (5, 1, Times(2, 3, 1, 1)), (3, 2, Times(1, 2, 2))):
        for limit in range(2 * p, 3 * p):
            problem = problem_of(request(p, 8, limit, v, times, 1.0))
            for block in modular.blocks(problem):
                assert block.ticks.exact
                play_block(block, problem)


def play_block(block: modular.Block, problem: Problem) -> None:
    v, lengths = problem.chunks, dict(zip("FBW", block.ticks.passes, strict=True))
    rank_of = problem.rank_of_stage
    time_of = {(kind, problem.stage_of_rank[rank][chunk]): time for rank, times in enumerate(block.starts)
               for (kind, chunk), time in times.items()}
    for (kind, stage), time in time_of.items():
        needs = {"F": [("F", stage - 1)], "B": [("F", stage), ("B", stage + 1)], "W": [("B", stage)]}[kind]
        for before in needs:
            if before in time_of:
                hop = block.ticks.hop if rank_of[before[1]] != rank_of[stage] else 0
                assert time >= time_of[before] + lengths[before[0]][before[1]] + hop
    for rank in range(problem.pipeline):
        events, taken = [], set()
        for (kind, chunk), time in block.starts[rank].items():
            length = lengths[kind][problem.stage_of_rank[rank][chunk]]
            spots = {(time + tick) % block.period for tick in range(length)}
            assert len(spots) == length
            assert not spots & taken
            taken |= spots
            for j in range(60):
                at = time + j * block.period
                events += [(at, 1, 1)] if kind == "F" else [(at + length, 0, -1)] if kind == "W" else []
        held = np.cumsum([change for _, _, change in sorted(events)])
        assert held.max() <= block.held <= problem.limit[rank]
    assert v == problem.chunks


def test_local_search_betters_the_greedy_and_never_worsens() -> None:
    """247 by the greedy, 245 the optimum at limit 2 p (reference notes, section 6)."""
    for limit, times, most in ((8, TABLE_6, 245.0), (3, TABLE_6, 406.0), (5, Times(3, 2, 4, 0.5), np.inf)):
        asked = request(4, 8, limit, times=times)
        problem = problem_of(asked)
        greedy = words_of(schedules.get("zb-1p").order(asked), problem)
        better = improved(greedy, problem, 0.0, 12_000_000)
        assert fits(better, problem)
        assert slow_cost_s(better, problem) <= min(slow_cost_s(greedy, problem), most)
        assert improved(greedy, problem, 0.0, 12_000_000) == better


def test_player_of_words_equals_the_evaluation() -> None:
    for p, m, v, name in ((4, 9, 1, "zb-h1"), (4, 8, 2, "zbv"), (3, 7, 2, "v-half")):
        for objective in ("span", "makespan"):
            schedule = schedules.get(name)
            asked = request(p, m, None, v)
            problem = problem_of(asked, objective, schedule.stage_of, forward_s=np.arange(1.0, p * v + 1),
                                 backward_s=np.arange(p * v, 0.0, -1))
            words = words_of(schedule.order(asked), problem)
            played = Player(problem).play(words)
            assert played is not None
            assert Player(problem).score(*played)[0] == slow_cost_s(words, problem)


def test_auto_is_never_worse_than_a_registered_order_under_the_same_limit() -> None:
    for p, m, v, limit, times in ((4, 8, 1, 5, Times(3, 5, 2, 1)), (4, 10, 2, 6, Times(2, 3, 1, 0.5)),
                                  (3, 20, 1, 2, Times())):
        asked = request(p, m, limit, v, times)
        found = auto(asked)
        check(found, asked)
        problem = problem_of(asked)
        for name in schedules.names():
            schedule = schedules.get(name)
            if schedule not in applicable(problem):
                continue
            try:
                orders = schedule.order(asked)
            except ScheduleError:
                continue
            if max(split_peaks(orders, schedule, problem)) <= limit + 1e-9:
                assert found.cost_s <= cost_s(orders, schedule, problem) + 1e-9


def test_periodic_search_beats_the_published_greedy_of_v_min() -> None:
    """Published V-Min is 4 ticks above the paper's bound wherever p = 2 mod 3; the search reaches the bound."""
    found = auto(request(8, 16, 8, 2, Times(), 1.0))
    assert (found.cost_s, found.bound_s) == (6 * 16 + 6 * 8 - 3 * 8 - 1, 119)


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_small_settings_in_little_memory_are_closed_by_the_programme(limit: int) -> None:
    """No order of (4, 8) was closed by HiGHS or CBC without windows in 40 s (reference notes, section 6). The programme
    starts from the bound and the order of the local search, and asks for a better one."""
    found = auto(request(4, 8, limit))
    assert found.optimal
    again = exact.solved(problem_of(request(4, 8, limit)), found.cost_s + 1, 0.0)
    assert again.words is not None
    assert slow_cost_s(again.words, problem_of(request(4, 8, limit))) == found.cost_s


@pytest.mark.parametrize(("p", "m", "v", "group"), [(4, 16, 2, 4), (4, 16, 3, 4), (4, 16, 3, 2), (8, 32, 3, 8)])
def test_looped_chunks_are_no_slower_than_grouped_interleaving(p: int, m: int, v: int, group: int) -> None:
    """arXiv 2503.01328: peak g (v - 1) + p chunks, bubble 2 (p - 1) + (p - g)(v - 1) chunk ticks at unit times."""
    asked = request(p, m, group * (v - 1) + p, v, Times(), 1.0)
    found = auto(asked, "makespan")
    check(found, asked)
    assert found.cost_s <= 3 * m * v + 2 * (p - 1) + (p - group) * (v - 1)


def test_unequal_stages() -> None:
    """One stage twice as slow: nothing is faster than its work, and the order found is as fast as the bound."""
    forward = np.array([1.0, 1.0, 1.0, 2.0])
    found = auto(request(4, 12, 8, times=Times()), forward_s=forward, backward_s=forward, weight_s=forward)
    assert found.bound_s >= 12 * 6
    assert found.optimal
    played = evaluate(found.orders, found.schedule, forward, forward, forward)
    assert played.span_s == found.cost_s


def test_limits_of_ranks_are_kept_one_by_one() -> None:
    limits = [2, 4, 3, 1]
    found = auto(request(4, 8), limits=limits)
    played = evaluate(found.orders, found.schedule, 1.0, 1.0, 1.0, memory={"F": 1.0, "B": -0.5, "W": -0.5})
    assert (played.peak <= np.array(limits) + 1e-9).all()


def test_impossible_limits_and_bad_settings_are_named() -> None:
    with pytest.raises(ScheduleError, match=r"rank 0: a memory limit of 0.5 chunk .* least that works is 1"):
        auto(request(4, 8, 0.5))
    with pytest.raises(ScheduleError, match=r"rank 2: .* least that works is 2"):
        auto(request(4, 8, v=2), limits=[4, 4, 1, 4])
    with pytest.raises(ScheduleError, match="no objective 'speed'"):
        auto(request(4, 8), "speed")
    with pytest.raises(ScheduleError, match="forward: 3 values given; there are 4 stages"):
        auto(request(4, 8), forward_s=[1, 2, 3])


def test_a_found_schedule_has_no_order_for_another_setting() -> None:
    found = auto(request(2, 4, 2))
    with pytest.raises(ScheduleError, match="result of a search"):
        found.schedule.generate(2, 5, 1)


@pytest.mark.parametrize("virtual", [1, 2])
def test_a_plan_may_ask_for_a_search(virtual: int) -> None:
    """Both fidelities play the same order, in the memory of 1F1B, and no slower than the zero-bubble order of it."""
    def case(name: str) -> Setting:
        return setting(node="hgx-a100", sequence=2048, stack=Stack("fused", "flash-2", ("pipeline",)), pipeline=4,
                       schedule=name, virtual=virtual, sharding="ddp")

    closed = analytic_step(case("auto"), 12)
    timeline = static.play(lower(case("auto"), 12).program)
    assert closed.step_time_s == pytest.approx(timeline.makespan_s, rel=3e-3)
    published = analytic_step(case("zb-h1" if virtual == 1 else "zbv"), 12)
    assert closed.step_time_s <= published.step_time_s * (1 + 1e-9)
    assert max(closed.peak_bytes) <= max(published.peak_bytes) * 1.01


def test_a_plan_with_a_limit_keeps_it() -> None:
    schedule = schedules.get("auto")
    for chunks, limit in ((1, 2.0), (2, 5.0), (3, 7.0)):
        orders = schedule.generate(4, 8, chunks, times=TABLE_6, memory_limit=limit)
        played = evaluate(orders, schedule, 1.0, 1.0, 1.0, memory={"F": 1.0, "B": -0.5, "W": -0.5})
        assert played.peak.max() <= limit
    with pytest.raises(ScheduleError, match="least that works is 2"):
        schedule.generate(4, 8, 2, memory_limit=1.0)
