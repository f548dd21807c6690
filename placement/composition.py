"""Strategies composed on one device mesh: each takes its own axis (systems_training 1.6, rules 1 to 6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from placement import correctness, strategies
from placement.semantics import Degrees, gradient_steps, parameter_fetches, ranks
from placement.states import (
    AXIS_ORDER,
    Axis,
    Dim,
    Mode,
    Number,
    Placement,
    PlacementError,
    Reduction,
    Span,
    Spread,
    State,
    StateBytes,
    state_bytes,
)

_HALVES = frozenset({Axis.SHARD, Axis.REPLICATE})
_OPTIONS = {"keep_gathered": Span.PASS, "accumulate": True, "separate_recompute_gather": False,
            "host_update": False, "bytes": None, "reduction": Reduction.SCATTER, "spread": Spread.GATHER,
            "secondary": ()}


def compose(*parts: Placement | str, bytes_preset: str | StateBytes | None = None) -> Placement:
    """One placement out of several on disjoint axes; a part is a placement or a strategy's name.

    Resident factors then multiply, and an outer axis communicates what the inner ones have already divided
    (rules 2 and 3); both follow from the composed placement. Raises PlacementError with the reason when two
    parts claim an axis, differ in an option, or together do not train the single-device model.

    >>> compose("zero-1", "tensor").sharded_axes(State.OPTIMIZER)
    (<Axis.TENSOR: 'tensor'>, <Axis.DATA: 'data'>)
    """
    placements = [strategies.get(part) if isinstance(part, str) else part for part in parts]
    modes: dict[State, dict[Axis, Mode]] = {}
    partition: dict[Axis, Dim] = {}
    owner: dict[Axis, str] = {}
    for placement in placements:
        _claim(placement, owner)
        partition |= placement.partition
        for state, of_state in placement.modes.items():
            for axis, mode in of_state.items():
                other = modes.setdefault(state, {}).setdefault(axis, mode)
                if other is not mode:
                    raise PlacementError(f"{state} cannot be both {other} and {mode} on axis {axis}")
    composed = Placement(modes, partition, **_merged_options(placements),
                         name=" x ".join(p.name or "unnamed" for p in placements),
                         source="; ".join(p.source for p in placements if p.source))
    if bytes_preset is not None:
        composed = replace(composed, bytes=state_bytes(bytes_preset))
    for finding in correctness.check(composed):
        raise PlacementError(f"{composed.name} does not train the single-device model: {finding}")
    return composed


def _claim(placement: Placement, owner: dict[Axis, str]) -> None:
    """Rule 1: an axis belongs to one strategy; `data` and its two halves are the same ranks."""
    name = placement.name or "an unnamed placement"
    axes = [axis for axis in placement.axes if axis is not Axis.MEMORY]
    for axis in axes:
        rivals = _HALVES if axis is Axis.DATA else {Axis.DATA} if axis in _HALVES else set()
        for taken in {axis, *rivals} & set(owner):
            raise PlacementError(f"{name} and {owner[taken]} both divide work over axis {taken}: "
                                 "give each its own axis")
    owner.update(dict.fromkeys(axes, name))


def _merged_options(placements: Sequence[Placement]) -> dict[str, Any]:
    """Options that differ from the default win; two different such values are a contradiction."""
    merged: dict[str, Any] = {}
    for option, default in _OPTIONS.items():
        chosen: Any = default
        for placement in placements:
            value = getattr(placement, option)
            if value != default and chosen not in (default, value):
                raise PlacementError(f"the parts differ in {option}: {chosen} and {value}")
            chosen = value if value != default else chosen
        merged[option] = chosen
    return merged


def widened(placement: Placement, *axes: Axis) -> Placement:
    """States divided over the data axis (or its shard half) divided over `axes` as well.

    Frameworks do so for context parallelism, whose ranks hold the same weights: Megatron's distributed
    optimizer and torch FSDP shard over data x context; so do the dense weights over an expert axis. Raises
    PlacementError for an axis whose ranks hold different weights.
    """
    source = Axis.SHARD if Axis.SHARD in placement.axes else Axis.DATA
    for axis in axes:
        if axis in placement.split_axes():
            raise PlacementError(f"axis {axis} splits the weights: no state can be divided over it again")
    modes = {
        state: {**of_state, **(dict.fromkeys(axes, of_state[source]) if source in of_state else {})}
        for state, of_state in placement.modes.items()
    }
    return replace(placement, modes=modes)


def data_degrees(placement: Placement, data: Number, group: Number | None = None) -> dict[Axis, Number]:
    """The degrees of the axes that make up data parallelism.

    group: ranks that share one copy of the states in a hybrid placement; None: all of them. Raises
    PlacementError when it does not divide `data`.

    >>> data_degrees(strategies.get("hsdp"), 32, 8)
    {<Axis.SHARD: 'shard'>: 8, <Axis.REPLICATE: 'replicate'>: 4}
    """
    if not _HALVES & set(placement.axes):
        return {Axis.DATA: data}
    group = data if group is None else group
    if np.any(np.asarray(data) % np.asarray(group)):
        raise PlacementError(f"data {data} is not a multiple of the shard group {group}")
    return {Axis.SHARD: group, Axis.REPLICATE: data // group}


def check_divides(placement: Placement, degrees: Degrees, sizes: Mapping[Dim, int]) -> None:
    """Rule 1, second half: the axes that split one dimension must together divide it.

    sizes: of the dimensions of the activations that are known, such as {Dim.SEQUENCE: 8192}. Raises
    PlacementError that shows every factor.
    """
    for dim, size in sizes.items():
        axes = [axis for axis in placement.axes if placement.partition.get(axis) is dim]
        factor = ranks(axes, degrees)
        if np.any(size % np.asarray(factor)):
            shown = " x ".join(f"{axis} {degrees.get(axis, 1)}" for axis in axes)
            raise PlacementError(f"{dim} {size} does not divide by {shown} = {factor}")


def remarks(placement: Placement, mesh_order: Sequence[Axis] | None = None) -> tuple[str, ...]:
    """What is legal but dear: traffic per micro-batch under a pipeline (rule 4), axes out of order (rule 5).

    mesh_order: the axes of the mesh, innermost (fastest links) first.
    """
    said = []
    if Axis.PIPELINE in placement.axes:
        for collective, axes, per in gradient_steps(placement):
            if per is Span.MICRO_BATCH:
                said.append(f"pipeline: the gradient {collective} over {' x '.join(axes)} is paid for every "
                            "micro-batch; gradients held whole there are reduced once a step")
        if any(per is Span.MICRO_BATCH for _, per in parameter_fetches(placement)):
            said.append("pipeline: parameters are gathered for every micro-batch; keep them for the step")
    order = [axis for axis in mesh_order or () if axis in placement.axes]
    for inner, outer in pairwise(order):
        if AXIS_ORDER.index(inner) > AXIS_ORDER.index(outer):
            said.append(f"mesh: axis {outer} sends more than {inner} and wants the faster links inside it")
    return tuple(said)
