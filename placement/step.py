"""The closed form of a training step: the same prices as the event player, combined by the schedule's law.

Exact for one stage without state traffic and for the equal-stage schedules whose law is exact; elsewhere the
difference to the played step is measured by a test. What it leaves out: waits that depend on order, such as a
reduction queueing behind a gather.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
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


def _unit_seconds(setting: Setting, unit: Unit, flows: UnitTraffic, direction: str) -> Seconds:
    """One layer of a pass with the state traffic of every pass: hidden behind the layer, or blocking."""
    forward = direction == "forward"
    seconds = add({}, unit.price.forward if forward else unit.price.backward)
    moved_s = flows.forward_gather_s if forward else flows.backward_gather_s + flows.backward_reduce_s
    beside = total(seconds) if "data" in setting.stack.overlap else 0.0
    exposed, contention = overlapped(moved_s, beside, setting.constants.overlap_cost)
    return add(seconds, {"data_communication": exposed, "contention": contention})


def _once_s(setting: Setting, chunks: list[ChunkTraffic], forward_s: float, backward_s: float) -> Seconds:
    """State traffic once a step: the first layer's gather and the last one's reduction show, and what one pass
    of the stage cannot hide; the rest hides at a cost."""
    flows = [flow for chunk in chunks for flow in chunk.traffic]
    gathers = sum(flow.step_gather_s for flow in flows)
    reductions = sum(flow.step_reduce_s for flow in flows)
    if "data" not in setting.stack.overlap:
        return {"data_communication": gathers + reductions}
    first, last = flows[0].step_gather_s, flows[0].step_reduce_s
    exposed = first + max(gathers - first - forward_s, 0.0) + last + max(reductions - last - backward_s, 0.0)
    return {
        "data_communication": exposed,
        "contention": setting.constants.overlap_cost * (gathers + reductions),
    }


@dataclass(frozen=True)
class _Stage:
    """What stages that hold equal chunks share."""

    seconds: Mapping[str, float]  # of the whole step, without waiting
    forward_s: float  # of one micro-batch
    backward_s: float
    resident: Mapping[str, Number]


def _stage(
    setting: Setting, chunks: list[ChunkTraffic], passes: int, output: OutputLayer | None, again_s: float
) -> _Stage:
    """A rank that runs each of its chunks `passes` times, with `again_s` of each time recomputed in passes (R)."""
    seconds: dict[str, Seconds] = {"forward": {}, "backward": {}}
    for chunk in chunks:
        counted = Counter(id(unit) for unit in chunk.layers)
        for key, (unit, flows) in {id(one): (one, of) for one, of in chunk.pairs}.items():
            for direction, sums in seconds.items():
                add(sums, _unit_seconds(setting, unit, flows, direction), counted[key])
    forward_s, backward_s = float(total(seconds["forward"])), float(total(seconds["backward"]))
    step = add(add({}, seconds["forward"], passes), seconds["backward"], passes)
    if again_s:
        add(step, {"recompute": again_s}, passes)
    add(step, _once_s(setting, chunks, forward_s, backward_s))
    whole = [chunk.whole for chunk in chunks]
    if output is not None:
        add(add(step, output.logits, passes), output.gradients, passes)
        whole.append(output.unit)
    add(step, {"optimizer": optimizer_s(setting, whole), "data_communication": copies_reduction_s(setting, whole)})
    plain = {category: float(value) for category, value in step.items()}
    return _Stage(plain, forward_s, backward_s, resident_bytes(setting, whole))


def analytic_step(setting: Setting, global_batch: int) -> Step:
    """The step in closed form: m (F + B) of the slowest stage + the schedule's bubble + what is done once.

    The bubble law takes the mean of the other stages, which makes it exact for 1F1B and GPipe with unequal
    stages: (m - 1) max + sum. Raises PlanError where batch or layers do not divide.
    """
    plan, stages = setting.plan, int(setting.plan.pipeline)
    count = int(micro_batches(plan, global_batch))
    schedule = schedules.get(plan.schedule)
    pipeline = chunks_with_traffic(setting)
    of_stage: list[_Stage] = []
    peaks = []
    equal: dict[tuple[int, ...], _Stage] = {}
    output = output_layer(setting) if schedule.barriers else None
    play, on_host, again = None, np.zeros(stages), recomputed_stages(setting)
    has_laws = schedule.bubble_s is not None and schedule.peak_in_flight is not None
    by_order = schedule.splits_backward or schedule.takes_segments
    by_order = by_order or bool(plan.recompute_chunks) or plan.offload_chunks > 0
    if not has_laws or by_order or not plan.optimizer_barrier:
        play, on_host = played(setting, pipeline, count)
    for stage in range(stages):
        chunks = [pipeline[number] for number in stages_of_rank(setting, stage)]
        key = tuple(id(chunk.whole) for chunk in chunks)
        if key not in equal:
            again_s = sum(float(pipeline[one].whole.again_s) for one in stages_of_rank(setting, stage) if one in again)
            equal[key] = _stage(setting, chunks, count * int(plan.segments) // schedule.routes, output, again_s)
        of_stage.append(equal[key])
        held = None if play is None else float(play.peak[stage])
        peaks.append(stage_peak(setting, stage, chunks, count, equal[key].resident, held))
    per_stage = [dict(one.seconds) for one in of_stage]
    if play is None:
        bubble_s = _bubble_s(setting, schedule, of_stage, count)
    else:
        bubble_s = (play.makespan_s if plan.optimizer_barrier else play.span_s) - float(play.busy_s.max())
    norm_s = float(norm_reduction_s(setting))
    step_time_s = max(sum(parts.values()) for parts in per_stage) + bubble_s + norm_s
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


def _bubble_s(setting: Setting, schedule: Schedule, of_stage: list[_Stage], count: int) -> float:
    """The schedule's law, with the slowest stage in its steady state and the others' mean in its ramps."""
    assert schedule.bubble_s is not None
    forwards, backwards = [one.forward_s for one in of_stage], [one.backward_s for one in of_stage]
    slowest = max(range(len(of_stage)), key=lambda stage: forwards[stage] + backwards[stage])
    others = max(len(of_stage) - 1, 1)
    return float(
        schedule.bubble_s(
            len(of_stage),
            count,
            int(setting.plan.virtual),
            (sum(forwards) - forwards[slowest]) / others,
            (sum(backwards) - backwards[slowest]) / others,
            hop_s(setting, 0),
        )
    )
