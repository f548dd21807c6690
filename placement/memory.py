"""Bytes on a device: what is resident through a step, and the peak by closed form.

Resident bytes are derived from the placement (`placement.semantics`); activations from the operators
(`costmodel.activations`) times the micro-batches in flight that the schedule's law gives. The event player
finds the same peak by playing (a test holds them together).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from costmodel.hardware import Accelerator
from costmodel.operators import Number
from placement import schedules, semantics
from placement.passes import Setting
from placement.state_traffic import ChunkTraffic, degrees
from placement.states import State
from placement.units import Unit, chunk_units, merged

MIB = 2.0**20
WORKSPACE_BYTES = {"ampere": 56 * MIB, "hopper": 72 * MIB, "blackwell": 92 * MIB}
WORKSPACE_SOURCE = "memory_notes.md A4 (cuBLAS and Transformer Engine workspace by generation)"
DEVICE_OVERHEAD_BYTES = 1.5 * 2.0**30
DEVICE_OVERHEAD_SOURCE = (
    "assumption: CUDA context, loaded kernels and NCCL buffers take 1.5 GiB beside the allocator"
)


def workspace_bytes(accelerator: Accelerator) -> float:
    return WORKSPACE_BYTES.get(accelerator.generation, 72 * MIB)


def resident_bytes(setting: Setting, units: Sequence[Unit]) -> dict[str, Number]:
    """Bytes by state that stay on one device through the step, for the units that it holds."""
    placement = setting.placement
    held: dict[str, Number] = {}
    for unit in [merged(units)]:
        for whole, trainable, experts in unit.weights:
            ranks = degrees(setting, experts)
            found = semantics.resident_bytes(placement, trainable, ranks)
            found[State.PARAMETERS] = semantics.resident_bytes(placement, whole, ranks)[State.PARAMETERS]
            for state, size_bytes in found.items():
                if state is not State.ACTIVATIONS:
                    held[str(state)] = held.get(str(state), 0.0) + size_bytes
    held["workspace"] = workspace_bytes(setting.cluster.accelerator)
    return held


def host_bytes(setting: Setting) -> Number:
    """Bytes per device, the mean over pipeline stages, that the placement keeps in host memory."""
    placement = setting.placement
    states = [state for state in State if state is not State.ACTIVATIONS and placement.offloaded(state)]
    held: Number = 0.0
    for unit in [merged(units) for units in chunk_units(setting)] if states else []:
        for whole, trainable, experts in unit.weights:
            for state in states:
                ranks = semantics.ranks(placement.sharded_axes(state), degrees(setting, experts))
                count = whole if state is State.PARAMETERS else trainable
                held = held + count * placement.state_bytes.of(state) / ranks
    return held / setting.plan.pipeline


@dataclass(frozen=True)
class StagePeak:
    peak_bytes: Number
    states: dict[str, Number]


def stage_peak(
    setting: Setting,
    stage: int,
    chunks: Sequence[ChunkTraffic],
    micro_batches: int,
    resident: Mapping[str, Number] | None = None,
    held_bytes: Number | None = None,
) -> StagePeak:
    """Peak of one stage by the schedule's law: resident + chunks in flight + the largest working set.

    `chunks` are those of this stage, `resident` what `resident_bytes` gives for them, `held_bytes` the activations in
    flight where the order was played. Exact where they are
    equal; otherwise the chunks in flight are taken at their mean size. Logits live as often as the last chunk is
    in flight.
    """
    plan = setting.plan
    whole = [chunk.whole for chunk in chunks]
    states = dict(resident_bytes(setting, whole) if resident is None else resident)
    schedule = schedules.get(plan.schedule)
    working = max(unit.working_bytes for unit in whole)
    if held_bytes is None:
        assert schedule.peak_in_flight is not None
        in_flight = schedule.peak_in_flight(plan.pipeline, stage, micro_batches, plan.virtual)
        heads = np.clip(in_flight - (plan.virtual - 1) * plan.pipeline, 1, micro_batches)
        logits = whole[-1].head_bytes
        kept = sum(unit.saved_bytes for unit in whole) - logits
        held_bytes = in_flight * kept / plan.virtual + heads * logits
    states["activations"] = held_bytes + working
    flows = [flow for chunk in chunks for flow in chunk.traffic]
    states["gathered"] = max(flow.gathered_bytes for flow in flows) * (2 if len(flows) > 1 else 1)
    states["gradients"] = states.get("gradients", 0.0) + max(flow.gradient_bytes for flow in flows)
    return StagePeak(sum(states.values()), states)
