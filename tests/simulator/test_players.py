"""Programs and their two players: against each other, a brute-force longest path, and cases by hand."""

from __future__ import annotations

import sys
import time

import networkx as nx
import numpy as np
import pytest

from placement.schedules import play as kernel
from simulator.engine import dynamic, static
from simulator.program import Program, ProgramBuilder, ProgramError


def random_program(seed: int, tasks: int = 30, streams: int = 5, shared_link: bool = False) -> Program:
    """A random program whose tasks are added stream by stream, so not in a topological order.

    A hidden order makes it acyclic. Some tasks are on a link: one of their stream's own, which changes
    nothing, or one that all share.
    """
    random = np.random.default_rng(seed)
    build = ProgramBuilder()
    names = ["compute" if s % 2 == 0 else "network" for s in range(streams)]
    indices = [build.stream(s // 2, name, weight=1.0 + s // 2) for s, name in enumerate(names)]
    profiles = [build.profile({"gemm": 2.0, "attention": 1.0}), build.profile({"data": 1.0})]
    links = [build.link(f"link {s}", 10.0) for s in range(1 if shared_link else streams)]
    stream_of = np.sort(random.integers(streams, size=tasks))
    hidden = random.permutation(tasks)  # place of each task in the hidden order
    for first in range(streams):  # a stream runs its tasks in the hidden order
        mine = np.flatnonzero(stream_of == first)
        hidden[mine] = np.sort(hidden[mine])
    for task, stream in enumerate(stream_of.tolist()):
        duration_s = float(random.choice([0.0, random.uniform(0.1, 3.0)], p=[0.1, 0.9]))
        link, work_bytes = -1, 0.0
        if random.random() < 0.4:
            link, work_bytes = links[stream % len(links)], 10.0 * duration_s * random.uniform(0.3, 1.0)
        index = build.task(indices[stream], f"task {task}", profiles[stream % 2], duration_s, link=link,
                           work_bytes=work_bytes)
        size_bytes = float(random.integers(1, 100))
        build.memory(index, "start", stream // 2, "hbm", f"state {task % 3}", size_bytes)
        build.memory(index, "end", stream // 2, "hbm", f"state {task % 3}", -size_bytes)
    for _ in range(2 * tasks):
        one, other = random.integers(tasks, size=2).tolist()
        if hidden[one] < hidden[other]:
            build.add_dependency(other, one, float(random.choice([0.0, random.uniform(0, 1.0)])))
    for stream in range(streams):
        build.resident(stream // 2, "hbm", "parameters", 1000.0)
    return build.build()


def waits(program: Program) -> list[tuple[int, int, float]]:
    """(task, waited for, lag) of all dependencies and stream predecessors."""
    edges = [(task, int(before), 0.0) for task, before in enumerate(program.previous) if before >= 0]
    for task in range(len(program)):
        for edge in range(program.dependency_offsets[task], program.dependency_offsets[task + 1]):
            edges.append((task, int(program.dependency_task[edge]), float(program.dependency_lag_s[edge])))
    return edges


def test_the_two_players_agree_on_1000_uncontended_programs() -> None:
    for seed in range(1000):
        program = random_program(seed, tasks=5 + seed % 40, streams=1 + seed % 6)
        fixed, simulated = static.play(program), dynamic.play(program)
        np.testing.assert_allclose(simulated.start_s, fixed.start_s, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(simulated.end_s, fixed.end_s, rtol=1e-12, atol=1e-12)


def test_starts_are_the_longest_of_all_paths() -> None:
    """Every path of a small program enumerated: a start is the greatest sum of durations and lags to it."""
    for seed in range(40):
        program = random_program(seed, tasks=8, streams=3)
        start_s, graph = static.play(program).start_s, nx.DiGraph()
        graph.add_nodes_from(range(len(program)))
        for task, before, lag_s in waits(program):
            known = graph.get_edge_data(before, task, {"lag_s": 0.0})["lag_s"]
            graph.add_edge(before, task, lag_s=max(known, lag_s))
        for task in graph:
            sources = [source for source in graph if source != task]
            paths = [[task], *(path for one in sources for path in nx.all_simple_paths(graph, one, task))]
            longest_s = max(
                sum(program.duration_s[a] + graph.edges[a, b]["lag_s"] for a, b in nx.utils.pairwise(path))
                for path in paths
            )
            assert start_s[task] == pytest.approx(longest_s, rel=1e-12, abs=1e-12)


def test_large_programs_against_networkx() -> None:
    program = random_program(7, tasks=2000, streams=9)
    graph = nx.DiGraph()
    for task in range(len(program)):
        graph.add_edge(("start", task), ("end", task), weight=program.duration_s[task])
    for task, before, lag_s in waits(program):
        known = graph.get_edge_data(("end", before), ("start", task), {"weight": 0.0})["weight"]
        graph.add_edge(("end", before), ("start", task), weight=max(lag_s, known))
    assert static.play(program).makespan_s == pytest.approx(nx.dag_longest_path_length(graph), rel=1e-12)


def test_plain_python_gives_the_same_bits_as_numba() -> None:
    pytest.importorskip("numba", reason="numba is not installed: there is only one path")
    for seed in range(50):
        program = random_program(seed, tasks=200, streams=7)
        plain, compiled = static.play(program, compiled=False), static.play(program, compiled=True)
        assert plain.start_s.tobytes() == compiled.start_s.tobytes()
        assert plain.end_s.tobytes() == compiled.end_s.tobytes()
        columns = (program.previous, program.dependency_offsets, program.dependency_task)
        orders = [kernel.topological_order(*columns, compiled=flag) for flag in (False, True)]
        assert orders[0].tobytes() == orders[1].tobytes()


def test_numba_may_be_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = static.play(random_program(3))
    monkeypatch.setitem(sys.modules, "numba", None)
    kernel._compile.cache_clear()
    try:
        program = random_program(3)
        assert static.play(program).end_s.tobytes() == expected.end_s.tobytes()
        with pytest.raises(RuntimeError, match="numba is not installed"):
            static.play(program, compiled=True)
    finally:
        kernel._compile.cache_clear()


@pytest.mark.parametrize(("compiled", "limit_s"), [(None, 1.0), (False, 2.5)])
def test_50000_tasks_are_built_and_played_fast(compiled: bool | None, limit_s: float) -> None:
    if compiled is None:
        pytest.importorskip("numba", reason="numba is not installed")
        static.play(random_program(0))

    def once() -> float:
        began = time.process_time()
        build = ProgramBuilder()
        streams = [build.stream(rank, "compute") for rank in range(50)]
        profile = build.profile({"gemm": 1.0})
        for task in range(50_000):
            after = (task - 50, task - 49) if task >= 50 else ()
            build.task(streams[task % 50], "pass", profile, 1.0, after, 0.1)
        assert static.play(build.build(), compiled).makespan_s > 1000
        return time.process_time() - began

    assert min(once() for _ in range(2)) < limit_s


def transfers(bandwidth: float, *moves: tuple[float, float, float]) -> list[float]:
    """Ends of transfers (begin_s, bytes, seconds when alone), each on its own stream, over one link."""
    build = ProgramBuilder()
    link, profile = build.link("wire", bandwidth), build.profile({"data": 1.0})
    for i, (begin_s, work_bytes, alone_s) in enumerate(moves):
        stream = build.stream(i, "network")
        idle = build.task(stream, "wait", profile, begin_s)
        build.task(stream, "move", profile, alone_s, [idle], link=link, work_bytes=work_bytes)
    return dynamic.play(build.build()).end_s[1::2].tolist()


@pytest.mark.parametrize(("moves", "ends_s"), [
    ([(0, 100, 10), (0, 100, 10)], [20, 20]),  # halves
    ([(0, 100, 10), (5, 100, 10)], [15, 20]),  # 50 left at 5, halves until 15, then B alone
    ([(0, 100, 10), (10, 100, 10)], [10, 20]),  # one after the other: never shared
    ([(0, 100, 50), (0, 80, 8)], [50, 10]),  # A never moves faster than 2: B gets 8
    ([(0, 100, 50), (0, 40, 4), (0, 40, 4)], [50, 10, 10]),  # the 8 that A leaves, in halves
    ([(0, 30, 3), (0, 60, 6), (0, 90, 9)], [9, 15, 18]),  # thirds, halves, all
    ([(0, 100, 10), (2, 0, 0), (2, 0, 3)], [10, 2, 5]),  # no bytes: nothing to share
])
def test_a_link_is_shared_max_min_fairly(
    moves: list[tuple[float, float, float]], ends_s: list[float]
) -> None:
    assert transfers(10.0, *moves) == pytest.approx(ends_s, rel=1e-12)


def test_fair_rates_are_max_min_fair() -> None:
    """None above its limit; link full or all at their limits; who is below its limit gets the most."""
    random = np.random.default_rng(5)
    for _ in range(300):
        limits = random.uniform(0.1, 5.0, random.integers(1, 8))
        bandwidth = float(random.uniform(0.5, 12.0))
        rates = np.array(dynamic.fair_rates(limits.tolist(), bandwidth))
        held_back = rates < limits * (1 - 1e-12)
        assert (rates <= limits * (1 + 1e-12)).all()
        assert rates.sum() == pytest.approx(min(bandwidth, limits.sum()))
        assert rates[held_back] == pytest.approx(rates.max()) if held_back.any() else True


def test_sharing_keeps_the_link_busy_and_only_delays() -> None:
    for seed in range(100):
        random = np.random.default_rng(seed)
        sizes = random.uniform(1, 50, 6)
        ends_s = transfers(10.0, *((0.0, size, size / 10) for size in sizes))
        assert max(ends_s) == pytest.approx(sizes.sum() / 10)
        assert np.argsort(ends_s).tolist() == np.argsort(sizes).tolist()
        program = random_program(seed, shared_link=True)
        alone, shared = static.play(program), dynamic.play(program)
        assert (shared.start_s >= alone.start_s - 1e-9).all()
        assert (shared.end_s - shared.start_s >= program.duration_s - 1e-9).all()
        for task, before, lag_s in waits(program):
            assert shared.start_s[task] >= shared.end_s[before] + lag_s - 1e-9


def two_tasks() -> tuple[ProgramBuilder, int, int]:
    build = ProgramBuilder()
    stream, profile = build.stream(0, "compute"), build.profile({"gemm": 1.0})
    return build, build.task(stream, "first", profile, 1.0), build.task(stream, "second", profile, 1.0)


def test_every_dependency_keeps_its_own_lag() -> None:
    """Added against the order of the tasks, on tasks added before what they wait for."""
    build = ProgramBuilder()
    profile = build.profile({"gemm": 1.0})
    late, early, source = (build.task(build.stream(i, "compute"), "", profile, 1.0) for i in range(3))
    build.add_dependency(early, source, 2.0)
    build.add_dependency(late, source, 5.0)
    build.add_dependency(late, early, 0.5)
    for player in (static.play, dynamic.play):
        assert player(build.build()).start_s.tolist() == [6.0, 3.0, 0.0]


def test_a_cycle_is_refused_by_name() -> None:
    build, first, second = two_tasks()
    build.add_dependency(first, second)  # against the order of the stream
    with pytest.raises(ProgramError, match=r"in a circle: '(first|second)' <- '(first|second)' <- '"):
        build.build()


def test_bad_indices_and_numbers_are_refused() -> None:
    def refuse(message: str, **task: float) -> None:
        build, first, _ = two_tasks()
        link = build.link("wire", 10.0)
        given = {"stream": 0, "label": "bad", "profile": 0, "duration_s": 1.0, "after": [first], **task}
        if given.get("link") == "wire":
            given["link"] = link
        build.task(**given)
        with pytest.raises(ProgramError, match=message):
            build.build()

    refuse("stream of a task: there is no index 1", stream=1)
    refuse("profile of a task: there is no index 3", profile=3)
    refuse("link of a task: there is no index 5", link=5)
    refuse("source task of a dependency: there is no index 9", after=[9])
    refuse("duration_s must be finite and not negative .got -1", duration_s=-1.0)
    refuse("duration_s must be finite", duration_s=float("nan"))
    refuse("lag_s must be finite", lag_s=float("inf"))
    refuse("'bad' takes 1.0 s alone, too short for 20.0 bytes on link 'wire'", link="wire", work_bytes=20.0)
    build, _, _ = two_tasks()
    with pytest.raises(ProgramError, match="when must be"):
        build.memory(0, "middle", 0, "hbm", "gradients", 1.0)
    with pytest.raises(ProgramError, match=r"weight 1\.0, not 2\.0"):
        build.stream(0, "compute", 2.0)
    with pytest.raises(ProgramError, match="seconds >= 0"):
        build.profile({"gemm": -1.0})


def test_profiles_and_streams_are_kept_once() -> None:
    build = ProgramBuilder()
    assert build.stream(0, "compute") == build.stream(0, "compute") != build.stream(1, "compute")
    assert build.profile({"gemm": 1.0, "attention": 1.0}) == build.profile({"gemm": 0.25, "attention": 0.25})
    assert build.profile({"gemm": 1.0}) == build.profile({"gemm": 0.0}) != build.profile({"data": 1.0})


def test_an_empty_program_takes_no_time() -> None:
    build = ProgramBuilder()
    build.stream(0, "compute")
    build.resident(0, "hbm", "parameters", 5.0)
    for timeline in (static.play(build.build()), dynamic.play(build.build())):
        assert timeline.makespan_s == 0.0
        assert timeline.breakdown(0) == {}
        assert timeline.peak(0, "hbm") == (5.0, {"parameters": 5.0}, 0.0)
