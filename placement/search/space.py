"""The space of a search: axes with their values, and the blocks of distinct plans that they make.

A block is a set of plans that differ only along five dimensions of an array, so that they are priced together:

    mesh                tensor, context, expert and expert-tensor degree (data follows from the accelerators)
    micro_batch
    sequence_parallel
    work                what decides how a pass is run: recomputation, context method, overlapped communication
    states              where the model states lie: sharding, shard group, bytes

Every other axis (pipeline, virtual, schedule, ...) is one value in a block: its layout. Combinations that mean the
same plan are in one block once: a value that does not matter (sequence parallelism with one tensor rank, the schedule
of one stage) is the first of its axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import product
from typing import Any

from costmodel.architecture import Model
from placement import strategies
from placement.divisibility import feed_forwards
from placement.states import Axis, Placement

Values = Mapping[str, Any]  # dotted key -> value

MESH = ("plan.tensor", "plan.context", "plan.expert", "plan.expert_tensor")
WORK = ("plan.recompute", "plan.context_method", "stack.overlap")
STATES = ("plan.sharding", "plan.shard_group", "plan.state_bytes")
SIZES = ("plan.micro_batch", "plan.sequence_parallel")


@dataclass(frozen=True)
class Space:
    """`axes`: dotted key (plan.* or stack.*) -> its values; `base` gives the value of every key that is no axis.

    Raises ValueError for an axis without values and for plan.data, which follows from the accelerators.
    """

    axes: Mapping[str, tuple[Any, ...]]
    base: Values

    def __post_init__(self) -> None:
        if empty := [key for key, values in self.axes.items() if not values]:
            raise ValueError(f"axis {empty[0]} has no values")
        if "plan.data" in self.axes:
            raise ValueError("plan.data is what the other degrees leave of the accelerators; leave the axis out")

    @property
    def combinations(self) -> int:
        return math.prod(len(values) for values in self.axes.values())

    def values(self, key: str) -> tuple[Any, ...]:
        return self.axes[key] if key in self.axes else (self.base[key],)

    @property
    def work_keys(self) -> tuple[str, ...]:
        """Recomputation in passes of its own belongs to the layout: the order is made for it."""
        separate = any(count is not None for count in self.values("plan.recompute_chunks"))
        return WORK[1:] if separate else WORK

    @property
    def layout_keys(self) -> tuple[str, ...]:
        inner = (*MESH, *SIZES, *self.work_keys, *STATES)
        keys = dict.fromkeys(("plan.pipeline", "plan.virtual", "plan.schedule", *self.axes))
        return tuple(key for key in keys if key not in inner)


@dataclass(frozen=True)
class Block:
    """Plans priced together; all of them distinct. The dimensions in the order of the module's docstring."""

    layout: Values
    mesh: tuple[tuple[int, int, int, int], ...]  # tensor, context, expert, expert_tensor
    micro_batch: tuple[int, ...]
    sequence_parallel: tuple[bool, ...]
    work: tuple[Values, ...]
    states: tuple[Values, ...]
    overlap: tuple[str, ...] = field(default=())  # of data and pipeline traffic, beside what `work` overlaps

    @property
    def shape(self) -> tuple[int, ...]:
        dimensions = (self.mesh, self.micro_batch, self.sequence_parallel, self.work, self.states)
        return tuple(len(values) for values in dimensions)

    @property
    def plans(self) -> int:
        return math.prod(self.shape)

    def values_at(self, index: Sequence[int], keys: Sequence[str]) -> dict[str, Any]:
        """The values of one plan of the block, for some keys."""
        mesh, micro_batch, parallel, work, states = index
        found: dict[str, Any] = {**self.layout, **dict(zip(MESH, self.mesh[mesh], strict=True))}
        found |= {"plan.micro_batch": self.micro_batch[micro_batch]}
        found |= {"plan.sequence_parallel": self.sequence_parallel[parallel]}
        found |= {**self.work[work], **self.states[states]}
        found["stack.overlap"] = found.pop("as given", found.get("stack.overlap"))
        return {key: found[key] for key in keys if key in found}


def blocks(space: Space, model: Model, gpus: int) -> Iterator[Block]:
    """Every distinct plan of the space on so many accelerators, in blocks. Those that differ in the schedule alone come
    one after the other: they share nearly all that is priced."""
    keys = tuple(key for key in space.layout_keys if key != "plan.schedule")
    sparse = any(part.experts or part.memory for part in feed_forwards(model))  # what expert ranks hold
    works, states = cache(partial(_works, space)), tuple(_states(space))
    for values in product(*(space.values(key) for key in keys)):
        layout = dict(zip(keys, values, strict=True))
        stages = layout["plan.pipeline"]
        if gpus % stages or not _is_first(space, layout):
            continue
        schedules = space.values("plan.schedule")[: None if stages > 1 else 1]
        for pattern, mesh in _patterns(space, gpus // stages, sparse).items():
            idle = {name for name, matters in zip(_PATTERN, pattern, strict=True) if not matters}
            idle |= set() if stages > 1 else {"pipeline"}
            parallel = space.values("plan.sequence_parallel")[: 1 if "tensor" in idle else None]
            sizes = (tuple(mesh), tuple(space.values("plan.micro_batch")), tuple(parallel))
            for (overlap, work), schedule in product(works(frozenset(idle)).items(), schedules):
                yield Block({**layout, "plan.schedule": schedule}, *sizes, work, states, overlap)


def meshes(space: Space, ranks: int) -> list[tuple[int, int, int, int]]:
    """The degrees that the ranks of a stage can be dealt to: tensor x context, and the groups of experts."""
    found = product(*(space.values(key) for key in MESH))
    return [of for of in found if ranks % (of[0] * of[1]) == 0 and ranks % (of[2] * of[3]) == 0]


def placed(space: Space, gpus: int) -> int:
    """How many combinations have degrees that the accelerators can be dealt to."""
    fitting = sum(
        len(meshes(space, gpus // stages)) for stages in space.values("plan.pipeline") if gpus % stages == 0
    )
    others = (len(values) for key, values in space.axes.items() if key not in (*MESH, "plan.pipeline"))
    return fitting * math.prod(others)


def _is_first(space: Space, layout: Values) -> bool:
    """Whether what does not matter for a single chunk has the first value of its axis."""
    if layout["plan.pipeline"] * layout["plan.virtual"] > 1 or "plan.stage_layers" not in layout:
        return True
    return bool(layout["plan.stage_layers"] == space.values("plan.stage_layers")[0])


_PATTERN = ("tensor", "context", "expert")


def _patterns(
    space: Space, ranks: int, sparse: bool
) -> dict[tuple[bool, ...], list[tuple[int, int, int, int]]]:
    """(whether there are several tensor, context and expert ranks) -> the meshes of which that is so: in these the same
    values of the other axes matter. Overlap of the states' traffic always does: it may go to the host."""
    groups: dict[tuple[bool, ...], list[tuple[int, int, int, int]]] = {}
    for degrees in meshes(space, ranks):
        tensor, context, expert, expert_tensor = degrees
        pattern = (tensor > 1, context > 1, sparse and expert * expert_tensor > 1)
        groups.setdefault(pattern, []).append(degrees)
    return groups


def _works(space: Space, idle: frozenset[str]) -> dict[tuple[str, ...], tuple[Values, ...]]:
    """(what of data and pipeline traffic is overlapped) -> the distinct ways to run a pass."""
    keys = space.work_keys
    found: dict[tuple[str, ...], dict[tuple[Any, ...], Values]] = {}
    for values in product(*(space.values(key) for key in keys)):
        work = dict(zip(keys, values, strict=True))
        method = work["plan.context_method"]
        if "context" in idle and method != space.values("plan.context_method")[0]:
            continue
        given = tuple(work["stack.overlap"])
        without = idle | ({"context"} if method == "ring" else set())  # a ring runs beside attention anyway
        matters = tuple(sorted(set(given) - without))
        outer = tuple(name for name in matters if name in ("data", "pipeline"))
        inner = tuple(name for name in matters if name not in outer)
        distinct = tuple(value for key, value in work.items() if key != "stack.overlap") + inner
        work |= {"stack.overlap": tuple(name for name in given if name not in ("data", "pipeline")), "as given": given}
        found.setdefault(outer, {}).setdefault(distinct, work)
    return {outer: tuple(works.values()) for outer, works in found.items()}


def _states(space: Space) -> list[Values]:
    """The distinct placements: the group's size matters only where something is sharded inside a group."""
    groups = space.values("plan.shard_group")
    found: list[Values] = []
    for values in product(*(space.values(key) for key in STATES)):
        states = dict(zip(STATES, values, strict=True))
        sharding = states["plan.sharding"]
        placement = sharding if isinstance(sharding, Placement) else strategies.get(sharding)
        if Axis.SHARD in placement.axes or states["plan.shard_group"] == groups[0]:
            found.append(states)
    return found
