"""Local search over orders: never worse, within the limit, to the optimum of tiny cases, the same bits compiled."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from placement import schedules
from placement.schedules import Orders, Pass, Request, ScheduleError, Times, evaluate
from placement.schedules.search.improve import LEAST_MOVES, improved
from placement.schedules.search.problem import orders_of, problem_of, words_of

SPLIT = schedules.get("zb-h1")


def improve(orders: Orders, request: Request, limit: float, **options: Any) -> Orders:
    problem = problem_of(replace(request, memory_limit=limit), "span", SPLIT.stage_of)
    return orders_of(improved(words_of(orders, problem), problem, 0.0, **options), problem)


def rank_orders(micro_batches: int, limit: float) -> Iterator[list[Pass]]:
    """Every order of F, B and W on a rank, micro-batches in sequence, that holds `limit` from F to W at the most."""
    for word in set(itertools.permutations("FBW" * micro_batches)):
        done = {"F": 0, "B": 0, "W": 0}
        passes = []
        for kind in word:
            passes.append(Pass(kind, 0, done[kind]))
            done[kind] += 1
            if not (done["W"] <= done["B"] <= done["F"] <= done["W"] + limit):
                break
        else:
            yield passes


def least_span(p: int, m: int, times: tuple[float, float, float], limit: float) -> float:
    best = float("inf")
    for orders in itertools.product(list(rank_orders(m, limit)), repeat=p):
        try:
            best = min(best, evaluate(list(orders), SPLIT, *times).span_s)
        except ScheduleError:  # the ranks wait for each other
            continue
    return best


@pytest.mark.parametrize(("times", "limit"), [((1.0, 1.0, 1.0), 2.0), ((3.0, 4.0, 2.0), 2.0), ((3.0, 4.0, 2.0), 1.0)])
def test_two_ranks_and_two_micro_batches_against_every_order(times: tuple[float, float, float], limit: float) -> None:
    request = Request(2, 2, times=Times(*times), weight_share=1.0)
    one_by_one: Orders = [[Pass(kind, 0, j) for j in range(2) for kind in "FBW"] for _ in range(2)]
    found = evaluate(improve(one_by_one, request, limit), SPLIT, *times)
    assert found.span_s == least_span(2, 2, times, limit)
    assert found.peak.max() <= limit


def test_never_worse_and_within_the_limit() -> None:
    random = np.random.default_rng(3)
    for p, m in ((2, 6), (3, 7), (4, 8)):
        times = random.uniform(1, 4, 3).round(2)
        request = Request(p, m, times=Times(*times, 0.2), weight_share=0.5)
        start = SPLIT.generate(p, m)
        memory = {"F": 1.0, "B": -0.5, "W": -0.5}
        before = evaluate(start, SPLIT, *times, 0.2, memory)
        after = evaluate(improve(start, request, float(p)), SPLIT, *times, 0.2, memory)
        assert after.span_s <= before.span_s
        assert after.peak.max() <= p


def test_compiled_and_plain_find_the_same_order() -> None:
    pytest.importorskip("numba", reason="the extra 'fast' is not installed")
    request = Request(3, 6, times=Times(3.1, 4.2, 2.3, 0.4))
    start: Orders = [[Pass(kind, 0, j) for j in range(6) for kind in "FBW"] for _ in range(3)]
    work = LEAST_MOVES * sum(len(passes) for passes in start)
    found = [improve(start, request, 3.0, work=work, compiled=compiled) for compiled in (True, False)]
    assert found[0] == found[1] != start


def test_passes_in_the_middle_stay() -> None:
    request = Request(3, 12, times=Times(3.1, 4.2, 2.3, 0.4))
    start = SPLIT.generate(3, 12)
    found = improve(start, request, 6.0, kept=0.5)
    assert found != start
    for before, after in zip(start, found, strict=True):
        quarter = len(before) // 4
        assert before[quarter:-quarter] == after[quarter:-quarter]
