"""Bytes on a device: what is resident through a step, and the peak by closed form.

Resident bytes are derived from the placement (`placement.semantics`); activations from the operators
(`costmodel.activations`) times the micro-batches in flight that the schedule's law gives. The event player
finds the same peak by playing (a test holds them together).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product

import numpy as np

from costmodel.hardware import Accelerator, Cluster
from costmodel.operators import Number
from costmodel.plain_torch import update_working_bytes
from placement import schedules, semantics
from placement.passes import Setting
from placement.state_traffic import ChunkTraffic, degrees
from placement.states import State
from placement.units import Unit, chunk_units, merged

MODEL_STATES = (State.PARAMETERS, State.OPTIMIZER, State.GRADIENTS)
MIB = 2.0**20
WORKSPACE_BYTES = {"ampere": 56 * MIB, "hopper": 72 * MIB, "blackwell": 92 * MIB}
CPU_GENERATIONS = ("cpu",)  # processors in the place of accelerators: no library workspace, AdamW tensor by tensor
WORKSPACE_SOURCE = "memory_notes.md A4 (cuBLAS and Transformer Engine workspace by generation)"
DEVICE_OVERHEAD_BYTES = 1.5 * 2.0**30
DEVICE_OVERHEAD_SOURCE = (
    "assumption: CUDA context, loaded kernels and NCCL buffers take 1.5 GiB beside the allocator"
)


def workspace_bytes(accelerator: Accelerator) -> float:
    return 0.0 if accelerator.generation in CPU_GENERATIONS else WORKSPACE_BYTES.get(accelerator.generation, 72 * MIB)


def resident_bytes(setting: Setting, units: Sequence[Unit]) -> dict[str, Number]:
    """Bytes by state that stay on one device through the step, for the units that it holds."""
    placement = setting.placement
    held: dict[str, Number] = {}
    for unit in [merged(units)]:
        for (whole, trainable, experts), spared in zip(unit.weights, unit.spared, strict=True):
            ranks = degrees(setting, experts)
            for state in MODEL_STATES:
                count = whole if state is State.PARAMETERS else spared.left(trainable, state, placement.state_bytes)
                size_bytes = semantics.resident_bytes(placement, count, ranks)[state]
                held[str(state)] = held.get(str(state), 0.0) + size_bytes
    held["workspace"] = workspace_bytes(setting.cluster.accelerator)
    return held


def gradients_come_late(setting: Setting) -> bool:
    """Whether gradients are made by the first backward pass and given back behind the update (plain torch's
    zero_grad), and are no buffers that stay."""
    return setting.stack.execution == "torch"


def gradient_bytes(setting: Setting, unit: Unit) -> Number:
    """Of the gradients of one unit that stay on this device until the update."""
    return resident_bytes(setting, [unit])[str(State.GRADIENTS)]


def first_backward_bytes(setting: Setting, layers: Sequence[Unit]) -> Number:
    """What the first backward pass of a chunk needs at most beyond all that was kept, where gradients come late:
    those of the later layers are there when a layer works, and what these kept is gone."""
    most: Number = 0.0
    grown: Number = 0.0
    for unit in reversed(layers):
        most = np.maximum(most, unit.working_bytes + grown)
        grown = grown + gradient_bytes(setting, unit) - unit.saved_bytes
    return most


def update_bytes(setting: Setting, units: Sequence[Unit]) -> Number:
    """What the optimizer's update makes beside its states: plain torch's temporaries, 0 elsewhere."""
    if not gradients_come_late(setting):
        return 0.0
    model, tensor = setting.model, setting.plan.tensor
    widths = [layer.feed_forward.width * (2 if layer.feed_forward.gated else 1) for layer in model.layers]
    largest = max(model.vocabulary, *widths) * model.hidden / tensor
    placement, held = setting.placement, merged(units)
    ranks = semantics.ranks(placement.sharded_axes(State.OPTIMIZER), degrees(setting, False))
    trained = (held.trainable_dense + held.trainable_experts) / ranks
    foreach = setting.cluster.accelerator.generation not in CPU_GENERATIONS
    element = placement.state_bytes.parameters
    return update_working_bytes(trained, np.minimum(largest / ranks, trained), element, foreach)


def host_bytes(setting: Setting) -> Number:
    """Bytes per device, the mean over pipeline stages, that the placement keeps in host memory."""
    if not _states_on_host(setting):
        return 0.0
    chunks = [merged(units) for units in chunk_units(setting)]
    return sum(bytes_on_host(setting, [chunk]) for chunk in chunks) / setting.plan.pipeline


def bytes_on_host(setting: Setting, units: Iterable[Unit]) -> Number:
    """Bytes of the model states of some units that one device keeps in host memory."""
    placement = setting.placement
    held: Number = 0.0
    for unit, state in product(units, _states_on_host(setting)):
        for (whole, trainable, experts), spared in zip(unit.weights, unit.spared, strict=True):
            ranks = semantics.ranks(placement.sharded_axes(state), degrees(setting, experts))
            count = whole if state is State.PARAMETERS else spared.left(trainable, state, placement.state_bytes)
            held = held + count * placement.state_bytes.of(state) / ranks
    return held


def _states_on_host(setting: Setting) -> list[State]:
    return [state for state in State if state is not State.ACTIVATIONS and setting.placement.offloaded(state)]


def host_capacity_bytes(cluster: Cluster) -> float:
    """An accelerator's share of its node's host memory; infinite where the catalogue does not know it."""
    sizes = [tier.capacity_bytes for tier in cluster.node.tiers if tier.name == "host"]
    return sizes[0] / cluster.node.accelerators if sizes else float("inf")


@dataclass(frozen=True)
class StagePeak:
    peak_bytes: Number
    states: dict[str, Number]


def in_flight_bytes(
    units: Sequence[Unit], in_flight: Number, pipeline: int, virtual: int, micro_batches: Number
) -> Number:
    """Activations that a stage holds at most: `in_flight` chunks of their mean size. Logits live as often as the last
    chunk is in flight."""
    heads = np.clip(in_flight - (virtual - 1) * pipeline, 1, micro_batches)
    logits = units[-1].head_bytes
    kept = sum(unit.saved_bytes for unit in units) - logits
    return in_flight * kept / virtual + heads * logits


def peak_states(
    chunks: Sequence[ChunkTraffic], resident: Mapping[str, Number], held_bytes: Number
) -> dict[str, Number]:
    """What a stage holds at its peak, by state: what is resident, the activations, the largest working set, and the
    buffers that parameters and gradients pass through."""
    states = dict(resident)
    states["activations"] = held_bytes + _largest(chunk.whole.working_bytes for chunk in chunks)
    flows = [flow for chunk in chunks for flow in chunk.traffic]
    states["gathered"] = _largest(flow.gathered_bytes for flow in flows) * (2 if len(flows) > 1 else 1)
    states["gradients"] = states.get("gradients", 0.0) + _largest(flow.gradient_bytes for flow in flows)
    return states


def _largest(values: Iterable[Number]) -> Number:
    """The largest of numbers that broadcast; equal objects are compared once."""
    return reduce(np.maximum, {id(value): value for value in values}.values())


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
    flight where the order was played. Exact where the chunks are equal.
    """
    plan = setting.plan
    whole = [chunk.whole for chunk in chunks]
    if held_bytes is None:
        law = schedules.get(plan.schedule).peak_in_flight
        assert law is not None
        in_flight = law(plan.pipeline, stage, micro_batches, plan.virtual)
        held_bytes = in_flight_bytes(whole, in_flight, plan.pipeline, plan.virtual, micro_batches)
    resident = resident_bytes(setting, whole) if resident is None else resident
    states = peak_states(chunks, resident, held_bytes)
    if gradients_come_late(setting):
        return _late_peak(setting, chunks, micro_batches, resident, states)
    return StagePeak(sum(states.values()), states)


def _late_peak(
    setting: Setting, chunks: Sequence[ChunkTraffic], micro_batches: int, resident: Mapping[str, Number],
    states: dict[str, Number],
) -> StagePeak:
    """The higher of two moments of a step whose gradients come late: in the passes, where a single micro-batch finds
    none (several: taken to find all, which GPipe's first backward pass does not), and in the update."""
    if micro_batches == 1:
        gradients, working = str(State.GRADIENTS), _largest(chunk.whole.working_bytes for chunk in chunks)
        first = _largest(first_backward_bytes(setting, chunk.layers) for chunk in chunks)
        activations = states["activations"] - working + first
        states = {**states, "activations": activations, gradients: states[gradients] - resident[gradients]}
    optimizer, made = str(State.OPTIMIZER), update_bytes(setting, [chunk.whole for chunk in chunks])
    update = {**resident, optimizer: resident[optimizer] + made, "activations": 0.0, "gathered": 0.0}
    higher = max(states, update, key=lambda held: float(sum(held.values())))
    return StagePeak(sum(higher.values()), higher)
