"""Schedules with a split output layer: the published period and memory, and meetings against a longest path."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest

from placement import schedules
from placement.schedules import Evaluation, Pass, Schedule, ScheduleError, Times, evaluate

PIPELINES = [1, 2, 3, 4, 5, 7, 8, 13, 16]
TIMES = [(1.0, 1.0, 1.0), (1.0, 2.0, 0.0), (3.0, 4.0, 2.0), (2.0, 2.2, 1.5), (1.0, 1.0, 0.0)]
OUTPUT_TIMES = [(0.5, 0.5), (0.1, 0.05), (2.0, 4.0), (0.3, 0.0)]
ON_1F1B = ["1f1b-vocab-1", "1f1b-vocab-2", "1f1b-interlaced"]
ON_V_HALF = ["v-half-vocab-1", "v-half-vocab-2"]


def played(name: str, p: int, m: int, times: tuple[float, float, float], output: tuple[float, float],
           barrier_s: float = 0.0) -> Evaluation:
    schedule = schedules.get(name)
    orders = schedule.generate(p, m, times=Times(*times))
    return evaluate(orders, schedule, *times, other_s=dict(zip("ST", output, strict=True)), barrier_s=barrier_s)


def period_s(name: str, p: int, times: tuple[float, float, float], output: tuple[float, float],
             barrier_s: float = 0.0) -> float:
    """Seconds that each further micro-batch takes, long behind the ramp."""
    fewer, more = (played(name, p, m, times, output, barrier_s).makespan_s for m in (6 * p, 12 * p))
    return (more - fewer) / (6 * p)


@pytest.mark.parametrize("name", ON_1F1B)
def test_no_bubble_per_micro_batch_on_1f1b(name: str) -> None:
    """The interval of the paper's building block, section 5.1: F + B + S + T."""
    for p in PIPELINES:
        for times in TIMES:
            for output in OUTPUT_TIMES:
                assert period_s(name, p, times, output) == pytest.approx(sum(times) + sum(output)), (p, times, output)


@pytest.mark.parametrize("name", ON_V_HALF)
def test_no_bubble_per_micro_batch_on_v_half(name: str) -> None:
    """Wherever V-Half itself repeats without one (arXiv 2405.15362: W + 2 B >= 2 F, W + 2 F >= 2 B)."""
    for p in PIPELINES:
        for times in [(1.0, 1.0, 1.0), (3.0, 4.0, 2.0), (2.0, 2.2, 1.5)]:
            for output in OUTPUT_TIMES[:2] if times == (1.0, 1.0, 1.0) else OUTPUT_TIMES[2:3]:
                assert period_s(name, p, times, output) == pytest.approx(2 * sum(times) + sum(output)), (p, times)


@pytest.mark.parametrize("name", ON_V_HALF)
def test_ramps_on_v_half_cost_no_more_than_its_own(name: str) -> None:
    """The longer lag gives room to run ahead: beside S and T no more bubble than V-Half at unit times, 3 p - 4."""
    for p in PIPELINES[1:]:
        result = played(name, p, 3 * p, (1.0, 1.0, 1.0), (0.0, 0.0))
        assert result.makespan_s - result.busy_s.max() <= max(3 * p - 4, 1), p


@pytest.mark.parametrize(("name", "extra"), [("1f1b-vocab-1", 2), ("1f1b-vocab-2", 1)])
def test_one_more_micro_batch_in_flight_for_each_barrier(name: str, extra: int) -> None:
    """p + 2 and p + 1 on the first rank (arXiv 2411.05288, section 5.2), whatever the times."""
    for p in PIPELINES:
        for m in (1, 2, p, 4 * p):
            for times in TIMES:
                peak = played(name, p, m, times, (0.5, 1.0)).peak
                assert peak.tolist() == [min(m, p - rank + extra) for rank in range(p)], (p, m, times)


def test_interlaced_holds_half_as_much_again_and_waits_for_every_meeting() -> None:
    """Lifespan 3 p -> 4.5 p and peak 1.5 p (the paper's appendix on interlaced pipelines); the bubble is 1F1B's."""
    for p in PIPELINES:
        for times in TIMES:
            result = played("1f1b-interlaced", p, 6 * p, times, (0.5, 1.0))
            assert result.peak.tolist() == [3 * (p - rank) // 2 for rank in range(p)]
            assert result.makespan_s - result.busy_s.max() == pytest.approx((p - 1) * sum(times))
            period = period_s("1f1b-interlaced", p, times, (0.5, 1.0), barrier_s=0.2)
            assert period == pytest.approx(sum(times) + 1.5 + 3 * 0.2)  # the broadcast and both meetings


@pytest.mark.parametrize("name", [*ON_V_HALF, "1f1b-vocab-1", "1f1b-vocab-2"])
def test_meetings_hide_behind_passes(name: str) -> None:
    """Broadcast and meetings of a twentieth of a forward: free in every schedule but the interlaced one."""
    for p in PIPELINES[1:]:
        for times in [(1.0, 1.0, 1.0), (1.0, 2.0, 0.0)][: 2 if name in ON_1F1B else 1]:
            busy_s = sum(times) * (2 if name in ON_V_HALF else 1) + 1.5
            assert period_s(name, p, times, (0.5, 1.0), barrier_s=0.05) == pytest.approx(busy_s), p


@pytest.mark.parametrize("name", [*ON_1F1B, *ON_V_HALF])
def test_memory_laws(name: str) -> None:
    """The law that the schedule states: reached on 1F1B, never exceeded on V-Half (V-Half's own: test_schedules)."""
    schedule = schedules.get(name)
    for p in PIPELINES:
        for m in (1, 3, p, 3 * p):
            law = np.broadcast_to(schedule.peak_in_flight(p, np.arange(p), m, 2), p)
            peak = played(name, p, m, (1.0, 1.0, 1.0), (0.5, 0.5)).peak
            assert (peak <= law).all() if name in ON_V_HALF else (peak == law).all(), (p, m)
    assert played("v-half-vocab-1", 8, 64, (1.0, 1.0, 1.0), (0.5, 0.5)).peak.max() == 2 * (8 + 2) // 2 + 4
    assert played("v-half-vocab-2", 8, 64, (1.0, 1.0, 1.0), (0.5, 0.5)).peak.max() == 2 * (8 + 2) // 2 + 2


def longest_path(schedule: Schedule, orders: list[list[Pass]], seconds: dict[str, float], barrier_s: float) -> float:
    """The rules of the paper's section 4 written out as a graph of ends, for networkx."""
    p, chunks = len(orders), 1 + max(one.chunk for one in orders[0])
    last, graph = p * chunks - 1, nx.DiGraph()
    for rank, passes in enumerate(orders):
        before = None
        for kind, chunk, j, _ in passes:
            stage = rank if kind in "ST" else schedule.stage_of(rank, chunk, p, chunks)
            needs = {"F": [("F", stage - 1)], "B": [("F", stage), ("B", stage + 1)], "W": [("B", stage)],
                     "S": [("broadcast", 0)], "T": [("first", 0)]}[kind]
            if kind == "B" and stage == last:
                needs.append(("second" if schedule.barriers == 2 else "first", 0))
            sources = [(*need, j) for need in needs if 0 <= need[1] <= last]
            for source in [*sources, *([before] if before else []), "start"]:
                graph.add_edge(source, (kind, stage, j), weight=seconds[kind])
            before = (kind, stage, j)
            if kind == "S" or (kind == "T" and schedule.barriers == 2):
                graph.add_edge(before, ("first" if kind == "S" else "second", 0, j), weight=barrier_s)
            if (kind, stage) == ("F", last):
                graph.add_edge(before, ("broadcast", 0, j), weight=barrier_s)
    return float(nx.dag_longest_path_length(graph))


@pytest.mark.parametrize("name", [*ON_1F1B, *ON_V_HALF])
def test_makespan_is_the_longest_path_through_the_meetings(name: str) -> None:
    schedule, random = schedules.get(name), np.random.default_rng(3)
    for p, m in ((1, 2), (2, 3), (3, 7), (4, 9)):
        seconds = dict(zip("FBWST", random.uniform(0.5, 2.0, 5).tolist(), strict=True))
        seconds["W"] *= schedule.splits_backward
        orders = schedule.generate(p, m, times=Times(seconds["F"], seconds["B"], seconds["W"]))
        result = evaluate(orders, schedule, seconds["F"], seconds["B"], seconds["W"], other_s=seconds, barrier_s=0.4)
        assert result.makespan_s == pytest.approx(longest_path(schedule, orders, seconds, 0.4))


def test_an_order_without_its_output_layer_is_refused() -> None:
    schedule = schedules.get("1f1b-vocab-2")
    orders = [[one for one in passes if one.kind != "T"] for passes in schedule.generate(2, 3)]
    with pytest.raises(ScheduleError, match="1f1b-vocab-2: there is no T pass"):
        evaluate(orders, schedule, 1.0, 1.0)
