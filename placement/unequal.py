"""A step of fully sharded data parallelism on unequal accelerators, in closed form (Cephalo, arXiv 2411.01075).

Every accelerator prices a layer as it would among its equals (`placement.passes`); `placement.shares` divides samples
and states. What is of this file is how ranks of unequal speed meet:

- Ranks wait for one another once a pass: all gathers and reductions of a pass are collective, and prefetching lets a
  rank run ahead by no more than a layer. A pass takes as long as that of the slowest rank.
- A gather or reduction moves through a ring whose slowest link sets the pace: it takes as long as on a cluster of that
  many of the poorest node. Shards are not padded: a step of the ring waits for the longest, so the time is that of N
  times the largest share, and the gathered copy takes no more than its size.
- A layer may run all of a rank's micro-batches before the next layer begins (the paper's layered gradient
  accumulation): states are then gathered and reduced once a step, but all samples' activations live at once. Logits do
  not: the head's backward pass follows each forward pass.
- Gradients are summed over samples and divided by the global batch, so that unequal batches weigh as they should.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from costmodel.hardware import Cluster
from placement import shares
from placement.memory import DEVICE_OVERHEAD_BYTES, resident_bytes
from placement.passes import Seconds, Setting, add, total
from placement.plan import Plan, PlanError
from placement.shares import Division, Group, Kind, Problem
from placement.state_traffic import norm_reduction_s, optimizer_s, unit_traffic
from placement.states import Axis, Placement, Span, State
from placement.step import Step
from placement.units import Unit, chunk_units, merged

WAITING = "waiting"  # breakdown category: waiting for slower accelerators
UNSPLIT = ("tensor", "pipeline", "virtual", "context", "expert", "expert_tensor", "segments")
STATES = (State.PARAMETERS, State.OPTIMIZER, State.GRADIENTS)


def faults(plan: Plan, placement: Placement, ranks: int, batch: int) -> Iterator[tuple[str, str]]:
    """Why a plan cannot be laid over so many unequal accelerators: (key of the plan, global_batch or beside; the
    reason)."""
    if ranks > shares.MOST_RANKS:
        yield "beside", f"{ranks:,} accelerators are more than the {shares.MOST_RANKS:,} that work can be dealt to"
    told = "unequal accelerators share a model by sharding alone"
    for name in UNSPLIT:
        if getattr(plan, name) != 1:
            yield name, f"{told}, so it must be 1 (it is {getattr(plan, name):,})"
    if plan.micro_batch != 1:
        yield "micro_batch", f"every unequal accelerator gets one of its own; leave it out (it is {plan.micro_batch:,})"
    unused = (("techniques", bool(plan.techniques)), ("trainable", plan.trainable != "all"),
              ("offload_chunks", plan.offload_chunks > 0),
              ("recompute_chunks", plan.recompute_chunks is not None), ("shard_group", plan.shard_group is not None))
    for name, given in unused:
        if given:
            yield name, f"{told}; leave it out"
    whole = any(placement.sharded_axes(state) != (Axis.DATA,) or placement.offloaded(state) for state in STATES)
    if whole or not placement.gathered_axes() or placement.keep_gathered is not Span.PASS:
        yield "sharding", ("shares of the states need all of them sharded over all ranks and gathered for each pass, "
                           f"as fsdp and zero-3 do; {placement.name or 'this placement'} does not")
    if batch > shares.MOST_SAMPLES:
        yield "global_batch", f"{batch:,} is more than the {shares.MOST_SAMPLES:,} samples that can be dealt one by one"
    elif not shares.get(plan.shares).free_batch and batch % ranks:
        yield "global_batch", (f"{batch:,} does not divide by {ranks:,} accelerators, and plan.shares {plan.shares} "
                               "gives each as many; decoupled and by-speed take any")


@dataclass(frozen=True)
class Ranks:
    """Equal accelerators among the unequal: priced as if all N ranks were of their kind, for every micro-batch from 1
    up. `units` are those of the whole model, `states` the bytes of the states that all ranks hold together."""

    setting: Setting
    count: int
    units: tuple[Unit, ...]

    @classmethod
    def of(cls, setting: Setting, cluster: Cluster, ranks: int, largest: int) -> Ranks:
        alike = Cluster(cluster.node, -(-ranks // cluster.node.accelerators), ranks, cluster.power_limit_w)
        plan = replace(setting.plan, data=ranks, micro_batch=np.arange(1, largest + 1))
        one = replace(setting, cluster=alike, plan=plan)
        return cls(one, cluster.accelerators, chunk_units(one)[0])

    @property
    def name(self) -> str:
        return self.setting.cluster.node.name

    def states_bytes(self) -> dict[str, float]:
        """Bytes of each state, of all ranks together."""
        held = resident_bytes(self.setting, self.units)
        return {str(state): float(held[str(state)]) * self.setting.cluster.accelerators for state in STATES}

    def beside_bytes(self) -> dict[str, float]:
        """What lies on a device beside states and activations: the gathered copy of the unit in use and of the next, a
        gradient before it is scattered, workspace and overhead."""
        flows = [unit_traffic(self.setting, unit) for unit in {id(unit): unit for unit in self.units}.values()]
        workspace = float(resident_bytes(self.setting, self.units[:1])["workspace"])
        return {
            "gathered": 2.0 * max(float(flow.gathered_bytes) for flow in flows),
            "unreduced gradients": max(float(flow.gradient_bytes) for flow in flows),
            "workspace": workspace,
        }

    def kind(self) -> Kind:
        """The numbers that `placement.shares` divides by; the value for 0 samples stands in front."""
        whole = merged(self.units)

        def of_samples(values: object) -> shares.Floats:
            most = int(self.setting.plan.micro_batch[-1])
            return np.concatenate(([0.0], np.broadcast_to(np.asarray(values, dtype=float), (most,))))

        capacity = self.setting.cluster.accelerator.memory.capacity_bytes - DEVICE_OVERHEAD_BYTES
        return Kind(
            self.name, self.count, of_samples(total(whole.price.forward)), of_samples(total(whole.price.backward)),
            of_samples(whole.saved_bytes - whole.head_bytes), of_samples(whole.head_bytes + whole.working_bytes),
            capacity - sum(self.beside_bytes().values()),
        )

    def traffic_s(self, largest: float) -> tuple[float, float, float]:
        """(gathers of a forward pass, gathers and reductions of a backward pass, update) for a largest share of the
        states, if all links were as those of this kind."""
        times = largest * self.setting.cluster.accelerators
        forward_s = backward_s = 0.0
        for key, count in Counter(id(unit) for unit in self.units).items():
            unit = next(one for one in self.units if id(one) == key)
            flow = unit_traffic(self.setting, _scaled(unit, times))
            forward_s += count * float(flow.forward_gather_s)
            backward_s += count * float(flow.backward_gather_s + flow.backward_reduce_s)
        return forward_s, backward_s, times * float(optimizer_s(self.setting, self.units))


def _scaled(unit: Unit, times: float) -> Unit:
    """A unit with so many times the parameters: what is sent when shards are as long as the largest."""
    return replace(
        unit, dense_parameters=times * unit.dense_parameters, expert_parameters=times * unit.expert_parameters,
        trainable_dense=times * unit.trainable_dense, trainable_experts=times * unit.trainable_experts,
    )


def problem(setting: Setting, kinds: Sequence[Ranks], batch: int) -> Problem:
    """What is to be divided over these ranks."""
    norm_s = max(float(norm_reduction_s(kind.setting)) for kind in kinds)

    @cache
    def traffic(largest: float) -> tuple[float, float, float]:
        of_kinds = [kind.traffic_s(largest) for kind in kinds]
        forward_s, backward_s, update_s = (max(parts) for parts in zip(*of_kinds, strict=True))
        return forward_s, backward_s, update_s + norm_s

    cost = setting.constants.overlap_cost if "data" in setting.stack.overlap else None
    return Problem(tuple(kind.kind() for kind in kinds), batch, sum(kinds[0].states_bytes().values()), traffic, cost)


@dataclass(frozen=True)
class UnequalStep(Step):
    """A step whose "stages" are groups of equal ranks with equal shares; `free_bytes` of each device of a group."""

    free_bytes: tuple[float, ...] = ()

    @property
    def worst_stage(self) -> int:
        """The group that misses by most, or has the least memory free."""
        return min(range(len(self.free_bytes)), key=lambda group: self.free_bytes[group])


@dataclass(frozen=True)
class Divided:
    """The step of a division; `setting` is that of the group with the least free memory, for its micro-batch."""

    setting: Setting
    step: UnequalStep
    division: Division
    problem: Problem
    kinds: tuple[Ranks, ...]


def divided_step(setting: Setting, groups: Sequence[Cluster], batch: int) -> Divided:
    """The step on groups of unequal accelerators by the policy `plan.shares`. `setting.cluster` is not looked at.

    Raises PlanError where such a plan is not played.
    """
    plan = setting.plan
    policy, ranks = shares.get(plan.shares), sum(group.accelerators for group in groups)
    for key, reason in faults(plan, setting.placement, ranks, batch):
        raise PlanError(f"{key}: {reason}")
    kinds = tuple(Ranks.of(setting, group, ranks, batch) for group in groups)
    case = problem(setting, kinds, batch)
    division = policy(case)
    parts = [_breakdown(case, kinds[group.kind], group, division) for group in division.groups]
    held = [_held(kinds[group.kind], group) for group in division.groups]
    capacities = [kinds[group.kind].setting.cluster.accelerator.memory.capacity_bytes for group in division.groups]
    mean: Seconds = {}
    for part, group in zip(parts, division.groups, strict=True):
        add(mean, part, group.count / case.ranks)
    peaks = tuple(sum(states.values()) for states in held)
    free = tuple(capacity - DEVICE_OVERHEAD_BYTES - peak for capacity, peak in zip(capacities, peaks, strict=True))
    step = UnequalStep(division.step_s, mean, tuple(parts), peaks, tuple(held), free_bytes=free)
    tightest = division.groups[step.worst_stage]
    shown = kinds[tightest.kind].setting
    micro_batch = max(tightest.choice.micro_batch, 1)
    shown = replace(shown, plan=replace(shown.plan, micro_batch=micro_batch))
    return Divided(shown, step, division, case, kinds)


def _breakdown(case: Problem, ranks: Ranks, group: Group, division: Division) -> dict[str, float]:
    """Seconds of a step on the accelerators of a group; adds up to the step."""
    choice, whole = group.choice, merged(ranks.units)
    gather_s, back_s, update_s = case.traffic(division.largest_share)
    times = division.passes * choice.micro_batches
    seconds: Seconds = {}
    for price in (whole.price.forward, whole.price.backward):
        for category, values in price.items():
            found = np.broadcast_to(values, ranks.setting.plan.micro_batch.shape)
            add(seconds, {category: float(found[choice.micro_batch - 1])}, times if choice.micro_batch else 0.0)
    for compute_s, traffic_s in ((choice.forward_s, gather_s), (choice.backward_s, back_s)):
        hidden = 0.0 if case.overlap_cost is None else min(compute_s, traffic_s)
        add(seconds, {"data_communication": traffic_s - hidden, "contention": (case.overlap_cost or 0.0) * hidden},
            division.passes)
    optimizer = group.state_share * ranks.setting.cluster.accelerators * float(optimizer_s(ranks.setting, ranks.units))
    add(seconds, {"optimizer": min(optimizer, update_s)})
    seconds[WAITING] = max(division.step_s - float(total(seconds)), 0.0)
    return {category: float(value) for category, value in seconds.items()}


def _held(ranks: Ranks, group: Group) -> dict[str, float]:
    """Bytes by state on each accelerator of a group at its peak, without the overhead beside the allocator."""
    held = {state: size * group.state_share for state, size in ranks.states_bytes().items()}
    beside = ranks.beside_bytes()
    held["gradients"] += beside.pop("unreduced gradients")
    return {**held, **beside, "activations": group.choice.activation_bytes}
