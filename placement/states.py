"""The vocabulary of placement: what is held (states), how (modes), along which axis of the device mesh.

After "Placement Semantics for Distributed Deep Learning" (arXiv 2601.02311): four states and five modes
determine memory and communication. The operational meaning given to the modes here is this project's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Any, TypeAlias

Number: TypeAlias = Any  # a scalar or a NumPy array; all of them broadcast together


class PlacementError(ValueError):
    """A placement that cannot be meant: a mode where it makes no sense, or an illegal composition."""


class State(StrEnum):
    """What a training step holds."""

    PARAMETERS = "parameters"
    OPTIMIZER = "optimizer"  # with the fp32 master weights, where there are any
    GRADIENTS = "gradients"
    ACTIVATIONS = "activations"


class Mode(StrEnum):
    """How a state lies along one axis: the first three on an axis of the mesh, the last two on `MEMORY`."""

    REPLICATED = "replicated"  # every rank holds all of it
    SHARDED = "sharded"  # every rank holds, and uses, 1/N
    SHARDED_WITH_GATHER = "sharded-with-gather"  # every rank holds 1/N and gathers the whole for each use
    MATERIALIZED = "materialized"  # not held: rebuilt when needed (activation recompute)
    OFFLOADED = "offloaded"  # held in host memory, staged through the device

    @property
    def letter(self) -> str:
        """The paper's letter: R, S, S*, M or O."""
        return {"replicated": "R", "sharded": "S", "sharded-with-gather": "S*"}.get(self, self[0].upper())


class Axis(StrEnum):
    """The axes of the device mesh, innermost (fastest link) first, then the memory hierarchy.

    `DATA` is plain data parallelism; hybrid schemes use its two halves instead: `SHARD` (inside a group) and
    `REPLICATE` (across groups). `MEMORY` is no axis of the mesh but the depth below a device: the one axis
    along which a state can be offloaded or materialized.
    """

    TENSOR = "tensor"
    CONTEXT = "context"
    EXPERT = "expert"
    SHARD = "shard"
    DATA = "data"
    REPLICATE = "replicate"
    PIPELINE = "pipeline"
    MEMORY = "memory"


AXIS_ORDER = tuple(Axis)  # inner to outer
FLATTENED_AXES = frozenset({Axis.CONTEXT, Axis.EXPERT, Axis.SHARD, Axis.DATA, Axis.REPLICATE})
"""Axes that frameworks flatten into one communicator when the same collective runs over several of them."""


class Dim(StrEnum):
    """The dimension of the activations that an axis partitions."""

    BATCH = "batch"
    SEQUENCE = "sequence"
    HIDDEN = "hidden"  # split inside a block, whole between blocks (tensor parallelism)
    HEAD = "head"  # where a shared weight acts on heads that lie on different ranks (QK norm)
    LAYER = "layer"


class Span(StrEnum):
    """How long something lasts, or how often it happens."""

    PASS = "pass"
    MICRO_BATCH = "micro-batch"
    STEP = "step"


class Reduction(StrEnum):
    """By which collectives a gradient is summed."""

    SCATTER = "reduce-scatter"  # each rank gets what its optimizer consumes (an all-reduce where that is all of it)
    ALL_REDUCE = "all-reduce"  # where gradients are held whole, every rank gets the whole sum and uses its part
    ALL_TO_ALL = "all-to-all"  # each part is sent to its owner, who sums: one hop an axis, inner first


class Spread(StrEnum):
    """By which collectives updated parameters reach the ranks that hold them."""

    GATHER = "all-gather"
    BROADCASTS = "broadcasts"  # the owners send their parts to the group one after another, before anything else runs
    BROADCASTS_BESIDE = "overlapped-broadcasts"  # as before, but beside the next step's first forward pass

    @property
    def by_owners(self) -> bool:
        return self is not Spread.GATHER


@dataclass(frozen=True)
class StateBytes:
    """Bytes per parameter of the three model states, and on the wire.

    `gathered`: bytes per parameter of the copy that a gather makes, where it is a cast of the stored one
    (PyTorch FSDP: fp32 shards, bf16 copies); None: the stored format, and the copy then contains the shard.
    `reduced`: bytes per parameter of a gradient on its way to be summed; None: as stored.
    `packed_parameters`, `packed_gradients`: bytes per parameter where they are quantised for the wire alone.
    """

    parameters: float
    gradients: float
    optimizer: float
    gathered: float | None = None
    reduced: float | None = None
    packed_parameters: float | None = None
    packed_gradients: float | None = None

    @property
    def total(self) -> float:
        return self.parameters + self.gradients + self.optimizer

    def of(self, state: State) -> float:
        """Bytes per parameter of a model state as stored; 0 for activations, which are not per parameter."""
        return float(getattr(self, state)) if state is not State.ACTIVATIONS else 0.0

    @property
    def parameter_copy(self) -> float:
        """Of a gathered copy."""
        return self.parameters if self.gathered is None else self.gathered

    @property
    def parameter_wire(self) -> float:
        """Sent in a gather for use."""
        return self.parameter_copy if self.packed_parameters is None else self.packed_parameters

    @property
    def gradient_copy(self) -> float:
        """Of a whole gradient that waits for its reduction."""
        return self.gradients if self.reduced is None else self.reduced

    @property
    def gradient_wire(self) -> float:
        """Sent in a reduction."""
        return self.gradient_copy if self.packed_gradients is None else self.packed_gradients


STATE_BYTES: dict[str, StateBytes] = {
    "mixed": StateBytes(2, 2, 12),  # ZeRO (arXiv 1910.02054), DeepSpeed, Megatron --grad-reduce-in-bf16: 16-bit P, G
    "megatron": StateBytes(2, 4, 12),  # bf16 weights, fp32 main gradients: 18; ZeRO-1 6 + 12/N
    "torch-fsdp": StateBytes(4, 4, 8, gathered=2),  # fp32 shards are the master; bf16 copies; fp32 reduction
    "torch-fsdp-16-bit": StateBytes(4, 4, 8, gathered=2, reduced=2),  # MixedPrecision(reduce_dtype=bf16)
    "fp32": StateBytes(4, 4, 8),  # Adam without a master copy
    "bf16": StateBytes(2, 2, 4),  # everything in 16 bits, no master copy
    "mixed-packed": StateBytes(2, 2, 12, packed_parameters=1, packed_gradients=0.5),  # ZeRO++: int8, int4 on the wire
}


def state_bytes(preset: str | StateBytes) -> StateBytes:
    """The preset of that name (`STATE_BYTES`), or the argument itself. Raises PlacementError."""
    if isinstance(preset, StateBytes):
        return preset
    if preset not in STATE_BYTES:
        raise PlacementError(f"no bytes preset {preset!r}; known: {', '.join(STATE_BYTES)}")
    return STATE_BYTES[preset]


_MEMORY_MODES = frozenset({Mode.MATERIALIZED, Mode.OFFLOADED})


@dataclass(frozen=True)
class Placement:
    """Where every state lies: a mode for each state and axis; what is not named is replicated.

    modes: state -> axis -> mode, for parameters, gradients and optimizer; activations only on `MEMORY`.
    partition: axis -> dimension of the activations split over it (activations are parts of different work,
        so they have a dimension, not a copy count; an axis not named leaves them whole).
    keep_gathered: how long a gathered copy of the parameters lives: `PASS` (freed after forward, gathered
        again for backward), `MICRO_BATCH` (until that micro-batch's backward is over), `STEP` (until the
        update; one gather a step).
    accumulate: gradients held whole on an axis are summed locally over the micro-batches and reduced once a
        step; False reduces every micro-batch (the same sum, m times the volume).
    separate_recompute_gather: with recompute, the recompute pass and the backward gather apart.
    host_update: an offloaded optimizer is updated by the host (gradients go down, parameters come up) and
        not streamed through the device.
    reduction, spread: the collectives of gradients and of updated parameters.
    secondary: axes over which a second copy of the parameters is sharded, which the forward gather leaves behind;
        the gathers after it (backward) take that copy and stay on these axes (ZeRO++ hpZ, arXiv 2306.10209).
    """

    modes: Mapping[State, Mapping[Axis, Mode]] = field(default_factory=dict)
    partition: Mapping[Axis, Dim] = field(default_factory=dict)
    bytes: StateBytes | None = None
    keep_gathered: Span = Span.PASS
    accumulate: bool = True
    separate_recompute_gather: bool = False
    host_update: bool = False
    reduction: Reduction = Reduction.SCATTER
    spread: Spread = Spread.GATHER
    secondary: tuple[Axis, ...] = ()
    name: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        for state, modes in self.modes.items():
            for axis, mode in modes.items():
                self._check(state, axis, mode)
        if self.secondary and self.keep_gathered is not Span.PASS:
            raise PlacementError("a secondary copy serves the backward gather; parameters kept gathered have none")
        if strange := [axis for axis in self.secondary if axis not in self.gathered_axes()]:
            raise PlacementError(f"secondary copy on axis {strange[0]}: the parameters are not gathered over it")

    def _check(self, state: State, axis: Axis, mode: Mode) -> None:
        where = f"{state} {mode} on axis {axis}"
        if (mode in _MEMORY_MODES) != (axis is Axis.MEMORY):
            raise PlacementError(f"{where}: offloaded and materialized go with axis memory, and only they")
        if mode is Mode.SHARDED_WITH_GATHER and state is not State.PARAMETERS:
            raise PlacementError(f"{where}: only parameters are gathered for use; write sharded")
        if mode is Mode.MATERIALIZED and state is not State.ACTIVATIONS:
            raise PlacementError(f"{where}: only activations can be rebuilt; parameters would be lost")
        if state is State.ACTIVATIONS and axis is not Axis.MEMORY:
            raise PlacementError(f"{where}: name the dimension of the activations split over {axis} instead")

    def mode(self, state: State, axis: Axis) -> Mode:
        """The mode of a state on an axis; activations are sharded where they are partitioned."""
        if state is State.ACTIVATIONS and axis in self.partition:
            return Mode.SHARDED
        return self.modes.get(state, {}).get(axis, Mode.REPLICATED)

    @cached_property
    def axes(self) -> tuple[Axis, ...]:
        """The axes the placement names, inner to outer."""
        named = set(self.partition).union(*(modes for modes in self.modes.values()))
        return tuple(axis for axis in AXIS_ORDER if axis in named)

    @property
    def state_bytes(self) -> StateBytes:
        """Bytes per parameter; the `mixed` preset where none was chosen."""
        return self.bytes or STATE_BYTES["mixed"]

    def sharded_axes(self, state: State) -> tuple[Axis, ...]:
        """The mesh axes over which each rank holds 1/N of a state at rest, inner to outer."""
        held = (Mode.SHARDED, Mode.SHARDED_WITH_GATHER)
        return tuple(axis for axis in self.axes if self.mode(state, axis) in held)

    def gathered_axes(self) -> tuple[Axis, ...]:
        """The axes over which the parameters are gathered for use, inner to outer."""
        return tuple(a for a in self.axes if self.mode(State.PARAMETERS, a) is Mode.SHARDED_WITH_GATHER)

    def split_axes(self) -> tuple[Axis, ...]:
        """The axes that split the weights themselves: each rank uses its own shard and never gathers."""
        return tuple(a for a in self.axes if self.mode(State.PARAMETERS, a) is Mode.SHARDED)

    def partial_axes(self) -> tuple[Axis, ...]:
        """The axes over which ranks compute different parts of the gradient of the same weight elements.

        There a rank uses the whole weight on a part of the work: a part of the batch, of the sequence, of the
        heads, or (a weight tied across stages) of the layers. `HIDDEN` leaves the work between blocks whole.
        """
        return tuple(
            axis for axis in self.axes
            if self.mode(State.PARAMETERS, axis) is not Mode.SHARDED
            and self.partition.get(axis, Dim.HIDDEN) is not Dim.HIDDEN
        )

    def offloaded(self, state: State) -> bool:
        return self.mode(state, Axis.MEMORY) is Mode.OFFLOADED

    @property
    def recomputes(self) -> bool:
        return self.mode(State.ACTIVATIONS, Axis.MEMORY) is Mode.MATERIALIZED

    def holding_whole(self, *axes: Axis, dim: Dim | None = None) -> Placement:
        """The placement of those weights that are not split over `axes` although the others are.

        Norms and routers (tensor), tied embeddings (pipeline), dense weights beside experts (expert). `dim`:
        the dimension of the activations split over these axes where these weights act, if another one.
        """
        modes = {s: {a: m for a, m in of.items() if a not in axes} for s, of in self.modes.items()}
        partition = {**self.partition, **(dict.fromkeys(axes, dim) if dim else {})}
        return replace(self, modes=modes, partition=partition)
