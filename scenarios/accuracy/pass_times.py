"""Published throughput predicted from published pass times instead of the model's shapes, term by term.

Table 6 of arXiv 2401.10241 profiles T_F, T_B, T_W (the median rank's, so of a stage in the middle) and T_comm. The
order is played with them, and what the step holds besides is added one term after the other: the ends (first and last
stage hold fewer layers, and the embedding and the head, whose times are the model's), sends that stand in the way of
passes (T_comm each), the optimizer. What is left is the difference between a profiled pass and the same pass in a
running step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from placement import schedules
from placement.hops import sending_s
from placement.pipeline import StagePasses, orders_of, stage_passes, stages_of_rank
from placement.plan import layers_of_chunks
from placement.state_traffic import chunks_with_traffic, norm_reduction_s, optimizer_s
from scenarios.accuracy.metrics import statistics
from scenarios.accuracy.predict import Outcome
from scenarios.accuracy.rows import Row
from simulator.inputs import TrainingInputs
from simulator.predict import setting_of

PASSES = ("T_F", "T_B", "T_W", "T_comm")
TERMS = ("equal_stages", "ends", "sends", "optimizer")  # each with the ones before it
Floats = NDArray[np.float64]
Key = tuple[int | None, ...]  # layers, hidden, pipeline degree, micro-batch


@dataclass(frozen=True)
class PassTimes:
    """Seconds of a rank's passes over one micro-batch, and of a hop."""

    forward_s: float
    backward_s: float
    weight_s: float
    hop_s: float


def _key(row: Row) -> Key:
    return tuple(row.integer(column) for column in ("layers", "hidden", "pp", "micro_batch"))


def published(rows: Iterable[Row]) -> dict[Key, dict[int, PassTimes]]:
    """The profiled times by model, pipeline and micro-batch, then by micro-batches of a step."""
    found = defaultdict[Key, dict[int, dict[str, float]]](lambda: defaultdict(dict))
    for row in rows:
        if row.text("metric") in PASSES and row.text("unit") == "ms":
            found[_key(row)][row.integer("num_micro") or 0][row.text("metric")] = (row.number("value") or 0.0) / 1e3
    return {key: {count: PassTimes(*(of[name] for name in PASSES)) for count, of in counts.items() if len(of) == 4}
            for key, counts in found.items()}


def steps(inputs: TrainingInputs, times: PassTimes) -> dict[str, float]:
    """Seconds of the step, by the terms that are in it."""
    setting = setting_of(inputs)
    plan, schedule = setting.plan, schedules.get(setting.plan.schedule)
    chunks = chunks_with_traffic(setting)
    layers = np.array(layers_of_chunks(len(setting.model.layers), plan), dtype=float)
    whole = max(sum(layers[stage] for stage in stages_of_rank(setting, rank)) for rank in range(int(plan.pipeline)))
    sent = [np.array([sending_s(setting, stage, step) for stage in range(len(chunks))]) for step in (1, -1)]
    model = stage_passes(chunks)
    priced = (model.forward_s - sent[0], model.backward_s - sent[1], model.weight_s)
    of_rank = (times.forward_s, times.backward_s, times.weight_s)
    equal = [np.full(len(chunks), one / plan.virtual) for one in of_rank]
    ends = [layers * one / whole + _beyond_layers(of, layers) for one, of in zip(of_rank, priced, strict=True)]
    micro_batches = inputs.global_batch // (plan.micro_batch * plan.data)
    forward_s, backward_s, weight_s = equal
    even = StagePasses(forward_s, backward_s, weight_s, model.held_bytes, model.weight_bytes)
    order = orders_of(setting, even, micro_batches)

    def played(passes: Sequence[Floats], latency_s: float) -> float:
        forward_s, backward_s, weight_s = passes
        found = schedules.evaluate(order, schedule, forward_s, backward_s, weight_s, latency_s=latency_s)
        return found.makespan_s if plan.optimizer_barrier else found.span_s

    longer = [one + times.hop_s * (of > 0) for one, of in zip(ends, (*sent, np.zeros(1)), strict=True)]
    in_the_way = played(longer, 0.0)
    held = max(float(optimizer_s(setting, [chunks[stage].whole for stage in stages_of_rank(setting, rank)]))
               for rank in range(int(plan.pipeline)))
    seconds = (played(equal, times.hop_s), played(ends, times.hop_s), in_the_way,
               in_the_way + held + float(norm_reduction_s(setting)))
    return dict(zip(TERMS, seconds, strict=True))


def _beyond_layers(priced: Floats, layers: Floats) -> Floats:
    """What the model prices a chunk beyond its layers: embedding and head; the middle chunk gives the layer."""
    middle = len(layers) // 2
    extra: Floats = np.zeros(len(layers))
    for stage in (0, len(layers) - 1):
        extra[stage] = max(priced[stage] - layers[stage] * priced[middle] / layers[middle], 0.0)
    return extra


def document(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Every throughput whose pass times are published, with the error after each term and from shapes alone."""
    times = published(one.row for one in outcomes)
    rows = []
    for one in outcomes:
        counts, measured = times.get(_key(one.row), {}), one.row.number("value")
        if one.row.text("metric") != "throughput" or not counts or not one.range or measured is None:
            continue
        rows.append(_row(one, counts, measured))
    return {
        "rows": len(rows),
        **{name: statistics([row["errors"][name] for row in rows]) for name in (*TERMS, "from_shapes")},
        "per_row": rows,
    }


def _row(one: Outcome, counts: Mapping[int, PassTimes], measured: float) -> dict[str, Any]:
    """With the times of as many micro-batches, or of the number nearest to it."""
    inputs = one.range[0].inputs
    wanted = one.row.integer("num_micro") or 0
    seconds = steps(inputs, counts[min(counts, key=lambda count: (abs(count - wanted), count))])
    samples = inputs.global_batch / inputs.cluster.accelerators
    speeds = {name: samples / step_s for name, step_s in seconds.items()}
    speeds["from_shapes"] = samples / one.range[0].step_time_s
    return {"id": one.row.id, "family": one.row.family, "measured": measured, "predicted": speeds,
            "errors": {name: speed / measured - 1.0 for name, speed in speeds.items()}}
