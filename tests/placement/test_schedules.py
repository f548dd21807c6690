"""Schedules against their closed forms, the published results and the orders that torch prints."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest

from placement import schedules
from placement.schedules import Pass, Schedule, ScheduleError, evaluate

TIMES = [(1.0, 1.0, 1.0), (1.0, 2.0, 0.0), (3.0, 4.0, 2.0), (2.0, 2.2, 1.5), (1.0, 0.5, 0.25)]
PIPELINES = [1, 2, 3, 4, 5, 8]
NAMES_IN_CSV = {"GPipe": "gpipe", "1F1B": "1f1b", "Eager 1F1B": "eager-1f1b",
                "Interleaved 1F1B v=2": "interleaved-1f1b", "Looped BFS v=2": "interleaved-bfs"}
NAMES_IN_TORCH = {"GPipe": "gpipe", "1F1B": "1f1b", "Interleaved1F1B": "interleaved-1f1b",
                  "LoopedBFS": "interleaved-bfs"}


def published(name: str) -> Path:
    golden = Path(__file__).resolve().parents[1] / "golden" / name
    if golden.exists():
        return golden
    path = Path(__file__).resolve().parents[2] / ".." / "shared" / "published" / name
    if not path.exists():
        pytest.skip(f"{name} of the shared published results is not here")
    return path


def settings(name: str) -> list[tuple[int, int, int]]:
    """(p, m, v) that the schedule takes and on which its law is exact."""
    schedule = schedules.get(name)
    chunks = [v for v in (1, 2, 3, 4) if schedule.accepts_chunks(v)]
    found = []
    for p, v in itertools.product(PIPELINES, chunks):
        for m in sorted({1, 2, 3, 5, 7, p, 2 * p, 3 * p, 6 * p}):
            if name == "interleaved-1f1b" and m % p:
                continue
            with contextlib.suppress(ScheduleError):
                schedule.generate(p, m, v)
                found.append((p, m, v))
    assert len(found) >= 9
    return found


def latency_limit(name: str, v: int, forward_s: float, backward_s: float) -> float:
    """The latency up to which the docstrings call the law exact; `*_s` of one chunk."""
    return {"interleaved-1f1b": min(forward_s, backward_s), "eager-1f1b": (forward_s + backward_s) / 2, "zb-h1": 0.0,
            "dualpipe": 0.0, "dualpipe-v": 0.0}.get(name, 10.0)


def with_laws(law: str) -> list[str]:
    """But for grouped interleaving, whose laws hold for whole groups: test_offload."""
    return [name for name in schedules.names()
            if getattr(schedules.get(name), law) is not None and name not in ("gis", "gis-h")]


@pytest.mark.parametrize("name", with_laws("bubble_s"))
def test_bubble_laws_equal_the_played_order(name: str) -> None:
    schedule = schedules.get(name)
    for p, m, v in settings(name):
        orders, parts = schedule.generate(p, m, v), v // schedule.routes * (2 if schedule.takes_segments else 1)
        for forward_s, backward_s, weight_s in TIMES:
            limit_s = latency_limit(name, v, forward_s, backward_s + weight_s)
            for latency_s in {0.0, 0.3 * limit_s, limit_s}:
                played = evaluate(orders, schedule, forward_s, backward_s, weight_s, latency_s)
                times = (parts * forward_s, parts * (backward_s + weight_s), latency_s, parts * weight_s)
                busy_s = m * parts * (forward_s + backward_s + weight_s)
                expected_s = busy_s + float(schedule.bubble_s(p, m, v, *times))
                assert played.makespan_s == pytest.approx(expected_s, rel=1e-12), (p, m, v, latency_s)
                assert played.busy_s == pytest.approx(busy_s)


@pytest.mark.parametrize("name", with_laws("peak_in_flight"))
def test_memory_laws_equal_the_played_order(name: str) -> None:
    schedule = schedules.get(name)
    for p, m, v in settings(name):
        peak = evaluate(schedule.generate(p, m, v), schedule, 1.0, 1.0, 1.0).peak
        law = np.broadcast_to(schedule.peak_in_flight(p, np.arange(p), m, v), p)
        if name.startswith("v-") or name == "zbv":  # what some rank needs, for many micro-batches
            assert (peak <= law).all(), (p, m)
            assert m < 2 * p or peak.max() == law.max(), (p, m)
        else:
            assert peak.tolist() == law.tolist(), (p, m, v)


def test_laws_broadcast() -> None:
    p, m = np.array([[2], [4], [8]]), np.array([8, 16, 32, 64])
    for name in schedules.names():
        schedule = schedules.get(name)
        v = schedule.least_chunks
        times = (1.0, np.full(4, 2.0), 0.01, 0.5)
        for law, arguments in ((schedule.bubble_s, (m, v, *times)), (schedule.peak_in_flight, (1, m, v))):
            if law is None:
                continue
            found = law(p, *arguments)
            assert found.shape == (3, 4)
            for i, j in np.ndindex(3, 4):
                single = [float(one[j]) if isinstance(one, np.ndarray) and one.dtype == float
                          else int(one[j]) if isinstance(one, np.ndarray) else one for one in arguments]
                assert found[i, j] == pytest.approx(float(law(int(p[i, 0]), *single))), name


@pytest.mark.parametrize(("latency_s", "one_f_one_b", "eager"),
                         [(0.25, 226.0, 202.5), (0.5, 251.0, 204.0), (1.0, 301.0, 207.0)])
def test_unhidden_latency_slows_the_steady_state_of_1f1b_only(
    latency_s: float, one_f_one_b: float, eager: float
) -> None:
    """The example of the reference notes, section 2.2: p = 4, m = 64, forward + backward = 3."""
    for name, expected in (("1f1b", one_f_one_b), ("eager-1f1b", eager), ("gpipe", eager)):
        schedule = schedules.get(name)
        played = evaluate(schedule.generate(4, 64), schedule, 1.0, 2.0, latency_s=latency_s)
        assert played.makespan_s == pytest.approx(expected)


@pytest.mark.parametrize(("name", "chunks", "makespan_s", "peaks"), [
    ("gpipe", 1, 33, [8, 8, 8, 8]), ("1f1b", 1, 33, [4, 3, 2, 1]), ("eager-1f1b", 1, 33, [7, 5, 3, 1]),
    ("interleaved-1f1b", 2, 57, [11, 9, 7, 5]), ("interleaved-bfs", 2, 57, [16] * 4)])
def test_examples_at_4_ranks_and_8_micro_batches(
    name: str, chunks: int, makespan_s: float, peaks: list[int]
) -> None:
    schedule = schedules.get(name)
    played = evaluate(schedule.generate(4, 8, chunks), schedule, 1.0, 1.0, 1.0)
    assert (played.makespan_s, played.peak.tolist()) == (makespan_s, peaks)


def test_published_schedule_results() -> None:
    with published("schedules.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["schedule"] in NAMES_IN_CSV]
    assert len(rows) >= 25
    for row in rows:
        schedule = schedules.get(NAMES_IN_CSV[row["schedule"]])
        orders = schedule.generate(int(row["p"]), int(row["m"]), int(row["chunks_per_dev"]))
        played = evaluate(orders, schedule, *(float(row[key]) for key in ("F", "B", "W", "C")))
        assert played.makespan_s == pytest.approx(float(row["asap_makespan_all_stages"]), rel=1e-9), row["id"]
        assert played.busy_s.max() == pytest.approx(float(row["ideal_busy"])), row["id"]
        assert played.span_bubble_fraction == pytest.approx(float(row["asap_bubble_rate_span"]), abs=6e-7)
        assert played.peak.tolist() == [float(peak) for peak in row["peak_mem_per_stage"].split()], row["id"]
        if row["paper_bubble_rate"]:  # Zero Bubble, Table 5, all four digits
            assert f"{played.span_bubble_fraction:.4f}" == f"{float(row['paper_bubble_rate']):.4f}", row["id"]


def torch_passes(case: dict[str, Any], rank: int) -> list[Pass]:
    stages = case["stages_of_rank"][rank]
    passes = []
    for action in case["orders"][rank]:
        if not action or "REDUCE" in action:
            continue
        kind = next(letter for letter in action if letter.isalpha())
        stage, micro_batch = map(int, action.split(kind))
        passes.append(Pass(kind, stages.index(stage), micro_batch))
    if case["schedule"] == "1F1B" and rank == case["p"] - 1:  # torch 2.13.0 prints forwards 1..m there
        passes = [one._replace(micro_batch=one.micro_batch - (one.kind == "F")) for one in passes]
    return passes


def test_orders_of_torch() -> None:
    cases = json.loads(published("torch_orders.json").read_text())["cases"]
    known = [case for case in cases if case["schedule"] in NAMES_IN_TORCH]
    assert len(known) == 8
    for case in known:
        schedule = schedules.get(NAMES_IN_TORCH[case["schedule"]])
        p, v = case["p"], case["v"]
        orders = schedule.generate(p, case["m"], v)
        for rank, stages in enumerate(case["stages_of_rank"]):
            assert [schedule.stage_of(rank, chunk, p, v) for chunk in range(v)] == stages
            assert orders[rank] == torch_passes(case, rank), (case["schedule"], p, rank)
        for times, expected in case["eval_per_chunk_times"].items():
            forward_s, backward_s, weight_s = (1, 1, 1) if times.startswith("F=B=W") else (2.0, 2.2, 1.5)
            played = evaluate(orders, schedule, forward_s, backward_s, weight_s, float(times.split("c=")[1]))
            assert played.makespan_s == pytest.approx(expected["makespan"], abs=1e-6)
            assert played.span_s == pytest.approx(expected["longest_stage_span"], abs=1e-6)
            assert played.peak.tolist() == expected["peak_chunks_releaseW"]


def longest_path_makespan(
    orders: list[list[Pass]], schedule: Schedule, seconds: dict[str, Any], latency_s: float
) -> float:
    """The makespan as a longest path of networkx: nodes are starts and ends, edges durations and waits."""
    p, graph, last = len(orders), nx.DiGraph(), {}
    chunks = 1 + max(one.chunk for one in orders[0])
    where = {schedule.stage_of(r, c, p, chunks): r for r in range(p) for c in range(chunks)}
    for rank, passes in enumerate(orders):
        for kind, chunk, j, _ in passes:
            node = (kind, schedule.stage_of(rank, chunk, p, chunks), j)
            graph.add_edge((*node, "start"), (*node, "end"), weight=float(np.broadcast_to(
                seconds[kind], p * chunks)[node[1]]))
            if rank in last:
                graph.add_edge((*last[rank], "end"), (*node, "start"), weight=0.0)
            last[rank] = node
    for kind, stage, j, side in list(graph):
        needs = {"F": [("F", stage - 1)], "B": [("F", stage), ("B", stage + 1)], "W": [("B", stage)]}[kind]
        for source_kind, source in needs:
            if side == "start" and source in where:
                lag_s = latency_s if where[source] != where[stage] else 0.0
                graph.add_edge((source_kind, source, j, "end"), (kind, stage, j, "start"), weight=lag_s)
    return float(nx.dag_longest_path_length(graph))


def simple(name: str) -> bool:
    """Passes of kinds F, B and W alone, each for itself, in one direction."""
    schedule = schedules.get(name)
    kinds = {(one.kind in "FBW", one.joined) for passes in schedule.generate(4, 8) for one in passes}
    return schedule.routes == 1 and not schedule.barriers and kinds == {(True, False)}


@pytest.mark.parametrize("name", [name for name in schedules.names() if simple(name)])
def test_unequal_stages_against_a_longest_path(name: str) -> None:
    schedule, random = schedules.get(name), np.random.default_rng(1)
    v = schedule.least_chunks
    for p, m in ((1, 3), (2, 4), (3, 6), (4, 8)):
        forward_s, backward_s, weight_s = random.uniform(0.5, 2, (3, p * v))
        orders = schedule.generate(p, m, v)
        m = m * (2 if schedule.takes_segments else 1)
        played = evaluate(orders, schedule, forward_s, backward_s, weight_s, latency_s=0.3)
        whole = backward_s + (0.0 if schedule.splits_backward else weight_s)
        expected = longest_path_makespan(orders, schedule, {"F": forward_s, "B": whole, "W": weight_s}, 0.3)
        assert played.makespan_s == pytest.approx(expected, rel=1e-12)
        assert played.busy_s.sum() == pytest.approx(m * (forward_s + backward_s + weight_s).sum())


def split_by_hand() -> tuple[Schedule, list[list[Pass]]]:
    """ZB-H1 for two ranks and two micro-batches, written out (arXiv 2401.10241, figure 2)."""
    first = [Pass(k, 0, j) for k, j in (("F", 0), ("F", 1), ("B", 0), ("W", 0), ("B", 1), ("W", 1))]
    second = [Pass(k, 0, j) for k, j in (("F", 0), ("B", 0), ("F", 1), ("B", 1), ("W", 0), ("W", 1))]
    one_f_one_b = schedules.get("1f1b")
    schedule = Schedule("by-hand", "", "", one_f_one_b.order, one_f_one_b.bubble_s,
                        one_f_one_b.peak_in_flight, splits_backward=True)
    return schedule, [first, second]


def test_split_backward_with_memory_per_pass() -> None:
    schedule, orders = split_by_hand()
    played = evaluate(orders, schedule, 1.0, 1.0, 1.0, memory={"F": 1.0, "B": -0.5, "W": -0.5})
    assert played.makespan_s == 7  # F0 F1 . B0 W0 B1 W1 on rank 0: bubble (p - 1)(F + B - W) = 1
    assert played.peak.tolist() == [2.0, 1.5]
    assert evaluate(orders, schedule, 1.0, 1.0, 1.0).peak.tolist() == [2.0, 2.0]  # held until W by default
    assert longest_path_makespan(orders, schedule, dict.fromkeys("FBW", 1.0), 0.0) == 7


def test_groups_of_micro_batches_as_in_megatron() -> None:
    """m = 6 in groups of 4 on p = 2, v = 2: the rest of 2 goes as a last, smaller group."""
    schedule = schedules.get("interleaved-1f1b")
    orders = schedule.generate(2, 6, 2, group=4)
    forwards = [(one.chunk, one.micro_batch) for one in orders[1] if one.kind == "F"]
    assert forwards == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3),
                        (0, 4), (0, 5), (1, 4), (1, 5)]
    assert [one.kind for one in orders[1]][:6] == [*"FFFFFB"]  # (v - 1) group = 4 warm up
    for p, v, m in ((2, 2, 7), (3, 3, 11), (4, 2, 14)):
        for group in range(p, m + 1):
            if 0 < m % group < p:
                continue
            played = evaluate(schedule.generate(p, m, v, group), schedule, 1.0, 2.0)
            bubble_s = float(schedule.bubble_s(p, m, v, v * 1.0, v * 2.0))
            assert played.makespan_s == pytest.approx(3 * m * v + bubble_s)
            assert played.peak.tolist() == [schedule.peak_in_flight(p, r, m, v, group) for r in range(p)]


@pytest.mark.parametrize(("name", "setting", "message"), [
    ("interleaved-1f1b", {"micro_batches": 6, "chunks": 2}, "leave 2, less than .* 4; a group of 6"),
    ("interleaved-1f1b", {"micro_batches": 8, "chunks": 2, "group": 3}, "between the pipeline size 4"),
    ("interleaved-1f1b", {"micro_batches": 8, "chunks": 1}, "at least 2 chunks per rank .got 1"),
    ("1f1b", {"micro_batches": 8, "chunks": 2}, "takes 1 chunks per rank .got 2"),
    ("1f1b", {"micro_batches": 0}, "micro_batches must be at least 1 .got 0"),
    ("gpipe", {"micro_batches": 4, "group": 4}, "no micro-batch group")])
def test_settings_that_a_schedule_cannot_have(name: str, setting: dict[str, int], message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        schedules.get(name).generate(4, **setting)


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ScheduleError, match="'interleaved-1f1b'"):
        schedules.get("interleaved1f1b")


def test_orders_that_cannot_be_played_are_refused() -> None:
    schedule = schedules.get("1f1b")
    orders = schedule.generate(2, 2)
    with pytest.raises(ScheduleError, match=r"B of micro-batch 1 is missing on stage 0 \(rank 0\)"):
        evaluate([orders[0][:-1], orders[1]], schedule, 1.0, 1.0)
    with pytest.raises(ScheduleError, match="rank 0 runs F0 of chunk 0 twice"):
        evaluate([orders[0][:-1] + orders[0][:1], orders[1]], schedule, 1.0, 1.0)
    with pytest.raises(ScheduleError, match=r"can never be played.*stage 0 \(rank 0, pass 0\)"):
        evaluate([[orders[0][2], *orders[0][:2], orders[0][3]], orders[1]], schedule, 1.0, 1.0)
    with pytest.raises(ScheduleError, match="there is no F pass; it runs F, B"):
        evaluate([[Pass("W", 0, 0)]], schedule, 1.0, 1.0)
