"""Torch's own pipeline schedules with sleep in place of compute, against ours: order, makespan and bubble.

Sleeping frees the cores, so that more ranks than cores keep time and other load is hardly felt; what is real are
torch's runtime, its order of passes and its sends. What an operation costs there is measured in the same spawn, apart
from the runs that are judged (`Costs`), and our order is played with it.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from costmodel.calibration import ranks as real_ranks
from placement.schedules import Orders, Pass, evaluate, get

WORKER = "simulator.real.sleep_worker"
PASS_S = {"F": 0.020, "I": 0.024, "W": 0.016}  # unlike each other, so that no two passes can be taken for one another
WIDTH = 64  # numbers in a message of 4 bytes each
MICRO_BATCHES = {2: 4, 4: 8}  # at least 2 p, which DualPipeV needs
REPEATS, PROBES = 3, 25
TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Case:
    """A schedule by our name and by torch's, with chunks a rank."""

    ours: str
    torch: str
    chunks: int


CASES = (
    Case("gpipe", "GPipe", 1),
    Case("1f1b", "1F1B", 1),
    Case("interleaved-1f1b", "Interleaved1F1B", 2),
    Case("zbv", "ZBVZeroBubble", 2),
)
MORE_CASES = (
    Case("interleaved-bfs", "LoopedBFS", 2),
    Case("dualpipe-v", "DualPipeV", 2),
)


@dataclass(frozen=True)
class Costs:
    """Seconds that torch and the machine add to what a pass sleeps.

    `late_s`: how long after its deadline a sleep ends. `hop_s`: from the end of a sleep on one rank to a message on
    another that waits for it. `turn_s`: from asking for a message to having it where it was sent long before (gloo
    moves it once both sides have asked). `dispatch_s`: CPU time of the runtime for a pass, its sends and receives.
    """

    late_s: float
    hop_s: float
    turn_s: float
    dispatch_s: float


def run(ranks: int, cases: Sequence[Case] = CASES, repeats: int = REPEATS, pass_s: Mapping[str, float] = PASS_S,
        micro_batches: int | None = None, tell: Callable[[str], None] | None = None) -> list[dict[str, Any]]:
    """One document for each case, of `repeats` steps on this many ranks (2 or more), all in one spawn.

    `pass_s`: seconds of F, I (backward for the input) and W of a chunk. Raises RanksError without torch and where a
    rank dies or hangs, ScheduleError for a setting that a schedule does not have.
    """
    count = MICRO_BATCHES.get(ranks, 2 * ranks) if micro_batches is None else micro_batches
    job = {
        "device": "cpu", "width": WIDTH, "probes": PROBES, "repeats": repeats,
        "pass_s": {**pass_s, "B": pass_s["I"] + pass_s["W"]},
        "cases": [{"torch": case.torch, "micro_batches": count, "stages": stages(case, ranks)} for case in cases],
    }
    found = real_ranks.launch(WORKER, job, ranks, timeout_s=TIMEOUT_S, tell=tell)
    return [compared(case, count, [rank["cases"][number]["steps"] for rank in found], pass_s, costs(found, number))
            for number, case in enumerate(cases)]


def stages(case: Case, ranks: int) -> list[list[int]]:
    """[ranks][chunks]: the stage, in model order, that is this rank's chunk."""
    schedule = get(case.ours)
    return [[schedule.stage_of(rank, chunk, ranks, case.chunks) for chunk in range(case.chunks)]
            for rank in range(ranks)]


def costs(found: Sequence[Mapping[str, Any]], number: int) -> Costs:
    """Medians of what the ranks measured; `number` is that of the case whose dispatch counts."""
    probes = [rank["probe"] for rank in found]
    hops_s = [received - sent for rank, probe in enumerate(probes) if rank ^ 1 < len(probes)  # one clock for all
              for sent, received in zip(probe["sent_s"], probes[rank ^ 1]["received_s"], strict=True)]

    def median_s(name: str) -> float:
        return float(np.median([seconds for probe in probes for seconds in probe[name]]))

    dispatch_s = statistics.mean(rank["cases"][number]["dispatch_s"] for rank in found)
    return Costs(median_s("late_s"), statistics.median(hops_s), median_s("turn_s"), dispatch_s)


def compared(case: Case, micro_batches: int, steps: Sequence[Sequence[Sequence[Sequence[Any]]]],
             pass_s: Mapping[str, float], cost: Costs) -> dict[str, Any]:
    """The document of a case: `steps` [ranks][steps][passes] of (kind, stage, micro-batch, start, end) as torch ran.

    Makespans go from the first start to the last end of a pass over all ranks. `spread` is the largest less the
    smallest of them over the median, `error` what ours is too long (+) or too short, both as shares.
    """
    ranks, schedule = len(steps), get(case.ours)
    ours = schedule.generate(ranks, micro_batches, case.chunks)
    run_orders = [executed([rank[step] for rank in steps], case) for step in range(len(steps[0]))]
    difference = next((text for orders in run_orders if (text := first_difference(orders, ours))), None)
    found = [measured([rank[step] for rank in steps]) for step in range(len(steps[0]))]
    makespans_s, bubbles = [makespan_s for makespan_s, _ in found], [bubble for _, bubble in found]
    measured_s = statistics.median(makespans_s)
    simulated_s, bubble = simulated(case, whole_as_run(ours, run_orders[0]), pass_s, cost)
    return {
        "schedule": case.ours, "torch": case.torch, "ranks": ranks, "chunks": case.chunks,
        "micro_batches": micro_batches, "order_equal": difference is None, "first_difference": difference,
        "measured_s": measured_s, "spread": (max(makespans_s) - min(makespans_s)) / measured_s,
        "simulated_s": simulated_s, "error": simulated_s / measured_s - 1,
        "bubble_measured": statistics.median(bubbles), "bubble_simulated": bubble,
        "costs": asdict(cost),
    }


def executed(passes: Sequence[Sequence[Sequence[Any]]], case: Case) -> Orders:
    """What ranks ran, [ranks][passes], in our notation; a whole backward of a schedule that splits it is B and a W
    `joined` to it."""
    splits = get(case.ours).splits_backward
    chunk_of = [{stage: chunk for chunk, stage in enumerate(own)} for own in stages(case, len(passes))]
    orders: Orders = []
    for of_stage, rank in zip(chunk_of, passes, strict=True):
        row: list[Pass] = []
        for kind, stage, micro_batch, *_ in rank:
            row.append(Pass("B" if kind == "I" else kind, of_stage[stage], micro_batch))
            if kind == "B" and splits:
                row.append(Pass("W", of_stage[stage], micro_batch, joined=True))
        orders.append(row)
    return orders


def first_difference(found: Orders, expected: Orders) -> str | None:
    """The first pass of the first rank that differs, in words; None where the orders are the same."""
    for rank, (of_torch, of_ours) in enumerate(zip(found, expected, strict=True)):
        for place, (ran, ours) in enumerate(itertools.zip_longest(of_torch, of_ours)):
            if ran is None or ours is None or ran[:3] != ours[:3]:
                return f"rank {rank}, pass {place}: torch ran {_named(ran)}, ours is {_named(ours)}"
    return None


def _named(one: Pass | None) -> str:
    return "nothing" if one is None else f"{one.kind}{one.micro_batch} of chunk {one.chunk}"


def whole_as_run(ours: Orders, found: Orders) -> Orders:
    """Ours with those W joined to the pass before that torch ran as one with it: what it makes leaves at its end."""
    whole = [{one[:3] for one in rank if one.kind == "W" and one.joined} for rank in found]
    return [[one._replace(joined=True) if one[:3] in of_rank else one for one in rank]
            for rank, of_rank in zip(ours, whole, strict=True)]


def measured(passes: Sequence[Sequence[Sequence[Any]]]) -> tuple[float, float]:
    """Makespan in seconds and share of it in which a rank, on average, runs no pass; [ranks][passes] of a step."""
    spans = [[(start, end) for *_, start, end in rank] for rank in passes]
    makespan_s = max(end for rank in spans for _, end in rank) - min(start for rank in spans for start, _ in rank)
    busy_s = sum(end - start for rank in spans for start, end in rank) / len(spans)
    return float(makespan_s), float(1 - busy_s / makespan_s)


def simulated(case: Case, orders: Orders, pass_s: Mapping[str, float], cost: Costs) -> tuple[float, float]:
    """The same of `orders` played with what torch and the machine add.

    A pass starts at the later of "what its rank pays between two passes behind the one before" and "a hop behind what
    it waits for". Schedules of one stage a rank ask for a message when they need it, so a pass that has one pays
    `turn_s`; torch's runtime for several asks ahead (`_add_send_recv` of its schedules.py) and finds it there.
    """
    schedule = get(case.ours)
    number = np.arange(len(orders) * case.chunks)
    turn_s = cost.turn_s if case.chunks == 1 else 0.0
    added_s = cost.late_s + cost.dispatch_s
    forward_s = pass_s["F"] + added_s + turn_s * (number > 0)
    backward_s = pass_s["I"] + added_s + turn_s * (number < len(number) - 1)
    weight_s = pass_s["W"] + (added_s if schedule.splits_backward else 0.0)
    latency_s = max(cost.hop_s - cost.dispatch_s - turn_s, 0.0)
    makespan_s = evaluate(orders, schedule, forward_s, backward_s, weight_s, latency_s).makespan_s - cost.dispatch_s
    slept_s = sum(map(len, orders)) * cost.late_s
    slept_s += len(number) * len({one.micro_batch for one in orders[0]}) * sum(pass_s.values())
    return makespan_s, 1 - slept_s / len(orders) / makespan_s
