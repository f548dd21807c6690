"""V-shaped schedules against the paper's laws (arXiv 2405.15362) and the published tools' results."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from placement import schedules
from placement.schedules import Evaluation, ScheduleError, Times, evaluate
from placement.schedules.building_block import lengthened

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
TOOL = {"V-Half (greedy)": "v-half", "V-Min (greedy)": "v-min", "ZBV (heuristic)": "zbv-auto",
        "ZBV (handcrafted)": "zbv", "V adaptive (building-block search)": "v-adaptive"}
SIZES = [(p, k * p) for p in (3, 4, 5, 6, 7, 8, 9, 10, 12) for k in (2, 4)] + [(11, 22), (14, 28)]


def played(name: str, p: int, m: int, times: Times, limit: float | None = None, share: float = 1.0) -> Evaluation:
    schedule = schedules.get(name)
    orders = schedule.generate(p, m, times=times, memory_limit=limit, weight_share=share)
    return evaluate(orders, schedule, times.forward_s, times.backward_s, times.weight_s, times.latency_s,
                    memory={"F": 1.0, "B": share - 1.0, "W": -share})


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_v_half_holds_half_and_costs_the_papers_bound(p: int, m: int) -> None:
    found, chunks = played("v-half", p, m, Times()), 2 * ((p + 2) // 2)
    assert found.peak.max() == chunks
    assert found.span_s == 6 * m + 6 * p - 3 * chunks - 1


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_v_min_holds_a_third_and_costs_the_papers_bound(p: int, m: int) -> None:
    """For p = 2 mod 3 the published greedy takes 4 ticks more, and no proof says what is least."""
    found, chunks = played("v-min", p, m, Times()), 2 * ((p + 4) // 3)
    bound = 6 * m + 6 * p - 3 * chunks - 1
    assert found.peak.max() == chunks
    assert bound <= found.span_s <= bound + (4 if p % 3 == 2 else 0)


@pytest.mark.parametrize("p", [2, 3, 4, 5, 8, 12])
def test_zbv_and_v_zb_have_no_bubble_at_equal_times(p: int) -> None:
    for m in (2 * p, 3 * p, 5 * p):
        found = played("zbv", p, m, Times())
        assert (found.span_s, found.makespan_s) == (6 * m, 6 * m + p - 1)
        assert found.peak.tolist() == [2 * p] * p
        for name, share in (("v-zb", 1.0), ("v-adaptive", 1.0), ("zbv-auto", 0.5)):
            assert played(name, p, m, Times(), share=share).span_s == 6 * m


def test_results_of_the_published_tools() -> None:
    with (GOLDEN / "schedules.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["schedule"] in TOOL]
    assert len(rows) == 22
    for row in rows:
        share = -float(row["mem_W"]) / float(row["mem_F"])
        limit = float(row["mem_limit"]) if row["mem_limit"] else None
        found = played(TOOL[row["schedule"]], int(row["p"]), int(row["m"]), Times(*(float(row[k]) for k in "FBWC")),
                       limit, share)
        assert found.span_s <= float(row["tool_cost_longest_stage"]) * (1 + 1e-9), row["id"]
        assert found.peak.max() <= float(row["mem_limit"] or row["peak_mem_max"]), row["id"]


@pytest.mark.parametrize("times", [Times(), Times(3.0, 4.0, 2.0)])
def test_memory_is_traded_for_time(times: Times) -> None:
    spans = []
    for limit in (2, 3, 4, 6, 8):
        found = played("v-adaptive", 4, 12, times, float(limit))
        assert found.peak.max() <= limit
        spans.append(found.span_s)
    assert spans == sorted(spans, reverse=True)


def test_a_long_run_repeats_the_period_of_a_short_one() -> None:
    """Twice the micro-batches at real times: no more bubble, the same peak."""
    times = Times(9.261, 9.043, 4.668, 0.601)
    short, long = (played("v-half", 8, m, times) for m in (32, 128))
    busy = 2 * (9.261 + 9.043 + 4.668)
    assert long.span_s - 128 * busy == pytest.approx(short.span_s - 32 * busy)
    assert long.peak.max() <= 10


def test_lengthened_orders_keep_counts() -> None:
    orders = schedules.get("v-half").generate(4, 8)
    longer = lengthened(orders, 5)
    assert longer is not None
    for rank in longer:
        for kind in "FBW":
            for chunk in (0, 1):
                numbers = [one.micro_batch for one in rank if (one.kind, one.chunk) == (kind, chunk)]
                assert numbers == list(range(13))


@pytest.mark.parametrize(("name", "limit", "message"), [
    ("v-half", 9.0, "too small on 8 ranks; the least that works is 10"),
    ("v-min", 7.0, "too small on 8 ranks; the least that works is 8"),
    ("v-adaptive", 1.5, "rank 0 holds both chunks .* the least that works is 2")])
def test_impossible_memory_limits_name_the_least_that_works(name: str, limit: float, message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        schedules.get(name).generate(8, 16, memory_limit=limit)


def test_zbv_needs_enough_micro_batches() -> None:
    with pytest.raises(ScheduleError, match=r"2 x 4 - 1 = 7 micro-batches \(got 6\)"):
        schedules.get("zbv").generate(4, 6)
