"""Memory and communication of a training step, derived from the placement of its states and nothing else.

One rule makes the table of every published strategy follow: *a gradient is reduced to the placement of its
consumer, the optimizer*. Where the optimizer is sharded the reduction is a reduce-scatter, and the updated
parameters are then gathered to their own placement; where it is replicated it is an all-reduce. A placement may
choose other collectives to the same end (`Placement.reduction`, `Placement.spread`, `Placement.secondary`).
Everything broadcasts over NumPy arrays of degrees and of parameter counts.

What a step lowering asks of a `Placement`:
    ranks(placement.sharded_axes(state), degrees)   over how many ranks a state is divided
    parameter_fetches(placement)                    in which phases parameters are gathered, how often
    fetched_axes(placement, phase)                  over which axes
    placement.keep_gathered                         how long the gathered copy lives
    gradient_steps(placement)                       reduce-scatter or all-reduce, which axes, how often
    gathered_after_update(placement)                whether updated parameters are gathered
    placement.state_bytes                           bytes per parameter of each, held and on the wire
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from placement.states import FLATTENED_AXES, Axis, Dim, Mode, Number, Placement, Reduction, Span, Spread, State

Degrees = Mapping[Axis, Number]  # ranks along each axis; an axis not named has one


class Collective(StrEnum):
    ALL_GATHER = "all-gather"
    REDUCE_SCATTER = "reduce-scatter"
    ALL_REDUCE = "all-reduce"
    ALL_TO_ALL = "all-to-all"
    BROADCAST = "broadcast"
    POINT_TO_POINT = "point-to-point"
    HOST_READ = "host-read"  # host memory to device
    HOST_WRITE = "host-write"  # device to host memory


class Phase(StrEnum):
    """The part of a step that a communication belongs to."""

    FORWARD = "forward"
    RECOMPUTE = "recompute"
    BACKWARD = "backward"
    UPDATE = "update"


@dataclass(frozen=True)
class Communication:
    """One collective of a step, as every rank of its group takes part in it.

    axes: the mesh axes whose product is the group, inner to outer (several only where frameworks flatten
    them); the link class is that of the outermost, `axis`. tensor_bytes: of the whole tensor of one call:
    what is gathered, or what each rank brings to a reduction; of an all-to-all what each rank holds; of host
    traffic what the device moves. times: calls a step. sent_bytes: sent per device and call (of a broadcast the
    mean over its ranks). packing_bytes: read and written in device memory per call to quantise what is sent.
    """

    collective: Collective
    state: State
    axes: tuple[Axis, ...]
    phase: Phase
    per: Span  # MICRO_BATCH or STEP: how often the phase makes it
    tensor_bytes: Number
    times: Number
    sent_bytes: Number
    packing_bytes: Number = 0.0

    @property
    def axis(self) -> Axis:
        """The outermost axis: its links carry the collective."""
        return self.axes[-1]

    @property
    def sent_bytes_per_step(self) -> Number:
        return self.sent_bytes * self.times


@dataclass(frozen=True)
class Activations:
    """Sizes that the communication of activations needs, of one micro-batch of one data rank.

    tokens: of the whole micro-batch, before context and sequence parallelism divide them. layers: on this
    device. key_value_width: keys and values of one layer together, in elements, before tensor parallelism.
    boundaries: how often a micro-batch leaves this device for the next stage (the chunks of its rank).
    stored_bytes: kept per device for the backward pass; moves when activations are offloaded.
    """

    tokens: Number
    hidden: Number
    layers: Number = 1
    bytes_per_element: Number = 2
    blocks_per_layer: Number = 2  # attention and MLP
    key_value_width: Number = 0
    moe_layers: Number = 0
    experts_per_token: Number = 0
    boundaries: Number = 1
    stored_bytes: Number = 0


def ring_bytes(collective: Collective, tensor_bytes: Number, ranks: Number) -> Number:
    """Bytes sent per device (systems_training 1.3): (N-1)/N S, twice that for all-reduce, S point to point.

    >>> float(ring_bytes(Collective.ALL_REDUCE, 8.0, 4))
    12.0
    """
    if collective in (Collective.HOST_READ, Collective.HOST_WRITE):
        return np.asarray(tensor_bytes, dtype=float) * np.ones_like(ranks)
    if collective is Collective.POINT_TO_POINT:
        return np.asarray(tensor_bytes, dtype=float) * (np.asarray(ranks) > 1)
    passes = 2 if collective is Collective.ALL_REDUCE else 1
    return passes * (np.asarray(ranks) - 1) / np.asarray(ranks) * tensor_bytes


def ranks(axes: Iterable[Axis], degrees: Degrees) -> Number:
    """Product of the degrees of some axes; 1 for those not named."""
    product: Number = 1
    for axis in axes:
        product = product * np.asarray(degrees.get(axis, 1))
    return product


def resident_bytes(
    placement: Placement, parameters: Number, degrees: Degrees, activation_bytes: Number = 0
) -> dict[State, Number]:
    """Bytes of each state that stay on a device: sum over states of f(mode) |X|, f the product over the axes.

    parameters: of the model before any axis divides it, unless `degrees` leaves those axes out.
    activation_bytes: of the undivided activations. A gathered copy that is kept is resident: it contains the
    shard, unless it is a cast of it. So is a secondary copy, beside the shard.
    """
    held: dict[State, Number] = {}
    for state in State:
        whole = parameters * placement.state_bytes.of(state)
        if state is State.ACTIVATIONS:
            whole = activation_bytes
        shard = whole / ranks(placement.sharded_axes(state), degrees)
        at_home = placement.mode(state, Axis.MEMORY) is Mode.REPLICATED
        held[state] = shard * float(at_home)
    if placement.keep_gathered is not Span.PASS and parameter_fetches(placement):
        copy = parameters * placement.state_bytes.parameter_copy / ranks(placement.split_axes(), degrees)
        is_cast = placement.state_bytes.gathered is not None
        held[State.PARAMETERS] = copy + (held[State.PARAMETERS] if is_cast else 0)
    if placement.secondary:
        divided = ranks((*placement.split_axes(), *placement.secondary), degrees)
        second = parameters * placement.state_bytes.parameter_copy / divided
        held[State.PARAMETERS] = held[State.PARAMETERS] + second
    return held


def host_bytes(placement: Placement, parameters: Number, degrees: Degrees) -> dict[State, Number]:
    """Bytes per device that each offloaded model state takes in host memory; 0 for the others.

    Times the devices of a node this is the host memory a node needs: 12 P (GPUs per node)/N for an offloaded
    sharded optimizer (systems_training 1.6, rule 6).
    """
    return {
        state: parameters * placement.state_bytes.of(state) * float(placement.offloaded(state))
        / ranks(placement.sharded_axes(state), degrees)
        for state in (State.PARAMETERS, State.OPTIMIZER, State.GRADIENTS)
    }


def transient_bytes(
    placement: Placement, unit_parameters: Number, prefetch: Number = 2, degrees: Degrees | None = None
) -> dict[State, Number]:
    """Bytes of the buffers through which a state passes when it is used: k u for k units in flight.

    unit_parameters: of the largest unit gathered, reduced or staged at once (a layer). prefetch: units in
    flight, the one in use included. Parameters: gathered copies not kept, or offloaded ones. Gradients:
    whole ones of units whose reduction scatters them. Optimizer: its shard of a unit, staged from the host.
    """
    degrees = degrees or {}
    unit = unit_parameters / ranks(placement.split_axes(), degrees)
    bytes_ = placement.state_bytes
    fetched = bool(parameter_fetches(placement)) and placement.keep_gathered is Span.PASS
    scattered = any(a in placement.partial_axes() for a in placement.sharded_axes(State.GRADIENTS))
    streamed = placement.offloaded(State.OPTIMIZER) and not placement.host_update
    optimizer_ranks = ranks(placement.sharded_axes(State.OPTIMIZER), degrees)
    return {
        State.PARAMETERS: prefetch * unit * bytes_.parameter_copy * float(fetched),
        State.GRADIENTS: prefetch * unit * bytes_.gradient_copy
        * float(scattered or placement.offloaded(State.GRADIENTS)),
        State.OPTIMIZER: prefetch * unit_parameters * bytes_.optimizer / optimizer_ranks * float(streamed),
        State.ACTIVATIONS: 0.0 * unit,
    }


def communications(
    placement: Placement,
    parameters: Number,
    degrees: Degrees,
    micro_batches: Number = 1,
    activations: Activations | None = None,
) -> tuple[Communication, ...]:
    """Everything a step sends, phase by phase.

    parameters: of the weights that lie like this (see `Placement.holding_whole` for the others), before any
    axis divides them unless `degrees` leaves those axes out. Communication of activations is listed only
    when their sizes are given. Which collectives there are depends on the placement alone, so that one list
    serves arrays of degrees; a group of one rank sends 0 bytes.
    """
    deal = _Deal(placement, parameters / ranks(placement.split_axes(), degrees), degrees, micro_batches)
    found = [*_parameter_gathers(deal), *_gradient_reductions(deal), *_after_update(deal)]
    found += [*_host_traffic(deal)]
    if activations is not None:
        found += [*_activation_traffic(deal, activations)]
    phases = list(Phase)
    return tuple(sorted(found, key=lambda one: phases.index(one.phase)))


def gradient_steps(placement: Placement) -> tuple[tuple[Collective, tuple[Axis, ...], Span], ...]:
    """How a gradient reaches its consumer: (collective, axes, how often) in order, over every partial axis.

    First, every micro-batch, to the placement of the gradients themselves; then to that of the optimizer,
    once a step if the gradients are accumulated whole. Scatters go first and inner axes first, so that what
    follows moves the reduced shard (systems_training 1.6, rule 3).
    """
    scattered = placement.sharded_axes(State.GRADIENTS)
    owned = placement.sharded_axes(State.OPTIMIZER)
    partial = placement.partial_axes()
    late = Span.STEP if placement.accumulate else Span.MICRO_BATCH
    early = [a for a in partial if a in scattered]
    whole = placement.reduction is Reduction.ALL_REDUCE
    late_scatter = [a for a in partial if a in owned and a not in scattered and not whole]
    late_sum = [a for a in partial if a not in scattered and a not in late_scatter]
    scatter, hops = Collective.REDUCE_SCATTER, _groups
    if placement.reduction is Reduction.ALL_TO_ALL:
        scatter, hops = Collective.ALL_TO_ALL, _hops
    return (
        *((scatter, group, Span.MICRO_BATCH) for group in hops(early)),
        *((scatter, group, late) for group in hops(late_scatter)),
        *((Collective.ALL_REDUCE, group, late) for group in _groups(late_sum)),
    )


def parameter_fetches(placement: Placement) -> tuple[tuple[Phase, Span], ...]:
    """When parameters that do not rest whole on the device are brought to it: (phase, how often).

    Empty where they rest whole. Otherwise once a step if the copy is kept for all of it, or every
    micro-batch: in the forward pass and, if it is not kept, again for recompute (where apart) and backward.
    """
    if not placement.gathered_axes() and not placement.offloaded(State.PARAMETERS):
        return ()
    if placement.keep_gathered is Span.STEP:
        return ((Phase.FORWARD, Span.STEP),)
    phases = [Phase.FORWARD]
    if placement.keep_gathered is Span.PASS:
        apart = placement.recomputes and placement.separate_recompute_gather
        phases += [Phase.RECOMPUTE, Phase.BACKWARD] if apart else [Phase.BACKWARD]
    return tuple((phase, Span.MICRO_BATCH) for phase in phases)


def fetched_axes(placement: Placement, phase: Phase) -> tuple[Axis, ...]:
    """The axes over which a fetch of the parameters gathers: behind the forward pass those of a secondary copy."""
    return placement.secondary if placement.secondary and phase is not Phase.FORWARD else placement.gathered_axes()


def gathered_after_update(placement: Placement) -> tuple[Axis, ...]:
    """Axes over which updated parameters are gathered: the optimizer is sharded there, they rest whole."""
    rest = placement.sharded_axes(State.PARAMETERS)
    return tuple(axis for axis in placement.sharded_axes(State.OPTIMIZER) if axis not in rest)


@dataclass(frozen=True)
class _Deal:
    """What the derivations below share: `parameters` are those one model-parallel rank works with."""

    placement: Placement
    parameters: Number
    degrees: Degrees
    micro_batches: Number

    def make(
        self, collective: Collective, state: State, axes: tuple[Axis, ...], phase: Phase, per: Span,
        tensor_bytes: Number, times: Number = 1, packing_bytes: Number = 0.0,
    ) -> Communication:
        calls = times * (self.micro_batches if per is Span.MICRO_BATCH else 1)
        sent = ring_bytes(collective, tensor_bytes, ranks(axes, self.degrees))
        return Communication(collective, state, axes, phase, per, tensor_bytes, calls, sent, packing_bytes)

    def ranks_beside(self, axes: Iterable[Axis]) -> Number:
        """Ranks along those of `axes` that do not split the weights (those have been divided out already)."""
        return ranks((axis for axis in axes if axis not in self.placement.split_axes()), self.degrees)

    def gather(
        self, state: State, axes: Iterable[Axis], phase: Phase, per: Span, whole_bytes: Number,
        spread: Spread = Spread.GATHER, unpacked_bytes: Number | None = None,
    ) -> Iterator[Communication]:
        """All-gathers over the groups of `axes`, outer first: the inner links carry the last, largest one.

        As broadcasts, every rank of the group sends its part. `unpacked_bytes`: of the whole before it is quantised
        and after; every rank quantises its part and turns back what it got.
        """
        groups = _groups(axes)
        for position in reversed(range(len(groups))):
            inner = ranks((axis for group in groups[:position] for axis in group), self.degrees)
            size, members = whole_bytes / inner, ranks(groups[position], self.degrees)
            if spread.by_owners:
                yield self.make(Collective.BROADCAST, state, groups[position], phase, per, size / members, members)
                continue
            both_bytes = 0.0 if unpacked_bytes is None else size + unpacked_bytes / inner
            packing_bytes = both_bytes * (1 + 1 / members) * (members > 1)
            yield self.make(Collective.ALL_GATHER, state, groups[position], phase, per, size,
                            packing_bytes=packing_bytes)


def _groups(axes: Iterable[Axis]) -> list[tuple[Axis, ...]]:
    """Axes of one collective as communicators, inner to outer: the data-like ones flattened into one.

    >>> _groups([Axis.TENSOR, Axis.CONTEXT, Axis.DATA]) == [(Axis.TENSOR,), (Axis.CONTEXT, Axis.DATA)]
    True
    """
    groups: list[tuple[Axis, ...]] = []
    for axis in axes:
        if groups and axis in FLATTENED_AXES and groups[-1][-1] in FLATTENED_AXES:
            groups[-1] = (*groups[-1], axis)
        else:
            groups.append((axis,))
    return groups


def _hops(axes: Iterable[Axis]) -> list[tuple[Axis, ...]]:
    """Axes of one collective as communicators of their own, inner to outer."""
    return [(axis,) for axis in axes]


def _parameter_gathers(deal: _Deal) -> Iterator[Communication]:
    """A secondary copy moves as it lies; what comes from the shards may be quantised for the wire."""
    bytes_ = deal.placement.state_bytes
    copy = deal.parameters * bytes_.parameter_copy
    for phase, per in parameter_fetches(deal.placement):
        axes = fetched_axes(deal.placement, phase)
        packed = bytes_.packed_parameters is not None and axes != deal.placement.secondary
        whole = deal.parameters * bytes_.parameter_wire if packed else copy
        yield from deal.gather(State.PARAMETERS, axes, phase, per, whole, unpacked_bytes=copy if packed else None)


def _gradient_reductions(deal: _Deal) -> Iterator[Communication]:
    """Where gradients are quantised, each hop quantises what a rank brings, turns back what it got and sums it."""
    placement, bytes_ = deal.placement, deal.placement.state_bytes
    wire, count = bytes_.gradient_copy, deal.parameters
    for collective, axes, per in gradient_steps(placement):
        phase = Phase.UPDATE if per is Span.STEP else Phase.BACKWARD
        members, sent, packing = ranks(axes, deal.degrees), wire, 0.0
        if collective is Collective.ALL_TO_ALL and bytes_.packed_gradients is not None:
            sent = bytes_.packed_gradients
            packing = count * (wire + 2 * sent + wire / members) * (members > 1)
        yield deal.make(collective, State.GRADIENTS, axes, phase, per, count * sent, packing_bytes=packing)
        if collective is not Collective.ALL_REDUCE:
            count = count / members
    owned = placement.sharded_axes(State.OPTIMIZER)
    missing = [axis for axis in placement.sharded_axes(State.GRADIENTS) if axis not in owned]
    consumed = deal.parameters * wire / deal.ranks_beside(owned)
    yield from deal.gather(State.GRADIENTS, missing, Phase.UPDATE, Span.STEP, consumed)


def _after_update(deal: _Deal) -> Iterator[Communication]:
    at_rest = deal.parameters * deal.placement.state_bytes.parameters
    at_rest = at_rest / deal.ranks_beside(deal.placement.sharded_axes(State.PARAMETERS))
    axes = gathered_after_update(deal.placement)
    yield from deal.gather(State.PARAMETERS, axes, Phase.UPDATE, Span.STEP, at_rest, deal.placement.spread)


def _host_traffic(deal: _Deal) -> Iterator[Communication]:
    """What crosses the host link for the model states: only what does not rest where it is used."""
    placement = deal.placement
    shard = {
        state: deal.parameters * placement.state_bytes.of(state) / deal.ranks_beside(axes)
        for state in (State.PARAMETERS, State.GRADIENTS, State.OPTIMIZER)
        for axes in (placement.sharded_axes(state),)
    }
    owners = deal.ranks_beside(placement.sharded_axes(State.OPTIMIZER))
    by_host = placement.offloaded(State.OPTIMIZER) and placement.host_update
    spread = bool(gathered_after_update(placement))  # updated parameters pass through the device
    late = any(per is Span.STEP for _, _, per in gradient_steps(placement))  # and so do the gradients
    late |= bool(set(placement.sharded_axes(State.GRADIENTS)) - set(placement.sharded_axes(State.OPTIMIZER)))

    def move(collective: Collective, state: State, phase: Phase, per: Span, bytes_: Number) -> Communication:
        return deal.make(collective, state, (Axis.MEMORY,), phase, per, bytes_)

    read, write, update, step = Collective.HOST_READ, Collective.HOST_WRITE, Phase.UPDATE, Span.STEP
    if placement.offloaded(State.PARAMETERS):
        for phase, per in parameter_fetches(placement):
            yield move(read, State.PARAMETERS, phase, per, shard[State.PARAMETERS])
        if not by_host or spread:
            yield move(write, State.PARAMETERS, update, step, shard[State.PARAMETERS])
    if by_host and (spread or not placement.offloaded(State.PARAMETERS)):
        updated = deal.parameters * placement.state_bytes.parameters / owners
        yield move(read, State.PARAMETERS, update, step, updated)
    if placement.offloaded(State.GRADIENTS):
        yield move(write, State.GRADIENTS, Phase.BACKWARD, Span.MICRO_BATCH, shard[State.GRADIENTS])
        if not by_host or late:
            yield move(read, State.GRADIENTS, update, step, shard[State.GRADIENTS])
    if by_host and (late or not placement.offloaded(State.GRADIENTS)):
        consumed = deal.parameters * placement.state_bytes.gradients / owners
        yield move(write, State.GRADIENTS, update, step, consumed)
    if placement.offloaded(State.OPTIMIZER) and not placement.host_update:
        yield move(read, State.OPTIMIZER, update, step, shard[State.OPTIMIZER])
        yield move(write, State.OPTIMIZER, update, step, shard[State.OPTIMIZER])


_SPLIT_TRAFFIC: dict[Dim, tuple[Collective, ...]] = {
    Dim.HIDDEN: (Collective.ALL_REDUCE,),
    Dim.SEQUENCE: (Collective.ALL_GATHER, Collective.REDUCE_SCATTER),
}


def _activation_traffic(deal: _Deal, sizes: Activations) -> Iterator[Communication]:
    """Per micro-batch, by what an axis does to weights and activations (systems_training 1.3, last rows).

    Weights split, HIDDEN: the partial sums of a block are all-reduced, forward and backward. Weights split,
    SEQUENCE: gathered before and reduce-scattered after the block, the same bytes. Weights split, BATCH
    (experts): all-to-all to the expert and back. LAYER: point to point to the next stage and back. Weights
    whole, SEQUENCE (context): keys and values gathered, their gradients reduce-scattered; a ring of
    point-to-point steps sends the same.
    """
    placement, per = deal.placement, Span.MICRO_BATCH
    forward = (Phase.FORWARD, Phase.RECOMPUTE) if placement.recomputes else (Phase.FORWARD,)
    both = (*forward, Phase.BACKWARD)
    tensor_ranks = ranks([a for a in placement.split_axes() if a is Axis.TENSOR], deal.degrees)
    for axis, dim in placement.partition.items():
        split = axis in placement.split_axes()
        others = [a for a, d in placement.partition.items() if d is Dim.SEQUENCE and a is not axis]
        token_bytes = sizes.tokens * sizes.bytes_per_element / ranks(others, deal.degrees)
        if dim is Dim.LAYER:
            calls = [(Collective.POINT_TO_POINT, phase, token_bytes * sizes.hidden, sizes.boundaries)
                     for phase in (Phase.FORWARD, Phase.BACKWARD)]
        elif split and dim in _SPLIT_TRAFFIC:
            calls = [(collective, phase, token_bytes * sizes.hidden, sizes.blocks_per_layer * sizes.layers)
                     for phase in both for collective in _SPLIT_TRAFFIC[dim]]
        elif split and dim is Dim.BATCH:
            routed = token_bytes * sizes.hidden * sizes.experts_per_token
            calls = [(Collective.ALL_TO_ALL, phase, routed, 2 * sizes.moe_layers) for phase in both]
        elif dim is Dim.SEQUENCE:
            # inside the block the sequence is whole along axes that split weights; each has its heads of all tokens
            parts = ranks([a for a in others if a not in placement.split_axes()], deal.degrees)
            key_value = sizes.tokens * sizes.bytes_per_element * sizes.key_value_width / parts / tensor_ranks
            calls = [(Collective.ALL_GATHER, phase, key_value, sizes.layers) for phase in forward]
            calls += [(Collective.REDUCE_SCATTER, Phase.BACKWARD, key_value, sizes.layers)]
        else:
            continue  # samples are independent of each other
        for collective, phase, tensor_bytes, times in calls:
            yield deal.make(collective, State.ACTIVATIONS, (axis,), phase, per, tensor_bytes, times)
    if placement.offloaded(State.ACTIVATIONS):
        out, back = (Collective.HOST_WRITE, Phase.FORWARD), (Collective.HOST_READ, Phase.BACKWARD)
        for collective, phase in (out, back):
            yield deal.make(collective, State.ACTIVATIONS, (Axis.MEMORY,), phase, per, sizes.stored_bytes)
