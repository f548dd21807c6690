"""The closed form of a step for whole blocks of plans at once, by the functions that price a single plan.

A layer is priced once for every mesh, micro-batch, sequence parallelism and way of working (`Table`); the traffic of
the states once for every placement; then both meet in `placement.step.rank_time`, which broadcasts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from placement import divisibility, schedules
from placement.hops import hop_s
from placement.memory import DEVICE_OVERHEAD_BYTES, bytes_on_host, in_flight_bytes, peak_states, resident_bytes
from placement.passes import Setting, total
from placement.pipeline import stages_of_rank
from placement.plan import Plan
from placement.search.arrays import along, collapsed, stacked, taken
from placement.search.space import MESH, Block, Space, Values, meshes
from placement.state_traffic import ChunkTraffic, UnitTraffic, norm_reduction_s, optimizer_s, unit_traffic, with_traffic
from placement.step import BUSY, Rank, RankTime, bubble_s, has_law, rank_time
from placement.units import Parts, Unit, chunk_units, parts

Number = Any
Floats = NDArray[np.float64]
# Layout axes that no layer's price depends on (a tied head does on whether there is a pipeline at all)
_BESIDE_LAYERS = ("plan.pipeline", "plan.virtual", "plan.schedule", "plan.stage_layers", "plan.in_flight_limit",
                  "plan.optimizer_barrier", "plan.offload_chunks")


@dataclass(frozen=True)
class Prices:
    """Of every plan of a block, in its shape. Where not `exact`, the schedule has no law: time with no waiting but for
    the first micro-batch, and memory without activations, which no order of its passes goes below."""

    step_time_s: Floats
    needed_bytes: Floats
    host_bytes: Floats  # of a device, mean over stages
    busy_s: Floats  # mean over ranks of the time in which the accelerator works
    bubble_s: Floats  # mean over ranks of the time in which a rank waits for others
    divides: NDArray[np.bool_]
    exact: bool
    rejected: Mapping[str, int]  # rule -> plans that break it first


@dataclass(frozen=True)
class _RankClass:
    """Pipeline ranks that hold equal chunks, with what does not depend on the order of their passes."""

    numbers: list[int]
    units: list[Unit]  # a chunk each
    time: RankTime
    whole_s: Number  # of the step, without waiting for others
    busy_s: Number
    empty_bytes: Number  # at the peak, but for the chunks in flight
    host_bytes: Number


class Pricing:
    """Prices blocks of a space around one setting; remembers what blocks share."""

    def __init__(self, base: Setting, space: Space, global_batch: int) -> None:
        self.base, self.space, self.global_batch = base, space, global_batch
        self.gpus = int(base.cluster.accelerators)
        self._tables: dict[Any, Parts] = {}
        self._parts: dict[Any, Parts] = {}
        self._traffic: dict[Any, UnitTraffic] = {}
        self._held: dict[Any, tuple[Number, Mapping[str, Number], Number]] = {}
        self._last: tuple[Any, Block, Number, list[_RankClass]] | None = None
        self._rules: dict[Any, list[tuple[str, Number]]] = {}
        self._group_rules: dict[Any, Number] = {}
        self._work_places: dict[int, tuple[tuple[Values, ...], tuple[int, ...]]] = {}

    def price(self, block: Block) -> Prices:
        """Raises PlanError where the layers do not fill the chunks (`layout_fault` tells before)."""
        setting = self.setting(block)
        count, ranks = self._ranks(block, setting)
        schedule, exact = schedules.get(setting.plan.schedule), has_law(setting)
        stages, virtual = int(setting.plan.pipeline), int(setting.plan.virtual)
        longest_s = ranks[0].whole_s
        occupied_s, busy_s, host_bytes, peak_bytes = 0.0, 0.0, 0.0, 0.0
        for rank in ranks:
            share = len(rank.numbers) / stages
            longest_s = np.maximum(longest_s, rank.whole_s)
            occupied_s, busy_s = occupied_s + rank.whole_s * share, busy_s + rank.busy_s * share
            host_bytes = host_bytes + rank.host_bytes * share
            held_bytes: Number = 0.0
            if exact and schedule.peak_in_flight is not None:
                numbers = np.reshape(rank.numbers, (-1,) + (1,) * count.ndim)
                in_flight = np.max(schedule.peak_in_flight(stages, numbers, count, virtual), axis=0)
                held_bytes = in_flight_bytes(rank.units, in_flight, stages, virtual, count)
            peak_bytes = np.maximum(peak_bytes, rank.empty_bytes + held_bytes)
        if not exact:
            longest_s = longest_s + _least_wait_s(setting, ranks, count)
        step_time_s = longest_s + norm_reduction_s(setting)
        if exact:
            times = [(rank.time, len(rank.numbers)) for rank in ranks]
            waiting_s = bubble_s(schedule, stages, virtual, count, times, hop_s(setting, 0))
            step_time_s, longest_s = step_time_s + waiting_s, longest_s + waiting_s
        divides, rejected = self._divides(block, setting)
        found = (step_time_s, peak_bytes + DEVICE_OVERHEAD_BYTES, host_bytes, busy_s, longest_s - occupied_s)
        step_time, needed, on_hosts, busy_time, bubble = (np.broadcast_to(one, block.shape) for one in found)
        return Prices(step_time, needed, on_hosts, busy_time, bubble, divides, exact, rejected)

    def _ranks(self, block: Block, setting: Setting) -> tuple[Number, list[_RankClass]]:
        """Micro-batches, and the ranks of a block by what they hold. The schedule changes neither, as long as it deals
        the stages alike, so that the last answer serves several blocks."""
        schedule = schedules.get(setting.plan.schedule)
        beside = {key: value for key, value in block.layout.items() if key != "plan.schedule"}
        key = (_key(beside), block.mesh, id(block.work), id(block.states), block.overlap, schedule.stage_of,
               schedule.routes, schedule.barriers > 0)
        if self._last is None or self._last[0] != key:
            made, made_key = self._block_parts(block)
            traffic_key = (made_key, block.layout["plan.pipeline"], tuple(map(_key, block.states)))
            pipeline = with_traffic(
                chunk_units(setting, made), lambda unit: self._unit_traffic(traffic_key, setting, block, unit)
            )
            count = self._micro_batches(setting)
            found = [self._rank_class(traffic_key, setting, block, count, *one)
                     for one in _rank_classes(setting, pipeline)]
            self._last = (key, block, count, found)
        return self._last[2:]

    def _rank_class(
        self, key: Any, setting: Setting, block: Block, count: Number, numbers: list[int], chunks: list[ChunkTraffic]
    ) -> _RankClass:
        update_s, resident, on_host = self._held_by(key, setting, block, chunks)
        time = rank_time(Rank(chunks, count, update_s, hides_data="data" in block.overlap,
                              overlap_cost=setting.constants.overlap_cost))
        busy_s = sum(seconds for category, seconds in time.seconds.items() if category in BUSY)
        empty_bytes = sum(peak_states(chunks, resident, 0.0).values())
        units = [chunk.whole for chunk in chunks]
        return _RankClass(numbers, units, time, total(time.seconds), busy_s, empty_bytes, on_host)

    def layout_fault(self, block: Block) -> str:
        """Why no plan of the block can be laid, "" where some can."""
        return divisibility.layout_fits(self.base.model, self.setting(block).plan)

    def setting(self, block: Block, work: int = 0, states: int = 0) -> Setting:
        """The block as one setting, with arrays along its first three dimensions and one way to work and place."""
        values = {**block.layout, **block.work[work], **block.states[states]}
        values["stack.overlap"] = (*block.overlap, *block.work[work]["stack.overlap"])
        values.pop("as given", None)
        return self._setting(values, block.mesh, block.micro_batch, block.sequence_parallel)

    def plan_setting(self, values: Values) -> Setting:
        """One plan of the space by itself, as a scenario would have it."""
        mesh = tuple(int(values.get(key, self.space.base[key])) for key in MESH)
        inner = {key: value for key, value in values.items() if key not in MESH}
        plan, stack = _fields("plan", inner), _fields("stack", inner)
        tensor, context, expert, expert_tensor = mesh
        pipeline = int({"pipeline": self.base.plan.pipeline, **plan}["pipeline"])
        degrees = {"tensor": tensor, "context": context, "expert": expert, "expert_tensor": expert_tensor,
                   "data": self.gpus // (tensor * context * pipeline)}
        plan_of = replace(self.base.plan, **{**plan, **degrees})
        return replace(self.base, plan=plan_of, stack=replace(self.base.stack, **stack))

    def _setting(self, values: Values, mesh: Sequence[tuple[int, int, int, int]], micro_batch: Sequence[int],
                 parallel: Sequence[bool]) -> Setting:
        tensor, context, expert, expert_tensor = (along(column, 0) for column in zip(*mesh, strict=True))
        ranks = self.gpus // values.get("plan.pipeline", 1)
        plan = replace(
            self.base.plan, **_fields("plan", values), tensor=tensor, context=context, expert=expert,
            expert_tensor=expert_tensor, data=np.maximum(ranks // (tensor * context), 1),
            micro_batch=along(micro_batch, 1), sequence_parallel=along(parallel, 2),
        )
        return replace(self.base, plan=plan, stack=replace(self.base.stack, **_fields("stack", values)))

    def _micro_batches(self, setting: Setting) -> Number:
        plan, routes = setting.plan, schedules.get(setting.plan.schedule).routes
        count = np.maximum(self.global_batch // (plan.data * plan.micro_batch), 1)
        return count * int(plan.segments) // routes

    @cached_property
    def _meshes(self) -> tuple[tuple[int, int, int, int], ...]:
        stages = [stages for stages in self.space.values("plan.pipeline") if self.gpus % stages == 0]
        return tuple(dict.fromkeys(mesh for p in stages for mesh in meshes(self.space, self.gpus // p)))

    @cached_property
    def _works(self) -> tuple[Values, ...]:
        """Every way to run a pass, without the overlap of data and pipeline traffic, which no layer's price knows."""
        keys = self.space.work_keys
        found: dict[Any, Values] = {}
        for values in product(*(self.space.values(key) for key in keys)):
            work = dict(zip(keys, values, strict=True))
            work["stack.overlap"] = tuple(x for x in work["stack.overlap"] if x not in ("data", "pipeline"))
            found.setdefault(_key(work), work)
        return tuple(found.values())

    def _table(self, layout: Values) -> tuple[Parts, Any]:
        """The parts of the model for every mesh, size and way to work of the space."""
        values = {key: value for key, value in layout.items() if key not in _BESIDE_LAYERS}
        values["plan.pipeline"] = 2 if layout["plan.pipeline"] > 1 else 1
        key = _key(values)
        if key not in self._tables:
            self._tables[key] = _changed([self._parts_for({**values, **work}) for work in self._works],
                                         lambda units: stacked(units, 3))
        return self._tables[key], key

    def _parts_for(self, values: Values) -> Parts:
        sizes, parallel = self.space.values("plan.micro_batch"), self.space.values("plan.sequence_parallel")
        setting = self._setting({**values, "plan.pipeline": 1}, self._meshes, sizes, parallel)
        setting = replace(setting, plan=replace(setting.plan, pipeline=values["plan.pipeline"]))
        return _changed([parts(setting)], lambda units: replace(units[0], price=collapsed(units[0].price)))

    def _block_parts(self, block: Block) -> tuple[Parts, Any]:
        """The table's parts cut to a block."""
        table, table_key = self._table(block.layout)
        rows = tuple(self._row_of[mesh] for mesh in block.mesh)
        works = self._places_of(block.work)
        parallel = tuple(range(len(block.sequence_parallel)))
        key = (table_key, rows, parallel, works)
        if key not in self._parts:
            cut = {0: rows, 2: parallel, 3: works}
            self._parts[key] = _changed([table], lambda units: taken(units[0], cut))
        return self._parts[key], key

    @cached_property
    def _row_of(self) -> dict[tuple[int, int, int, int], int]:
        return {mesh: index for index, mesh in enumerate(self._meshes)}

    def _places_of(self, works: tuple[Values, ...]) -> tuple[int, ...]:
        """Where a block's ways to work stand in the table; blocks share the tuple, which is kept with its answer."""
        if id(works) not in self._work_places:
            known = {_key(work): index for index, work in enumerate(self._works)}
            places = (known[_key({k: v for k, v in work.items() if k != "as given"})] for work in works)
            self._work_places[id(works)] = (works, tuple(places))
        return self._work_places[id(works)][1]

    def _unit_traffic(self, key: Any, setting: Setting, block: Block, unit: Unit) -> UnitTraffic:
        key = (key, id(unit.dense_parameters), id(unit.expert_parameters))
        if key not in self._traffic:
            of_states = [unit_traffic(_placed(setting, states), unit) for states in block.states]
            self._traffic[key] = stacked(of_states, 4)
        return self._traffic[key]

    def _held_by(
        self, key: Any, setting: Setting, block: Block, chunks: Sequence[ChunkTraffic]
    ) -> tuple[Number, Mapping[str, Number], Number]:
        """Seconds of the update, resident bytes, and bytes on the host of a rank; they depend on its weights alone."""
        weights = Counter(id(unit.dense_parameters) for chunk in chunks for unit in chunk.layers)
        key = (key, frozenset(weights.items()))
        if key not in self._held:
            units = [chunk.whole for chunk in chunks]
            settings = [_placed(setting, states) for states in block.states]
            update_s = stacked([optimizer_s(one, units) for one in settings], 4)
            resident = stacked([resident_bytes(one, units) for one in settings], 4)
            self._held[key] = update_s, resident, stacked([bytes_on_host(one, units) for one in settings], 4)
        return self._held[key]

    def _divides(self, block: Block, setting: Setting) -> tuple[Number, dict[str, int]]:
        """Where everything divides, and how many plans each rule takes out first."""
        divides = np.ones(block.shape, dtype=bool)
        rejected: dict[str, int] = {}

        def apply(rule: str, holds: Number, work: Sequence[int]) -> None:
            if np.all(holds):
                return
            before = np.count_nonzero(divides)
            divides[:, :, :, work] &= holds
            if out := before - np.count_nonzero(divides):
                rejected[rule] = rejected.get(rule, 0) + int(out)

        methods: dict[str, list[int]] = {}
        for index, work in enumerate(block.work):
            methods.setdefault(work["plan.context_method"], []).append(index)
        for method, places in methods.items():
            for rule, holds in self._rules_of(block, replace(setting.plan, context_method=method)):
                apply(rule, holds, places)
        apply("data ranks by shard_group", self._groups_divide(block, setting), range(len(block.work)))
        return divides, rejected

    def _rules_of(self, block: Block, plan: Plan) -> list[tuple[str, Number]]:
        """The rules that some plan of the block breaks. They look at degrees, sizes and what the schedule takes."""
        takes_group = schedules.get(plan.schedule).takes_group
        key = (block.mesh, block.micro_batch, block.sequence_parallel, int(plan.pipeline), takes_group,
               plan.context_method, plan.segments)
        if key not in self._rules:
            rules = divisibility.rules(self.base.model, plan, int(self.base.sequence), self.global_batch)
            self._rules[key] = [(rule, holds) for rule, holds in rules if not np.all(holds)]
        return self._rules[key]

    def _groups_divide(self, block: Block, setting: Setting) -> Number:
        key = (block.mesh, int(setting.plan.pipeline), tuple(map(_key, block.states)))
        if key not in self._group_rules:
            groups = [divisibility.shard_group_divides(_placed(setting, states).plan) for states in block.states]
            self._group_rules[key] = stacked(groups, 4)
        return self._group_rules[key]


def _placed(setting: Setting, states: Values) -> Setting:
    return replace(setting, plan=replace(setting.plan, **_fields("plan", states)))


def _fields(block: str, values: Values) -> dict[str, Any]:
    """The values of one block of a scenario, by the names of its fields."""
    return {key.partition(".")[2]: value for key, value in values.items() if key.startswith(f"{block}.")}


def _key(values: Values) -> tuple[Any, ...]:
    return tuple(sorted(((key, hashable(value)) for key, value in values.items()), key=lambda pair: pair[0]))


def hashable(value: Any) -> Any:
    """The value, or what it looks like where it cannot be the key of a dictionary (a placement written out)."""
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return value


def _changed(alternatives: Sequence[Parts], change: Callable[[Sequence[Unit]], Unit]) -> Parts:
    """Parts made of alternatives, unit by unit; equal layers go on sharing one unit."""
    known: dict[int, Unit] = {}

    def made(units: Sequence[Unit]) -> Unit:
        return known.setdefault(id(units[0]), change(units)) if id(units[0]) not in known else known[id(units[0])]

    layers = tuple(made(units) for units in zip(*(one.layers for one in alternatives), strict=True))
    return Parts(layers, made([one.embedding for one in alternatives]), made([one.head for one in alternatives]))


def _least_wait_s(setting: Setting, ranks: Sequence[_RankClass], count: Number) -> Number:
    """What any order of the passes waits beyond the passes of the busiest rank: a rank starts when all ranks before it
    have passed the first micro-batch. 0 where an order has other passes than these, or may start elsewhere."""
    plan, schedule = setting.plan, schedules.get(setting.plan.schedule)
    others = schedule.takes_segments or schedule.barriers or plan.recompute_chunks or plan.offload_chunks
    if schedule.routes > 1 or others or not plan.optimizer_barrier:
        return 0.0
    class_of = {number: rank for rank in ranks for number in rank.numbers}
    busy_s, ends_s, ramp_s = [], [], 0.0
    for number in range(len(class_of)):
        prices = [unit.price for unit in class_of[number].units]
        busy_s.append(count * sum(total(price.forward) + total(price.backward) for price in prices))
        ends_s.append(busy_s[-1] + ramp_s)
        ramp_s = ramp_s + total(prices[0].forward)
    return reduce(np.maximum, ends_s) - reduce(np.maximum, busy_s)


def _rank_classes(
    setting: Setting, pipeline: Sequence[ChunkTraffic]
) -> list[tuple[list[int], list[ChunkTraffic]]]:
    """The ranks that hold equal chunks, with these chunks, in the order of the pipeline."""
    classes: dict[tuple[int, ...], tuple[list[int], list[ChunkTraffic]]] = {}
    for rank in range(int(setting.plan.pipeline)):
        chunks = [pipeline[number] for number in stages_of_rank(setting, rank)]
        key = tuple(id(chunk.whole) for chunk in chunks)
        classes.setdefault(key, ([], chunks))[0].append(rank)
    return list(classes.values())
