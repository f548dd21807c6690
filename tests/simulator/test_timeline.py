"""What a timeline says: breakdowns that add up and name the right cause, memory that is conserved."""

from __future__ import annotations

import math

import numpy as np
import pytest

from placement import schedules
from simulator.engine import dynamic, static
from simulator.program import ProgramBuilder
from simulator.timeline import BUBBLE, LATENCY, Timeline
from tests.simulator.test_players import random_program


def contended_and_not(seed: int) -> list[Timeline]:
    shared = random_program(seed, 60, 6, shared_link=True)
    return [static.play(random_program(seed, 60, 6)), dynamic.play(shared)]


def test_breakdowns_add_up_to_the_makespan() -> None:
    for seed in range(200):
        for timeline in contended_and_not(seed):
            for rank in timeline.program.ranks:
                parts = timeline.breakdown(rank)
                assert math.fsum(parts.values()) == pytest.approx(timeline.makespan_s, rel=1e-12)
                assert min(parts.values()) >= 0
            mean = timeline.mean_breakdown()
            assert math.fsum(mean.values()) == pytest.approx(timeline.makespan_s, rel=1e-12)


def test_compute_categories_hold_the_busy_time() -> None:
    """No network stream has "gemm" or "attention", so these are exactly the compute stream's work."""
    for seed in range(50):
        for timeline in contended_and_not(seed):
            for index, stream in enumerate(timeline.program.streams):
                if stream.name == "compute":
                    parts = timeline.breakdown(stream.rank)
                    work_s = parts.get("gemm", 0.0) + parts.get("attention", 0.0)
                    assert work_s == pytest.approx(timeline.busy_s(index), rel=1e-12)
                    assert parts.get("gemm", 0.0) == pytest.approx(2 * parts.get("attention", 0.0))


def two_ranks() -> Timeline:
    """Rank 0 computes [0, 2) and [2, 2.6), sends [2, 3); 0.5 later rank 1 computes [3.5, 6.5)."""
    build = ProgramBuilder()
    gemm, send = build.profile({"gemm": 3.0, "attention": 1.0}), build.profile({"pipeline": 1.0})
    first, network = build.stream(0, "compute", 3), build.stream(0, "send", 3)
    second = build.stream(1, "compute")
    produce = build.task(first, "F0", gemm, 2.0)
    move = build.task(network, "send", send, 1.0, [produce])
    build.task(first, "more", gemm, 0.6)
    build.task(second, "F1", gemm, 3.0, [move], lag_s=0.5)
    return static.play(build.build())


def test_gaps_are_charged_to_what_was_waited_for() -> None:
    timeline = two_ranks()
    assert timeline.makespan_s == 6.5
    assert timeline.breakdown(1) == pytest.approx(
        {BUBBLE: 2.0, "pipeline": 1.0, LATENCY: 0.5, "gemm": 2.25, "attention": 0.75})
    assert timeline.breakdown(0) == pytest.approx(  # of the send, 0.4 is not covered by the rank's own work
        {BUBBLE: 3.0, "pipeline": 0.4, LATENCY: 0.5, "gemm": 1.95, "attention": 0.65})
    assert timeline.mean_breakdown() == pytest.approx(  # rank 0 stands for three
        {BUBBLE: 2.75, "pipeline": 0.55, LATENCY: 0.5, "gemm": 2.025, "attention": 0.675})
    assert timeline.bubble_fraction == pytest.approx(2.75 / 6.5)
    assert timeline.span_s(0) == pytest.approx(2.6)


def test_only_the_latest_of_several_causes_is_charged() -> None:
    """Ranks 1 and 2 wait [0, 4) for rank 0's pass and two transfers; the one that ends last began at 1."""
    build = ProgramBuilder()
    gemm, data, expert = (build.profile({name: 1.0}) for name in ("gemm", "data", "expert"))
    produce = build.task(build.stream(0, "compute"), "F0", gemm, 1.0)
    quick = build.task(build.stream(0, "data"), "reduce", data, 2.0, [produce])
    slow = build.task(build.stream(0, "expert"), "dispatch", expert, 3.0, [produce])
    for rank, after in ((1, [produce, quick, slow]), (2, [slow, quick, produce])):
        build.task(build.stream(rank, "compute"), "F1", gemm, 1.0, after)
    timeline = static.play(build.build())
    assert timeline.breakdown(1) == timeline.breakdown(2) == {"expert": 3.0, BUBBLE: 1.0, "gemm": 1.0}


def test_where_stream_and_dependency_tie_the_dependency_is_charged() -> None:
    """The second send could start at 2 for two reasons: the first send and rank 0's second pass end then."""
    build = ProgramBuilder()
    gemm, data = build.profile({"gemm": 1.0}), build.profile({"data": 1.0})
    compute, network = build.stream(0, "compute"), build.stream(0, "send")
    first = build.task(compute, "F0", gemm, 1.0)
    second = build.task(compute, "F1", gemm, 1.0)
    build.task(network, "send 0", data, 1.0, [first])
    move = build.task(network, "send 1", data, 1.0, [second])
    build.task(build.stream(1, "compute"), "F1", gemm, 1.0, [move])
    assert static.play(build.build()).breakdown(1) == {BUBBLE: 2.0, "data": 1.0, "gemm": 1.0}


def test_a_rank_without_compute_waits_for_all() -> None:
    build = ProgramBuilder()
    build.stream(1, "network")
    build.task(build.stream(0, "compute"), "work", build.profile({"gemm": 1.0}), 2.0)
    assert static.play(build.build()).breakdown(1) == {BUBBLE: 2.0}


@pytest.mark.parametrize(("name", "p", "m", "v"), [
    ("gpipe", 4, 8, 1), ("1f1b", 4, 8, 1), ("1f1b", 8, 16, 1), ("interleaved-1f1b", 4, 8, 2),
    ("interleaved-bfs", 4, 8, 3)])
def test_a_lowered_schedule_has_the_bubble_and_memory_of_its_law(name: str, p: int, m: int, v: int) -> None:
    """Built task by task: the bubble on every rank, the peak in flight, and all of it given back."""
    schedule, build = schedules.get(name), ProgramBuilder()
    seconds = {"F": 1.0, "B": 2.0}
    profiles = {"F": build.profile({"forward": 1.0}), "B": build.profile({"backward": 1.0})}
    task = {}
    for rank, passes in enumerate(schedule.generate(p, m, v)):
        stream = build.stream(rank, "compute")
        for kind, chunk, j, _ in passes:
            stage = schedule.stage_of(rank, chunk, p, v)
            index = build.task(stream, f"{kind}{j}", profiles[kind], seconds[kind])
            task[kind, stage, j] = index
            when, sign = ("start", 1) if kind == "F" else ("end", -1)
            build.memory(index, when, rank, "hbm", "activations", sign * 7.0)
    for (kind, stage, j), index in task.items():
        for source in [("F", stage - 1)] if kind == "F" else [("F", stage), ("B", stage + 1)]:
            if (*source, j) in task:
                build.add_dependency(index, task[*source, j])
    timeline = static.play(build.build())
    bubble_s = schedule.bubble_s(p, m, v, v * 1.0, v * 2.0)
    for rank in range(p):
        assert timeline.breakdown(rank) == pytest.approx(
            {"forward": m * v, "backward": 2 * m * v, BUBBLE: float(bubble_s)})
        assert timeline.peak(rank, "hbm")[0] == 7 * schedule.peak_in_flight(p, rank, m, v)
        assert timeline.memory_series(rank, "hbm")[1]["activations"][-1] == 0


def test_memory_is_conserved_and_its_peak_is_the_sum_of_what_is_alive() -> None:
    """Random programs take at each start and give back at each end: a brute force over the tasks alive."""
    for seed in range(60):
        for timeline in contended_and_not(seed):
            program, memory = timeline.program, timeline.program.memory
            taken = np.zeros(len(program))
            taken[memory.task[(memory.task >= 0) & (memory.at_end == 0)]] = memory.size_bytes[
                (memory.task >= 0) & (memory.at_end == 0)]
            rank_of = np.array([stream.rank for stream in program.streams])[program.stream]
            for rank in program.ranks:
                times_s, series = timeline.memory_series(rank, "hbm")
                mine = rank_of == rank
                resident = series["parameters"][0]
                assert resident == 1000.0 * sum(stream.rank == rank for stream in program.streams)
                assert {state: part[-1] for state, part in series.items()} == {
                    state: resident if state == "parameters" else 0.0 for state in series}
                assert (np.diff(times_s) >= 0).all()
                alive = [taken[mine & (timeline.start_s <= now) & (timeline.end_s > now)].sum()
                         for now in timeline.start_s[mine]]
                peak_bytes, by_state, at_s = timeline.peak(rank, "hbm")
                assert peak_bytes == resident + max(alive, default=0.0) == sum(by_state.values())
                assert at_s in times_s


def test_what_ends_gives_back_before_what_starts_takes() -> None:
    build = ProgramBuilder()
    stream, profile = build.stream(0, "compute"), build.profile({"gemm": 1.0})
    for _ in range(3):
        task = build.task(stream, "pass", profile, 1.0)
        build.memory(task, "start", 0, "hbm", "activations", 10.0)
        build.memory(task, "end", 0, "hbm", "activations", -10.0)
    build.memory(1, "start", 0, "host", "activations", 4.0)
    build.resident(0, "hbm", "parameters", 3.0)
    timeline = static.play(build.build())
    assert timeline.peak(0, "hbm") == (13.0, {"activations": 10.0, "parameters": 3.0}, 0.0)
    times_s, series = timeline.memory_series(0, "hbm")
    assert times_s.tolist() == [0, 0, 1, 1, 2, 2, 3]
    assert series["activations"].tolist() == [0, 10, 0, 10, 0, 10, 0]
    assert timeline.peak(0, "host") == (4.0, {"activations": 4.0}, 1.0)
    assert timeline.peak(0, "nvme") == (0.0, {}, 0.0)
