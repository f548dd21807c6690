"""Torch's schedules against ours: its own tables of orders, hand-made and brute-forced runs, and one real spawn."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from costmodel.calibration.ranks import has_torch
from placement.schedules import Orders, get
from placement.schedules.files import text_of
from simulator.real import sleeping
from simulator.real.sleeping import CASES, MORE_CASES, Case, Costs

FREE = Costs(0.0, 0.0, 0.0, 0.0)
PASS_S = {"F": 0.3, "I": 0.5, "W": 0.2}
GPIPE, ONE_F_ONE_B, INTERLEAVED, ZBV = CASES
needs_torch = pytest.mark.skipif(not has_torch(), reason="torch is not installed")


def played(case: Case, orders: Orders, pass_s: Mapping[str, float], hop_s: float = 0.0, between_s: float = 0.0,
           whole: frozenset[tuple[int, str]] = frozenset()) -> list[list[list[Any]]]:
    """[ranks][passes] as torch would note them, by brute force: whoever can start next does. `whole`: backwards (rank,
    text of their B) that run with their W in one."""
    schedule, ranks = get(case.ours), len(orders)
    last = ranks * case.chunks - 1
    ends: dict[tuple[str, int, int], tuple[float, int]] = {}
    result: list[list[list[Any]]] = [[] for _ in orders]
    places, free = [0] * ranks, [0.0] * ranks
    while any(place < len(order) for place, order in zip(places, orders, strict=True)):
        before = list(places)
        for rank, order in enumerate(orders):
            if places[rank] == len(order):
                continue
            one = order[places[rank]]
            stage = schedule.stage_of(rank, one.chunk, ranks, case.chunks)
            needs = {"F": [("F", stage - 1)] if stage else [],
                     "B": [("F", stage)] + ([("B", stage + 1)] if stage < last else []),
                     "W": [("B", stage)]}[one.kind]
            if any((kind, other, one.micro_batch) not in ends for kind, other in needs):
                continue
            there = [ends[kind, other, one.micro_batch] for kind, other in needs]
            start = max([free[rank], *(end + (hop_s if source != rank else 0.0) for end, source in there)])
            merged = one.kind == "B" and (not schedule.splits_backward or (rank, text_of(one)) in whole)
            kind = {"B": "B" if merged else "I"}.get(one.kind, one.kind)
            seconds = pass_s["I"] + pass_s["W"] if merged else pass_s["I" if one.kind == "B" else one.kind]
            end = start + seconds
            ends[one.kind, stage, one.micro_batch] = (end, rank)
            result[rank].append([kind, stage, one.micro_batch, start, end])
            free[rank] = end + between_s
            places[rank] += 2 if merged and schedule.splits_backward else 1
        assert places != before, "this order can never be played"
    return result


def document(case: Case, steps: Sequence[list[list[list[Any]]]], micro_batches: int, cost: Costs = FREE) -> Any:
    by_rank = [[step[rank] for step in steps] for rank in range(len(steps[0]))]
    return sleeping.compared(case, micro_batches, by_rank, PASS_S, cost)


@pytest.mark.parametrize("case", [*CASES, MORE_CASES[0]], ids=lambda case: case.ours)
@pytest.mark.parametrize(("ranks", "micro_batches"), [(2, 4), (3, 6), (4, 8)])
def test_a_perfect_run_is_simulated_exactly(case: Case, ranks: int, micro_batches: int) -> None:
    """Brute force plays our order with waiting between ranks and between passes; the comparison finds no error."""
    orders = get(case.ours).generate(ranks, micro_batches, case.chunks)
    for hop_s, between_s in ((0.0, 0.0), (0.05, 0.0), (0.05, 0.02)):
        found = document(case, [played(case, orders, PASS_S, hop_s, between_s)], micro_batches,
                         Costs(0.0, hop_s, 0.0, between_s))
        assert found["order_equal"]
        assert found["first_difference"] is None
        assert found["error"] == pytest.approx(0, abs=1e-9)
        assert found["bubble_simulated"] == pytest.approx(found["bubble_measured"], abs=1e-9)


def test_the_bubble_of_gpipe_is_the_one_of_its_law() -> None:
    """(p - 1)/(m + p - 1) of the makespan, arXiv 1811.06965, section 2.3."""
    makespan_s, bubble = sleeping.simulated(GPIPE, get("gpipe").generate(4, 8), PASS_S, FREE)
    assert makespan_s == pytest.approx(11 * 1.0)
    assert bubble == pytest.approx(3 / 11)


def test_a_message_asked_for_late_is_paid_by_schedules_of_one_stage_a_rank() -> None:
    """1F1B on 2 ranks, 1 micro-batch: F, F and B, B in a row, two of the four passes ask for a message."""
    orders = get("1f1b").generate(2, 1)
    turning = sleeping.simulated(ONE_F_ONE_B, orders, PASS_S, Costs(0.0, 0.0, 0.1, 0.0))[0]
    assert turning == pytest.approx(2 * (0.3 + 0.7) + 2 * 0.1)
    hopping = sleeping.simulated(ONE_F_ONE_B, orders, PASS_S, Costs(0.0, 0.4, 0.1, 0.0))[0]
    assert hopping == pytest.approx(2 * (0.3 + 0.7) + 2 * 0.4)  # who waits has asked already


def test_a_late_sleep_lengthens_every_pass_once() -> None:
    orders = get("gpipe").generate(1, 5)
    makespan_s, bubble = sleeping.simulated(GPIPE, orders, PASS_S, Costs(0.01, 0.0, 0.0, 0.0))
    assert makespan_s == pytest.approx(5 * 1.0 + 10 * 0.01)
    assert bubble == pytest.approx(0)


def test_the_first_pass_that_differs_is_named() -> None:
    orders = get("1f1b").generate(2, 4)
    orders[1][2], orders[1][4] = orders[1][4], orders[1][2]
    right = played(ONE_F_ONE_B, get("1f1b").generate(2, 4), PASS_S)
    swapped = [right[0], [right[1][i] for i in (0, 1, 4, 3, 2, 5, 6, 7)]]
    found = document(ONE_F_ONE_B, [right, swapped], 4)  # one bad step of two is enough
    assert not found["order_equal"]
    assert found["first_difference"] == "rank 1, pass 2: torch ran F2 of chunk 0, ours is F1 of chunk 0"


def test_a_pass_that_is_missing_is_a_difference() -> None:
    right = played(GPIPE, get("gpipe").generate(2, 3), PASS_S)
    found = document(GPIPE, [[right[0][:-1], right[1]]], 3)
    assert found["first_difference"] == "rank 0, pass 5: torch ran nothing, ours is B2 of chunk 0"


def test_a_whole_backward_of_a_split_schedule_lets_its_result_leave_at_its_end() -> None:
    """DualPipeV's pairs of B and W are one backward in torch: both notations are the same order."""
    case = MORE_CASES[1]
    orders = get(case.ours).generate(2, 4, 2)
    whole = frozenset((rank, text_of(one._replace(joined=False))) for rank, row in enumerate(orders)
                      for one, after in itertools.pairwise(row)
                      if one.kind == "B" and after.kind == "W" and after.joined)
    unjoined = [[one._replace(joined=False) for one in rank] for rank in orders]
    by_rank = played(case, unjoined, PASS_S, whole=whole)
    ran = sleeping.executed(by_rank, case)
    assert sleeping.first_difference(ran, orders) is None
    again = sleeping.whole_as_run(unjoined, ran)
    assert {one for rank in again for one in rank if one.joined} == {
        one for rank in orders for one in rank if one.joined and one.kind == "W"}
    assert sleeping.simulated(case, again, PASS_S, FREE)[0] == pytest.approx(sleeping.measured(by_rank)[0])


def test_spread_and_median_are_of_the_steps() -> None:
    orders = get("gpipe").generate(2, 2)
    steps = [played(GPIPE, orders, {kind: scale * seconds for kind, seconds in PASS_S.items()})
             for scale in (1.0, 1.2, 1.1)]
    found = document(GPIPE, steps, 2)
    assert found["measured_s"] == pytest.approx(3 * 1.1)
    assert found["spread"] == pytest.approx(0.2 / 1.1)
    assert found["error"] == pytest.approx(1 / 1.1 - 1)


def test_costs_pair_who_sent_with_who_received() -> None:
    def rank(sent: list[float], received: list[float], dispatch_s: float) -> dict[str, Any]:
        return {"probe": {"sent_s": sent, "received_s": received, "late_s": [0.1], "turn_s": [0.2]},
                "cases": [{"dispatch_s": dispatch_s}]}

    found = sleeping.costs([rank([1.0, 3.0], [2.5, 4.5], 0.3), rank([2.0, 4.0], [1.5, 3.5], 0.5),
                            rank([], [], 0.4)], 0)
    assert found == Costs(late_s=0.1, hop_s=0.5, turn_s=0.2, dispatch_s=pytest.approx(0.4))


def torch_table(case: Case, ranks: int, micro_batches: int) -> list[list[list[Any]]]:
    """The order of torch's own generator, as ranks would note it; the private module may go."""
    visual = pytest.importorskip("torch.distributed.pipelining._schedule_visualizer")
    letters = {"FORWARD": "F", "FULL_BACKWARD": "B", "BACKWARD_INPUT": "I", "BACKWARD_WEIGHT": "W"}
    rows = []
    for rank in visual.get_schedule_ops(case.torch, ranks, micro_batches, case.chunks):
        actions = [one for action in rank if action is not None for one in action.sub_actions or (action,)]
        rows.append([[letters[one.computation_type.name], one.stage_index, one.microbatch_index]
                     for one in actions if one.computation_type.name in letters])
    return rows


@needs_torch
@pytest.mark.parametrize("case", [*(case for case in (*CASES, *MORE_CASES) if case is not ONE_F_ONE_B),
                                  Case("interleaved-1f1b", "Interleaved1F1B", 3),
                                  Case("interleaved-bfs", "LoopedBFS", 4)],
                         ids=lambda case: f"{case.ours}-{case.chunks}")
@pytest.mark.parametrize(("ranks", "micro_batches"), [(2, 4), (2, 8), (3, 9), (4, 8), (4, 16), (6, 12), (8, 16)])
def test_torchs_own_tables_have_our_orders(case: Case, ranks: int, micro_batches: int) -> None:
    found = sleeping.executed(torch_table(case, ranks, micro_batches), case)
    assert sleeping.first_difference(found, get(case.ours).generate(ranks, micro_batches, case.chunks)) is None


@needs_torch
@pytest.mark.parametrize(("ranks", "micro_batches"), [(2, 4), (3, 7), (4, 8), (8, 16)])
def test_torchs_table_of_1f1b_has_our_order(ranks: int, micro_batches: int) -> None:
    """But for the last rank, whose forwards the table of torch 2.13 counts from 1 (what it runs does not)."""
    table = torch_table(ONE_F_ONE_B, ranks, micro_batches)
    first = min(number for kind, _, number in table[-1] if kind == "F")
    table[-1] = [[kind, stage, number - first if kind == "F" else number] for kind, stage, number in table[-1]]
    found = sleeping.executed(table, ONE_F_ONE_B)
    assert sleeping.first_difference(found, get("1f1b").generate(ranks, micro_batches)) is None


@needs_torch
def test_real_ranks_run_our_orders() -> None:
    """No sleep ends early, so that no makespan is below that of passes alone; how far above is not judged here."""
    cases, pass_s = (*CASES, *MORE_CASES), {"F": 0.004, "I": 0.005, "W": 0.003}
    documents = sleeping.run(2, cases, repeats=1, pass_s=pass_s, micro_batches=4)
    for case, found in zip(cases, documents, strict=True):
        assert found["order_equal"], found["first_difference"]
        assert (found["schedule"], found["ranks"], found["micro_batches"]) == (case.ours, 2, 4)
        orders = get(case.ours).generate(2, 4, case.chunks)
        alone_s = max(sum(pass_s[{"B": "I"}.get(one.kind, one.kind)] for one in rank) for rank in orders)
        assert found["measured_s"] >= alone_s
        assert 0 < found["bubble_measured"] < 1
        assert all(seconds > 0 for seconds in found["costs"].values())
