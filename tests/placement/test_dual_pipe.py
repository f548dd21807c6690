"""DualPipe and DualPipeV against published results, torch's orders, the README's law and a second player."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from placement import schedules
from placement.schedules import Orders, Pass, Schedule, ScheduleError, evaluate
from placement.schedules.dual_pipe import readme_bubble_s
from placement.step import analytic_step
from simulator.engine import static
from simulator.training import lower
from tests.placement.test_schedules import published
from tests.training_cases import setting

NAMES = ["dualpipe", "dualpipe-v"]


def test_published_rows() -> None:
    names = {"dualpipe": "dualpipe", "dualpipev": "dualpipe-v"}
    with published("schedules.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["schedule"].split(" release=")[0] in names]
    assert len(rows) == 24
    for row in rows:
        name, release = row["schedule"].split(" release=")
        schedule = replace(schedules.get(names[name]), early=release == "op")
        orders = schedule.generate(int(row["p"]), int(row["m"]))
        played = evaluate(orders, schedule, *(float(row[key]) for key in ("F", "B", "W", "C")))
        assert played.makespan_s == float(row["asap_makespan_all_stages"]), row["id"]
        assert played.busy_s.tolist() == [float(row["ideal_busy"])] * int(row["p"]), row["id"]
        assert played.peak.tolist() == [float(peak) for peak in row["peak_mem_per_stage"].split()], row["id"]


def flattened(actions: list[str]) -> list[tuple[str, int, int]]:
    """(kind, stage, micro-batch) of torch's actions: I is a backward for the input, B a whole one (B and W here)."""
    found = []
    for action in actions:
        for part in action.removesuffix("OVERLAP_F_B").strip("()").split(";"):
            kind = next(letter for letter in part if letter.isalpha())
            stage, micro_batch = map(int, part.split(kind))
            found += [(letter, stage, micro_batch) for letter in {"I": "B", "B": "BW"}.get(kind, kind)]
    return found


def test_orders_of_torch() -> None:
    schedule = schedules.get("dualpipe-v")
    cases = [case for case in json.loads(published("torch_orders.json").read_text())["cases"]
             if case["schedule"] == "DualPipeV"]
    assert len(cases) == 2
    for case in cases:
        orders = schedule.generate(case["p"], case["m"])
        for rank, actions in enumerate(case["orders"]):
            stages = case["stages_of_rank"][rank]
            assert [schedule.stage_of(rank, chunk, case["p"], 2) for chunk in (0, 1)] == stages
            mine = [(one.kind, stages[one.chunk], one.micro_batch) for one in orders[rank]]
            assert mine == flattened([one for one in actions if one]), rank
        # torch runs a slot as a forward, then a whole backward: passes that leave at their own ends
        loose = [[one._replace(joined=one.joined and one.kind == "W") for one in order] for order in orders]
        for times, expected in case["eval_per_chunk_times"].items():
            seconds = (1.0, 1.0, 1.0) if times.startswith("F=B=W") else (2.0, 2.2, 1.5)
            played = evaluate(loose, schedule, *seconds, float(times.split("c=")[1]))
            assert played.makespan_s == pytest.approx(expected["makespan"], abs=1e-6)
            assert played.peak.tolist() == expected["peak_chunks_releaseW"]


@pytest.mark.parametrize("name", NAMES)
def test_readme_law_at_equal_times_and_memory_law(name: str) -> None:
    schedule = schedules.get(name)
    for p in (2, 4, 6, 8, 12):
        stages = 2 * p if name == "dualpipe-v" else p
        for m in (2 * p, 2 * p + 2, 4 * p):
            orders = schedule.generate(p, m)
            for tick_s in (1.0, 0.3):
                played = evaluate(orders, schedule, tick_s, tick_s, tick_s)
                bubble_s = played.makespan_s - played.busy_s.max()
                assert bubble_s == pytest.approx(readme_bubble_s(stages, tick_s, 2 * tick_s, tick_s)), (p, m)
            law = np.broadcast_to(schedule.peak_in_flight(p, np.arange(p), m, 2), p)
            assert played.peak.tolist() == law.tolist() == [stages + 1] * p


@pytest.mark.parametrize("name", NAMES)
def test_bubble_law_at_any_times(name: str) -> None:
    """Exact where W is no longer than B, a lower bound beyond, whatever the number of micro-batches."""
    schedule, random = schedules.get(name), np.random.default_rng(11)
    for p in (2, 4, 6, 8, 12):
        for m in (2 * p, 2 * p + 2, 5 * p):
            orders = schedule.generate(p, m)
            for forward_s, backward_s, weight_s in random.uniform(0.0, 4.0, (12, 3)):
                played = evaluate(orders, schedule, forward_s, backward_s, weight_s)
                runs = 1 if schedule.routes == 2 else 2
                times = (runs * forward_s, runs * (backward_s + weight_s), 0.0, runs * weight_s)
                law_s = float(schedule.bubble_s(p, m, 2, *times))
                bubble_s = played.makespan_s - float(played.busy_s.max())
                assert law_s <= bubble_s + 1e-9
                if weight_s <= backward_s:
                    assert bubble_s == pytest.approx(law_s, abs=1e-9), (p, m, forward_s, backward_s, weight_s)


@pytest.mark.parametrize(("times", "bubble_s", "readme_s"),
                         [((2, 3, 2), 16, 18), ((3, 4, 2), 24, 27), ((10, 11, 7), 72, 75)])
def test_readme_law_is_too_high_at_unequal_times(
    times: tuple[int, int, int], bubble_s: float, readme_s: float
) -> None:
    """The examples of the reference notes, section 2.9: p = 8, m = 20."""
    schedule, (forward_s, backward_s, weight_s) = schedules.get("dualpipe"), times
    played = evaluate(schedule.generate(8, 20), schedule, *times)
    assert played.makespan_s - played.busy_s.max() == bubble_s
    assert readme_bubble_s(8, forward_s, backward_s + weight_s, weight_s) == readme_s
    assert schedule.bubble_s is not None
    assert schedule.bubble_s(8, 20, 2, forward_s, backward_s + weight_s, 0.0, weight_s) == bubble_s


def played_by_slots(orders: Orders, schedule: Schedule, seconds: Callable[[Pass, int], float]) -> float:
    """The makespan, slot by slot: a slot starts when the rank is free and all its inputs are there."""
    p = len(orders)
    stages = 2 * p // schedule.routes
    ended: dict[tuple[str, int, int, int], float] = {}
    slots: list[list[list[Pass]]] = [[] for _ in orders]
    for rank, order in enumerate(orders):
        for one in order:
            slots[rank].append([one]) if not one.joined else slots[rank][-1].append(one)

    def key(kind: str, route: int, stage: int, micro_batch: int) -> tuple[str, int, int, int]:
        return kind, route if schedule.routes == 2 else 0, stage, micro_batch

    def needs(rank: int, one: Pass) -> list[tuple[str, int, int, int]]:
        stage = schedule.stage_of(rank, one.chunk, p, 2)
        if one.kind == "F" and stage:
            return [key("F", one.chunk, stage - 1, one.micro_batch)]
        if one.kind == "B":
            last = stage == stages - 1
            return [key("F" if last else "B", one.chunk, stage + (not last), one.micro_batch)]
        return []

    now, place = [0.0] * p, [0] * p
    while any(place[rank] < len(slots[rank]) for rank in range(p)):
        before = list(place)
        for rank in range(p):
            while place[rank] < len(slots[rank]):
                slot = slots[rank][place[rank]]
                inputs = [need for one in slot for need in needs(rank, one)]
                if any(need not in ended for need in inputs):
                    break
                now[rank] = max([now[rank], *(ended[need] for need in inputs)])
                ends = []
                for one in slot:
                    now[rank] += seconds(one, schedule.stage_of(rank, one.chunk, p, 2))
                    ends.append(now[rank])
                for one, end in zip(slot, ends, strict=True):
                    stage = schedule.stage_of(rank, one.chunk, p, 2)
                    ended[key(one.kind, one.chunk, stage, one.micro_batch)] = end if schedule.early else now[rank]
                place[rank] += 1
        assert place != before, "deadlock"
    return max(now)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("early", [False, True])
def test_unequal_stages_against_a_second_player(name: str, early: bool) -> None:
    schedule, random = replace(schedules.get(name), early=early), np.random.default_rng(3)
    for p, m in ((2, 4), (4, 8), (4, 14), (6, 12)):
        stages = 2 * p // schedule.routes
        times = {kind: random.uniform(0.5, 2.0, stages) for kind in "FBW"}
        orders = schedule.generate(p, m)
        played = evaluate(orders, schedule, times["F"], times["B"], times["W"])
        expected = played_by_slots(orders, schedule, lambda one, stage, of=times: float(of[one.kind][stage]))
        assert played.makespan_s == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("name", "p", "m", "message"), [
    ("dualpipe", 3, 8, "pipeline must be even .got 3; 4 would do"),
    ("dualpipe", 4, 9, "even number of at least 2 x 4 .got 9; 10 would do"),
    ("dualpipe", 4, 6, "at least 2 x 4 .got 6; 8 would do"),
    ("dualpipe-v", 4, 7, "at least 2 x 4 = 8 micro-batches .got 7")])
def test_settings_that_cannot_be_run(name: str, p: int, m: int, message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        schedules.get(name).generate(p, m)


@pytest.mark.parametrize(("name", "virtual"), [("dualpipe", 1), ("dualpipe-v", 2)])
def test_a_training_step(name: str, virtual: int) -> None:
    """Both fidelities agree; two copies of the model double what lies on a rank."""
    case = setting(pipeline=4, data=2, virtual=virtual, schedule=name, sharding="ddp")
    lowered = lower(case, 32)
    played = static.play(lowered.program)
    assert analytic_step(case, 32).step_time_s == pytest.approx(played.makespan_s, rel=0.05)
    single = static.play(lower(setting(pipeline=4, data=2, sharding="ddp"), 32).program)
    copies = 2.0 if name == "dualpipe" else 1.0
    for state in ("parameters", "optimizer"):
        held, once = (sum(one.peak(rank, "hbm")[1][state] for rank in range(4)) for one in (played, single))
        assert held == pytest.approx(copies * once)
