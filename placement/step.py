"""The closed form of a training step: the same prices as the event player, combined by the schedule's law.

Exact for one stage without state traffic and for the equal-stage schedules whose law is exact; elsewhere the
difference to the played step is measured by a test. What it leaves out: waits that depend on order, such as a
reduction queueing behind a gather.

`analytic_step` takes one plan; the functions above it broadcast, so that a search prices arrays of plans by them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from costmodel.operators import Number
from placement import schedules
from placement.hops import hop_s
from placement.memory import resident_bytes, stage_peak
from placement.passes import Seconds, Setting, add, overlapped, total
from placement.pipeline import (
    OutputLayer,
    copies_reduction_s,
    output_layer,
    played,
    recomputed_stages,
    stages_of_rank,
)
from placement.plan import micro_batches
from placement.schedules import Schedule
from placement.state_traffic import (
    ChunkTraffic,
    UnitTraffic,
    chunks_with_traffic,
    norm_reduction_s,
    optimizer_s,
)
from placement.units import Unit

# The categories of a breakdown in which the accelerator works (and draws its power); in the others it waits.
BUSY = ("gemm", "attention", "memory_bound", "quantize", "recompute", "optimizer", "contention")


@dataclass(frozen=True)
class Step:
    """Time, its breakdown (mean over ranks; adds up to the step time) and the peak of every stage."""

    step_time_s: float
    breakdown_s: Mapping[str, float]
    breakdown_by_stage: tuple[Mapping[str, float], ...]
    peak_bytes: tuple[float, ...]
    states_at_peak: tuple[Mapping[str, float], ...]
    host_peak_bytes: tuple[float, ...] = ()  # of activations copied to the host

    @property
    def worst_stage(self) -> int:
        return max(range(len(self.peak_bytes)), key=lambda stage: self.peak_bytes[stage])


@dataclass(frozen=True)
class Rank:
    """What a pipeline rank runs in a step: its chunks, and what it does once. `hides_data`: whether the traffic of the
    states runs beside compute."""

    chunks: Sequence[ChunkTraffic]
    passes: Number  # of each chunk
    optimizer_s: Number
    copies_s: Number = 0.0  # adding up the gradients of stages that two ranks hold
    output: OutputLayer | None = None  # this rank's part of an output layer split over the pipeline
    again_s: Number = 0.0  # of one pass of its chunks, recomputed in passes of their own (R)
    hides_data: bool = True
    overlap_cost: float = 0.0


@dataclass(frozen=True)
class RankTime:
    """`seconds` of the whole step by category, without waiting for other ranks; the others are of one micro-batch."""

    seconds: Seconds
    forward_s: Number
    backward_s: Number


def rank_time(rank: Rank) -> RankTime:
    """The time of a rank by itself. Broadcasts over arrays of plans that share the rank's layout."""
    seconds: dict[str, Seconds] = {"forward": {}, "backward": {}}
    for (unit, flows), times in _counted(rank.chunks):
        for direction, sums in seconds.items():
            add(sums, _unit_seconds(rank, unit, flows, direction), times)
    forward_s, backward_s = total(seconds["forward"]), total(seconds["backward"])
    step: Seconds = {}
    for direction in seconds:
        add(step, seconds[direction], rank.passes)
    if np.any(rank.again_s):
        add(step, {"recompute": rank.again_s}, rank.passes)
    add(step, _once_s(rank, forward_s, backward_s))
    if rank.output is not None:
        add(add(step, rank.output.logits, rank.passes), rank.output.gradients, rank.passes)
    add(step, {"optimizer": rank.optimizer_s, "data_communication": rank.copies_s})
    return RankTime(step, forward_s, backward_s)


def _counted(chunks: Sequence[ChunkTraffic]) -> list[tuple[tuple[Unit, UnitTraffic], int]]:
    """The distinct layers of some chunks with their traffic, and how often each stands there."""
    counted = Counter(id(unit) for chunk in chunks for unit in chunk.layers)
    pairs = {id(unit): (unit, flows) for chunk in chunks for unit, flows in chunk.pairs}
    return [(pair, counted[key]) for key, pair in pairs.items()]


def _unit_seconds(rank: Rank, unit: Unit, flows: UnitTraffic, direction: str) -> Seconds:
    """One layer of a pass with the state traffic of every pass: hidden behind the layer, or blocking."""
    forward = direction == "forward"
    seconds = add({}, unit.price.forward if forward else unit.price.backward)
    moved_s = flows.forward_gather_s if forward else flows.backward_gather_s + flows.backward_reduce_s
    if not np.any(moved_s):
        return seconds
    beside = total(seconds) if rank.hides_data else 0.0
    exposed, contention = overlapped(moved_s, beside, rank.overlap_cost)
    return add(seconds, {"data_communication": exposed, "contention": contention})


def _once_s(rank: Rank, forward_s: Number, backward_s: Number) -> Seconds:
    """State traffic once a step: the first layer's gather and the last one's reduction show, and what one pass
    of the stage cannot hide; the rest hides at a cost. What spreads behind the update shows whole."""
    counted = _counted(rank.chunks)
    gathers = sum(flow.step_gather_s * times for (_, flow), times in counted)
    reductions = sum(flow.step_reduce_s * times for (_, flow), times in counted)
    spread = sum(flow.step_spread_s * times for (_, flow), times in counted)
    if not rank.hides_data:
        return {"data_communication": gathers + reductions + spread}
    flow = rank.chunks[0].traffic[0]
    first, last = flow.step_gather_s, flow.step_reduce_s
    exposed = first + np.maximum(gathers - first - forward_s, 0.0)
    exposed = exposed + last + np.maximum(reductions - last - backward_s, 0.0)
    return {"data_communication": exposed + spread, "contention": rank.overlap_cost * (gathers + reductions)}


def bubble_s(
    schedule: Schedule, pipeline: int, virtual: int, micro_batches: Number, ranks: Sequence[tuple[RankTime, int]],
    latency_s: Number,
) -> Number:
    """The schedule's law, with the slowest rank in its steady state and the others' mean in its ramps.

    `ranks`: time and number of equal ranks, in the order of the pipeline. The mean of the others makes the law exact
    for 1F1B and GPipe with unequal stages: (m - 1) max + sum. Broadcasts.
    """
    assert schedule.bubble_s is not None
    slowest_forward_s, slowest_backward_s = ranks[0][0].forward_s, ranks[0][0].backward_s
    forwards_s, backwards_s = (
        sum(times * getattr(one, name) for one, times in ranks) for name in ("forward_s", "backward_s")
    )
    for one, _ in ranks[1:]:
        slower = one.forward_s + one.backward_s > slowest_forward_s + slowest_backward_s
        slowest_forward_s = np.where(slower, one.forward_s, slowest_forward_s)
        slowest_backward_s = np.where(slower, one.backward_s, slowest_backward_s)
    others = max(pipeline - 1, 1)
    return schedule.bubble_s(
        pipeline, micro_batches, virtual, (forwards_s - slowest_forward_s) / others,
        (backwards_s - slowest_backward_s) / others, latency_s,
    )


def has_law(setting: Setting) -> bool:
    """Whether the schedule's law holds for a plan; otherwise its order is made and played alone."""
    plan, schedule = setting.plan, schedules.get(setting.plan.schedule)
    by_order = schedule.splits_backward or schedule.takes_segments
    by_order = by_order or bool(plan.recompute_chunks) or plan.offload_chunks > 0 or not plan.optimizer_barrier
    return schedule.bubble_s is not None and schedule.peak_in_flight is not None and not by_order


def analytic_step(setting: Setting, global_batch: int) -> Step:
    """The step in closed form: m (F + B) of the slowest stage + the schedule's bubble + what is done once.

    Raises PlanError where batch or layers do not divide.
    """
    plan, stages = setting.plan, int(setting.plan.pipeline)
    count = int(micro_batches(plan, global_batch))
    schedule = schedules.get(plan.schedule)
    pipeline = chunks_with_traffic(setting)
    play, on_host = (None, np.zeros(stages)) if has_law(setting) else played(setting, pipeline, count)
    equal: dict[tuple[int, ...], tuple[RankTime, Mapping[str, Number]]] = {}
    keys, peaks = [], []
    for stage in range(stages):
        chunks = [pipeline[number] for number in stages_of_rank(setting, stage)]
        key = tuple(id(chunk.whole) for chunk in chunks)
        if key not in equal:
            equal[key] = _rank(setting, pipeline, stage, count)
        keys.append(key)
        held = None if play is None else float(play.peak[stage])
        peaks.append(stage_peak(setting, stage, chunks, count, equal[key][1], held))
    per_stage = [{category: float(s) for category, s in equal[key][0].seconds.items()} for key in keys]
    if play is None:
        ranks = [(equal[key][0], times) for key, times in Counter(keys).items()]
        waiting_s = float(bubble_s(schedule, stages, int(plan.virtual), count, ranks, hop_s(setting, 0)))
    else:
        waiting_s = (play.makespan_s if plan.optimizer_barrier else play.span_s) - float(play.busy_s.max())
    norm_s = float(norm_reduction_s(setting))
    step_time_s = max(sum(parts.values()) for parts in per_stage) + waiting_s + norm_s
    mean: Seconds = {}
    for parts in per_stage:
        add(parts, {"data_communication": norm_s})
        parts["bubble"] = step_time_s - sum(parts.values())
        add(mean, parts, 1.0 / stages)
    return Step(
        step_time_s,
        mean,
        tuple(per_stage),
        tuple(float(peak.peak_bytes) for peak in peaks),
        tuple({state: float(size) for state, size in peak.states.items()} for peak in peaks),
        tuple(on_host.tolist()),
    )


def _rank(
    setting: Setting, pipeline: Sequence[ChunkTraffic], rank: int, count: int
) -> tuple[RankTime, Mapping[str, Number]]:
    """Time and resident bytes of one pipeline rank of a single plan."""
    plan, schedule = setting.plan, schedules.get(setting.plan.schedule)
    numbers, again = stages_of_rank(setting, rank), recomputed_stages(setting)
    chunks = [pipeline[number] for number in numbers]
    output = output_layer(setting) if schedule.barriers else None
    held = [chunk.whole for chunk in chunks] + ([output.unit] if output else [])
    time = rank_time(Rank(
        chunks,
        count * int(plan.segments) // schedule.routes,
        optimizer_s(setting, held),
        copies_reduction_s(setting, held),
        output,
        sum(float(pipeline[one].whole.again_s) for one in numbers if one in again),
        "data" in setting.stack.overlap,
        setting.constants.overlap_cost,
    ))
    return time, resident_bytes(setting, held)
