"""What the placement of the states costs a step: gathers, reductions and the update, in seconds per unit.

Which collectives there are, of what size and how often, is derived from the placement alone
(`placement.semantics`); here each is laid on the cluster's links and priced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from costmodel import collectives, network, parameters
from costmodel.operators import Number
from placement import semantics
from placement.passes import Setting
from placement.semantics import Collective, Communication, Phase
from placement.states import Axis, Placement, Span, Spread, State
from placement.units import Unit, chunk_units, merged


@dataclass(frozen=True)
class UnitTraffic:
    """Seconds of the collectives of one unit, by when they happen, and bytes they need meanwhile."""

    forward_gather_s: Number = 0.0  # before every forward pass
    backward_gather_s: Number = 0.0  # before every backward pass
    step_gather_s: Number = 0.0  # before the first forward pass of a step
    backward_reduce_s: Number = 0.0  # behind every backward pass
    step_reduce_s: Number = 0.0  # behind the last backward pass of a step
    step_spread_s: Number = 0.0  # behind the update, with nothing beside it
    gathered_bytes: Number = 0.0  # copy that lives during one pass
    gradient_bytes: Number = 0.0  # whole gradient until it is scattered

    @property
    def within_passes(self) -> bool:
        """Whether anything is gathered or reduced in every pass, so that units should be layers."""
        return bool(np.any(self.forward_gather_s + self.backward_gather_s + self.backward_reduce_s > 0))


def degrees(setting: Setting, experts: bool) -> semantics.Degrees:
    """Ranks along the data-like axes. Context ranks count as data ranks: they hold the same weights."""
    plan = setting.plan
    replicas = plan.expert_replicas if experts else plan.replicas
    shard = replicas if plan.shard_group is None else np.minimum(plan.shard_group, replicas)
    return {Axis.DATA: replicas, Axis.SHARD: shard, Axis.REPLICATE: replicas // shard}


def _share_of_rank(setting: Setting, held: Number, experts: bool) -> Number:
    """Of the weights of one kind that a rank of the tensor, expert and pipeline axes works with (mean over the
    pipeline), the share that is `held` in one unit."""
    plan, parts = setting.plan, parameters.by_component(setting.model)
    spread = parts["routed_experts"] + parts["memory_values"]
    whole = spread if experts else sum(parts.values()) - parts["mtp"] - spread
    of_rank = whole / plan.pipeline / (plan.expert * plan.expert_tensor if experts else plan.tensor)
    return np.clip(held / of_rank, 1e-12, 1.0)


def _seconds(
    setting: Setting, one: Communication, ranks: semantics.Degrees, stride: Number, held: Number, experts: bool
) -> Number:
    """All calls of one phase on the links of its group: inner ranks first, then shards, then replicas.

    held: weights of one kind in this unit. Broadcasts are made of whole parts of the optimizer and not layer by layer,
    so a unit has its share of each. What is quantised is read and written before and after it is sent.
    """
    cluster = setting.cluster
    if one.collective in (Collective.HOST_READ, Collective.HOST_WRITE):
        link = cluster.accelerator.host_link
        return one.tensor_bytes / link.bandwidth_bytes_per_s if link else 0.0
    inner = ranks[Axis.SHARD] if one.axes == (Axis.REPLICATE,) else 1
    group = network.group(cluster, semantics.ranks(one.axes, ranks), stride * inner)
    if one.collective is Collective.BROADCAST:
        share = _share_of_rank(setting, held, experts)
        return one.times * share * setting.collective_s(collectives.broadcast_s, one.tensor_bytes / share, group)
    price = {
        Collective.ALL_GATHER: collectives.all_gather_s,
        Collective.REDUCE_SCATTER: collectives.reduce_scatter_s,
        Collective.ALL_REDUCE: collectives.all_reduce_s,
        Collective.ALL_TO_ALL: collectives.all_to_all_s,
    }[one.collective]
    packing_s = setting.pricer.memory_s(one.packing_bytes) if np.any(one.packing_bytes) else 0.0
    return setting.collective_s(price, one.tensor_bytes, group) + packing_s


def _sum(parts: Iterable[Number]) -> Number:
    return sum(parts, 0.0)


def _runs_alone(placement: Placement, one: Communication) -> bool:
    """Whether the update waits for a collective before anything else runs: the owners' broadcasts, as InternEvo's
    HybridZeroOptimizer waits for all of them at the end of `step` unless overlap_sync_param is set."""
    return placement.spread is Spread.BROADCASTS and one.collective is Collective.BROADCAST


def unit_traffic(setting: Setting, unit: Unit) -> UnitTraffic:
    """Collectives of the dense and the expert weights of one unit."""
    plan, placement = setting.plan, setting.placement
    found: list[tuple[Communication, Number]] = []
    gathered: Number = 0.0
    gradient: Number = 0.0
    sizes = placement.state_bytes
    for (held, trainable, experts), spared in zip(unit.weights, unit.spared, strict=True):
        if not np.any(held):
            continue
        ranks, stride = degrees(setting, experts), plan.expert * plan.expert_tensor if experts else plan.tensor
        use = semantics.communications(placement, held, ranks)
        update = semantics.communications(placement, trainable, ranks)
        changed = [one for one in update if one.state is State.GRADIENTS or one.phase is Phase.UPDATE]
        reduced = spared.left(trainable, State.GRADIENTS, sizes)
        if not spared.nothing:
            fewer = semantics.communications(placement, reduced, ranks)
            changed = [one for one in changed if one.state is not State.GRADIENTS]
            changed += [one for one in fewer if one.state is State.GRADIENTS]
        used = [one for one in use if one.state is State.PARAMETERS and one.phase is not Phase.UPDATE]
        found += [(one, _seconds(setting, one, ranks, stride, held, experts)) for one in used + changed]
        transient = semantics.transient_bytes(placement, held, prefetch=1, degrees=ranks)
        gathered = gathered + transient[State.PARAMETERS]
        if np.any(trainable):
            gradient = gradient + transient[State.GRADIENTS] * reduced / held

    alone = [pair for pair in found if _runs_alone(placement, pair[0])]
    beside = [pair for pair in found if not _runs_alone(placement, pair[0])]

    def pick(state: State, phases: tuple[Phase, ...], per: Span) -> Number:
        return _sum(s for one, s in beside if one.state is state and one.phase in phases and one.per is per)

    every = tuple(Phase)
    rebuilt = (Phase.RECOMPUTE, Phase.BACKWARD)
    return UnitTraffic(
        forward_gather_s=pick(State.PARAMETERS, (Phase.FORWARD,), Span.MICRO_BATCH),
        backward_gather_s=pick(State.PARAMETERS, rebuilt, Span.MICRO_BATCH),
        step_gather_s=pick(State.PARAMETERS, every, Span.STEP),
        backward_reduce_s=pick(State.GRADIENTS, every, Span.MICRO_BATCH),
        step_reduce_s=pick(State.GRADIENTS, every, Span.STEP),
        step_spread_s=_sum(s for _, s in alone),
        gathered_bytes=gathered,
        gradient_bytes=gradient,
    )


def optimizer_s(setting: Setting, units: Iterable[Unit]) -> Number:
    """Adam on this rank's shard: read gradient, weight, two moments; write weight, moments and the 2-byte copy.

    Bytes: 4 + 12 + 12 + 2 and 4 more for the gradient norm, at memory bandwidth; on the host where the
    optimizer lies there (its share of the node's DRAM bandwidth). Without moments 16 fewer, without a gradient 8;
    what techniques do beside Adam is shared by the ranks like the rest, and stays on the device. An optimizer that
    lies on the host and is streamed through the device takes as long as its slowest way: down the host link, through
    the device's memory, up the link, all three at the same time.
    """
    placement = setting.placement
    moved: Number = 0.0
    streamed: Number = 0.0
    beside_s: Number = 0.0
    tensors: Number = 0.0
    for unit in units:
        tensors = tensors + unit.tensors
        for (_, trainable, experts), spared in zip(unit.weights, unit.spared, strict=True):
            ranks = semantics.ranks(placement.sharded_axes(State.OPTIMIZER), degrees(setting, experts))
            left = spared.left(trainable, State.OPTIMIZER, placement.state_bytes)
            streamed = streamed + left * placement.state_bytes.optimizer / ranks
            moved = moved + (34.0 * trainable - 16.0 * spared.moments - 8.0 * spared.gradients) / ranks
        ranks = semantics.ranks(placement.sharded_axes(State.OPTIMIZER), degrees(setting, False))
        beside_s = beside_s + unit.update_s / ranks
    if placement.offloaded(State.OPTIMIZER) and placement.host_update:
        node = setting.cluster.node
        host = next(tier for tier in node.tiers if tier.name == "host")
        return moved / (host.read_bandwidth_bytes_per_s / node.accelerators) + beside_s
    on_device_s = setting.pricer.optimizer_s(moved, tensors)
    link = setting.cluster.accelerator.host_link
    if placement.offloaded(State.OPTIMIZER) and link is not None:
        on_device_s = np.maximum(on_device_s, streamed / link.bandwidth_bytes_per_s)
    return on_device_s + beside_s


def norm_reduction_s(setting: Setting) -> Number:
    """All-reduce of one number over every rank: the global gradient norm before the update."""
    group = network.group(setting.cluster, setting.plan.gpus, 1)
    return setting.collective_s(collectives.all_reduce_s, 4.0, group)


@dataclass(frozen=True)
class ChunkTraffic:
    """A chunk of the pipeline: as one unit, and layer by layer with the state traffic of each layer."""

    whole: Unit
    layers: tuple[Unit, ...]
    traffic: tuple[UnitTraffic, ...]  # of `layers`

    @property
    def pairs(self) -> list[tuple[Unit, UnitTraffic]]:
        return list(zip(self.layers, self.traffic, strict=True))

    @cached_property
    def within_passes(self) -> bool:
        """Whether anything is gathered or reduced in every pass."""
        return any(flows.within_passes for flows in self.traffic)

    @cached_property
    def step_s(self) -> Number:
        """Seconds of the collectives that this chunk needs once a step beside its passes."""
        return sum(flows.step_gather_s + flows.step_reduce_s for flows in self.traffic)

    @cached_property
    def spread_s(self) -> Number:
        """Seconds of the collectives that this chunk needs behind the update, with nothing beside them."""
        return sum(flows.step_spread_s for flows in self.traffic)


def chunks_with_traffic(setting: Setting) -> tuple[ChunkTraffic, ...]:
    """Every chunk of the pipeline in model order. Collectives run layer by layer, as the buckets of DDP,
    Megatron and FSDP do."""
    return with_traffic(chunk_units(setting), partial(unit_traffic, setting))


def with_traffic(fine: Iterable[tuple[Unit, ...]], traffic: Callable[[Unit], UnitTraffic]) -> tuple[ChunkTraffic, ...]:
    """The layers of every chunk with their traffic; equal layers and equal chunks share one object."""
    of_unit: dict[int, UnitTraffic] = {}
    wholes: dict[tuple[int, ...], Unit] = {}
    chunks = []
    for units in fine:
        key = tuple(id(unit) for unit in units)
        for unit in units:
            if id(unit) not in of_unit:
                of_unit[id(unit)] = traffic(unit)
        if key not in wholes:
            wholes[key] = merged(units)
        chunks.append(ChunkTraffic(wholes[key], units, tuple(of_unit[one] for one in key)))
    return tuple(chunks)
