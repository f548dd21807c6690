"""Checks of a machine's profile by real runs: what `whatif validate` does without a scenario, and `make validate`.

(a) compute of every pass by CPU time (events on a GPU), one thread a rank; (b) torch's own schedules with sleep in
place of compute: order, makespan, bubble; (c) wall clock of every layout, judged on a quiet machine alone. And the
losses of every layout against one process, and peak memory. All runs of one world size share one spawn.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from costmodel import constants
from costmodel.calibration import ranks
from costmodel.calibration.measure import machine as state
from costmodel.hardware import Cluster, Node
from placement.plan import Plan
from simulator.inputs import TrainingInputs
from simulator.predict import play
from simulator.real import cases, sleeping
from simulator.real.compare import Quantity, Rank, compared, losses
from simulator.real.cut import STACK
from simulator.real.validate import WORKER, Asked, job, quiet

COMPUTE_LIMIT, COMPUTE_MEAN = 0.10, 0.06
MAKESPAN_LIMIT = 0.08
WALL_LIMIT = 0.25
MEMORY_LIMIT = 0.03
LOSS_LIMIT = 1e-4  # relative: fp32 sums in another order
COMPUTE_STEPS, LAYOUT_STEPS, WARMUP = 11, 5, 2
Tell = Callable[[str], None]
Row = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """One check: how many figures were judged, the worst and the mean error, the limit on the worst."""

    name: str
    judged: int
    worst: float | None
    mean: float | None
    limit: float
    held: bool | None  # None: not judged
    note: str = ""


def inputs_of(case: cases.Case, node: Node) -> TrainingInputs:
    """The case on as many accelerators of a measured node as its plan has ranks."""
    plan = Plan(**{"precision": "fp32", "state_bytes": "fp32", "sharding": "ddp", **case.plan})
    count = int(plan.gpus)
    node = replace(node, accelerators=count, scale_up_domain=count)
    return TrainingInputs(
        case.name, "", "", {}, case.model, Cluster(node, 1, count), plan, case.sequence, case.global_batch,
        stack={"name": STACK}, constants=constants.of(node.accelerator),
    )


def run(node: Node, device: str, timeout_s: float, tell: Tell | None = None) -> dict[str, Any]:
    """Runs every check. Raises RanksError where a rank dies or hangs."""
    before = state.state("cpu")
    calm = quiet(before)
    compute = _run(cases.COMPUTE, 1, node, device, COMPUTE_STEPS, calm, timeout_s, tell)
    # more ranks than processors take turns, which no layout is to blame for
    most = os.cpu_count() or 1
    layouts = {count: _run(of, count, node, device, LAYOUT_STEPS, calm and count <= most, timeout_s, tell)
               for count, of in cases.LAYOUTS.items()}
    slept = [row for count in (2, 4) for row in sleeping.run(count, tell=tell)]
    return document(compute, layouts, slept, calm, before)


def _run(of: Sequence[cases.Case], count: int, node: Node, device: str, steps: int, calm: bool, timeout_s: float,
         tell: Tell | None) -> list[Row]:
    """One spawn: {case, calibrated, quantities, losses} of every case."""
    asked = [inputs_of(case, node) for case in of]
    jobs = [{**job(inputs, Asked(device, steps, WARMUP, timeout_s, case.checkpoint)), "memory": case.memory}
            for case, inputs in zip(of, asked, strict=True)]
    found = ranks.launch(WORKER, {"device": device, "jobs": jobs}, count, timeout_s=timeout_s, tell=tell)
    rows = []
    for number, (case, inputs) in enumerate(zip(of, asked, strict=True)):
        of_ranks: list[Rank] = [rank[number] for rank in found]
        rows.append({"case": case.name, "ranks": count, "calibrated": case.calibrated, "config": dict(case.config),
                     "sequence": case.sequence, "global_batch": case.global_batch,
                     "quantities": compared(play(inputs), of_ranks, calm), "losses": losses(of_ranks)})
    return rows


def document(compute: Sequence[Row], layouts: Mapping[int, Sequence[Row]], slept: Sequence[Row], calm: bool,
             before: Mapping[str, Any]) -> dict[str, Any]:
    """Every figure with its error, and a verdict a check."""
    passes = [_row(one, quantity) for one in compute for quantity in one["quantities"] if _is_pass(quantity)]
    every = [one for of in layouts.values() for one in of]
    memory = [_row(one, quantity) for one in [*compute, *every] for quantity in one["quantities"]
              if quantity.key.startswith("peak_memory")]
    wall = [_row(one, quantity) for one in every for quantity in one["quantities"]
            if not _is_pass(quantity) and not quantity.key.startswith(("peak_memory", "compute"))]
    agreed = _losses(layouts)
    return {
        "kind": "checks", "quiet": calm, "before": dict(before), "compute": passes, "memory": memory,
        "schedules": list(slept), "wall": wall, "losses": agreed,
        "verdicts": [vars(one) for one in _verdicts(passes, memory, slept, wall, agreed, calm)],
    }


def _is_pass(quantity: Quantity) -> bool:
    return quantity.key.startswith("pass_")


def _row(one: Row, quantity: Quantity) -> Row:
    return {"case": one["case"], "ranks": one["ranks"], "calibrated": one["calibrated"], **quantity.document()}


def _losses(layouts: Mapping[int, Sequence[Row]]) -> list[Row]:
    """The largest relative difference of a step's loss from that of the same model in one process."""
    alone = {_work(one): one for one in layouts[1]}
    rows = []
    for count, of in layouts.items():
        for one in of if count > 1 else ():
            wanted = alone[_work(one)]["losses"]
            same = len(wanted) == len(one["losses"]) > 0
            worst = max((abs(got / want - 1.0) for got, want in zip(one["losses"], wanted, strict=True)), default=0.0
                        ) if same else math.inf
            rows.append({"case": one["case"], "ranks": count, "difference": worst})
    return rows


def _work(one: Row) -> str:
    return f"{sorted(one['config'].items())} {one['sequence']} {one['global_batch']}"


def _verdicts(passes: Sequence[Row], memory: Sequence[Row], slept: Sequence[Row], wall: Sequence[Row],
              agreed: Sequence[Row], calm: bool) -> list[Verdict]:
    orders = [row["order_equal"] for row in slept]
    judged = [row for row in wall if row["judged"]]
    found = [
        _verdict("compute of every pass", passes, COMPUTE_LIMIT, COMPUTE_MEAN),
        Verdict("order of torch's schedules", len(orders), None, None, 0.0, all(orders),
                f"{sum(orders)} of {len(orders)} equal"),
        _verdict("makespan of torch's schedules", slept, MAKESPAN_LIMIT),
        _verdict("peak memory", memory, MEMORY_LIMIT),
        _verdict("losses of layouts", [{"error": row["difference"]} for row in agreed], LOSS_LIMIT),
    ]
    if calm:
        return [*found, _verdict("wall clock of layouts", judged, WALL_LIMIT)]
    every = _verdict("wall clock of layouts", [row for row in wall if row["key"] == "step_time_s"], WALL_LIMIT)
    return [*found, replace(every, held=None, note="the machine was not quiet: reported, not judged")]


def _verdict(name: str, rows: Sequence[Row], limit: float, mean_limit: float = math.inf) -> Verdict:
    errors = [abs(row["error"]) for row in rows if row["error"] is not None]
    if not errors:
        return Verdict(name, 0, None, None, limit, None, "nothing was measured")
    worst, mean = max(errors), fmean(errors)
    note = f"mean {mean_limit:.0%} asked" if mean_limit < math.inf else ""
    return Verdict(name, len(errors), worst, mean, limit, worst <= limit and mean <= mean_limit, note)
