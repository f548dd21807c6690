"""Variants priced together: those that differ only in what `placement.search` holds as arrays become its blocks.

The others (another schedule's order to be played, unequal sequences, unequal accelerators, lone variants) are left to
be predicted one by one. What comes out agrees with that to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from costmodel.stack import Stack
from placement import schedules
from placement.memory import DEVICE_OVERHEAD_BYTES
from placement.passes import Setting
from placement.plan import Plan
from placement.search.pricing import Pricing, hashable
from placement.search.space import MESH, SIZES, STATES, WORK, Block, Space
from placement.step import Step, has_law
from simulator.inputs import TrainingInputs
from simulator.predict import Played, setting_of

FEWEST = 3  # variants that are worth a block
MOST_PLANS_A_VARIANT = 200  # of a block, which is always a full product
_LAYOUT = ("plan.pipeline", "plan.virtual", "plan.schedule")
_INNER = frozenset(key.partition(".")[2] for key in (*MESH, *SIZES, *WORK, *STATES, *_LAYOUT, "plan.data"))
_OUTSIDE_LAYERS = ("data", "pipeline")  # overlap that a block has one way of


@dataclass(frozen=True)
class _Member:
    """A variant of a group: its place among the inputs, and where it stands in a block."""

    place: int
    setting: Setting
    layout: tuple[Any, ...]
    mesh: tuple[int, int, int, int]
    micro_batch: int
    sequence_parallel: bool
    work: tuple[Any, ...]  # recompute, context method, overlap beside that of the block
    states: tuple[Any, ...]
    overlap: tuple[str, ...]

    @property
    def block(self) -> Hashable:
        """What all plans of a block have in common: layout, and which degrees are above 1 (placement.search.space)."""
        tensor, context, expert, expert_tensor = self.mesh
        return self.layout, self.overlap, tensor > 1, context > 1, expert * expert_tensor > 1


def played_together(cases: Sequence[TrainingInputs]) -> dict[int, Played]:
    """Place in `cases` -> its step by the closed form, for those that arrays price."""
    found: dict[int, Played] = {}
    for members, global_batch in _groups(cases):
        pricing = _pricing(members, global_batch)
        blocks: dict[Hashable, list[_Member]] = {}
        for member in members:
            blocks.setdefault(member.block, []).append(member)
        for of_block in blocks.values():
            if len(of_block) >= FEWEST:
                found |= _priced(pricing, of_block)
    return found


def _groups(cases: Sequence[TrainingInputs]) -> Iterator[tuple[list[_Member], int]]:
    """The variants that have everything in common but a layout and what a block varies, with their global batch."""
    groups: dict[Hashable, list[_Member]] = {}
    for place, inputs in enumerate(cases):
        if inputs.lengths is not None or inputs.cluster.groups:
            continue
        setting = setting_of(inputs)
        schedule = schedules.get(setting.plan.schedule)
        if not has_law(setting) or schedule.barriers or schedule.routes > 1:
            continue
        rest = tuple(hashable(getattr(setting.plan, f.name)) for f in fields(Plan) if f.name not in _INNER)
        key = (id(inputs.model), id(inputs.cluster), replace(setting.stack, overlap=()), inputs.sequence,
               inputs.global_batch, inputs.constants, rest)
        groups.setdefault(key, []).append(_member(place, setting))
    for members in groups.values():
        if len(members) >= FEWEST:
            yield members, cases[members[0].place].global_batch


def _member(place: int, setting: Setting) -> _Member:
    plan, given = setting.plan, setting.stack.overlap
    return _Member(
        place, setting, (plan.pipeline, plan.virtual, plan.schedule),
        (plan.tensor, plan.context, plan.expert, plan.expert_tensor), plan.micro_batch, plan.sequence_parallel,
        (plan.recompute, plan.context_method, tuple(name for name in given if name not in _OUTSIDE_LAYERS)),
        (plan.sharding, plan.shard_group, plan.state_bytes),
        tuple(sorted(name for name in given if name in _OUTSIDE_LAYERS)),
    )


def _pricing(members: Sequence[_Member], global_batch: int) -> Pricing:
    """Prices blocks of these variants: the space holds every value that one of them has."""
    base = members[0].setting
    columns = {
        **{key: [member.mesh[number] for member in members] for number, key in enumerate(MESH)},
        **{key: [member.states[number] for member in members] for number, key in enumerate(STATES)},
        **{key: [member.layout[number] for member in members] for number, key in enumerate(_LAYOUT)},
        "plan.micro_batch": [member.micro_batch for member in members],
        "plan.sequence_parallel": [member.sequence_parallel for member in members],
        "plan.recompute": [member.work[0] for member in members],
        "plan.context_method": [member.work[1] for member in members],
        "stack.overlap": [member.work[2] for member in members],
    }
    values: dict[str, Any] = {f"plan.{f.name}": getattr(base.plan, f.name) for f in fields(Plan) if f.name != "data"}
    values |= {f"stack.{f.name}": getattr(base.stack, f.name) for f in fields(Stack)}
    return Pricing(base, Space({key: _distinct(column) for key, column in columns.items()}, values), global_batch)


def _priced(pricing: Pricing, members: Sequence[_Member]) -> dict[int, Played]:
    """The variants of one block; none where the block would be mostly plans that nobody asked for."""
    mesh, works, states = (_distinct([getattr(member, name) for member in members])
                           for name in ("mesh", "work", "states"))
    sizes, parallel = (pricing.space.values(key) for key in SIZES)  # a block has all of them
    dimensions = (mesh, sizes, parallel, works, states)
    if math.prod(map(len, dimensions)) > MOST_PLANS_A_VARIANT * len(members):
        return {}
    block = Block(
        dict(zip(_LAYOUT, members[0].layout, strict=True)), mesh, sizes, parallel,
        tuple({**dict(zip(WORK, work, strict=True)), "as given": work[2]} for work in works),
        tuple(dict(zip(STATES, placed, strict=True)) for placed in states), members[0].overlap,
    )
    prices, found = pricing.price(block), {}
    for member in members:
        at = (mesh.index(member.mesh), sizes.index(member.micro_batch), parallel.index(member.sequence_parallel),
              works.index(member.work), states.index(member.states))
        if prices.exact and prices.divides[at]:
            step_time_s, busy_s = float(prices.step_time_s[at]), float(prices.busy_s[at])
            breakdown = {"gemm": busy_s, "bubble": float(prices.bubble_s[at])}  # all that works under one name
            peak_bytes = float(prices.needed_bytes[at]) - DEVICE_OVERHEAD_BYTES
            step = Step(step_time_s, breakdown, (breakdown,), (peak_bytes,), ({},), (0.0,))
            found[member.place] = Played(member.setting, step)
    return found


def _distinct(values: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(values))
